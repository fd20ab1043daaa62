"""What a feature map travels as: the formats of WIRE_FORMATS, and their sizes. wire/codec.py encodes and decodes.

float32 as it is, float16 (clamped to its range), uint8 with a scale and an offset per image and channel, computed by
the sender so that nothing has to be calibrated. Each may be followed by '+zlib': lossless compression on top. The input
image (uint8) and the logits (float32) travel as they are.
"""
from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from config import UserError

AS_COMPUTED = 'as_computed'  # no format: the tensor's own type, for training
ZLIB = '+zlib'
PLAIN_FORMATS = ('float32', 'float16', 'uint8')
WIRE_FORMATS = (*PLAIN_FORMATS, *(name + ZLIB for name in PLAIN_FORMATS))
WIRE_BYTES_PER_ELEMENT: Dict[str, int] = {'float32': 4, 'float16': 2, 'uint8': 1}
UINT8_BYTES_PER_CHANNEL = 8  # float32 scale and offset


def wire_bytes(wire: str, elements: int, channels: int) -> Optional[int]:
    """Bytes of one image's feature map; None where they depend on the values and have to be measured."""
    if wire.endswith(ZLIB):
        return None
    return WIRE_BYTES_PER_ELEMENT[wire] * elements + (UINT8_BYTES_PER_CHANNEL * channels if wire == 'uint8' else 0)


def format_at(split: int, n_blocks: int, wire: str) -> str:
    """The format at a split: only feature maps (1 <= split < N) are encoded, images and logits are not."""
    return wire if 1 <= split < n_blocks else AS_COMPUTED


def plain(wire: str) -> str:
    """The format without its lossless compression."""
    return wire[:-len(ZLIB)] if wire.endswith(ZLIB) else wire


def is_lossless(wire: str) -> bool:
    """Does a float32 feature map arrive as it left?"""
    return plain(wire) in ('float32', AS_COMPUTED)


def by_loss(names: Sequence[str]) -> Tuple[Tuple[str, ...], ...]:
    """The formats in groups that lose the same: ('float32', 'uint8', 'uint8+zlib') -> (('float32',), ('uint8',
    'uint8+zlib'))."""
    groups: Dict[str, List[str]] = {}
    for name in names:
        groups.setdefault(plain(name), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def formats_of(names: Sequence[str]) -> Tuple[str, ...]:
    """These formats, checked; `UserError` for one that does not exist."""
    for name in names:
        if name not in WIRE_FORMATS:
            raise UserError(f'unknown wire format {name!r} in WIRE_FORMATS: choose among {", ".join(WIRE_FORMATS)}')
    return tuple(names)
