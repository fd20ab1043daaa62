"""What may be pruned from a network, and what time that saves: exact, and nearly free."""
from __future__ import annotations

import itertools
from typing import Dict, Iterable, List

import numpy as np

from config import Settings
from costs.cost_model import TIERS, HardwareTable, other_tier, split_times
from gamma_mask_builder import build_gamma_mask
from network.shapes import BRANCHES
from search.prefix_activations import Choice, Keep, choice_of
from throughput_optimizer import fastest_gammas, split_range


def keep_options(table: HardwareTable, unpruned: np.ndarray, T_eff_ref_ms: float, settings: Settings,
                  ) -> List[List[Keep]]:
    """What each block of the network with this α [N, 3] may keep: all it has; sets that save MIN_SAVING of T_eff_ref
    more than any larger set, on the tier where they save more; and all but a branch whose |α| is below
    PRUNING_THRESHOLD."""
    options: List[List[Keep]] = []
    for block, whole in enumerate(choice_of(unpruned)):
        saved: Dict[Keep, float] = {whole: 0.0}
        for keep in smaller_sets(whole):
            dropped = [b for b in range(len(BRANCHES)) if whole[b] and not keep[b]]
            vanished = len(dropped) == 1 and abs(unpruned[block, dropped[0]]) < settings.PRUNING_THRESHOLD
            value = most_saved_ms(table, block, whole, keep) / T_eff_ref_ms
            if vanished or all(value >= other + settings.MIN_SAVING for larger, other in saved.items()
                               if all(a or not b for a, b in zip(larger, keep))):
                saved[keep] = value
        options.append(list(saved))
    return options


def most_saved_ms(table: HardwareTable, block: int, whole: Keep, keep: Keep) -> float:
    """What a block saves by keeping only `keep` of `whole`, on the tier where that is more."""
    return max(fastest_ms(table.T_ms[tier][block], np.array(whole)) -
               fastest_ms(table.T_ms[tier][block], np.array(keep)) for tier in TIERS)


def unlimited_T_eff_ms(table: HardwareTable, choices: List[Choice], settings: Settings) -> np.ndarray:
    """T_eff of choices [m] at their best γ, λ and wire format, limits left out, all at once: the fastest time of every
    block's every option once, then sums over blocks for all choices."""
    keeps = [sorted({choice[k] for choice in choices}) for k in range(len(choices[0]))]
    index = np.array([[keeps[k].index(keep) for k, keep in enumerate(choice)] for choice in choices])  # (m, N)
    block_ms = {}
    for tier in TIERS:
        times = [[fastest_ms(table.T_ms[tier][k], np.array(keep)) for keep in options]
                 for k, options in enumerate(keeps)]
        block_ms[tier] = np.stack([np.array(times[k])[index[:, k]] for k in range(len(keeps))], axis=1)
    splits = np.asarray(split_range(table.n_blocks, settings))
    return np.min([split_times(table, block_ms, wire, settings.HEAD_TIER, settings.OMEGA)
                   .T_eff_ms[:, splits].min(axis=1) for wire in settings.WIRE_FORMATS], axis=0)


def branch_cost_ms(table: HardwareTable, surviving: np.ndarray, split: int, head_tier: str) -> np.ndarray:
    """What each surviving branch costs on the tier that its block runs on: the block's fastest time with it less the
    fastest without it, [N, 3]; 0 where it is the last branch or costs nothing, NaN where there is no branch."""
    cost = np.where(np.isnan(table.flops[:, [0, 1, 2]]), np.nan, 0.0)  # γ 0, 1, 2 run one branch each, in this order
    for block, row in enumerate(surviving):
        block_ms = table.T_ms[head_tier if block < split else other_tier(head_tier)][block]
        for branch in np.flatnonzero(row):
            without = np.array([survives and b != branch for b, survives in enumerate(row)])
            if without.any():
                cost[block, branch] = max(0.0, fastest_ms(block_ms, row) - fastest_ms(block_ms, without))
    return cost


def fastest_ms(block_ms: np.ndarray, keep: np.ndarray) -> float:
    """Time of one block ([14] ms) under the fastest γ that runs exactly these branches (bool [3])."""
    return float(fastest_gammas(block_ms[None], build_gamma_mask(keep[None]))[1][0])


def smaller_sets(surviving: Keep) -> List[Keep]:
    """All non-empty proper subsets of a block's surviving branches, larger ones first."""
    alive = [b for b, survives in enumerate(surviving) if survives]
    return [tuple(b in chosen for b in range(len(BRANCHES)))
            for size in range(len(alive) - 1, 0, -1) for chosen in itertools.combinations(alive, size)]


def neighbours(choice: Choice, options: List[List[Keep]]) -> Iterable[Choice]:
    """Choices that differ in one or two blocks."""
    changes = [(k, keep) for k, keeps in enumerate(options) for keep in keeps if keep != choice[k]]
    for first, (k, keep) in enumerate(changes):
        once = (*choice[:k], keep, *choice[k + 1:])
        yield once
        for other, again in changes[first + 1:]:
            if other != k:
                yield (*once[:other], again, *once[other + 1:])
