"""What may be pruned: which masks are candidates, in which order they are worth trying, which ones are rated."""
from __future__ import annotations

import dataclasses
import itertools
from typing import List, Tuple

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import seeds, tables
from search_cases import SETTINGS, slow_client_table, with_settings

from costs.cost_model import TIERS
from network.alpha import BlockMask, PruningMask, mask_of, unpruned_alpha
from search import candidates
from search.candidates import Candidates, candidates_of


def fastest(table, tier: str, block: int, kept: BlockMask) -> float:
    return min(float(table.T_ms[tier][block][gamma]) for gamma in oracles.valid_gammas(kept))


def proper_subsets(kept: BlockMask) -> List[BlockMask]:
    return [choice for choice in itertools.product((True, False), repeat=3)
            if any(choice) and choice != kept and all(a or not b for a, b in zip(kept, choice))]


def contains(larger: BlockMask, smaller: BlockMask) -> bool:
    return larger != smaller and all(a or not b for a, b in zip(larger, smaller))


@given(st.data(), tables(), seeds, st.sampled_from([0.0, 0.01, 0.1]), st.sampled_from([0.0, 0.02, 0.5]))
def test_a_smaller_set_is_a_candidate_where_it_saves_more_than_any_larger_one_or_its_branch_has_vanished(
        data, table, seed, min_saving, threshold):
    rng = np.random.default_rng(seed)
    alpha = unpruned_alpha(table.n_branches) * rng.choice([1.0, -1.0, 0.01], (table.n_blocks, 3))
    T_ref = data.draw(st.sampled_from([1.0, 10.0]))
    settings = with_settings(MIN_SAVING=min_saving, PRUNING_THRESHOLD=threshold)
    found = candidates_of(table, alpha, T_ref, [], settings)
    assert found.unpruned == mask_of(alpha)
    for block, choices in enumerate(found.options):
        whole = found.unpruned[block]
        assert choices[0] == whole and len(choices) == len(set(choices))
        saved = {kept: max(fastest(table, tier, block, whole) - fastest(table, tier, block, kept) for tier in TIERS)
                 for kept in [whole, *proper_subsets(whole)]}
        assert set(choices) <= set(saved)
        for kept in proper_subsets(whole):
            dropped = [abs(alpha[block, b]) for b in range(3) if whole[b] and not kept[b]]
            vanished = len(dropped) == 1 and dropped[0] < threshold
            over_larger = min((saved[kept] - saved[larger]) / T_ref for larger in choices if contains(larger, kept))
            if abs(over_larger - min_saving) > 1e-9:  # rounding decides at the edge itself
                assert (kept in choices) == (vanished or over_larger > min_saving)


def test_where_fusing_is_free_dropping_a_branch_beside_the_3x3_saves_nothing_and_is_no_candidate():
    table = slow_client_table()
    T_ms = {tier: values.copy() for tier, values in table.T_ms.items()}
    for values in T_ms.values():
        values[:, [0, 4, 6, 13]] = values[:, [0]]  # the 3x3 alone or with all the rest fused into it
    table = dataclasses.replace(table, T_ms=T_ms)
    found = candidates_of(table, unpruned_alpha(table.n_branches), 1.0, [], SETTINGS)
    assert all(kept == whole or not kept[0] for whole, choices in zip(found.unpruned, found.options)
               for kept in choices)
    assert all(len(choices) > 1 for choices in found.options)


# --- made-up networks: blocks that may keep some of what they have -----------------------------------------

Branch = Tuple[int, int]


@st.composite
def made_up(draw) -> Tuple[Candidates, List[Branch]]:
    """Candidates of a network of random blocks and options, and its branches, least important first."""
    unpruned, options = [], []
    for _ in range(draw(st.integers(1, 5))):
        whole = (True, True, draw(st.booleans()))
        smaller = draw(st.lists(st.sampled_from(proper_subsets(whole)), unique=True, max_size=4))
        unpruned.append(whole)
        options.append([whole, *smaller])
    branches = [(k, b) for k, whole in enumerate(unpruned) for b in range(3) if whole[b]]
    ranking = draw(st.permutations(branches))
    return Candidates(tuple(unpruned), options, ranking), ranking


def changed_blocks(mask: PruningMask, other: PruningMask) -> List[int]:
    return [k for k, (a, b) in enumerate(zip(mask, other)) if a != b]


@given(made_up(), seeds)
def test_single_changes_come_in_turn_from_the_fastest_and_from_the_least_important(made, seed):
    found, ranking = made
    rng = np.random.default_rng(seed)
    T = {}

    def relative_T_eff(masks):
        return np.array([T.setdefault(mask, rng.random()) for mask in masks])

    changes = found.single_changes(relative_T_eff)
    every = {(*found.unpruned[:k], kept, *found.unpruned[k + 1:])
             for k, choices in enumerate(found.options) for kept in choices[1:]}
    assert set(changes) == every and len(changes) == len(every)
    def importance(mask: PruningMask) -> int:
        (block,) = changed_blocks(mask, found.unpruned)
        return max(ranking.index((block, b)) for b in range(3) if found.unpruned[block][b] and not mask[block][b])

    by_time = sorted(every, key=T.__getitem__)
    for count in range(1, len(changes) + 1):
        first = changes[:2 * count]
        assert set(by_time[:count]) <= set(first)
        assert sorted(map(importance, every))[:count] == sorted(map(importance, first))[:count]
    assert not changes or changes[0] == by_time[0]


@given(made_up(), st.lists(seeds, min_size=1, max_size=4), st.sampled_from([1, 10, 5000]), st.integers(1, 3))
def test_all_masks_are_rated_where_they_are_few_and_else_those_near_the_best_of_the_good(made, draws, enumerated,
                                                                                         neighbours_of):
    found, _ = made
    rng, every = np.random.default_rng(draws), set(itertools.product(*found.options))
    good = [tuple(choices[rng.integers(len(choices))] for choices in found.options) for _ in draws]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, 'ENUMERATED', enumerated)
        patch.setattr(candidates, 'NEIGHBOURS_OF', neighbours_of)
        pool = list(found.pool(good))
    assert len(pool) == len(set(pool))
    if len(every) <= enumerated:
        assert set(pool) == every
    else:
        assert set(pool) == {mask for mask in every if any(1 <= len(changed_blocks(mask, near)) <= 2
                                                           for near in good[:neighbours_of])}


@given(made_up(), seeds)
def test_dropped_are_the_branches_that_a_mask_lacks_of_the_unpruned_network(made, seed):
    found, rng = made[0], np.random.default_rng(seed)
    masks = [tuple(choices[rng.integers(len(choices))] for choices in found.options) for _ in range(3)]
    dropped = found.dropped(masks)
    assert dropped.shape == (3, 3 * len(found.options)) and dropped.dtype == bool
    for mask, row in zip(masks, dropped.reshape(3, -1, 3)):
        for kept, whole, gone in zip(mask, found.unpruned, row):
            assert [bool(g) for g in gone] == [w and not k for w, k in zip(whole, kept)]
    assert not found.dropped([found.unpruned]).any()
