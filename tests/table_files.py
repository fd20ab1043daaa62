"""What the tests of the table share: settings, and files read and written as they are."""
from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List

import numpy as np
from random_cases import tier_costs

import lut_manager
import step1_measure_lut as step1
from config import Settings
from costs.cost_model import Roofline
from tier import roofline

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


def watch_tiers(monkeypatch) -> List[str]:
    """The tiers that step 1 measures or simulates from now on, in order, without the time that it takes."""
    found: List[str] = []

    def costs(tier: str, chosen: Settings, info: Dict[str, Any]):
        found.append(tier)
        return tier_costs(tier, chosen, len(found), {'name': 'this machine', **info})

    monkeypatch.setattr(lut_manager, 'measure_tier', lambda tier, chosen, *rest: costs(tier, chosen, {
        'simulated': False}))
    monkeypatch.setattr(lut_manager, 'simulate_client', lambda chosen, *rest: costs('client', chosen, {
        'simulated': True, 'profile': chosen.DEVICE_PROFILE}))
    monkeypatch.setattr(roofline, 'measure_roofline', lambda *rest: (ROOFLINE.peak_gflops, ROOFLINE.bandwidth_gbs))
    return found


def run_step1(mode: str, folder, *overrides: str) -> None:
    step1.main(['--mode', mode, '--set', f'RESULTS_DIR={folder}', *overrides])


def measured_client(folder, **changed) -> str:
    """A client table as a device would have written it."""
    chosen = settings_in(folder, DEVICE_PROFILE='', **changed)
    return lut_manager.save_tier(tier_costs('client', chosen, 77, {'name': 'my board', 'simulated': False}), chosen)
