"""What a feature map travels as: the formats of WIRE_FORMATS, and their sizes. wire/codec.py encodes and decodes.

float32 as it is, float16 (clamped to its range), uint8 and uint4 (two values a byte) with a scale and an offset per
image and channel, computed by the sender so that nothing has to be calibrated. Each may be followed by '+zlib', '+zstd'
or '+lz4': lossless compression on top (wire/compression.py). The input image (uint8) and the logits (float32) travel as
they are.
"""
from __future__ import annotations

from typing import Collection, Dict, List, Optional, Sequence, Tuple

from config import UserError
from wire.compression import COMPRESSIONS, available

AS_COMPUTED = 'as_computed'  # no format: the tensor's own type, for training
BITS: Dict[str, int] = {'float32': 32, 'float16': 16, 'uint8': 8, 'uint4': 4}  # of one value
AFFINE = ('uint8', 'uint4')  # formats with a scale and an offset
AFFINE_BYTES_PER_CHANNEL = 8  # float32 scale and offset
WIRE_FORMATS = (*BITS, *(f'{name}+{compression}' for compression in COMPRESSIONS for name in BITS))


def wire_bytes(wire: str, elements: int, channels: int) -> Optional[int]:
    """Bytes of one image's feature map; None where they depend on the values and have to be measured."""
    if compression_of(wire):
        return None
    return (BITS[wire] * elements + 7) // 8 + (AFFINE_BYTES_PER_CHANNEL * channels if wire in AFFINE else 0)


def format_at(split: int, n_blocks: int, wire: str) -> str:
    """The format at a split: only feature maps (1 <= split < N) are encoded, images and logits are not."""
    return wire if 1 <= split < n_blocks else AS_COMPUTED


def plain(wire: str) -> str:
    """The format without its lossless compression."""
    return wire.partition('+')[0]


def compression_of(wire: str) -> str:
    """The name of its lossless compression; '' for none."""
    return wire.partition('+')[2]


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
    """These formats, checked; `UserError` for one that does not exist, or that this machine cannot encode."""
    for name in names:
        if name not in WIRE_FORMATS:
            raise UserError(f'unknown wire format {name!r} in WIRE_FORMATS: choose among {", ".join(WIRE_FORMATS)}')
    check_compressions(names, available(), 'this machine')
    return tuple(names)


def check_compressions(names: Sequence[str], there: Collection[str], where: str) -> None:
    """Raise `UserError` for a format whose compression is not among those `there`; `where`: at which end."""
    for name in names:
        if compression_of(name) not in ('', *there):
            raise UserError(f'wire format {name} needs the package {COMPRESSIONS[compression_of(name)].package} on '
                            f'{where}: `pip install -r requirements-wire.txt` there')
