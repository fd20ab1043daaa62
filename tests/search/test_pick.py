"""What each rule picks of the frontiers, and which rules are refused."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config import UserError
from costs.cost_model import Configuration, Times
from costs.goal import Goal
from search import pick
from search.frontier import OBJECTIVES, FrontierPoint, non_dominated

SETTINGS = config.load((), {})
numbers = st.one_of(st.integers(1, 5).map(float), st.floats(0.5, 10))  # with ties and without
shares = st.one_of(st.integers(0, 4).map(lambda v: v / 4), st.floats(0, 1))


def point(accuracy: float, T_eff_ms: float, T_lat_ms: float = 1.0, T_cyc_ms: float = 1.0) -> FrontierPoint:
    alpha = np.array([[1.0, 1.0, math.nan]])
    return FrontierPoint(Configuration(alpha, (4,), 0), accuracy, Times(0.0, 0.0, 0.0, T_lat_ms, T_cyc_ms, T_eff_ms),
                         False)


@st.composite
def frontiers(draw):
    """Three frontiers of points with all their times."""
    points = [point(*draw(st.tuples(shares, numbers, numbers, numbers))) for _ in range(draw(st.integers(1, 12)))]
    found = {}
    for name, objective in OBJECTIVES.items():
        kept = non_dominated([p.accuracy for p in points], [getattr(p.times, objective) for p in points])
        found[name] = [points[i] for i in kept]
    return points, found


def chosen(found, A_ref=1.0, **changes) -> FrontierPoint:
    settings = dataclasses.replace(SETTINGS, **changes)
    return pick.pick(found, settings, Goal(10.0, A_ref, settings.EPSILON, settings.KAPPA, settings.MU))


def J(p: FrontierPoint, A_ref: float, settings: config.Settings) -> float:
    return (p.times.T_eff_ms / 10.0 + settings.KAPPA * max(0.0, A_ref - settings.EPSILON - p.accuracy)
            - settings.MU * p.accuracy)


@given(frontiers(), shares, st.floats(0, 0.5))
def test_constraint_picks_the_lowest_J_of_all_networks_that_keep_the_accuracy(drawn, A_ref, epsilon):
    points, found = drawn
    settings = dataclasses.replace(SETTINGS, EPSILON=epsilon)
    picked = chosen(found, A_ref, EPSILON=epsilon)
    allowed = [p for p in points if p.accuracy >= A_ref - epsilon] or points
    assert any(picked is p for p in allowed)
    assert J(picked, A_ref, settings) == pytest.approx(min(J(p, A_ref, settings) for p in allowed))


@given(frontiers(), numbers)
def test_budget_picks_the_most_accurate_of_all_networks_within_it_or_names_the_nearest(drawn, limit):
    points, found = drawn
    for setting, need in (('BUDGET_T_EFF_MS', lambda p: p.times.T_eff_ms / limit),
                          ('BUDGET_LATENCY_MS', lambda p: p.times.T_lat_ms / limit),
                          ('BUDGET_MIN_FPS', lambda p: limit * p.times.T_cyc_ms / 1000)):
        within = [p for p in points if need(p) <= 1]
        if within:
            picked = chosen(found, PICK='budget', **{setting: limit})
            assert need(picked) <= 1 and picked.accuracy == max(p.accuracy for p in within)
        else:
            with pytest.raises(UserError) as caught:
                chosen(found, PICK='budget', **{setting: limit})
            nearest = min(points, key=need)
            assert setting in str(caught.value) and '\n' not in str(caught.value)
            shown = {'BUDGET_T_EFF_MS': f'T_eff {nearest.times.T_eff_ms:.4g} ms',
                     'BUDGET_LATENCY_MS': f'latency {nearest.times.T_lat_ms:.4g} ms',
                     'BUDGET_MIN_FPS': f'{nearest.times.throughput_fps:.4g} fps'}[setting]
            assert shown in str(caught.value)


def test_a_frame_rate_that_nothing_reaches_names_the_nearest():
    found = {name: [point(0.5, 1.0, 1.0, 4.0), point(0.9, 2.0, 2.0, 5.0)] for name in OBJECTIVES}
    with pytest.raises(UserError, match='BUDGET_MIN_FPS=400; the nearest has 250 fps at validation accuracy 0.500'):
        chosen(found, PICK='budget', BUDGET_MIN_FPS=400.0)


@given(frontiers(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_knee_is_on_the_frontier_above_its_chord_and_units_do_not_matter(drawn, ms_scale, accuracy_scale):
    _, found = drawn
    picked = pick.knee(found['T_eff'], 0.0)
    first, last = found['T_eff'][0], found['T_eff'][-1]
    assert any(picked is p for p in found['T_eff'])

    def above(p: FrontierPoint) -> float:
        chord = first.accuracy + ((p.times.T_eff_ms - first.times.T_eff_ms) *
                                  (last.accuracy - first.accuracy) / (last.times.T_eff_ms - first.times.T_eff_ms))
        return p.accuracy - chord

    if len(found['T_eff']) > 1:
        assert above(picked) >= max(above(p) for p in found['T_eff']) - 1e-9
        scaled = [point(accuracy_scale * p.accuracy, ms_scale * p.times.T_eff_ms) for p in found['T_eff']]
        again = pick.knee(scaled, 0.0)
        index = [p is again for p in scaled].index(True)
        assert above(found['T_eff'][index]) == pytest.approx(above(picked), abs=1e-6)


def test_the_knee_leaves_out_networks_that_lost_too_much():
    found = {'T_eff': [point(0.1, 1.0), point(0.93, 5.0), point(0.97, 7.0), point(0.98, 9.0)]}
    assert pick.knee(found['T_eff'], 0.0).accuracy == 0.93
    assert chosen(found, 0.98, PICK='knee').accuracy == 0.97


@given(shares, st.floats(0, 0.3))
def test_a_network_that_lost_a_few_epsilon_is_of_interest_and_one_that_lost_ten_is_not(A_ref, epsilon):
    goal = Goal(1.0, A_ref, epsilon, 100.0, 1.0)
    assert A_ref - 10 * max(epsilon, 0.01) < pick.lowest_explored(goal) < A_ref - epsilon


@pytest.mark.parametrize('rule', ['constraint', 'knee'])
def test_without_any_point_there_is_no_answer(rule):
    with pytest.raises(ValueError):
        chosen({name: [] for name in OBJECTIVES}, PICK=rule)


@given(numbers, numbers, st.floats(1, 60))
def test_the_rule_that_a_result_tells_of_is_that_of_the_settings(T_eff_ms, latency_ms, fps):
    settings = dataclasses.replace(SETTINGS, PICK='budget', BUDGET_T_EFF_MS=T_eff_ms, BUDGET_LATENCY_MS=latency_ms,
                                   BUDGET_MIN_FPS=fps)
    assert pick.rule_of(settings) == pick.PickRule('budget', T_eff_ms, latency_ms, fps)
    assert pick.rule_of(SETTINGS) == pick.PickRule('constraint', confidence=0.9)
    assert pick.rule_of(dataclasses.replace(SETTINGS, CONFIDENCE=None)) == pick.PickRule('constraint')


@pytest.mark.parametrize('overrides, message', [
    (('PICK=best',), "setting PICK='best': must be 'constraint', 'knee' or 'budget'"),
    (('PICK=budget',), 'PICK=budget needs a budget: set one of BUDGET_T_EFF_MS, BUDGET_LATENCY_MS, BUDGET_MIN_FPS'),
    (('BUDGET_MIN_FPS=30',), 'BUDGET_MIN_FPS is only used by PICK=budget, and PICK is constraint'),
    (('PICK=budget', 'BUDGET_T_EFF_MS=-1'), 'setting BUDGET_T_EFF_MS=-1.0: must be above 0, or none'),
])
def test_a_rule_that_cannot_be_is_refused_before_any_work(overrides, message):
    with pytest.raises(UserError) as caught:
        config.load(overrides, {})
    assert str(caught.value) == message
