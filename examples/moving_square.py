"""A source of frames in a few lines: a bright square that moves over a dark ground, 100 frames.

    python client_worker.py --source examples/moving_square.py

A file like this needs a function `frames(size)` that yields uint8 arrays [height, width, 3], RGB, of any size, from
whatever delivers them on your device.
"""
from __future__ import annotations

from typing import Iterator

import numpy as np


def frames(size: int) -> Iterator[np.ndarray]:
    """100 frames of size x size pixels."""
    for i in range(100):
        frame = np.zeros((size, size, 3), dtype=np.uint8)
        left = i % (size - size // 4)
        frame[size // 3:2 * size // 3, left:left + size // 4] = 255
        yield frame
