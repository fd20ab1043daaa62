"""All configurations that no other beats on validation accuracy and one time, and the rules that pick one of them.

A search leaves many networks behind; each of them runs at the γ, λ and wire format that are optimal for the objective
at hand. One point beats another if it is no worse in accuracy and in time and better in one of them.

PICK says which point is the answer:
  constraint  the lowest J of the T_eff frontier among points that lose at most ε of validation accuracy
  knee        of the T_eff frontier down to `lowest_explored`, with T_eff and accuracy both scaled to 0..1 between the
              frontier's ends: the point farthest above the straight line from its fastest to its most accurate point
  budget      the highest validation accuracy of all three frontiers within every budget that is set
              (BUDGET_T_EFF_MS, BUDGET_LATENCY_MS, BUDGET_MIN_FPS); of equal ones the lowest T_eff
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from config import Settings, UserError
from costs.cost_model import Configuration, Solution, Times, goal
from search.normal_distribution import cumulative, density
from search.surrogate import LARGEST_LOSS, scale_of
from search.wire_loss import WireLoss

OBJECTIVES: Dict[str, str] = {'T_eff': 'T_eff_ms', 'latency': 'T_lat_ms', 'throughput': 'T_cyc_ms'}  # fields of Times


@dataclass(frozen=True)
class FrontierPoint:
    """A configuration with what decides about it."""
    configuration: Configuration
    accuracy: float  # validation, with the loss of the wire format; fraction of 1
    times: Times
    recovered: bool  # was its α trained for it? Otherwise it is one that many share, 0 where pruned
    recalibrated: bool = False  # is the accuracy that with BatchNorm statistics re-estimated for its α?

    @property
    def n_pruned(self) -> int:
        """Branches with α = 0."""
        return int((self.configuration.alpha == 0).sum())


Frontiers = Mapping[str, Sequence[FrontierPoint]]  # by objective, each fastest first


@dataclass(frozen=True)
class Candidate:
    """A network that may belong to a frontier, at its best γ, λ and wire format."""
    alpha: np.ndarray  # [N, 3]
    lossless_accuracy: float  # validation, without the loss of the wire format
    recovered: bool
    solution: Solution
    recalibrated: bool = False  # is that accuracy with BatchNorm statistics re-estimated for alpha?


def non_dominated(accuracy: Sequence[float], ms: Sequence[float]) -> List[int]:
    """Indices of the points that no other beats on (accuracy, ms), fastest first; of equal points the first."""
    kept: List[int] = []
    for index in sorted(range(len(ms)), key=lambda i: (ms[i], -accuracy[i])):  # stable
        if not kept or accuracy[index] > accuracy[kept[-1]]:
            kept.append(index)
    return kept


def measured_frontier(candidates: Sequence[Candidate], objective: str, measured: WireLoss) -> List[FrontierPoint]:
    """The candidates that no other beats on accuracy and `objective` (a field of Times), fastest first.

    What a wire format loses is measured only where it could matter: a candidate counts with its accuracy without loss
    until it is on the frontier. So one that would gain by its wire format may be missed; no point has a guessed value.
    """
    accuracy = [candidate.lossless_accuracy for candidate in candidates]
    ms = [getattr(candidate.solution.times, objective) for candidate in candidates]
    unknown = set(range(len(candidates)))
    while True:
        kept = non_dominated(accuracy, ms)
        to_measure = unknown.intersection(kept)
        if not to_measure:
            return [FrontierPoint(
                Configuration(candidates[i].alpha, candidates[i].solution.gamma, candidates[i].solution.split,
                              candidates[i].solution.wire), accuracy[i], candidates[i].solution.times,
                candidates[i].recovered, candidates[i].recalibrated) for i in kept]
        for i in sorted(to_measure):
            at = candidates[i].solution
            accuracy[i] = measured.accuracy(candidates[i].alpha, at.split, at.wire, accuracy[i],
                                            candidates[i].recalibrated)
        unknown -= to_measure


# --- how good a frontier is ---------------------------------------------------------------------------

def lowest_explored(reference: float, epsilon: float) -> float:
    """The validation accuracy down to which a frontier is of interest: the loss that the surrogate can tell apart."""
    return reference - LARGEST_LOSS * scale_of(epsilon)


def steps_of(accuracy: np.ndarray, ms: np.ndarray, lowest_accuracy: float, slowest_ms: float,
             ) -> Tuple[np.ndarray, np.ndarray]:
    """The best accuracy that can be had within a time, as a staircase from 0 to `slowest_ms`: (where its steps begin
    [s], their heights [s]); `lowest_accuracy` where nothing is fast enough."""
    kept = [i for i in non_dominated(accuracy, ms) if ms[i] < slowest_ms and accuracy[i] > lowest_accuracy]
    return np.array([0.0, *(ms[i] for i in kept)]), np.array([lowest_accuracy, *(accuracy[i] for i in kept)])


def hypervolume(accuracy: np.ndarray, ms: np.ndarray, lowest_accuracy: float, slowest_ms: float) -> float:
    """Area between the staircase of these points and the corner (lowest_accuracy, slowest_ms): more is better
    (Zitzler and Thiele, 1998)."""
    starts, heights = steps_of(np.asarray(accuracy), np.asarray(ms), lowest_accuracy, slowest_ms)
    return float(((heights - lowest_accuracy) * np.diff(np.append(starts, slowest_ms))).sum())


def expected_hypervolume_gain(accuracy: np.ndarray, sd: np.ndarray, ms: np.ndarray, known_accuracy: np.ndarray,
                              known_ms: np.ndarray, lowest_accuracy: float, slowest_ms: float) -> np.ndarray:
    """How much each of m networks is expected to add to the hypervolume of the known points, [m].

    Accuracies are predictions, normally distributed with `sd` [m]; times are exact. Over each step of the staircase
    the gain is the width of the step beyond the network's time, times E[(a - height)+], the expected improvement in
    closed form (Emmerich et al., 2006; in one dimension Mockus, 1975).
    """
    starts, heights = steps_of(known_accuracy, known_ms, lowest_accuracy, slowest_ms)
    ends = np.append(starts[1:], slowest_ms)
    width = np.maximum(0, ends - np.maximum(starts, ms[:, None]))  # (m, s)
    z = (accuracy[:, None] - heights) / sd[:, None]
    return (width * sd[:, None] * (z * cumulative(z) + density(z))).sum(axis=1)


# --- picking a point ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class PickRule:
    """How the answer was picked; the budgets are None where none is set."""
    rule: str  # of config.PICKS
    T_eff_ms: Optional[float] = None
    latency_ms: Optional[float] = None
    min_fps: Optional[float] = None


def rule_of(settings: Settings) -> PickRule:
    """The settings' rule."""
    return PickRule(settings.PICK, settings.BUDGET_T_EFF_MS, settings.BUDGET_LATENCY_MS, settings.BUDGET_MIN_FPS)


def pick(frontiers: Frontiers, settings: Settings, reference: float, T_eff_ref_ms: float) -> FrontierPoint:
    """The point that the settings' rule chooses; `reference` is A_ref. Raises `UserError` when no point is within a
    budget, `ValueError` when there is no point at all."""
    if not frontiers['T_eff']:
        raise ValueError('a frontier without points')
    if settings.PICK == 'knee':
        return knee(frontiers['T_eff'], lowest_explored(reference, settings.EPSILON))
    if settings.PICK == 'budget':
        return best_within(frontiers, rule_of(settings))
    return lowest_J(frontiers['T_eff'], reference - settings.EPSILON, lambda point: goal(
        point.times.T_eff_ms, T_eff_ref_ms, point.accuracy, reference, settings.EPSILON, settings.KAPPA,
        settings.MU)[0])


def lowest_J(points: Sequence[FrontierPoint], bound: float, J: Callable[[FrontierPoint], float],
             ) -> Optional[FrontierPoint]:
    """The lowest J among points of at least this accuracy, or among all where there is none; None without points."""
    within = [point for point in points if point.accuracy >= bound]
    return min(within or points, key=J, default=None)


def knee(points: Sequence[FrontierPoint], lowest_accuracy: float) -> FrontierPoint:
    """The knee as defined above, of the points of at least this accuracy (of all where there is none); of equally far
    ones the most accurate."""
    shown = [point for point in points if point.accuracy >= lowest_accuracy] or list(points)
    ms = np.array([point.times.T_eff_ms for point in shown])
    accuracy = np.array([point.accuracy for point in shown])

    def scaled(values: np.ndarray) -> np.ndarray:
        return (values - values[0]) / max(values[-1] - values[0], np.finfo(float).tiny)  # both rise along a frontier

    above = scaled(accuracy) - scaled(ms)  # times 1/sqrt(2): the distance from the line
    return shown[int(np.flatnonzero(above >= above.max() - 1e-12)[-1])]


def best_within(frontiers: Frontiers, rule: PickRule) -> FrontierPoint:
    """The most accurate point of all frontiers within the budgets. Raises `UserError` that names the nearest: the one
    whose worst budget is exceeded by the smallest factor."""
    points = [point for objective in OBJECTIVES for point in frontiers[objective]]
    within = [point for point in points if max(factors(point, rule).values()) <= 1]
    if within:
        return min(within, key=lambda point: (-point.accuracy, point.times.T_eff_ms))
    nearest = min(points, key=lambda point: max(factors(point, rule).values()))
    exceeded = factors(nearest, rule)
    worst = max(exceeded, key=exceeded.__getitem__)
    has = {'T_eff_ms': f'T_eff {nearest.times.T_eff_ms:.4g} ms', 'min_fps': f'{nearest.times.throughput_fps:.4g} fps',
           'latency_ms': f'latency {nearest.times.T_lat_ms:.4g} ms'}[worst]
    raise UserError(f'no point of the frontier is within BUDGET_{worst.upper()}={getattr(rule, worst):g}; the nearest '
                    f'has {has} at validation accuracy {nearest.accuracy:.3f} (λ = {nearest.configuration.split}, '
                    f'{nearest.n_pruned} branches pruned)')


def factors(point: FrontierPoint, rule: PickRule) -> Dict[str, float]:
    """Need over budget of every budget that is set; up to 1 is within."""
    found = {}
    if rule.T_eff_ms is not None:
        found['T_eff_ms'] = point.times.T_eff_ms / rule.T_eff_ms
    if rule.latency_ms is not None:
        found['latency_ms'] = point.times.T_lat_ms / rule.latency_ms
    if rule.min_fps is not None:
        found['min_fps'] = point.times.T_cyc_ms * rule.min_fps / 1000
    return found
