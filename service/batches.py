"""How many frames pay in one batch, learned while serving.

Every batch that runs is a measurement. A size that has not been tried yet is tried when so many frames wait anyway and
the batch would keep the latency bound, so nothing is measured before serving, and nobody waits for a batch to fill.
"""
from __future__ import annotations

from typing import Dict

MEMORY = 0.1  # weight of the newest measurement of a size; the first ones are averaged
LARGEST = 16  # frames


class BatchTimes:
    """What batches of one key take on a worker, ms."""

    def __init__(self, first_guess_ms: float) -> None:
        """`first_guess_ms`: one frame's, by the table."""
        self._guess_ms = first_guess_ms
        self._ms: Dict[int, float] = {}
        self._count: Dict[int, int] = {}

    def add(self, size: int, ms: float) -> None:
        """A batch of this size took `ms`."""
        self._count[size] = self._count.get(size, 0) + 1
        share = max(MEMORY, 1 / self._count[size])
        self._ms[size] = ms if size not in self._ms else (1 - share) * self._ms[size] + share * ms

    @property
    def frame_ms(self) -> float:
        """One frame's, in the size that is fastest per frame."""
        return min((ms / size for size, ms in self._ms.items()), default=self._guess_ms)

    def best_size(self, available: int, bound_ms: float) -> int:
        """The size, a power of 2, to take when so many frames wait: the fastest per frame of those whose batch takes at
        most `bound_ms`; the next larger one where that has not been tried yet."""
        best, size = 1, 1
        while size <= min(available, LARGEST):
            ms = self._ms.get(size)
            if ms is None:  # not tried: a batch takes at most as long as its frames one by one
                return size if size == 1 or size * self._per_frame(best) <= bound_ms else best
            if size > 1 and ms > bound_ms:
                return best
            if self._per_frame(size) < self._per_frame(best):
                best = size
            size *= 2
        return best

    def _per_frame(self, size: int) -> float:
        return self._ms[size] / size if size in self._ms else self._guess_ms
