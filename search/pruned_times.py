"""Times of pruned networks at their best γ, λ and wire format: exact, and nearly free."""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from config import Settings
from costs.cost_model import TIERS, HardwareTable, Solution, scenario_of, split_times
from costs.limits import limits_of
from network.alpha import PruningMask, surviving_branches
from search.candidates import fastest_ms
from throughput_optimizer import split_range
from throughput_optimizer_limit import solve_or_nearest, solve_within_limits
from wire.formats import by_loss

Formats = Optional[Tuple[str, ...]]  # wire formats that a network may use; None: all of WIRE_FORMATS


class PrunedTimes:
    """What pruned networks take on one table, within the settings' limits if there are any."""

    def __init__(self, table: HardwareTable, T_eff_ref_ms: float, settings: Settings) -> None:
        self.table, self.T_eff_ref_ms, self.settings = table, T_eff_ref_ms, settings
        self.formats = by_loss(settings.WIRE_FORMATS)  # in groups that lose the same
        self._settings_with = {formats: replace(settings, WIRE_FORMATS=formats) for formats in self.formats}
        self._relative: Dict[PruningMask, float] = {}

    def settings_with(self, formats: Formats) -> Settings:
        """The settings with some of the wire formats."""
        return self.settings if formats is None else self._settings_with[formats]

    def solve(self, alpha: np.ndarray, formats: Formats = None) -> Solution:
        """Optimal γ, λ and wire format for what survives in α [N, 3]; while nothing is within the limits, the
        nearest."""
        return solve_or_nearest(self.table, surviving_branches(alpha), self.settings_with(formats))[0]

    def solve_within_limits(self, alpha: np.ndarray, formats: Formats = None, objective: str = 'T_eff_ms') -> Solution:
        """`solve` for another field of Times. Raises `limits.NothingFits` when nothing is within the limits."""
        return solve_within_limits(self.table, surviving_branches(alpha), self.settings_with(formats), objective)

    def T_eff_ms(self, surviving: np.ndarray, formats: Formats = None) -> float:
        """T_eff at the best γ and λ of these branches, bool [N, 3]. While nothing is within the limits, T_eff of the
        nearest plus κ·T_eff_ref for what it exceeds its worst limit by: J prices that as it prices lost accuracy."""
        solution, excess = solve_or_nearest(self.table, surviving, self.settings_with(formats))
        return solution.times.T_eff_ms + self.settings.KAPPA * excess * self.T_eff_ref_ms

    def relative(self, masks: Sequence[PruningMask]) -> np.ndarray:
        """T_eff / T_eff_ref of masks, [m]."""
        new = list(dict.fromkeys(mask for mask in masks if mask not in self._relative))
        if new and limits_of(self.settings).any:
            values = [self.T_eff_ms(np.array(mask)) for mask in new]
        else:
            values = unlimited_T_eff_ms(self.table, new, self.settings) if new else []
        self._relative.update((mask, value / self.T_eff_ref_ms) for mask, value in zip(new, values))
        return np.array([self._relative[mask] for mask in masks])


def unlimited_T_eff_ms(table: HardwareTable, masks: Sequence[PruningMask], settings: Settings) -> np.ndarray:
    """T_eff of masks [m] at their best γ, λ and wire format, limits left out, all at once: the fastest time of every
    block's every option once, then sums over blocks for all masks."""
    options = [sorted({mask[k] for mask in masks}) for k in range(len(masks[0]))]
    index = np.array([[options[k].index(kept) for k, kept in enumerate(mask)] for mask in masks])  # (m, N)
    block_ms = {}
    for tier in TIERS:
        times = [[fastest_ms(table.T_ms[tier][k], np.array(kept)) for kept in choices]
                 for k, choices in enumerate(options)]
        block_ms[tier] = np.stack([np.array(times[k])[index[:, k]] for k in range(len(options))], axis=1)
    splits = np.asarray(split_range(table.n_blocks, settings))
    return np.min([split_times(table, block_ms, wire, scenario_of(settings, table))
                   .T_eff_ms[:, splits].min(axis=1) for wire in settings.WIRE_FORMATS], axis=0)
