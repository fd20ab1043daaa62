"""How many frames pay in one batch, learned while serving.

Every batch that runs is a measurement. A size that has not been tried is tried when so many frames wait anyway and the
batch would keep the latency bound, so nothing is measured before serving, and nobody waits for a batch to fill.
"""
from __future__ import annotations

import statistics
from collections import deque
from typing import Deque, Dict

TRIALS = 3  # of a size before it is judged: the first run of a shape is slow, and so is one that was interrupted
RECENT = 9  # measurements of a size whose median counts
LARGEST = 16  # frames


class BatchTimes:
    """What batches of one key take on a worker, ms."""

    def __init__(self, first_guess_ms: float) -> None:
        """`first_guess_ms`: one frame's, by the table."""
        self._guess_ms = first_guess_ms
        self._measured: Dict[int, Deque[float]] = {}
        self._ms: Dict[int, float] = {}  # medians of sizes that have been tried

    def add(self, size: int, ms: float) -> None:
        """A batch of this size took `ms`."""
        found = self._measured.setdefault(size, deque(maxlen=RECENT))
        found.append(ms)
        if len(found) >= TRIALS:
            self._ms[size] = statistics.median(found)

    @property
    def frame_ms(self) -> float:
        """One frame's, in the size that is fastest per frame."""
        return min((ms / size for size, ms in self._ms.items()), default=self._guess_ms)

    def best_size(self, available: int, bound_ms: float) -> int:
        """The size, a power of 2, to take when so many frames wait: the fastest per frame of those whose batch takes at
        most `bound_ms`; the next larger one where that has not been tried yet."""
        best, size = 1, 1
        while size <= min(available, LARGEST):
            if size not in self._ms:  # a batch takes at most as long as its frames one by one
                return size if size == 1 or size * self._per_frame(best) <= bound_ms else best
            if size > 1 and self._ms[size] > bound_ms:
                return best
            if self._per_frame(size) < self._per_frame(best):
                best = size
            size *= 2
        return best

    def _per_frame(self, size: int) -> float:
        return self._ms[size] / size if size in self._ms else self._guess_ms
