"""The frames of docs/protocol.md: byte layout, limits, and checked access to what a message holds.

Parsing trusts nothing: bytes become a checked header or a `ProtocolError`. `network_utils.py` moves the bytes.
"""
from __future__ import annotations

import enum
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch

MAGIC = b'SPLT'
TLS_RECORD = b'\x16\x03'  # how a greeting of TLS begins
VERSION = 2
FIXED = struct.Struct('<4sBBHQI')  # magic, version, kind, header bytes, payload bytes, CRC-32 of the typed header
CRC = struct.Struct('<I')
FIXED_BYTES = FIXED.size + CRC.size

MAX_HEADER_BYTES = 65535
MAX_PAYLOAD_BYTES = 256 << 20
MAX_FIELDS, MAX_TENSORS, MAX_RANK, MAX_DIM = 64, 64, 6, 2 ** 31 - 1
MAX_TEXT, MAX_DIGITS = 4096, 32
NAME = re.compile(r'[a-z0-9_.]{1,64}\Z')
DTYPES: Dict[str, torch.dtype] = {'float64': torch.float64, 'float32': torch.float32, 'float16': torch.float16,
                                  'int64': torch.int64, 'uint8': torch.uint8}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAIN = (int, float, bool, type(None))  # values of fields that are neither texts nor lists
ITEM_BYTES = {'float64': 8, 'float32': 4, 'float16': 2, 'int64': 8, 'uint8': 1}


class NetworkError(Exception):
    """The connection cannot be used any more; the text is one line."""


class ConnectionLost(NetworkError):
    """The peer is gone or silent."""


class ProtocolError(NetworkError):
    """The peer broke the rules of docs/protocol.md."""


class PeerError(Exception):
    """The peer answered with ERROR, or is to be answered so; `code` is one of docs/protocol.md."""

    def __init__(self, code: str, text: str, from_peer: bool = False) -> None:
        super().__init__(text)
        self.code, self.from_peer = code, from_peer


class VersionMismatch(ProtocolError):
    """The peer speaks another version."""


class Kind(enum.IntEnum):
    """What a frame is; see docs/protocol.md."""
    HELLO = 1
    PROOF = 2
    HEARTBEAT = 3
    REQUEST = 4
    REPLY = 5
    PROGRESS = 6
    ERROR = 7
    FRAME = 8
    RESULT = 9
    END = 10
    GOODBYE = 11
    JOIN = 12
    SWITCH = 13


KINDS = {int(kind): kind for kind in Kind}  # a look-up takes less than the class's own


@dataclass(frozen=True)
class Message:
    """A received message; its texts hold no control characters. Every accessor raises `ProtocolError` naming a field
    that is missing or out of range."""
    kind: Kind
    fields: Dict[str, Any] = field(default_factory=dict)
    tensors: Dict[str, torch.Tensor] = field(default_factory=dict)
    receive_s: float = 0.0  # from the frame's first byte to its last

    def _value(self, name: str, kinds: Tuple[type, ...]) -> Any:
        value = self.fields.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(name)
        return value

    def wrong(self, name: str) -> ProtocolError:
        """The error for a field that cannot be used."""
        return ProtocolError(f"{self.kind.name}: field '{name}' is missing or out of range")

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number, low <= value <= high."""
        value = self._value(name, (int,))
        if not low <= value <= high:
            raise self.wrong(name)
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number, low <= value <= high."""
        value = self._value(name, (int, float))
        if not low <= value <= high:
            raise self.wrong(name)
        return float(value)

    def text(self, name: str, choices: Optional[Sequence[str]] = None) -> str:
        """A text, one of `choices` if given."""
        value = self._value(name, (str,))
        if choices is not None and value not in choices:
            raise self.wrong(name)
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._value(name, (bool,))

    def integers(self, name: str, low: int, high: int, length: Optional[int] = None) -> List[int]:
        """A list of whole numbers."""
        return [int(value) for value in self._numbers(name, (int,), low, high, length)]

    def numbers(self, name: str, length: Optional[int] = None) -> List[float]:
        """A list of numbers; null is read as NaN."""
        return [math.nan if value is None else float(value)
                for value in self._numbers(name, (int, float, type(None)), -math.inf, math.inf, length)]

    def _numbers(self, name: str, kinds: Tuple[type, ...], low: float, high: float, length: Optional[int]) -> List[Any]:
        values = self._value(name, (list,))
        for value in values:
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise self.wrong(name)
            if value is not None and not low <= value <= high:
                raise self.wrong(name)
        if length is not None and len(values) != length:
            raise self.wrong(name)
        return values

    def texts(self, name: str) -> List[str]:
        """A list of texts."""
        values = self._value(name, (list,))
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name)
        return list(values)

    def raise_error(self) -> None:
        """Raise `PeerError` when this is an ERROR."""
        if self.kind == Kind.ERROR:
            raise PeerError(self.text('code'), self.text('text'), from_peer=True)

    def tensor(self, name: str, dtype: Optional[torch.dtype] = None, rank: Optional[int] = None) -> torch.Tensor:
        """A tensor of the payload, of this dtype and rank if given."""
        value = self.tensors.get(name)
        if value is None or (dtype is not None and value.dtype != dtype) or (rank is not None and value.dim() != rank):
            raise ProtocolError(f"{self.kind.name}: tensor '{name}' is missing or of another type")
        return value


def printable(text: str) -> str:
    """The text with a question mark for each control character: it may go to a terminal or a log, and is as long as it
    was, so that what a peer sends stays within the limits of what is sent on."""
    return text if text.isprintable() else ''.join(c if c.isprintable() else '?' for c in text)


# --- headers --------------------------------------------------------------------------------------

TensorSpec = Tuple[str, str, Tuple[int, ...]]  # name, dtype, shape


def encode_headers(kind: Kind, fields: Mapping[str, Any], specs: Sequence[TensorSpec]) -> bytes:
    """Fixed and typed header of a message. Raises `ValueError` for what the protocol cannot carry."""
    typed = b''
    if fields or specs:
        typed = ENCODER.encode({'fields': dict(fields), 'tensors': specs}).encode()
    if len(typed) > MAX_HEADER_BYTES:
        raise ValueError(f'{kind.name}: typed header of {len(typed)} bytes, the limit is {MAX_HEADER_BYTES}')
    payload_bytes = sum(spec_bytes(spec) for spec in specs)
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError(f'{kind.name}: payload of {payload_bytes} bytes, the limit is {MAX_PAYLOAD_BYTES}')
    fixed = FIXED.pack(MAGIC, VERSION, kind, len(typed), payload_bytes, zlib.crc32(typed))
    return fixed + CRC.pack(zlib.crc32(fixed)) + typed


def parse_fixed(data: bytes, max_payload_bytes: int) -> Tuple[Kind, int, int, int]:
    """24 bytes -> kind, typed header bytes, payload bytes, CRC-32 of the typed header."""
    magic, version, kind, header_bytes, payload_bytes, header_crc = FIXED.unpack_from(data)
    if magic[:2] == TLS_RECORD:
        raise ProtocolError('the peer speaks TLS, this end does not')
    if magic != MAGIC:
        raise ProtocolError('the peer does not speak this protocol')
    if version != VERSION:
        raise VersionMismatch(f'the peer speaks protocol version {version}, this end {VERSION}: '
                              'use the same release of this project on both')
    if CRC.unpack_from(data, FIXED.size)[0] != zlib.crc32(data[:FIXED.size]):
        raise ProtocolError('damaged frame: checksum of the fixed header')
    if kind not in KINDS:
        raise ProtocolError(f'unknown kind of message {kind}')
    if payload_bytes > max_payload_bytes:
        raise ProtocolError(f'payload of {payload_bytes} bytes, allowed are {max_payload_bytes}')
    return KINDS[kind], header_bytes, payload_bytes, header_crc


def parse_typed(data: bytes, crc: int, payload_bytes: int) -> Tuple[Dict[str, Any], List[TensorSpec]]:
    """Typed header -> fields and tensor specs, all limits checked."""
    if zlib.crc32(data) != crc:
        raise ProtocolError('damaged frame: checksum of the typed header')
    if not data:
        content: Any = {'fields': {}, 'tensors': []}
    else:
        try:
            content = DECODER.decode(data.decode('utf-8'))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f'typed header is not valid ({type(error).__name__})') from None
    if not isinstance(content, dict) or set(content) != {'fields', 'tensors'}:
        raise ProtocolError("typed header must hold 'fields' and 'tensors'")
    fields, tensors = content['fields'], content['tensors']
    if not isinstance(fields, dict) or len(fields) > MAX_FIELDS or not all(map(NAME.match, fields)):
        raise ProtocolError('typed header: fields out of limits')
    fields = {name: [_checked_value(part) for part in value] if type(value) is list else _checked_value(value)
              for name, value in fields.items()}
    if not isinstance(tensors, list) or len(tensors) > MAX_TENSORS:
        raise ProtocolError('typed header: tensors out of limits')
    specs = [_checked_spec(entry) for entry in tensors]
    if len({name for name, _, _ in specs}) != len(specs):
        raise ProtocolError('typed header: two tensors of one name')
    if sum(spec_bytes(spec) for spec in specs) != payload_bytes:
        raise ProtocolError('typed header and payload length disagree')
    return fields, specs


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError('duplicate name')
    return result


def _refuse(constant: str) -> float:
    raise ValueError(f'{constant} is not a number')


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS or not -2 ** 63 <= int(text) < 2 ** 63:
        raise ValueError('number of more than 64 bits')
    return int(text)


def _parse_float(text: str) -> float:
    if len(text) > MAX_DIGITS or not math.isfinite(float(text)):
        raise ValueError('number out of limits')
    return float(text)


def _checked_value(value: object) -> object:
    """A value that is no list, texts with their control characters replaced: whatever becomes of it can be printed."""
    if type(value) in PLAIN:
        return value
    if type(value) is str and len(value) <= MAX_TEXT:
        return printable(value)
    raise ProtocolError('typed header: fields out of limits')


def _checked_spec(entry: object) -> TensorSpec:
    if not (isinstance(entry, list) and len(entry) == 3):
        raise ProtocolError('typed header: a tensor is [name, dtype, shape]')
    name, dtype, shape = entry
    if not (isinstance(name, str) and NAME.match(name)) or not (isinstance(dtype, str) and dtype in DTYPES):
        raise ProtocolError('typed header: name or dtype of a tensor out of limits')
    if not (isinstance(shape, list) and len(shape) <= MAX_RANK and
            all(type(d) is int and 0 <= d <= MAX_DIM for d in shape)):
        raise ProtocolError(f"typed header: shape of tensor '{name}' out of limits")
    if math.prod(max(d, 1) for d in shape) > MAX_PAYLOAD_BYTES:  # strides of an empty tensor can overflow, too
        raise ProtocolError(f"typed header: shape of tensor '{name}' out of limits")
    return name, dtype, tuple(shape)


ENCODER = json.JSONEncoder(separators=(',', ':'), allow_nan=False)  # made once: each takes longer than a header
DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_parse_int,
                           parse_float=_parse_float)


def spec_bytes(spec: TensorSpec) -> int:
    """Size of a tensor, bytes (a Python integer: it cannot overflow)."""
    size = ITEM_BYTES[spec[1]]
    for dim in spec[2]:
        size *= dim
    return size


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's own memory (C-contiguous, on the CPU) as bytes."""
    array = tensor.detach().numpy().reshape(-1)
    return memoryview(array.view(np.uint8)) if array.size else memoryview(bytearray())
