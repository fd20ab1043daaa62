"""What wire formats cost: bytes of a frame, and the time of encoding and decoding it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Sequence

import numpy as np

from config import Settings
from costs.work import out_elements
from network.outline import Shape
from wire.formats import WIRE_FORMATS, channels_sent, compression_of, encoding_of, share_of, wire_bytes


@dataclass(frozen=True)
class WireCosts:
    """What the wire formats cost, measured on feature maps of real images."""
    block_bytes: Dict[str, np.ndarray]  # by wire format: [N] bytes of each block's output
    codec_ms: Dict[str, Dict[str, np.ndarray]]  # by wire format, then tier: [N, 2] encoding, decoding


def block_bytes_of(shapes: Sequence[Shape]) -> Dict[str, np.ndarray]:
    """By wire format: [N] bytes of each block's output, for the formats whose size follows from the shape."""
    sizes = {wire: [wire_bytes(wire, out_elements(shape), shape.out_channels) for shape in shapes]
             for wire in WIRE_FORMATS}
    return {wire: np.array(row, dtype=np.int64) for wire, row in sizes.items() if None not in row}


def with_shares(wire: WireCosts, shapes: Sequence[Shape], settings: Settings) -> WireCosts:
    """Adds the settings' formats with a share of the channels whose size follows from the shape: encoding takes that
    share of what it takes for all channels, where it was not measured."""
    block_bytes, codec_ms = dict(wire.block_bytes), dict(wire.codec_ms)
    for name in settings.WIRE_FORMATS:
        if name not in block_bytes and share_of(name) < 1 and not compression_of(name):
            whole = encoding_of(name)
            block_bytes[name] = np.array([wire_bytes(name, out_elements(shape), shape.out_channels)
                                          for shape in shapes], dtype=np.int64)
            shares = np.array([channels_sent(name, shape.out_channels) / shape.out_channels for shape in shapes])
            if whole in codec_ms:
                codec_ms[name] = {tier: ms * shares[:, None] for tier, ms in codec_ms[whole].items()}
    return WireCosts(block_bytes, codec_ms)
