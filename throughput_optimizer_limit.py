"""Optimisation under limits: γ, λ and wire format that are optimal among those that fit, or the nearest miss.

    MAX_CLIENT_MS, MAX_SERVER_MS, MAX_LATENCY_MS, MIN_FPS    times of `costs.cost_model.Times`
    MAX_CLIENT_MEMORY_MB                                     weights + peak activations on the client (costs/memory.py)
    MAX_BYTES_PER_FRAME                                      what crosses the link at the split
    MAX_CLIENT_MJ                                            energy of a frame on the client (costs/energy.py)
    LAMBDA_MIN, LAMBDA_MAX                                   as without limits

Without a limit on memory each block takes its fastest γ. With one, the client's blocks share a budget: for a given λ
every objective and every other limit only asks for a small T_client, so what is left is the fastest choice within a
budget of bytes, which `costs/knapsack.py` solves exactly. Splits are visited in the order of a lower bound (the time
without the budget) until that bound reaches the best answer; the bounds are handed out as the certificate.

When nothing fits, the nearest configuration is the one whose worst limit is exceeded by the smallest factor.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np

from config import Settings
from costs.cost_model import (
    TIERS,
    HardwareTable,
    Solution,
    Times,
    client_power,
    combine,
    gathered,
    round_trip_ms,
    scenario_of,
    sent_bytes,
    split_times,
    waiting_ms,
)
from costs.energy import Power
from costs.knapsack import ROUNDING, fastest_within, sensible_options
from costs.limits import TOLERANCE, Candidate, LimitedSolution, Limits, NothingFits, SplitBound, limits_of
from costs.memory import MemoryTable, client_ends, client_memory
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from throughput_optimizer import fastest_gammas, solve_exact, split_range


@dataclass(frozen=True)
class Stage:
    """What is settled at one split and wire format, before the client's γ are chosen."""
    split: int
    wire: str
    com_ms: float
    server_ms: float
    n_bytes: float
    blocks: range  # of the client
    client_ms: float  # what the client does beside its blocks: stem, classifier, wire format
    weights: float  # bytes of its stem and classifier
    activations: float  # their larger peak, bytes


class LimitedProblem:
    """All allowed splits and wire formats of one network under limits."""

    def __init__(self, table: HardwareTable, valid: np.ndarray, settings: Settings, limits: Limits,
                 memory: Optional[MemoryTable] = None, objective: str = 'T_eff_ms') -> None:
        """`valid`: γ of every block, bool [N, 14]; `memory`: the client's bytes (None: those of the settings' model);
        `objective`: a field of Times."""
        self.table, self.settings, self.limits, self.objective = table, settings, limits, objective
        self.memory = client_memory(table, settings) if memory is None else memory
        self.splits = np.asarray(split_range(table.n_blocks, settings))
        fastest = {tier: fastest_gammas(table.T_ms[tier], valid) for tier in TIERS}
        self.fastest = {tier: gamma for tier, (gamma, _) in fastest.items()}
        self.options = sensible_options(table.T_ms['client'], self.memory.weights, self.memory.activations, valid)
        block_ms = {tier: values for tier, (_, values) in fastest.items()}
        without = {tier: np.zeros(table.n_blocks) for tier in TIERS}
        self.scenario = scenario = scenario_of(settings, table)
        self.rtt_ms = round_trip_ms(table, scenario)
        self.sent_bytes = {wire: sent_bytes(table, wire, scenario) for wire in settings.WIRE_FORMATS}
        self.least, self.ends = ({wire: split_times(table, ms, wire, scenario)
                                  for wire in settings.WIRE_FORMATS} for ms in (block_ms, without))
        self.least_bytes = self._least_memory()
        self.proven = True
        if limits.client_mj is not None:
            client_power(table, 'MAX_CLIENT_MJ')

    def _least_memory(self) -> np.ndarray:
        """Bytes that the client needs at least at every split [N+1], if the lightest γ were also those with the
        smallest activations."""
        n, head = self.table.n_blocks, self.settings.HEAD_TIER
        weights, activations = self.options.weights.min(axis=1), self.options.activations.min(axis=1)
        found = np.zeros(n + 1)
        for split in range(n + 1):
            stage_weights, stage_activations, blocks = self._ends(split, n, head)
            part = slice(blocks.start, blocks.stop)
            found[split] = (weights[part].sum() + stage_weights +
                            max(stage_activations, activations[part].max(initial=0.0)))
        return found

    def _ends(self, split: int, n: int, head: str) -> Tuple[float, float, range]:
        """Weights and peak activations (bytes) of the client's ends (stem, classifier); its blocks."""
        blocks, stem, classifier = client_ends(split, n, head)
        ends = [end for end, there in ((self.memory.stem, stem), (self.memory.classifier, classifier)) if there]
        return sum(end.weights for end in ends), max((end.activations for end in ends), default=0.0), blocks

    def stage(self, split: int, wire: str) -> Stage:
        """One split with one wire format."""
        weights, activations, blocks = self._ends(split, self.table.n_blocks, self.settings.HEAD_TIER)
        least = self.least[wire].at(split)
        return Stage(split, wire, least.T_com_ms, least.T_server_ms, float(self.sent_bytes[wire][split]), blocks,
                     float(self.ends[wire].T_client_ms[split]), weights, activations)

    # --- one split ---

    def times(self, stage: Stage, client_ms: float) -> Times:
        """The times of a split whose client takes this long."""
        T_lat, T_cyc, T_eff = (float(v) for v in combine(client_ms, stage.com_ms, stage.server_ms,
                                                         float(self.rtt_ms[stage.split]), self.scenario))
        return Times(client_ms, stage.server_ms, stage.com_ms, T_lat, T_cyc, T_eff,
                     float(waiting_ms(stage.com_ms, stage.server_ms, T_cyc, self.scenario)))

    def candidate(self, stage: Stage, gamma: np.ndarray) -> Candidate:
        """The configuration whose client blocks run these γ ([n of them]); the server's blocks run their fastest."""
        chosen = self.fastest['server'].copy()
        chosen[stage.blocks.start:stage.blocks.stop] = gamma
        block_ms = {tier: gathered(self.table.T_ms[tier], chosen) for tier in TIERS}
        times = split_times(self.table, block_ms, stage.wire, self.scenario)
        rows = np.arange(stage.blocks.start, stage.blocks.stop)
        weights = stage.weights + self.memory.weights[rows, gamma].sum()
        activations = max(stage.activations, self.memory.activations[rows, gamma].max(initial=0.0))
        found = times.at(stage.split)
        factors = self.limits.factors(found, stage.n_bytes, weights + activations, self.table.power)
        return Candidate(Solution(tuple(int(g) for g in chosen), stage.split, stage.wire, found), stage.n_bytes,
                         float(weights), float(activations), {name: float(v) for name, v in factors.items()})

    def longest_client_ms(self, stage: Stage, factor: float, objective_ms: float) -> float:
        """A T_client beyond which a time exceeds `factor` times its limit or the objective reaches `objective_ms`."""
        limits, omega, power = self.limits, self.settings.OMEGA, self.scenario.energy_of
        others = stage.com_ms + stage.server_ms + float(self.rtt_ms[stage.split])
        slowest = self.times(stage, 0.0).T_cyc_ms  # of the other stages
        longest = [math.inf]

        def within(most: float, weight: float, cycle_weight: float, rest: float) -> None:
            """weight·T_client + cycle_weight·T_cyc + rest <= most, where the client is the slowest stage or not."""
            longest.append((most - rest) / (weight + cycle_weight))
            if weight > 0:
                longest.append((most - rest - cycle_weight * slowest) / weight)

        def within_energy(most_mj: float, watts: Power) -> None:
            within(most_mj, watts.active_w - watts.idle_w, watts.idle_w, (watts.send_w - watts.idle_w) * stage.com_ms)

        if limits.client_ms is not None:
            longest.append(limits.client_ms * factor)
        if limits.latency_ms is not None:
            longest.append(limits.latency_ms * factor - others)
        if limits.min_fps is not None:
            longest.append(1000 / limits.min_fps * factor)
        if limits.client_mj is not None:
            within_energy(limits.client_mj * factor, self.table.power['client'])
        if self.objective == 'T_lat_ms':
            longest.append(objective_ms - others)
        elif self.objective == 'T_cyc_ms':
            longest.append(objective_ms)
        elif power is not None:
            within_energy(objective_ms * power.active_w, power)
        else:
            within(objective_ms, omega, 1 - omega, omega * others)
        scale = max([abs(v) for v in longest if math.isfinite(v)] + [others])
        return min(longest) + 2 * TOLERANCE * scale  # the exact test is made on the candidate

    def fastest_at(self, stage: Stage, budget: float, below_ms: float) -> Tuple[Optional[Candidate], float]:
        """The fastest client within `budget` bytes and below a time (None: there is none), and a bound on its ms."""
        options = self.options.of(stage.blocks)
        found = fastest_within(options, budget - stage.weights, stage.activations, below_ms - stage.client_ms)
        bound_ms = found.bound_ms + stage.client_ms
        if found.picks is None:
            return None, bound_ms
        self.proven &= found.bound_ms >= found.time_ms * (1 - ROUNDING)
        return self.candidate(stage, options.gamma[np.arange(len(found.picks)), found.picks]), bound_ms

    # --- all splits ---

    def optimum(self) -> Tuple[Optional[Candidate], List[SplitBound]]:
        """The best configuration that fits (None: none does), and the lower bound of every split."""
        order, bounds = [], []
        for position, (wire, least) in enumerate(self.least.items()):
            low = self.lowest_factors(wire)
            for split in self.splits.tolist():
                value = float(getattr(least, self.objective)[split])
                if low[split] <= 1 + TOLERANCE:
                    order.append((value, position, split, wire))
                else:
                    bounds.append(SplitBound(split, wire, math.inf))
        best, best_ms = None, math.inf
        budget = self.budget(1 + TOLERANCE)
        for value, _, split, wire in sorted(order):
            if value <= best_ms * (1 + TOLERANCE):  # an equal one may have the lower latency
                stage = self.stage(split, wire)
                below_ms = self.longest_client_ms(stage, 1 + TOLERANCE, best_ms)
                found, bound = self.fastest_at(stage, budget, below_ms)
                misses = (found is not None and not found.fits and  # so does any slower client: T_lat and wait rise
                          bound >= found.solution.times.T_client_ms * (1 - TOLERANCE))  # with T_client
                if bound < below_ms * (1 - TOLERANCE) and not misses:
                    value = max(value, getattr(self.times(stage, bound), self.objective))
                else:  # nothing here both fits and is better than what was found before
                    value = best_ms
                if found is not None and found.fits and (best is None or self._order(found) < self._order(best)):
                    best, best_ms = found, getattr(found.solution.times, self.objective)
            bounds.append(SplitBound(split, wire, value))
        return best, sorted(bounds)

    def _order(self, candidate: Candidate) -> Tuple[Tuple[float, float, float], int]:
        """What makes one of two that fit the better: as `throughput_optimizer.solve_exact`."""
        return candidate.solution.times.rank(self.objective), candidate.solution.split

    def budget(self, factor: float) -> float:
        """Most bytes whose quotient by the limit is at most `factor`."""
        limit = self.limits.client_memory_bytes
        if limit is None:
            return math.inf
        most = math.floor(limit * factor) + 1
        while most / limit > factor:
            most -= 1
        return most

    def lowest_factors(self, wire: str) -> np.ndarray:
        """At every split [N+1] a bound from below on the worst factor."""
        factors = self.limits.factors(self.least[wire], self.sent_bytes[wire], self.least_bytes, self.table.power)
        return np.max([np.zeros(self.table.n_blocks + 1), *factors.values()], axis=0)

    def nearest(self) -> Candidate:
        """The configuration with the smallest worst factor (ties: the better objective among the ones found)."""
        order = sorted((float(low), position, split, wire) for position, wire in enumerate(self.least)
                       for split, low in enumerate(self.lowest_factors(wire)) if split in self.splits)
        best: Optional[Candidate] = None
        for low, _, split, wire in order:
            if best is not None and low > best.worst * (1 + ROUNDING):
                break
            found = self._nearest_at(self.stage(split, wire), low, best)
            if best is None or self._rank(found) < self._rank(best):
                best = found
        return best

    def _rank(self, candidate: Candidate) -> Tuple[float, float]:
        """Worst factor (rounded, so that equal ones compare equal), then objective."""
        return float(f'{candidate.worst:.12g}'), getattr(candidate.solution.times, self.objective)

    def _nearest_at(self, stage: Stage, low: float, rival: Optional[Candidate]) -> Candidate:
        """The nearest of one split; the first that is found once it is clear that `rival` is nearer."""
        best, _ = self.fastest_at(stage, math.inf, math.inf)
        if rival is not None and rival.worst < best.worst:
            found = self._within(stage, rival.worst * (1 + ROUNDING))
            if found is None:
                return best
            best = found
        while best.worst > low:
            middle = (low + best.worst) / 2
            narrow = best.worst <= low * (1 + TOLERANCE) or not low < middle < best.worst
            factor = float(np.nextafter(best.worst, 0.0)) if narrow else middle
            found = self._within(stage, factor)
            if found is not None and found.worst < best.worst:
                best = found
            elif narrow:
                break
            else:
                low = middle
        return best

    def _within(self, stage: Stage, factor: float) -> Optional[Candidate]:
        """The fastest configuration of a split whose worst factor is at most this (within rounding of times)."""
        found, _ = self.fastest_at(stage, self.budget(factor), self.longest_client_ms(stage, factor, math.inf))
        return found if found is not None and found.worst <= factor else None


# --- for scripts ----------------------------------------------------------------------------------------

def solve_limited(table: HardwareTable, surviving: np.ndarray, settings: Settings, limits: Optional[Limits] = None,
                  memory: Optional[MemoryTable] = None, objective: str = 'T_eff_ms') -> LimitedSolution:
    """The optimal γ, λ and wire format within the limits (None: the settings'), with its certificate.

    `surviving`: bool [N, 3]; `memory`: the client's bytes (None: the settings' model); `objective`: a field of Times.
    Raises `NothingFits`, which holds the nearest configuration.
    """
    limits = limits_of(settings) if limits is None else limits
    problem = LimitedProblem(table, build_gamma_mask(surviving), settings, limits, memory, objective)
    best, bounds = problem.optimum()
    if best is None:
        nearest = problem.nearest()
        raise NothingFits('no configuration is within the limits', nearest, limits, problem.proven)
    return LimitedSolution(best, objective, bounds)


def check_possible(table: HardwareTable, settings: Settings) -> None:
    """Raise `NothingFits` when no pruned network can be within the settings' limits: not even with any γ anywhere."""
    limits = limits_of(settings)
    if limits.any:
        problem = LimitedProblem(table, runnable_gammas(table.n_branches), settings, limits)
        if problem.optimum()[0] is None:
            nearest = problem.nearest()
            raise NothingFits('no configuration is within the limits, whatever is pruned', nearest, limits,
                              problem.proven)


def solve_within_limits(table: HardwareTable, surviving: np.ndarray, settings: Settings, objective: str = 'T_eff_ms',
                        ) -> Solution:
    """`solve_exact`, under the settings' limits where there are any. Raises `NothingFits`."""
    if not limits_of(settings).any:
        return solve_exact(table, surviving, settings, objective=objective)
    return solve_limited(table, surviving, settings, objective=objective).best.solution


def solve_or_nearest(table: HardwareTable, surviving: np.ndarray, settings: Settings) -> Tuple[Solution, float]:
    """As `solve_within_limits`, with 0; or the nearest configuration and by what part of its worst limit it exceeds
    that, as 0.2: what a search minimises while nothing fits yet."""
    try:
        return solve_within_limits(table, surviving, settings), 0.0
    except NothingFits as error:
        return error.nearest.solution, error.nearest.worst - 1
