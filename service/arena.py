"""Memory that the front and its worker processes share: slots of equal size, one for each frame under way.

The front copies a frame's tensors into a slot and tells a worker the slot's number; no pixel goes through a pipe. The
memory has no name: it is gone with the last process that maps it, however that one ended, and it does not count as part
of /dev/shm, which containers keep small. Pages are claimed as they are first written.
"""
from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch

from wire.frames import DTYPE_NAMES, DTYPES, bytes_of, spec_bytes

ALIGNMENT_BYTES = 64
Layout = Tuple[Tuple[str, str, Tuple[int, ...]], ...]  # a slot's tensors: name, dtype, shape


class Arena:
    """`n_slots` slots of `slot_bytes`. Given to a new process as an argument, it is the same memory there."""

    def __init__(self, slot_bytes: int, n_slots: int, fd: Optional[int] = None) -> None:
        self.slot_bytes = _aligned(slot_bytes)
        self.n_slots = n_slots
        size = self.slot_bytes * n_slots
        self._fd = _unnamed(size) if fd is None else fd
        self._map = mmap.mmap(self._fd, size)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def __reduce__(self) -> Tuple[Callable[..., 'Arena'], Tuple[Any, ...]]:
        return _attached, (reduction.DupFd(self._fd), self.slot_bytes, self.n_slots)

    def close(self) -> None:
        """Give the memory back; tensors that `read` returned must be gone."""
        del self._bytes
        self._map.close()
        os.close(self._fd)

    def write(self, slot: int, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """Copy tensors into a slot; `ValueError` when they do not fit."""
        start, end, layout = slot * self.slot_bytes, (slot + 1) * self.slot_bytes, []
        for name, value in tensors.items():
            data = bytes_of(value)
            if start + len(data) > end:
                raise ValueError(f'a frame of more than {self.slot_bytes} bytes')
            self._bytes[start:start + len(data)] = data
            layout.append((name, DTYPE_NAMES[value.dtype], tuple(value.shape)))
            start += _aligned(len(data))
        return tuple(layout)

    def read(self, slot: int, layout: Layout) -> Dict[str, torch.Tensor]:
        """A slot's tensors, where they lie."""
        return tensors_in(self.used(slot, layout), layout)

    def used(self, slot: int, layout: Layout) -> np.ndarray:
        """A slot's bytes, uint8 [n], as far as tensors lie there."""
        start = slot * self.slot_bytes
        return self._bytes[start:start + sum(_aligned(spec_bytes(spec)) for spec in layout)]


def tensors_in(data: np.ndarray, layout: Layout) -> Dict[str, torch.Tensor]:
    """What lies in a slot's bytes, uint8 [n]; the tensors share their memory."""
    start, tensors = 0, {}
    for name, dtype, shape in layout:
        n_bytes = spec_bytes((name, dtype, shape))
        tensors[name] = torch.from_numpy(data[start:start + n_bytes]).view(DTYPES[dtype]).reshape(shape)
        start += _aligned(n_bytes)
    return tensors


class Slots:
    """The numbers of the free slots; the one that was freed last is the first to go, its pages are in use already."""

    def __init__(self, count: int) -> None:
        self._free: List[int] = list(range(count))[::-1]

    def take(self) -> Optional[int]:
        """A slot, or None when all are in use."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """It may be used for another frame."""
        self._free.append(slot)

    def __len__(self) -> int:
        return len(self._free)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _unnamed(size: int) -> int:
    """A file without a name of this size."""
    if hasattr(os, 'memfd_create'):
        fd = os.memfd_create('frames')
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _attached(shared: Any, slot_bytes: int, n_slots: int) -> Arena:
    return Arena(slot_bytes, n_slots, shared.detach())
