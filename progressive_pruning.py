"""Choose α, γ and λ of one domain together, by pruning progressively.

A candidate is a mask: the branches that every block keeps. Its time is exact and nearly free, since γ and λ are solved
anew; its accuracy costs forward passes. So the search is Bayesian optimisation (Mockus, 1975) of J over masks:

    start       measure masks that change one block, in turn by the time that they save and by importance
    explore     fit a surrogate to all measurements, measure the mask that is expected to lower J most once recovered,
                then recover (train the α of) the measured mask that promises most, if that is worth it
    at the end  measure what lies between the best network and the unpruned one, for the test that confirms the answer

A mask is measured with the α of the best network so far, so that what recoveries have won serves all later ones. It
becomes the best network if it lowers J within the constraint on all validation images, otherwise it is undone.
The parts are objects of their own in search/: candidates, evaluator, surrogate, acquisition, recovery, stopping rule.
"""
from __future__ import annotations

from typing import Callable, List, Optional, Tuple, Type

import numpy as np

import cli
from network.alpha import PruningMask, mask_of, pruned
from search import alpha_training
from search.acquisition import Acquisition
from search.candidates import Candidates
from search.evaluator import Evaluator
from search.problem import PruningProblem
from search.recovery import Recovery
from search.state import EvaluatedNetwork, Measurement, Phase, SearchState
from search.stopping import StoppingRule
from search.surrogate import Surrogate


class ProgressivePruning:
    """The search of one domain. `run` calls `save(state)` after every round, so that a killed search can go on."""

    def __init__(self, problem: PruningProblem, candidates: Candidates, evaluator: Evaluator, acquisition: Acquisition,
                 recovery: Recovery, stopping: StoppingRule, surrogate: Type[Surrogate] = Surrogate) -> None:
        self.problem, self.candidates, self.evaluator = problem, candidates, evaluator
        self.acquisition, self.recovery, self.stopping, self.surrogate = acquisition, recovery, stopping, surrogate

    def start(self) -> SearchState:
        """The state before anything is pruned. Raises `limits.NothingFits` when no pruning can meet the limits."""
        state = self.problem.start()
        self.recovery.work = state.work
        self.measure(state, [self.candidates.unpruned])
        self.problem.accept(state, self.recovery.on_the_wire(state.best))
        return state

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Rounds until the search is done."""
        self.recovery.work = state.work
        if not self.candidates.any:
            cli.say(f'domain {self.problem.domain_id}: no block has a branch to spare, so there is nothing to prune: '
                    'the result is what γ, λ and the wire format give')
            state.phase = Phase.DONE
        phases = {Phase.START: self.measure_single_changes, Phase.EXPLORE: self.explore}
        while state.phase is not Phase.DONE:
            state.phase = phases[state.phase](state)
            state.rounds += 1
            save(state)
        return state

    # --- phases: each returns the next one ---

    def measure_single_changes(self, state: SearchState) -> Phase:
        """Half of all measurements at most go to masks that change one block."""
        changes = self.candidates.single_changes(self.problem.times.relative)
        self.measure(state, changes[:self.stopping.max_evaluations // 2])
        return Phase.EXPLORE

    def explore(self, state: SearchState) -> Phase:
        """One measurement and one recovery, each where it is expected to lower J most and enough."""
        to_measure = self.most_promising(state)
        if to_measure is not None:
            self.measure(state, [to_measure])
        to_recover = self.most_recoverable(state, exploring=to_measure is not None)
        if to_recover is not None:
            self.recover(state, to_recover)
        if to_measure is not None or to_recover is not None:
            return Phase.EXPLORE
        self.measure_way_back(state)
        return Phase.DONE

    def measure_way_back(self, state: SearchState) -> None:
        """Measure networks between the best one and the unpruned one: block after block comes back whole, each time the
        one of which most accuracy is expected. They lose less, and so can be confirmed where the best one cannot."""
        mask = mask_of(state.best.alpha)
        while mask != self.candidates.unpruned:
            fuller = [(*mask[:k], whole, *mask[k + 1:]) for k, whole in enumerate(self.candidates.unpruned)
                      if mask[k] != whole]
            expected, _ = self.fitted(state).predict(self.candidates.dropped(fuller))
            mask = fuller[int(np.argmax(expected))]
            if mask not in state.measured:
                self.measure(state, [mask])

    # --- measuring ---

    def measure(self, state: SearchState, masks: List[PruningMask]) -> None:
        """Measure masks with the α of the best network, which becomes that of a mask that is better as it is."""
        for mask in masks:
            if self.stopping.is_spent(state):
                return
            alpha, before = self.start_alpha(state), self.evaluator.block_evaluations
            self.evaluator.use(alpha)
            found = Measurement(pruned(alpha, mask), self.evaluator.margins(mask))
            state.work.block_evaluations += self.evaluator.block_evaluations - before
            state.measured[mask] = found
            self.accept_if_better(state, EvaluatedNetwork(found.alpha, found.accuracy, found.accuracy))

    def start_alpha(self, state: SearchState) -> np.ndarray:
        """α [N, 3] of the best network, and of the unpruned one for branches that it lacks."""
        return np.where(state.best.alpha != 0, state.best.alpha, self.problem.unpruned)

    def most_promising(self, state: SearchState) -> Optional[PruningMask]:
        """The mask to measure next; None when measuring is no longer worth it."""
        if len(state.measured) >= self.stopping.max_evaluations or self.stopping.is_spent(state):
            return None
        pool = [mask for mask in self.candidates.pool(self.lowest_J_first(state)) if mask not in state.measured]
        if not pool:
            return None
        mask, improvement = self.best_of(state, pool, *self.fitted(state).predict(self.candidates.dropped(pool)))
        return mask if self.stopping.worth_evaluating(len(state.measured), improvement) else None

    def fitted(self, state: SearchState) -> Surrogate:
        """A surrogate of all measurements."""
        return self.surrogate(self.candidates.dropped(list(state.measured)),
                              np.stack([found.margins for found in state.measured.values()]),
                              self.problem.goal.accuracy_scale)

    def lowest_J_first(self, state: SearchState) -> List[PruningMask]:
        """The measured masks, by their J."""
        masks, goal = list(state.measured), self.problem.goal
        J = [goal.J(relative * goal.T_eff_ref_ms, accuracy)
             for relative, accuracy in zip(self.problem.times.relative(masks), accuracies(state, masks))]
        return [masks[i] for i in np.argsort(J, kind='stable')]

    def best_of(self, state: SearchState, masks: List[PruningMask], accuracy: np.ndarray, sd: np.ndarray,
                ) -> Tuple[PruningMask, float]:
        """The mask with the highest expected improvement of J, and that improvement."""
        improvements = self.acquisition.improvements(masks, accuracy, sd, self.recovery.gain(state),
                                                     self.problem.J_of(state.best))
        best = int(np.argmax(improvements))
        return masks[best], float(improvements[best])

    # --- recovering and accepting ---

    def most_recoverable(self, state: SearchState, exploring: bool) -> Optional[PruningMask]:
        """The measured mask to recover next; None when none is worth it."""
        pool = [mask for mask in state.measured if mask not in state.recovered]
        if not pool or self.stopping.is_spent(state):
            return None
        mask, improvement = self.best_of(state, pool, accuracies(state, pool), np.zeros(len(pool)))
        return mask if self.stopping.worth_recovering(improvement, exploring) else None

    def recover(self, state: SearchState, mask: PruningMask) -> None:
        """Train α from the best network's; what was measured before stays where that is more accurate."""
        found, settings = state.measured[mask], self.problem.settings
        seed = alpha_training.seed_of(settings.SEED, self.problem.domain_id, *(int(v) for row in mask for v in row))
        state.recovered[mask] = self.recovery.train(
            pruned(self.start_alpha(state), mask), seed, EvaluatedNetwork(found.alpha, found.accuracy, found.accuracy))
        self.accept_if_better(state, state.recovered[mask])

    def accept_if_better(self, state: SearchState, network: EvaluatedNetwork) -> None:
        """Make it the best network if it lowers J within the constraint, with what the wire format loses."""
        if self.problem.improves(network, state.best):
            best_J = self.problem.J_of(state.best)
            network = self.recovery.on_the_wire(network, best_J)  # measured only where it could matter
            if self.problem.improves(network, state.best):
                self.problem.accept(state, network)


def accuracies(state: SearchState, masks: List[PruningMask]) -> np.ndarray:
    """Measured accuracies of these masks, [m]."""
    return np.array([state.measured[mask].accuracy for mask in masks])
