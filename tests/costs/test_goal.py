"""The objective J: the smallest value over all allowed slacks, and the accuracy from which on it falls."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.goal import Goal

fractions = st.floats(0, 1)
times_ms = st.floats(0.01, 1e4)


@given(times_ms, times_ms, fractions, fractions, fractions, st.floats(1.5, 1000), st.floats(0, 1))
def test_J_is_its_smallest_value_over_all_allowed_slacks(T_eff, T_ref, accuracy, A_ref, epsilon, kappa, mu):
    goal = Goal(T_ref, A_ref, epsilon, kappa, mu)
    J, xi = goal.J(T_eff, accuracy), goal.violation(accuracy)
    needed = A_ref - epsilon - accuracy
    assert xi >= 0 and accuracy >= A_ref - epsilon - xi - 1e-12  # it is allowed
    for slack in itertools.chain(np.linspace(0, 1, 101), [max(0.0, needed), xi]):
        if accuracy >= A_ref - epsilon - slack:
            assert J <= T_eff / T_ref + kappa * slack - mu * accuracy + 1e-9
    assert (xi > 0) == (needed > 0) == (accuracy < goal.min_accuracy)


@given(st.lists(st.floats(0.1, 2), min_size=1, max_size=5), st.floats(-1, 1), fractions, st.floats(0, 0.3),
       st.floats(1.5, 200), st.sampled_from([0.0, 0.3, 1.0, 4.0]), fractions)
def test_from_the_accuracy_to_beat_on_a_network_meets_the_constraint_and_lowers_J(relative, best_J, A_ref, epsilon,
                                                                                   kappa, mu, accuracy):
    goal = Goal(7.0, A_ref, epsilon, kappa, mu)
    needed = goal.accuracy_to_beat(best_J, np.array(relative))
    assert needed.shape == (len(relative),)
    for T, from_here in zip(relative, needed):
        meets = goal.violation(accuracy) == 0
        lowers = goal.J(T * goal.T_eff_ref_ms, accuracy) <= best_J
        if mu == 0:
            lowers = True  # no accuracy changes J
        if abs(accuracy - from_here) > 1e-9:  # rounding decides at the edge itself
            assert (accuracy >= from_here) == (meets and lowers)


def test_expectations_are_measured_in_epsilon_but_never_in_less_than_an_image_or_so():
    assert Goal(1, 1, 0.05, 1, 1).accuracy_scale == 0.05
    assert 0 < Goal(1, 1, 0.0, 1, 1).accuracy_scale == Goal(1, 1, 1e-4, 1, 1).accuracy_scale < 0.01


@pytest.mark.parametrize('accuracy, J', [(0.9, 0.5 - 0.9), (0.88, 0.5 - 0.88), (0.87, 0.5 - 0.87 + 100 * 0.01)])
def test_J_by_hand(accuracy, J):
    assert Goal(4.0, 0.9, 0.02, 100.0, 1.0).J(2.0, accuracy) == pytest.approx(J)
