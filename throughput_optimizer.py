"""γ and λ for given surviving branches, exactly and by gradient, and the baselines.

The exact method rests on one observation: for a given λ every time of `costs.cost_model.Times` is non-decreasing in
each block's time, so each block takes its fastest valid γ on the tier that it runs on, whatever the others do. All λ
then follow from prefix sums, in O(14·N).
"""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch

from config import Settings
from costs.checks import split_range
from costs.cost_model import (
    TIERS,
    HardwareTable,
    Solution,
    SplitTimes,
    Times,
    combine,
    gathered,
    other_tier,
    roofline_loss_ms,
    round_trip_ms,
    scenario_of,
    sent_bytes,
    split_times,
)
from gamma_mask_builder import build_gamma_mask
from network.gammas import unfused_gamma


@dataclass(frozen=True)
class GradientRun:
    """What the gradient method found, before and after rounding."""
    solution: Solution
    steps: int  # of each wire format
    wall_s: float
    history: List[Tuple[int, float]]  # (step, roofline-enhanced T_eff in ms)


def fastest_gammas(block_ms: np.ndarray, valid: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Of [N, 14] times and valid γ: the fastest γ of each block [N] and its time [N], ms."""
    masked = np.where(valid, block_ms, np.inf)
    best = np.nanargmin(masked, axis=1)
    return best, gathered(masked, best)


def times_with_fastest(table: HardwareTable, surviving: np.ndarray, wire: str, settings: Settings) -> SplitTimes:
    """Times at every split when every block runs its fastest valid γ; surviving is bool [N, 3]."""
    valid = build_gamma_mask(surviving)
    block_ms = {tier: fastest_gammas(table.T_ms[tier], valid)[1] for tier in TIERS}
    return split_times(table, block_ms, wire, scenario_of(settings, table))


def gamma_for_split(table: HardwareTable, surviving: np.ndarray, split: int, head_tier: str) -> Tuple[int, ...]:
    """Each block's fastest valid γ on the tier that it runs on at this split."""
    valid = build_gamma_mask(surviving)
    head = fastest_gammas(table.T_ms[head_tier], valid)[0]
    tail = fastest_gammas(table.T_ms[other_tier(head_tier)], valid)[0]
    return tuple(int(g) for g in np.concatenate([head[:split], tail[split:]]))


def solve_exact(table: HardwareTable, surviving: np.ndarray, settings: Settings,
                splits: Optional[Sequence[int]] = None, objective: str = 'T_eff_ms') -> Solution:
    """The optimal γ, λ and wire format for these surviving branches (bool [N, 3]).

    `splits`: the allowed λ (None: LAMBDA_MIN..LAMBDA_MAX); `objective`: a field of Times. Ties go to the lower T_eff,
    then the lower latency, then the smaller λ and γ.
    """
    splits = split_range(table.n_blocks, settings) if splits is None else splits
    found: List[Tuple[int, str, Times]] = []
    for wire in settings.WIRE_FORMATS:
        at_splits = times_with_fastest(table, surviving, wire, settings)
        split = at_splits.best(splits, objective)
        found.append((split, wire, at_splits.at(split)))
    split, wire, best = min(found, key=lambda item: (item[2].rank(objective), item[0]))
    return Solution(gamma_for_split(table, surviving, split, settings.HEAD_TIER), split, wire, best)


def solve_unfused(table: HardwareTable, surviving: np.ndarray, settings: Settings) -> Solution:
    """Every block with its branches side by side (γ 9 or 3 where nothing is pruned), at its best λ and wire format."""
    gamma = [unfused_gamma(tuple(row)) for row in np.asarray(surviving, dtype=bool)]
    block_ms = {tier: gathered(table.T_ms[tier], gamma) for tier in TIERS}
    splits, found = split_range(table.n_blocks, settings), []
    for wire in settings.WIRE_FORMATS:
        at_splits = split_times(table, block_ms, wire, scenario_of(settings, table))
        split = at_splits.best(splits)
        found.append(Solution(tuple(gamma), split, wire, at_splits.at(split)))
    return min(found, key=lambda solution: (solution.times.rank(), solution.split))


def baselines(table: HardwareTable, surviving: np.ndarray, settings: Settings) -> Dict[str, Solution]:
    """Everything on one tier (fastest γ), and unfused at its best split."""
    n = table.n_blocks
    all_on = {settings.HEAD_TIER: n, other_tier(settings.HEAD_TIER): 0}
    found = {f'all_{tier}': solve_exact(table, surviving, settings, splits=[all_on[tier]]) for tier in TIERS}
    return {**found, 'unfused': solve_unfused(table, surviving, settings)}


# --- the gradient method ------------------------------------------------------------------------

class SoftCosts:
    """The roofline-enhanced T_eff as a differentiable function of γ logits and a real λ."""

    def __init__(self, table: HardwareTable, valid: np.ndarray, wire: str, settings: Settings) -> None:
        self.table, self.settings = table, settings

        def as_tensor(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(np.where(valid, values, 0.0), dtype=torch.float64)

        self.block_ms = {tier: as_tensor(table.T_ms[tier]) for tier in TIERS}  # (N, 14)
        self.flops, self.n_bytes = as_tensor(table.flops), as_tensor(table.bytes_moved)
        self.invalid = torch.as_tensor(~valid)
        self.scenario = scenario = scenario_of(settings, table)
        self.com_ms = torch.as_tensor(table.link.transfer_ms(sent_bytes(table, wire, scenario)))  # (N+1,)
        self.rtt_ms = torch.as_tensor(round_trip_ms(table, scenario))  # (N+1,)
        head = settings.HEAD_TIER
        codec = table.cut_codec_ms(wire, head, other_tier(head))
        self.codec_ms = {tier: torch.as_tensor(ms) for tier, ms in zip((head, other_tier(head)), codec)}  # (N+1,)
        self.index = torch.arange(table.n_blocks, dtype=torch.float64)

    def soft_gamma(self, logits: torch.Tensor) -> torch.Tensor:
        """softmax over the valid γ: [N, 14]."""
        return torch.softmax(logits.masked_fill(self.invalid, -torch.inf), dim=1)

    def enhanced_T_eff_ms(self, logits: torch.Tensor, split: torch.Tensor) -> torch.Tensor:
        """Expected times under soft γ and soft split; a block belongs to the head with weight sigmoid(σ(λ - k))."""
        table, settings = self.table, self.settings
        gamma = self.soft_gamma(logits)
        in_head = torch.sigmoid(settings.SIGMA * (split - self.index))  # (N,)
        head = settings.HEAD_TIER
        stage_ms: Dict[str, torch.Tensor] = {}
        for tier, share in ((head, in_head), (other_tier(head), 1 - in_head)):
            end = table.stem if tier == head else table.classifier
            flops = (share * (gamma * self.flops).sum(1)).sum() + end.flops
            n_bytes = (share * (gamma * self.n_bytes).sum(1)).sum() + end.bytes_moved
            own_ms = (share * (gamma * self.block_ms[tier]).sum(1)).sum() + end.T_ms[tier]
            loss = roofline_loss_ms(flops, n_bytes, table.roofline[tier], settings.ROOFLINE_LAMBDA,
                                    settings.ROOFLINE_RHO, torch.relu)
            stage_ms[tier] = own_ms + settings.ROOFLINE_BETA * loss + self.between_cuts(self.codec_ms[tier], split)
        return combine(stage_ms['client'], self.between_cuts(self.com_ms, split), stage_ms['server'],
                       self.between_cuts(self.rtt_ms, split), self.scenario, torch.maximum)[2]

    def between_cuts(self, values: torch.Tensor, split: torch.Tensor) -> torch.Tensor:
        """What a cut costs ([N+1]: T_com, round trip, encoding, decoding), interpolated between cuts; cut c lies at
        c - 1/2, where the blocks below c weigh more than half."""
        position = (split + 0.5).clamp(0, len(values) - 1)
        below = position.detach().floor().clamp(max=len(values) - 2).long()
        part = position - below
        return (1 - part) * values[below] + part * values[below + 1]


def solve_gradient(table: HardwareTable, surviving: np.ndarray, settings: Settings) -> GradientRun:
    """The published method: Adam on γ logits and a real λ, then rounding (argmax γ; the head takes the blocks with
    weight above one half), once for each wire format; the lowest T_eff counts. Deterministic: it starts from equal
    logits and the middle of the allowed splits."""
    start = time.perf_counter()
    runs = [_descend(table, surviving, wire, settings) for wire in settings.WIRE_FORMATS]
    solution, history = min(runs, key=lambda run: (run[0].times.rank(), run[0].split))
    return GradientRun(solution, settings.THROUGHPUT_OPTIM_STEPS, time.perf_counter() - start, history)


def _descend(table: HardwareTable, surviving: np.ndarray, wire: str, settings: Settings,
             ) -> Tuple[Solution, List[Tuple[int, float]]]:
    """The gradient method with one wire format: the rounded answer and the history of its objective."""
    splits = split_range(table.n_blocks, settings)
    costs = SoftCosts(table, build_gamma_mask(surviving), wire, settings)
    logits = torch.zeros(table.n_blocks, table.flops.shape[1], dtype=torch.float64, requires_grad=True)
    low, high = splits[0] - 0.5, splits[-1] - 0.5
    split = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, split], lr=settings.THROUGHPUT_OPTIM_LR)
    history: List[Tuple[int, float]] = []
    for step in range(settings.THROUGHPUT_OPTIM_STEPS):
        optimizer.zero_grad()
        loss = costs.enhanced_T_eff_ms(logits, split)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            split.clamp_(low, high)
        if step % 10 == 0 or step == settings.THROUGHPUT_OPTIM_STEPS - 1:
            history.append((step, float(loss.detach())))
    gamma = tuple(int(g) for g in costs.soft_gamma(logits).argmax(dim=1))
    rounded = min(max(int(np.ceil(float(split.detach()))), splits[0]), splits[-1])
    block_ms: Mapping[str, np.ndarray] = {tier: gathered(table.T_ms[tier], gamma) for tier in TIERS}
    found = split_times(table, block_ms, wire, scenario_of(settings, table)).at(rounded)
    return Solution(gamma, rounded, wire, found), history
