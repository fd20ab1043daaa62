"""Step 3's search: the joint search, then a bounded number of measurements for the rest of the frontier.

The ε constraint directs the joint search to one part of the frontier of accuracy and time. When nothing promises a
lower J any more, FRONTIER_LOOKS looks and FRONTIER_RECOVERIES recoveries are spent where they promise the frontier most
(`frontier.expected_hypervolume_gain`). Whatever lowers J on the way is accepted as before. Every network whose accuracy
is known is a candidate for the frontiers, and the search ends with the lowest J of the constraint's region.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, Iterable, List, Optional

import numpy as np

from costs.limits import NothingFits
from network.alpha import kept, surviving_branches
from progressive_pruning import JointSearch
from search.frontier import (
    OBJECTIVES,
    Candidate,
    FrontierPoint,
    expected_hypervolume_gain,
    lowest_explored,
    lowest_J,
    measured_frontier,
    non_dominated,
)
from search.prefix_activations import Choice, choice_of
from search.pruning_search import Judgement, SearchState
from search.wire_loss import WireLoss
from throughput_optimizer_limit import solve_within_limits

SLOWEST = 1.0  # T_eff / T_eff_ref: nothing slower than the unpruned network is looked for


class FrontierSearch(JointSearch):
    """The joint search of one domain with its frontiers."""

    # --- measuring more ---

    def widen(self, state: SearchState) -> bool:
        """One look or, when these are spent, one recovery where the frontier gains most. False at the end, when the
        best network is the lowest J of the frontier."""
        looks, recoveries = self.settings.FRONTIER_LOOKS, self.settings.FRONTIER_RECOVERIES
        if len(state.looks) > 1 and state.frontier_steps < looks:
            choice = self.widening_look(state)
            state.frontier_steps = looks if choice is None else state.frontier_steps + 1
            self.look(state, [] if choice is None else [choice], whole=True)
            return True
        if len(state.looks) > 1 and state.frontier_steps < looks + recoveries:
            choice = self.widening_recovery(state)
            state.frontier_steps = looks + recoveries if choice is None else state.frontier_steps + 1
            if choice is not None:
                self.try_choice(state, choice, whole=True)
            return True
        if len(state.looks) > 1:
            self.measure_frontier_whole(state)
        return self.accept_lowest_J(state)

    def widening_look(self, state: SearchState) -> Optional[Choice]:
        """The choice whose look is expected to add most to the frontier; None when none adds anything."""
        pool = self.proposals(state)
        accuracy, sd = self.predicted(state, pool) if pool else (np.zeros(0), np.zeros(0))
        return self.largest_gain(state, pool, accuracy, sd)

    def widening_recovery(self, state: SearchState) -> Optional[Choice]:
        """The look that adds most to the frontier if it wins what recoveries won; None when none would."""
        pool = [choice for choice in state.looks if choice not in state.judged]
        looks = [state.looks[choice] for choice in pool]
        promised, _ = self.once_recovered(state, np.array([look.accuracy for look in looks]), np.zeros(len(looks)))
        half_an_image = np.full(len(pool), 0.5 / len(self.val))
        return self.largest_gain(state, pool, np.minimum(promised, self.reference), half_an_image)

    def largest_gain(self, state: SearchState, pool: List[Choice], accuracy: np.ndarray, sd: np.ndarray,
                     ) -> Optional[Choice]:
        """The choice of the pool that adds most to the frontier of the known networks; None when none adds any."""
        if not pool:
            return None
        known = {**{choice: look.accuracy for choice, look in state.looks.items()},
                 **{choice: found.lossless_accuracy for choice, found in state.judged.items()}}
        gain = expected_hypervolume_gain(accuracy, sd, self.relative_T_eff(pool), np.array(list(known.values())),
                                         self.relative_T_eff(known),
                                         lowest_explored(self.reference, self.settings.EPSILON), SLOWEST)
        best = int(np.argmax(gain))
        return pool[best] if gain[best] > 0 else None

    def accept_lowest_J(self, state: SearchState) -> bool:
        """Make the lowest J of the frontier within the constraint the best network; False where it is."""
        point = lowest_J(self.frontiers(state)['T_eff'], self.bound, lambda p: self.J(p.times.T_eff_ms, p.accuracy))
        if point is None or (point.configuration.wire == self.solve(state.alpha, state.formats).wire and
                             point.recalibrated == state.recalibrated and
                             np.array_equal(point.configuration.alpha, state.alpha, equal_nan=True)):
            return False
        formats = next(formats for formats in self.formats if point.configuration.wire in formats)
        network = next(network for network in self.networks(state) if network.recalibrated == point.recalibrated and
                       np.array_equal(network.alpha, point.configuration.alpha, equal_nan=True))
        self.accept(state, replace(network, accuracy=point.accuracy, formats=formats,
                                   lossless=network.lossless_accuracy))
        return True

    # --- the frontiers ---

    def networks(self, state: SearchState, whole: bool = True) -> List[Judgement]:
        """Every network whose accuracy on all images is known (`whole`), or every one, the best first; those that were
        only looked at have the shared α."""
        best = state.judged.get(choice_of(state.alpha))
        judged = [judgement for judgement in state.judged.values() if judgement is not best]
        looks = [Judgement(look.accuracy, kept(choice, state.shared_alpha), estimated=not look.whole)
                 for choice, look in state.looks.items()]
        unpruned = Judgement(self.reference, self.unpruned)
        return [found for found in (*([best] if best else []), *judged, unpruned, *looks)
                if not (whole and found.estimated)]

    def measure_frontier_whole(self, state: SearchState) -> None:
        """Measure on all images what would be on a frontier by its estimated accuracy, until nothing there is
        estimated."""
        while True:
            estimated = self.estimated_points(state)
            for network in estimated:
                self.measure_whole(state, network)
            if not estimated:
                return

    def estimated_points(self, state: SearchState) -> List[Judgement]:
        """Networks that no other beats in one of the objectives, with an accuracy that is an estimate, as long as it is
        not below what is explored."""
        lowest = lowest_explored(self.reference, self.settings.EPSILON)
        networks, found = self.networks(state, whole=False), {}
        for objective in OBJECTIVES.values():
            rows = [(network, getattr(candidate.solution.times, objective)) for network in networks
                    for candidate in self.candidates(state, network, objective)]
            accuracy = [network.lossless_accuracy for network, _ in rows]
            for index in non_dominated(accuracy, [ms for _, ms in rows]):
                if rows[index][0].estimated and accuracy[index] >= lowest:
                    found[id(rows[index][0])] = rows[index][0]
        return list(found.values())

    def measure_whole(self, state: SearchState, network: Judgement) -> None:
        """Put the accuracy on all images in the place of an estimate."""
        choice = choice_of(network.alpha)
        if state.judged.get(choice) is network:
            self.model.set_alpha_array(network.alpha)
            measured = (self.recalibrated if network.recalibrated else self.validated)(state, network.alpha)
            state.judged[choice] = self.on_the_wire(state, measured)
        else:
            self.look(state, [choice], whole=True)

    def candidates(self, state: SearchState, network: Judgement, objective: str) -> Iterable[Candidate]:
        """A network at its best γ and λ for a field of `Times`, once for the formats of each loss; none where nothing
        is within the limits."""
        untrained = (self.unpruned, kept(choice_of(network.alpha), state.shared_alpha))
        recovered = not any(np.array_equal(network.alpha, alpha, equal_nan=True) for alpha in untrained)
        for formats in self.formats:
            try:
                solution = solve_within_limits(self.table, surviving_branches(network.alpha),
                                               self.settings_with(formats), objective)
            except NothingFits:
                continue
            yield Candidate(network.alpha, network.lossless_accuracy, recovered, solution, network.recalibrated)

    def frontiers(self, state: SearchState) -> Dict[str, List[FrontierPoint]]:
        """Each objective's frontier of all networks of the search, with the accuracies that the wire leaves."""
        measured = WireLoss(self.model, self.val, self.settings, lambda alpha: self.statistics_for(alpha)[0])
        networks = self.networks(state)
        return {name: measured_frontier([candidate for network in networks
                                         for candidate in self.candidates(state, network, objective)], objective,
                                        measured)
                for name, objective in OBJECTIVES.items()}
