"""Expected improvement against numerical integration, and what recoveries are expected to win back."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from costs.goal import Goal
from search import acquisition
from search.acquisition import Acquisition, RecoveryGain, cumulative, density, expected_improvement

shares = st.floats(0, 1)
MASK = ((True, True, False),)


@st.composite
def goals(draw) -> Goal:
    """Any goal with a price that keeps the constraint."""
    return Goal(draw(st.floats(0.1, 100)), draw(st.floats(0.85, 1)), draw(st.floats(0, 0.1)), 100.0,
                draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])))


@given(st.floats(-30, 30))
def test_the_normal_distribution(z):
    assert cumulative(np.array([z]))[0] == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), rel=1e-9, abs=1e-15)
    assert cumulative(np.array([z], np.float32)).dtype == np.float32
    slope = (cumulative(np.array([z + 1e-5])) - cumulative(np.array([z - 1e-5])))[0] / 2e-5
    assert density(np.array([z]))[0] == pytest.approx(slope, abs=1e-9)


@hypothesis_settings(max_examples=60)
@given(goal=goals(), accuracy=st.floats(0.8, 1), sd=st.floats(0.001, 0.05), T_eff=st.floats(0.5, 1.2),
       best=st.floats(-0.3, 0.3), slack=st.sampled_from([0.0, 0.005]))
@example(goal=Goal(1.0, 0.97, 0.02, 100.0, 0.0), accuracy=0.95, sd=0.01, T_eff=0.1, best=0.3, slack=0.0)  # the edge
def test_the_expected_improvement_is_the_mean_over_what_the_accuracy_may_turn_out_to_be(goal, accuracy, sd, T_eff, best,
                                                                                        slack):
    step = np.linspace(-8, 8, 400001)
    weight = np.exp(-step * step / 2) / np.sqrt(2 * np.pi) * (step[1] - step[0])
    values = accuracy + sd * step
    lower = np.maximum(0, best - (T_eff - goal.mu * values))
    wanted = float((weight * np.where(values >= goal.min_accuracy - slack, lower, 0)).sum())
    found = expected_improvement(np.array([accuracy]), np.array([sd]), np.array([T_eff]), goal, best, slack)[0]
    assert found == pytest.approx(wanted, abs=1e-4)


@given(goal=goals(), accuracy=st.floats(0.7, 1), T_eff=st.floats(0.1, 1.5), best=st.floats(-1, 0.5))
def test_the_expected_improvement_of_a_measured_network_is_what_it_improves(goal, accuracy, T_eff, best):
    lower = max(0.0, best - goal.J(T_eff * goal.T_eff_ref_ms, accuracy))
    improvement = lower if goal.violation(accuracy) == 0 else 0.0
    found = expected_improvement(np.array([accuracy]), np.array([acquisition.LEAST_SD]), np.array([T_eff]), goal, best)
    if abs(accuracy - goal.accuracy_to_beat(best, np.array([T_eff]))[0]) > 1e-7:  # rounding decides at the edge itself
        assert found[0] == pytest.approx(improvement, abs=1e-8)


# --- what a recovery wins back ------------------------------------------------------------------------------

recoveries = st.lists(st.tuples(st.floats(0.5, 1), st.floats(0, 0.1)), max_size=8)  # (before, won)


@given(goals(), shares)
def test_before_any_recovery_was_seen_the_prior_share_is_expected(goal, prior):
    assert RecoveryGain(goal, prior_share=prior).share == pytest.approx(min(prior, acquisition.LARGEST_SHARE))


@given(goals(), recoveries, shares)
def test_the_share_is_what_was_won_of_what_was_lost_with_the_prior_as_one_recovery_of_epsilon(goal, seen, prior):
    gain = RecoveryGain(goal, prior_share=prior)
    for before, won in seen:
        gain.learn(before, before + won)
    lost = goal.accuracy_scale + sum(max(0.0, goal.A_ref - before) for before, _ in seen)
    won = prior * goal.accuracy_scale + sum(won for _, won in seen)
    assert gain.share == pytest.approx(min(won / lost, acquisition.LARGEST_SHARE))
    again = RecoveryGain(goal, prior_share=prior)
    for before, won in reversed(seen):
        again.learn(before, before + won)
    assert again.share == pytest.approx(gain.share)


@given(goals(), st.floats(0.5, 0.8))
def test_recoveries_that_win_all_or_nothing_or_less_than_that_are_learnt_from_within_bounds(goal, before):
    for won, bound in ((goal.A_ref - before, acquisition.LARGEST_SHARE), (0.0, 0.0), (-0.1, 0.0)):
        gain = RecoveryGain(goal)
        for _ in range(300):
            gain.learn(before, before + won)
        assert gain.share == pytest.approx(bound, abs=5e-3) and 0 <= gain.share <= acquisition.LARGEST_SHARE


@given(goals(), recoveries, st.lists(st.tuples(shares, st.floats(0, 0.1)), min_size=1, max_size=5))
def test_after_a_recovery_a_network_is_no_less_accurate_and_no_more_than_the_unpruned_one(goal, seen, networks):
    gain = RecoveryGain(goal)
    for before, won in seen:
        gain.learn(before, before + won)
    accuracy, sd = (np.array(values) for values in zip(*networks))
    after, after_sd = gain.after(accuracy, sd)
    assert (after >= accuracy).all() and (after <= np.maximum(accuracy, goal.A_ref) + 1e-12).all()
    np.testing.assert_allclose(after[accuracy >= goal.A_ref], accuracy[accuracy >= goal.A_ref])
    below = accuracy < goal.A_ref
    np.testing.assert_allclose((after - accuracy)[below], gain.share * (goal.A_ref - accuracy)[below], atol=1e-12)
    assert (after_sd > 0).all()  # recoveries differ, whatever is known before
    assert (after_sd >= (1 - gain.share) * sd).all()


@given(goals(), recoveries, st.lists(st.tuples(st.floats(0.6, 1), st.floats(0, 0.1), st.floats(0.2, 1.3)), min_size=1,
                                     max_size=5), st.floats(-0.6, 0.3), st.sampled_from([0.0, 0.004]))
def test_masks_are_rated_by_what_they_are_expected_to_be_once_recovered(goal, seen, networks, best, slack):
    gain = RecoveryGain(goal)
    for before, won in seen:
        gain.learn(before, before + won)
    masks = [((True, index % 2 == 0, False),) * (index + 1) for index in range(len(networks))]
    accuracy, sd, T_eff = (np.array(values) for values in zip(*networks))
    relative = dict(zip(masks, T_eff))
    rated = Acquisition(goal, lambda asked: np.array([relative[mask] for mask in asked]), slack)
    found = rated.improvements(masks, accuracy, sd, gain, best)
    after, after_sd = gain.after(accuracy, sd)
    for index in range(len(masks)):
        one = slice(index, index + 1)
        alone = expected_improvement(after[one], after_sd[one], T_eff[one], goal, best, slack)
        assert found[index] == pytest.approx(alone[0]) and found[index] >= 0


@given(goals(), st.floats(0.6, 1), st.floats(0, 0.05), st.floats(0.3, 1.2), st.floats(0.001, 0.5))
def test_what_is_faster_or_has_more_to_beat_promises_no_less(goal, accuracy, sd, T_eff, less):
    gain = RecoveryGain(goal)

    def improvement(T: float, best: float) -> float:
        return Acquisition(goal, lambda masks: np.array([T]), 0.0).improvements(
            [MASK], np.array([accuracy]), np.array([sd]), gain, best)[0]

    assert improvement(T_eff - less, 0.1) >= improvement(T_eff, 0.1) - 1e-12
    assert improvement(T_eff, 0.1) >= improvement(T_eff, 0.1 - less) - 1e-12
