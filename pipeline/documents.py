"""Reading JSON files without trusting them: every field is checked, every fault is one line that names the file."""
from __future__ import annotations

import json
import math
import os
from typing import Any, Dict, List, Sequence, Union

from config import Settings, UserError

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 256 << 20  # a larger file is not one of ours

Field = Union[str, Sequence[str]]  # 'metadata.model', or a sequence of keys where these may hold dots


def _label(field: Field) -> str:
    return field if isinstance(field, str) else '.'.join(field)


class Document:
    """A JSON file's content with checked access: a missing or ill-typed field is a `UserError` naming it."""

    def __init__(self, path: str, content: Dict[str, Any], made_by: str) -> None:
        self.path, self.content, self.made_by = path, content, made_by

    def refuse(self, what: str) -> UserError:
        """The error to raise when the content is not usable."""
        return UserError(f'{self.path}: {what}' + (f'; make it again with `{self.made_by}`' if self.made_by else ''))

    def find(self, field: Field) -> Any:
        """The value of a field such as 'metadata.model' or ('T_server', 'stage1.0'); `UserError` if it is missing."""
        node: Any = self.content
        for part in field.split('.') if isinstance(field, str) else field:
            if not isinstance(node, dict) or part not in node:
                raise self.refuse(f"field '{_label(field)}' is missing")
            node = node[part]
        return node

    def get(self, field: Field, kind: type = dict) -> Any:
        """`find`, checked for its type; `kind` float also takes integers, nothing takes a boolean but bool."""
        return self.check(self.find(field), field, kind)

    def check(self, value: object, field: Field, kind: type) -> Any:
        """`value` if it is of this kind, else `UserError`."""
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            words = {dict: 'an object', list: 'a list', str: 'text', float: 'a number', int: 'a whole number',
                     bool: 'true or false'}
            raise self.refuse(f"field '{_label(field)}' is {json.dumps(value)[:40]}, not {words[kind]}")
        if kind is float:
            try:
                value = float(value)
            except OverflowError:  # a whole number of more than 308 digits
                value = math.inf
            if not math.isfinite(value):
                raise self.refuse(f"field '{_label(field)}' is not a finite number")
        return value

    def number(self, field: Field, lowest: float = -math.inf) -> float:
        """One number, at least `lowest`."""
        return self._at_least(self.get(field, float), field, lowest)

    def numbers(self, field: Field, length: int, none_allowed: bool = False, lowest: float = -math.inf) -> List[float]:
        """A list of `length` numbers, None read as NaN where allowed."""
        values = self.get(field, list)
        if len(values) != length:
            raise self.refuse(f"field '{_label(field)}' has {len(values)} entries, not {length}")
        return [math.nan if value is None and none_allowed else
                self._at_least(self.check(value, f'{_label(field)}[{index}]', float), f'{_label(field)}[{index}]',
                               lowest) for index, value in enumerate(values)]

    def _at_least(self, value: float, field: Field, lowest: float) -> float:
        if value < lowest:
            raise self.refuse(f"field '{_label(field)}' is {value}, below {lowest:g}")
        return value

    def require_model(self, settings: Settings) -> None:
        """Refuse a file that was made for another model."""
        model = self.get('metadata.model', str)
        if model != settings.MODEL_NAME:
            raise self.refuse(f'was made for model {model}, the settings say {settings.MODEL_NAME}')


def read(path: str, made_by: str) -> Document:
    """Read one of our JSON files; `UserError` when it is missing, damaged or of another version."""
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file' + (f'; make it with `{made_by}`' if made_by else ''))
    document = Document(path, {}, made_by)
    try:
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise document.refuse(f'is larger than {MAX_FILE_BYTES >> 20} MiB')
        with open(path, encoding='utf-8-sig') as stream:  # editors of some systems put a mark in front
            content = json.load(stream, parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise document.refuse(f'is not valid JSON ({error})') from None
    if not isinstance(content, dict):
        raise document.refuse('is not a JSON object')
    document.content = content
    version = content.get('schema_version')
    if version != SCHEMA_VERSION:
        raise document.refuse(f'has schema_version {json.dumps(version)}, this program reads {SCHEMA_VERSION}')
    document.get('metadata', dict)
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not a number')
