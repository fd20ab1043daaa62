"""The sequential baseline: branches go by importance alone, within the constraint, and a kill changes nothing."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import seeds
from search_cases import (
    SETTINGS,
    assert_same_networks,
    killed_after_every_round,
    made_problem,
    problem_of,
    slow_client_table,
    with_settings,
)

from costs.work import branch_flops
from network.alpha import surviving_branches, unpruned_alpha
from network.shapes import architecture, block_shapes
from search import alpha_training
from search.importance_pruning import ImportancePruning
from search.state import EvaluatedNetwork, Phase, Work
from steps.sequential import search_of

TABLE = slow_client_table()
FLOPS = np.array([branch_flops(shape) for shape in block_shapes(architecture(SETTINGS.MODEL_NAME),
                                                                SETTINGS.INPUT_SIZE)[1]])


class KnownRecovery:
    """In the place of Recovery: each branch costs some accuracy, which a training does not win back; α stays."""

    def __init__(self, costs: np.ndarray, A_ref: float) -> None:
        self.costs, self.A_ref, self.work, self.tried = costs, A_ref, Work(), []

    def measure(self, alpha: np.ndarray) -> EvaluatedNetwork:
        accuracy = self.A_ref - float(self.costs[alpha == 0].sum())
        return EvaluatedNetwork(alpha, accuracy, accuracy)

    def train(self, alpha: np.ndarray, seed: int, before: EvaluatedNetwork) -> EvaluatedNetwork:
        self.tried.append(alpha)
        return before


@hypothesis_settings(max_examples=30)
@given(seeds, st.sampled_from([0.0, 0.01, 0.05]), st.sampled_from([0, 3, 40]))
def test_the_least_important_branch_that_was_not_undone_goes_next_until_none_is_left(seed, epsilon, most):
    rng = np.random.default_rng(seed)
    alpha = unpruned_alpha(TABLE.n_branches) * rng.uniform(0.2, 2, (TABLE.n_blocks, 3)) * rng.choice([-1, 1])
    problem = made_problem(TABLE, with_settings(EPSILON=epsilon, MAX_PRUNING_ROUNDS=most), alpha, 0.95)
    recovery = KnownRecovery(rng.choice([0.0, 0.005, 0.03], alpha.shape), 0.95)
    search = ImportancePruning(problem, recovery)
    state = search.run(search.start(), lambda state: None)
    assert state.phase is Phase.DONE and len(state.curve) - 1 <= most
    importance, now, undone = np.abs(alpha) / FLOPS, surviving_branches(alpha), set()
    for tried in recovery.tried:
        (block,), (branch,) = np.nonzero(now & ~surviving_branches(tried))  # one branch at a time
        for k, b in np.argwhere(now):
            may_go = now[k].sum() > 1 and (k, tuple(now[k] & (np.arange(3) != b))) not in undone
            assert not may_go or importance[block, branch] <= importance[k, b]
        if recovery.measure(tried).accuracy >= 0.95 - epsilon:
            now = surviving_branches(tried)
        else:
            undone.add((block, tuple(surviving_branches(tried)[block])))
    np.testing.assert_array_equal(surviving_branches(state.best.alpha), now)
    assert state.best.accuracy >= 0.95 - epsilon and now.any(axis=1).all()
    assert [point.n_pruned for point in state.curve] == list(range(len(state.curve)))
    if len(state.curve) - 1 < most:
        assert all(now[k].sum() == 1 or (k, tuple(now[k] & (np.arange(3) != b))) in undone for k, b in np.argwhere(now))


def test_what_it_ends_with_meets_the_constraint_and_a_kill_changes_nothing(tmp_path):
    settings = with_settings(MAX_PRUNING_ROUNDS=3, RESULTS_DIR=str(tmp_path))
    problem = problem_of(settings)
    search = search_of(problem)
    undisturbed = search.run(search.start(), lambda state: None)
    assert len(undisturbed.curve) == 4 and undisturbed.best.accuracy >= problem.goal.min_accuracy
    assert undisturbed.curve[-1].n_pruned == int((undisturbed.best.alpha == 0).sum()) > 0
    problem.model.set_alpha_array(undisturbed.best.alpha)
    assert alpha_training.accuracy(problem.model, problem.val, settings) == undisturbed.best.accuracy
    state = killed_after_every_round(lambda: search_of(problem_of(settings)), problem.table, settings)
    assert_same_networks(state, undisturbed)
    assert state.work == undisturbed.work and state.work.block_evaluations > 0


def test_time_plays_no_part():
    settings = with_settings(MAX_PRUNING_ROUNDS=2)
    ends = []
    for seed in (1, 2):
        search = search_of(problem_of(settings, slow_client_table(seed)))
        ends.append(search.run(search.start(), lambda state: None).best)
    np.testing.assert_array_equal(ends[0].alpha, ends[1].alpha)
    assert ends[0].accuracy == pytest.approx(ends[1].accuracy)
