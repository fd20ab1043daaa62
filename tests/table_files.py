"""What the tests of the table share: settings, and files read and written as they are."""
from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict

import numpy as np

from config import Settings
from costs.cost_model import Roofline

ROOFLINE = Roofline(50.0, 10.0)


def settings_in(folder, **changed) -> Settings:
    return Settings(RESULTS_DIR=str(folder), WEIGHT_PATH_SERVER='', LUT_ROUNDS=1, **changed)


def content_of(path: str) -> Dict[str, Any]:
    with open(path, encoding='utf-8') as stream:
        return json.load(stream)


def write_text(path: str, text: str) -> str:
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(text)
    return path


def bytes_of(path: str) -> bytes:
    with open(path, 'rb') as stream:
        return stream.read()


def assert_same(found: Any, expected: Any, where: str = 'table') -> None:
    """Equal to the last bit, NaN equal to NaN, all the way down."""
    if dataclasses.is_dataclass(expected):
        for item in dataclasses.fields(expected):
            assert_same(getattr(found, item.name), getattr(expected, item.name), f'{where}.{item.name}')
    elif isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f'{where}.{key}')
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert found == expected, where
