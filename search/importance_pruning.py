"""The sequential baseline's first half: prune progressively by importance alone, blind to time.

The branch with the least |α| / GFLOPs is dropped, α recovers, and the change stays while the accuracy constraint holds;
otherwise it is undone and the next branch is tried. Recovery, validation images and constraint are those of the joint
search; only time plays no part.
"""
from __future__ import annotations

from typing import Callable, Optional, Tuple

import numpy as np

from costs.importance import importance_of, model_branch_flops
from network.alpha import mask_of, pruned, surviving_branches
from search import alpha_training
from search.problem import PruningProblem
from search.recovery import Recovery
from search.state import Phase, SearchState


class ImportancePruning:
    """The search of one domain."""

    def __init__(self, problem: PruningProblem, recovery: Recovery) -> None:
        self.problem, self.recovery = problem, recovery

    def start(self) -> SearchState:
        """The state before anything is pruned."""
        state = self.problem.start()
        self.problem.accept(state, state.best)
        return state

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Rounds until no branch is left to try or MAX_PRUNING_ROUNDS changes were accepted; `save(state)` after
        each."""
        self.recovery.work = state.work
        while state.phase is not Phase.DONE:
            branch = self.least_important(state)
            if branch is not None and len(state.curve) <= self.problem.settings.MAX_PRUNING_ROUNDS:
                self.try_without(state, *branch)
            else:
                state.phase = Phase.DONE
            state.rounds += 1
            save(state)
        return state

    def try_without(self, state: SearchState, block: int, branch: int) -> None:
        """Drop a branch, recover, and accept or undo."""
        mask = surviving_branches(state.best.alpha)
        mask[block, branch] = False
        kept = tuple(bool(alive) for alive in mask[block])
        alpha = pruned(state.best.alpha, mask)
        seed = alpha_training.seed_of(self.problem.settings.SEED, self.problem.domain_id, state.rounds, block, *kept)
        network = self.recovery.train(alpha, seed, self.recovery.measure(alpha))
        if network.accuracy >= self.problem.goal.min_accuracy:
            self.problem.accept(state, network)
            state.recovered[mask_of(network.alpha)] = network  # in the order in which they were accepted
        else:
            state.rejected.add((block, kept))

    def least_important(self, state: SearchState) -> Optional[Tuple[int, int]]:
        """(block, branch) of the smallest |α| / GFLOPs among branches that may go and were not tried."""
        alpha = state.best.alpha
        scores = importance_of(alpha, model_branch_flops(self.problem.settings))
        surviving = surviving_branches(alpha)
        for index in np.argsort(np.where(surviving, scores, np.inf), axis=None, kind='stable'):
            block, branch = divmod(int(index), scores.shape[1])
            kept = tuple(bool(alive) and b != branch for b, alive in enumerate(surviving[block]))
            if surviving[block, branch] and any(kept) and (block, kept) not in state.rejected:
                return block, branch
        return None
