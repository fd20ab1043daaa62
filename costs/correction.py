"""What the sum of a table's entries misses of a whole head or tail, fitted to a few that were measured.

Blocks are timed inside the whole network. A head or a tail that runs on its own, frame after frame, takes less than the
sum of its entries, by about the same time however long it is (most likely it keeps more of its weights and feature maps
in cache). So, for each tier,

    time of a part = scale · (sum of its entries) + offset        once for each head, tail or whole network

Scale and offset leave the best γ of each block as it was. benchmarks/lut_fidelity.py checks this on fresh parts.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

TOLERANCE = 0.05  # relative error that counts as agreement
LEAST_PARTS = 4  # fewer say nothing about two parameters
REWEIGHTINGS = 20  # of the fit, which has settled by then
SMALLEST_ERROR = 0.005  # weights no part by more than this relative error would
LARGEST_OFFSET = 0.9  # of the shorter of stem and classifier: every time stays above 0


class HeldOut(NamedTuple):
    """Relative errors of parts that the fit did not see (each left out once)."""
    n: int
    median: float
    worst: float
    share: float  # within TOLERANCE


@dataclass(frozen=True)
class Correction:
    """Time of a part = scale · sum + offset_ms; `held_out` None: nothing was measured."""
    scale: float = 1.0
    offset_ms: float = 0.0
    held_out: Optional[HeldOut] = None

    def part_ms(self, sum_ms: np.ndarray) -> np.ndarray:
        """Time of parts from the sums of their entries."""
        return self.scale * sum_ms + self.offset_ms


def fit_correction(sum_ms: np.ndarray, measured_ms: np.ndarray, ends_ms: float) -> Correction:
    """The correction of a tier from the sums of some parts [n] and their measured times. `ends_ms`: the shorter of stem
    and classifier. The sum is left as it is where a correction does not bring parts that were left out closer."""
    if len(sum_ms) < LEAST_PARTS:
        return Correction()
    raw_errors = np.abs(sum_ms / measured_ms - 1)
    errors = np.zeros(len(sum_ms))
    for i in range(len(sum_ms)):
        others = np.arange(len(sum_ms)) != i
        found = _least_relative_errors(sum_ms[others], measured_ms[others], ends_ms)
        errors[i] = abs(found.part_ms(sum_ms[i]) / measured_ms[i] - 1)
    if np.sort(errors)[:-1].mean() >= np.sort(raw_errors)[:-1].mean():  # less the worst one: it may be disturbed
        return Correction(held_out=_summary(raw_errors))
    found = _least_relative_errors(sum_ms, measured_ms, ends_ms)
    return Correction(found.scale, found.offset_ms, _summary(errors))


def _summary(errors: np.ndarray) -> HeldOut:
    return HeldOut(len(errors), float(np.median(errors)), float(errors.max()), float(np.mean(errors <= TOLERANCE)))


def _least_relative_errors(sum_ms: np.ndarray, measured_ms: np.ndarray, ends_ms: float) -> Correction:
    """The smallest sum of absolute relative errors, by least squares with weights: a disturbed part counts little,
    unless it is the shortest one and alone tells the offset."""
    ones, weights = np.ones(len(sum_ms)), np.ones(len(sum_ms))
    scale, offset = 1.0, 0.0
    for _ in range(REWEIGHTINGS):
        by = weights / measured_ms
        scale, offset = np.linalg.lstsq(np.stack([sum_ms, ones], axis=1) * by[:, None], weights, rcond=None)[0]
        if offset < -LARGEST_OFFSET * scale * ends_ms:
            shortened = (sum_ms - LARGEST_OFFSET * ends_ms) * by
            scale = float(shortened @ weights / (shortened @ shortened))
            offset = -LARGEST_OFFSET * scale * ends_ms
        errors = np.abs((scale * sum_ms + offset) / measured_ms - 1)
        weights = 1 / np.sqrt(np.maximum(errors, SMALLEST_ERROR))
    return Correction(float(scale), float(offset)) if scale > 0 else Correction()
