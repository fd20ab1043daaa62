"""All configurations that no other beats on validation accuracy and one time, and those that are to be confirmed.

A search leaves many networks behind; each of them runs at the γ, λ and wire format that are optimal for the objective
at hand. One point beats another if it is no worse in accuracy and in time and better in one of them.

The points to be confirmed on calibration images have a list of their own, since accuracy on validation images says
little of what the best of many networks lose on others: how many branches are pruned says more (docs/frontier.md).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Mapping, Sequence

import numpy as np

from costs.cost_model import Configuration, Solution, Times
from costs.goal import Goal
from costs.limits import NothingFits
from search.problem import PruningProblem
from search.state import EvaluatedNetwork, SearchState
from search.wire_loss import WireLoss

OBJECTIVES: Dict[str, str] = {'T_eff': 'T_eff_ms', 'latency': 'T_lat_ms', 'throughput': 'T_cyc_ms'}  # fields of Times
TESTS = 'tests'  # beside these in Frontiers: what is tested on calibration images, in this order


@dataclass(frozen=True)
class FrontierPoint:
    """A configuration with what decides about it."""
    configuration: Configuration
    accuracy: float  # validation, with the loss of the wire format; fraction of 1
    times: Times
    recovered: bool  # was its α trained for it? Otherwise it is that of the best network at the time, 0 where pruned
    recalibrated: bool = False  # is the accuracy that with BatchNorm statistics re-estimated for its α?

    @property
    def n_pruned(self) -> int:
        """Branches with α = 0."""
        return int((self.configuration.alpha == 0).sum())


Frontiers = Mapping[str, Sequence[FrontierPoint]]  # by objective, each fastest first; TESTS in the order of tests


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


def order_of_tests(n_pruned: Sequence[int], accuracy: Sequence[float], J: Sequence[float], min_accuracy: float,
                   ) -> List[int]:
    """Indices of the points to be confirmed, those with the fewest pruned branches first: of each number of them the
    lowest J within the constraint, where it is below the J of all before it; of equal points the first."""
    kept: List[int] = []
    for index in sorted(range(len(J)), key=lambda i: (n_pruned[i], J[i])):  # stable
        if accuracy[index] >= min_accuracy and (not kept or J[index] < J[kept[-1]]):
            kept.append(index)
    return kept


def measured_points(candidates: Sequence[Candidate], select: Callable[[List[float]], List[int]], measured: WireLoss,
                    ) -> List[FrontierPoint]:
    """The candidates that `select` keeps of all by their accuracies (their indices, in order).

    What a wire format loses is measured only where it could matter: a candidate counts with its accuracy without loss
    until it is kept. So one that would gain by its wire format may be missed; no point has a guessed value.
    """
    accuracy = [candidate.lossless_accuracy for candidate in candidates]
    unknown = set(range(len(candidates)))
    while True:
        kept = select(accuracy)
        to_measure = unknown.intersection(kept)
        if not to_measure:
            return [FrontierPoint(
                measured.configuration(candidates[i].alpha, candidates[i].solution, candidates[i].recalibrated),
                accuracy[i], candidates[i].solution.times, candidates[i].recovered, candidates[i].recalibrated)
                for i in kept]
        for i in sorted(to_measure):
            at = candidates[i].solution
            accuracy[i] = measured.accuracy(candidates[i].alpha, at.split, at.wire, accuracy[i],
                                            candidates[i].recalibrated)
        unknown -= to_measure


def measured_frontier(candidates: Sequence[Candidate], objective: str, measured: WireLoss) -> List[FrontierPoint]:
    """The candidates that no other beats on accuracy and `objective` (a field of Times), fastest first."""
    ms = [getattr(candidate.solution.times, objective) for candidate in candidates]
    return measured_points(candidates, lambda accuracy: non_dominated(accuracy, ms), measured)


def measured_tests(candidates: Sequence[Candidate], goal: Goal, measured: WireLoss) -> List[FrontierPoint]:
    """The candidates to be confirmed, in the order of tests."""
    n_pruned = [int((candidate.alpha == 0).sum()) for candidate in candidates]

    def select(accuracy: List[float]) -> List[int]:
        J = [goal.J(candidate.solution.times.T_eff_ms, known) for candidate, known in zip(candidates, accuracy)]
        return order_of_tests(n_pruned, accuracy, J, goal.min_accuracy)

    return measured_points(candidates, select, measured)


def networks_of(state: SearchState) -> List[EvaluatedNetwork]:
    """Every network of a search, the best first."""
    recovered = [network for network in (*state.narrow, *state.recovered.values()) if network is not state.best]
    measured = [EvaluatedNetwork(found.alpha, found.accuracy, found.accuracy) for found in state.measured.values()]
    return [state.best, *recovered, *measured]


def candidates(problem: PruningProblem, network: EvaluatedNetwork, objective: str) -> Iterable[Candidate]:
    """A network at its best γ and λ for a field of `Times`, once for the wire formats of each loss; none where nothing
    is within the limits."""
    for formats in problem.times.formats:
        try:
            solution = problem.times.solve_within_limits(network.alpha, formats, objective)
        except NothingFits:
            continue
        yield Candidate(network.alpha, network.lossless_accuracy, network.recovered, solution,
                        network.recalibrated)


def frontiers_of(problem: PruningProblem, state: SearchState) -> Dict[str, List[FrontierPoint]]:
    """Each objective's frontier of all networks of the search, and what is to be confirmed, with the accuracies that
    the wire leaves."""
    measured = WireLoss(problem.model, problem.val, problem.settings, lambda alpha: problem.statistics_for(alpha)[0],
                        problem.channel_choice)
    networks = networks_of(state)

    def at_best(objective: str) -> List[Candidate]:
        return [candidate for network in networks for candidate in candidates(problem, network, objective)]

    found = {name: measured_frontier(at_best(objective), objective, measured) for name, objective in OBJECTIVES.items()}
    found[TESTS] = measured_tests(at_best('T_eff_ms'), problem.goal, measured)
    return found
