"""Reading JSON files without trusting them: every field is checked, every fault is one line that names the file."""
from __future__ import annotations

import json
import math
import os
import stat
from typing import Any, Dict, List, Sequence, Union

import cli
from config import Settings, UserError

SCHEMA_VERSION = 1
MAX_FILE_BYTES = 256 << 20  # a larger file is not one of ours
MAX_DEPTH = 32  # of lists and objects inside each other; ours have at most ten

Field = Union[str, Sequence[str]]  # 'metadata.model', or a sequence of keys where these may hold dots


def _label(field: Field) -> str:
    return field if isinstance(field, str) else '.'.join(field)


class Document:
    """A JSON file's content with checked access: a missing or ill-typed field is a `UserError` naming it."""

    def __init__(self, path: str, content: Dict[str, Any], made_by: str) -> None:
        self.path, self.content, self.made_by = path, content, made_by

    def refuse(self, what: str) -> UserError:
        """The error to raise when the content is not usable."""
        again = f'; make it again with `{self.made_by}`' if self.made_by else ''
        return UserError(f'{self.path}: {cli.one_line(what)}{again}')

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
            raise self.refuse(f"field '{_label(field)}' is {_shown(value)}, not {words[kind]}")
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
    if not os.path.lexists(path):
        raise UserError(f'{path}: no such file' + (f'; make it with `{made_by}`' if made_by else ''))
    document = read_object(path, made_by)
    version = document.content.get('schema_version')
    if version != SCHEMA_VERSION:
        raise document.refuse(f'has schema_version {_shown(version)}, this program reads {SCHEMA_VERSION}')
    document.get('metadata', dict)
    return document


def read_object(path: str, made_by: str = '', max_bytes: int = MAX_FILE_BYTES) -> Document:
    """Read any JSON object; `UserError` for what is no file or holds none."""
    document = Document(path, {}, made_by)
    data = read_bytes(path, max_bytes)
    try:
        content = parse(data)
    except ValueError as error:
        raise document.refuse(f'is not valid JSON ({error})') from None
    if not isinstance(content, dict):
        raise document.refuse('is not a JSON object')
    document.content = content
    return document


def read_bytes(path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A file's bytes; `UserError` for a file that is missing, cannot be read or is larger, and for a pipe or a device,
    which would keep the reader waiting."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0)), 'rb') as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f'{path}: is no file')
            if found.st_size > max_bytes:
                raise UserError(f'{path}: is larger than {max_bytes >> 20} MiB')
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None


def parse(data: bytes) -> Any:
    """What a JSON text holds; `ValueError` for what is none, and for lists and objects more than MAX_DEPTH deep."""
    try:
        text = data.decode('utf-8-sig')  # editors of some systems put a mark in front
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError('too many lists inside each other') from None
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [child for node in level if isinstance(node, (dict, list))
                 for child in (node.values() if isinstance(node, dict) else node)]
    if level:
        raise ValueError('too many lists inside each other')
    return content


def _shown(value: object) -> str:
    """The beginning of a value, for an error."""
    try:
        return json.dumps(value)[:40]
    except ValueError:  # a whole number of thousands of digits
        return 'a number'


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is not a number')
