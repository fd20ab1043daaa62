"""What may be pruned from a network, and in which order it is worth trying. Times come from the table and are exact."""
from __future__ import annotations

import itertools
from typing import Callable, Dict, Iterable, List, Sequence, Tuple

import numpy as np

from config import Settings
from costs.cost_model import TIERS, HardwareTable
from gamma_mask_builder import build_gamma_mask
from network.alpha import BlockMask, PruningMask, mask_of
from network.shapes import BRANCHES
from throughput_optimizer import fastest_gammas

ENUMERATED = 5000  # up to so many masks all are candidates: rating them takes a tenth of a second
NEIGHBOURS_OF = 12  # beyond, the masks one or two changes away from so many good ones


class Candidates:
    """The pruning masks of one network that a search chooses from."""

    def __init__(self, unpruned: PruningMask, options: Sequence[Sequence[BlockMask]],
                 importance: Sequence[Tuple[int, int]]) -> None:
        """`options`: what each block may keep, all it has first; `importance`: (block, branch), least important
        first."""
        self.unpruned, self.options = unpruned, [list(choices) for choices in options]
        self._rank = {pair: position for position, pair in enumerate(importance)}

    @property
    def any(self) -> bool:
        """Has a block more than one branch?"""
        return any(sum(kept) > 1 for kept in self.unpruned)

    def single_changes(self, relative_T_eff: Callable[[List[PruningMask]], np.ndarray]) -> List[PruningMask]:
        """Masks that change one block, in turn from the ranking by the time that is left and the ranking by the
        importance of what is dropped."""
        changes = [(block, (*self.unpruned[:block], kept, *self.unpruned[block + 1:]))
                   for block, choices in enumerate(self.options) for kept in choices if kept != self.unpruned[block]]
        by_time = [item for _, item in sorted(zip(relative_T_eff([mask for _, mask in changes]), changes))]
        by_importance = sorted(changes, key=lambda item: self._importance(*item))
        return list(dict.fromkeys(mask for pair in zip(by_time, by_importance) for _, mask in pair))

    def _importance(self, block: int, mask: PruningMask) -> int:
        """The rank of the most important branch that a block loses."""
        return max(self._rank.get((block, branch), len(self._rank)) for branch in range(len(BRANCHES))
                   if self.unpruned[block][branch] and not mask[block][branch])

    def pool(self, good: Sequence[PruningMask]) -> Iterable[PruningMask]:
        """All masks, or where these are too many those one or two changes away from the first of `good`."""
        if np.prod([float(len(choices)) for choices in self.options]) <= ENUMERATED:
            return itertools.product(*self.options)
        return dict.fromkeys(near for mask in good[:NEIGHBOURS_OF] for near in neighbours(mask, self.options))

    def dropped(self, masks: Sequence[PruningMask]) -> np.ndarray:
        """Which branches of the unpruned network these masks drop, bool [m, 3 N]."""
        return (np.array(self.unpruned) & ~np.array(masks)).reshape(len(masks), -1)


def candidates_of(table: HardwareTable, unpruned: np.ndarray, T_eff_ref_ms: float,
                  importance: Sequence[Tuple[int, int]], settings: Settings) -> Candidates:
    """The candidates of the network with this α [N, 3].

    A block may keep all it has; a smaller set that saves MIN_SAVING of T_eff_ref more than any larger one, on the tier
    where it saves more; and all but a branch whose |α| is below PRUNING_THRESHOLD. Where fusing is free, dropping the
    1x1 or the identity beside the 3x3 saves nothing and is no candidate.
    """
    options: List[List[BlockMask]] = []
    for block, all_branches in enumerate(mask_of(unpruned)):
        saved: Dict[BlockMask, float] = {all_branches: 0.0}
        for kept in smaller_sets(all_branches):
            dropped = [b for b in range(len(BRANCHES)) if all_branches[b] and not kept[b]]
            vanished = len(dropped) == 1 and abs(unpruned[block, dropped[0]]) < settings.PRUNING_THRESHOLD
            value = most_saved_ms(table, block, all_branches, kept) / T_eff_ref_ms
            if vanished or all(value >= other + settings.MIN_SAVING for larger, other in saved.items()
                               if all(a or not b for a, b in zip(larger, kept))):
                saved[kept] = value
        options.append(list(saved))
    return Candidates(mask_of(unpruned), options, importance)


def most_saved_ms(table: HardwareTable, block: int, all_branches: BlockMask, kept: BlockMask) -> float:
    """What a block saves by keeping only `kept` of its branches, on the tier where that is more."""
    return max(fastest_ms(table.T_ms[tier][block], np.array(all_branches)) -
               fastest_ms(table.T_ms[tier][block], np.array(kept)) for tier in TIERS)


def fastest_ms(block_ms: np.ndarray, kept: np.ndarray) -> float:
    """Time of one block ([14] ms) under the fastest γ that runs exactly these branches (bool [3])."""
    return float(fastest_gammas(block_ms[None], build_gamma_mask(kept[None]))[1][0])


def smaller_sets(surviving: BlockMask) -> List[BlockMask]:
    """All non-empty proper subsets of a block's surviving branches, larger ones first."""
    alive = [b for b, survives in enumerate(surviving) if survives]
    return [tuple(b in chosen for b in range(len(BRANCHES)))
            for size in range(len(alive) - 1, 0, -1) for chosen in itertools.combinations(alive, size)]


def neighbours(mask: PruningMask, options: Sequence[Sequence[BlockMask]]) -> Iterable[PruningMask]:
    """Masks that differ in one or two blocks."""
    changes = [(k, kept) for k, choices in enumerate(options) for kept in choices if kept != mask[k]]
    for first, (k, kept) in enumerate(changes):
        once = (*mask[:k], kept, *mask[k + 1:])
        yield once
        for other, again in changes[first + 1:]:
            if other != k:
                yield (*once[:other], again, *once[other + 1:])
