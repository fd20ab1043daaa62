"""The sequential baseline's first half: prune progressively by importance alone, blind to time.

The branch with the least |α| / GFLOPs is dropped, α recovers, and the change stays while the accuracy constraint
holds; otherwise it is undone and the next branch is tried. The same recovery, the same judgement on all validation
images and the same bound as in the joint search; only time plays no part.
"""
from __future__ import annotations

from typing import Optional, Tuple

import numpy as np

from costs.work import branch_flops
from network.alpha import surviving_branches
from network.shapes import architecture, block_shapes
from search import alpha_training
from search.prefix_activations import Keep
from search.pruning_search import Judgement, PruningSearch, SearchState


class ImportanceSearch(PruningSearch):
    """A search whose rounds follow importance; everything else is shared."""

    def round(self, state: SearchState) -> bool:
        """Try the least important branch not tried yet; False when none is left."""
        found = self.least_important(state)
        if found is None:
            return False
        block, branch = found
        keep = tuple(bool(alive) and b != branch for b, alive in enumerate(surviving_branches(state.alpha)[block]))
        judgement = self.judge(state, block, keep)
        if judgement.accuracy >= self.bound:
            self.accept(state, judgement)
        else:
            state.rejected.add((block, keep))
        return True

    def on_the_wire(self, state: SearchState, judgement: Judgement) -> Judgement:
        """Blind to the link, too: step 4 chooses the wire format."""
        return judgement

    def judge(self, state: SearchState, block: int, keep: Keep) -> Judgement:
        """The change after a short recovery, without L1 pressure: its weights would be times."""
        alpha = state.alpha.copy()
        alpha[block] = np.where(np.isnan(alpha[block]), np.nan, np.where(keep, alpha[block], 0.0))
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, state.rounds, block, *map(int, keep))
        self.model.set_alpha_array(alpha)
        return self.recovered(state, alpha, self.settings.RECOVERY_STEPS, seed, None,
                              self.validated(state, alpha, self.bound), self.bound)

    def least_important(self, state: SearchState) -> Optional[Tuple[int, int]]:
        """(block, branch) of the smallest |α| / GFLOPs among branches that may go and were not tried."""
        _, shapes = block_shapes(architecture(self.settings.MODEL_NAME), self.settings.INPUT_SIZE)
        scores = np.abs(state.alpha) / np.array([branch_flops(shape) for shape in shapes])
        surviving = surviving_branches(state.alpha)
        for index in np.argsort(np.where(surviving, scores, np.inf), axis=None, kind='stable'):
            block, branch = divmod(int(index), scores.shape[1])
            keep = tuple(bool(alive) and b != branch for b, alive in enumerate(surviving[block]))
            if surviving[block, branch] and any(keep) and (block, keep) not in state.rejected:
                return block, branch
        return None
