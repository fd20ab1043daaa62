"""Which point of the frontiers is the answer.

PICK chooses the rule:
  constraint  the lowest J whose loss of at most ε is confirmed on calibration images with CONFIDENCE: points that lose
              at most ε of validation accuracy are tested from the one with the fewest pruned branches on, up to the
              first that fails (frontier.order_of_tests). With CONFIDENCE=none the lowest J of the T_eff frontier's
              points that lose at most ε, untested
  knee        of the T_eff frontier down to `lowest_explored`, with T_eff and accuracy both scaled to 0..1 between the
              frontier's ends: the point farthest above the straight line from its fastest to its most accurate point
  budget      the highest validation accuracy of all three frontiers within every budget that is set
              (BUDGET_T_EFF_MS, BUDGET_LATENCY_MS, BUDGET_MIN_FPS); of equal ones the lowest T_eff
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Sequence

import numpy as np

from config import Settings, UserError
from costs.goal import Goal
from search.frontier import OBJECTIVES, FrontierPoint, Frontiers

LARGEST_LOSS = 4  # of ε: a network that lost more is no answer to anybody who sets ε


@dataclass(frozen=True)
class PickRule:
    """How the answer was picked; the budgets are None where none is set, the rest where nothing was tested."""
    rule: str  # of config.PICKS
    T_eff_ms: Optional[float] = None
    latency_ms: Optional[float] = None
    min_fps: Optional[float] = None
    confidence: Optional[float] = None  # asked for
    n_tested: Optional[int] = None  # configurations, the unpruned one included
    n_passed: Optional[int] = None


def rule_of(settings: Settings) -> PickRule:
    """The settings' rule."""
    return PickRule(settings.PICK, settings.BUDGET_T_EFF_MS, settings.BUDGET_LATENCY_MS, settings.BUDGET_MIN_FPS,
                    settings.CONFIDENCE if settings.PICK == 'constraint' else None)


def pick(frontiers: Frontiers, settings: Settings, goal: Goal) -> FrontierPoint:
    """The point that the settings' rule chooses by validation images alone. Raises `UserError` when no point is within
    a budget, `ValueError` when there is no point at all."""
    if not frontiers['T_eff']:
        raise ValueError('a frontier without points')
    if settings.PICK == 'knee':
        return knee(frontiers['T_eff'], lowest_explored(goal))
    if settings.PICK == 'budget':
        return best_within(frontiers, rule_of(settings))
    return lowest_J(frontiers['T_eff'], goal)


def lowest_J(points: Sequence[FrontierPoint], goal: Goal) -> FrontierPoint:
    """The lowest J among points that meet the accuracy constraint, or among all where there is none."""
    within = [point for point in points if point.accuracy >= goal.min_accuracy]
    return min(within or points, key=lambda point: goal.J(point.times.T_eff_ms, point.accuracy))


def lowest_explored(goal: Goal) -> float:
    """The validation accuracy down to which a frontier is of interest."""
    return goal.A_ref - LARGEST_LOSS * goal.accuracy_scale


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
           'latency_ms': f'latency {nearest.times.loaded_latency_ms:.4g} ms'}[worst]
    raise UserError(f'no point of the frontier is within BUDGET_{worst.upper()}={getattr(rule, worst):g}; the nearest '
                    f'has {has} at validation accuracy {nearest.accuracy:.3f} (λ = {nearest.configuration.split}, '
                    f'{nearest.n_pruned} branches pruned)')


def factors(point: FrontierPoint, rule: PickRule) -> Dict[str, float]:
    """Need over budget of every budget that is set; up to 1 is within."""
    found = {}
    if rule.T_eff_ms is not None:
        found['T_eff_ms'] = point.times.T_eff_ms / rule.T_eff_ms
    if rule.latency_ms is not None:
        found['latency_ms'] = point.times.loaded_latency_ms / rule.latency_ms
    if rule.min_fps is not None:
        found['min_fps'] = point.times.T_cyc_ms * rule.min_fps / 1000
    return found
