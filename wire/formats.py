"""What a feature map travels as: the formats of WIRE_FORMATS, and their sizes. wire/codec.py encodes and decodes.

float32 as it is, float16 (clamped to its range), uint8 and uint4 (two values a byte) with a scale and an offset per
image and channel, computed by the sender so that nothing has to be calibrated. Each may be followed by a share, as in
'uint4@0.5': only that share of the channels is sent, and the receiver fills in the others (network/channels.py says
which). At the end may stand '+zlib', '+zstd' or '+lz4': lossless compression on top (wire/compression.py). The input
image (uint8) and the logits (float32) travel as they are.
"""
from __future__ import annotations

import math
from typing import Collection, Dict, List, Optional, Sequence, Tuple

from config import UserError
from wire.compression import COMPRESSIONS, available

AS_COMPUTED = 'as_computed'  # no format: the tensor's own type, for training
BITS: Dict[str, int] = {'float32': 32, 'float16': 16, 'uint8': 8, 'uint4': 4}  # of one value
AFFINE = ('uint8', 'uint4')  # formats with a scale and an offset
AFFINE_BYTES_PER_CHANNEL = 8  # float32 scale and offset
WIRE_FORMATS = (*BITS, *(f'{name}+{compression}' for compression in COMPRESSIONS for name in BITS))  # of all channels


# --- the parts of a name -------------------------------------------------------------------------------

def compression_of(wire: str) -> str:
    """The name of its lossless compression; '' for none."""
    return wire.partition('+')[2]


def without_compression(wire: str) -> str:
    """What says how much is lost: 'uint4@0.5' of 'uint4@0.5+zlib'."""
    return wire.partition('+')[0]


def encoding_of(wire: str) -> str:
    """How the channels that are sent are encoded: 'uint4+zlib' of 'uint4@0.5+zlib'."""
    numbers, plus, compression = wire.partition('+')
    return numbers.partition('@')[0] + plus + compression


def numbers_of(wire: str) -> str:
    """What a value is sent as: 'uint4' of 'uint4@0.5+zlib'."""
    return without_compression(wire).partition('@')[0]


def share_of(wire: str) -> float:
    """The share of the channels that is sent. Raises `ValueError` where it is none."""
    text = without_compression(wire).partition('@')[2]
    return float(text) if text else 1.0


def exists(wire: str) -> bool:
    """Is it the name of a format?"""
    try:
        share = share_of(wire)
    except ValueError:
        return False
    numbers = numbers_of(wire)
    return encoding_of(wire) in WIRE_FORMATS and 0 < share <= 1 and without_compression(wire) == (
        numbers if share == 1 else f'{numbers}@{share:g}')


# --- what follows from a name ----------------------------------------------------------------------------

def channels_sent(wire: str, channels: int) -> int:
    """How many of so many channels are sent."""
    return max(1, math.ceil(share_of(wire) * channels - 1e-9))  # 0.07 of 100 are 7


def wire_bytes(wire: str, elements: int, channels: int) -> Optional[int]:
    """Bytes of one image's feature map of so many values; None where they depend on the values and have to be
    measured."""
    if compression_of(wire):
        return None
    numbers, sent = numbers_of(wire), channels_sent(wire, channels)
    return (BITS[numbers] * (elements // channels * sent) + 7) // 8 + (
        AFFINE_BYTES_PER_CHANNEL * sent if numbers in AFFINE else 0)


def format_at(split: int, n_blocks: int, wire: str) -> str:
    """The format at a split: only feature maps (1 <= split < N) are encoded, images and logits are not."""
    return wire if 1 <= split < n_blocks else AS_COMPUTED


def encoding_at(split: int, n_blocks: int, wire: str) -> str:
    """How what is sent at a split is encoded."""
    return encoding_of(format_at(split, n_blocks, wire))


def is_lossless(wire: str) -> bool:
    """Does a float32 feature map arrive as it left?"""
    return without_compression(wire) in ('float32', AS_COMPUTED)


def by_loss(names: Sequence[str]) -> Tuple[Tuple[str, ...], ...]:
    """The formats in groups that lose the same: ('float32', 'uint8', 'uint8+zlib') -> (('float32',), ('uint8',
    'uint8+zlib'))."""
    groups: Dict[str, List[str]] = {}
    for name in names:
        groups.setdefault(without_compression(name), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def formats_of(names: Sequence[str]) -> Tuple[str, ...]:
    """These formats, checked; `UserError` for one that does not exist, or that this machine cannot encode."""
    for name in names:
        if not exists(name):
            raise UserError(f'unknown wire format {name!r} in WIRE_FORMATS: choose among {", ".join(WIRE_FORMATS)}, '
                            'each with a share of the channels where only some are to be sent (uint4@0.5)')
    check_compressions(names, available(), 'this machine')
    return tuple(names)


def can_be_packed(wire: str, there: Collection[str]) -> bool:
    """Is the format's compression, if it has one, among those `there`?"""
    return compression_of(wire) in ('', *there)


def check_compressions(names: Sequence[str], there: Collection[str], where: str) -> None:
    """Raise `UserError` for a format whose compression is not among those `there`; `where`: at which end."""
    for name in names:
        if not can_be_packed(name, there):
            raise UserError(f'wire format {name} needs the package {COMPRESSIONS[compression_of(name)].package} on '
                            f'{where}: `pip install -r requirements-wire.txt` there')
