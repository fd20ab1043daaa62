"""The frontier against brute force, its hypervolume against sampling, and what each rule picks."""
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
from search import frontier
from search.frontier import FrontierPoint

SETTINGS = config.load((), {})
numbers = st.one_of(st.integers(1, 5).map(float), st.floats(0.5, 10))  # with ties and without
shares = st.one_of(st.integers(0, 4).map(lambda v: v / 4), st.floats(0, 1))
pairs = st.lists(st.tuples(shares, numbers), min_size=1, max_size=25)


def oracle(accuracy, ms):
    """Indices of the points that no other beats, of equal ones the first: every point against every other."""
    def beats(i, j):
        no_worse = accuracy[i] >= accuracy[j] and ms[i] <= ms[j]
        better = accuracy[i] > accuracy[j] or ms[i] < ms[j]
        return no_worse and (better or i < j)

    return {j for j in range(len(ms)) if not any(beats(i, j) for i in range(len(ms)) if i != j)}


@given(pairs)
def test_the_filter_keeps_what_no_other_point_beats_fastest_first(points):
    accuracy, ms = zip(*points)
    kept = frontier.non_dominated(accuracy, ms)
    assert set(kept) == oracle(accuracy, ms) and len(set(kept)) == len(kept)
    assert [ms[i] for i in kept] == sorted(ms[i] for i in kept)
    assert all(accuracy[a] < accuracy[b] for a, b in zip(kept, kept[1:]))


@given(pairs, shares, numbers)
def test_the_hypervolume_is_the_share_of_the_box_that_some_point_beats(points, lowest, slowest):
    accuracy, ms = (np.array(values) for values in zip(*points))
    levels = np.unique([lowest, *accuracy[accuracy > lowest]])  # between two levels the box is cut straight
    area = sum((high - low) * max(0.0, slowest - min((ms[accuracy >= high]), default=math.inf))
               for low, high in zip(levels, levels[1:]))
    assert frontier.hypervolume(accuracy, ms, lowest, slowest) == pytest.approx(area, abs=1e-9)


@given(pairs, st.tuples(shares, numbers), shares, numbers)
def test_the_expected_gain_of_a_certain_network_is_what_it_adds(points, new, lowest, slowest):
    accuracy, ms = (np.array(values) for values in zip(*points))
    gain = frontier.expected_hypervolume_gain(np.array([new[0]]), np.array([1e-9]), np.array([new[1]]), accuracy, ms,
                                              lowest, slowest)
    with_it = frontier.hypervolume(np.append(accuracy, new[0]), np.append(ms, new[1]), lowest, slowest)
    assert gain[0] == pytest.approx(with_it - frontier.hypervolume(accuracy, ms, lowest, slowest), abs=1e-6)


@given(pairs, st.tuples(shares, numbers), st.floats(0.01, 0.3), shares, numbers)
def test_the_expected_gain_of_an_uncertain_network_is_the_mean_over_what_it_may_turn_out_to_be(points, new, sd, lowest,
                                                                                               slowest):
    accuracy, ms = (np.array(values) for values in zip(*points))
    gain = frontier.expected_hypervolume_gain(np.array([new[0]]), np.array([sd]), np.array([new[1]]), accuracy, ms,
                                              lowest, slowest)
    z = np.linspace(-5, 5, 401)
    weight = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    before = frontier.hypervolume(accuracy, ms, lowest, slowest)
    mean = sum(w * (frontier.hypervolume(np.append(accuracy, new[0] + sd * v), np.append(ms, new[1]), lowest, slowest)
                    - before) for v, w in zip(z, weight))
    assert gain[0] == pytest.approx(mean, rel=0.01, abs=1e-3 * slowest * sd)


# --- the rules ------------------------------------------------------------------------------------------

def point(accuracy: float, T_eff_ms: float, T_lat_ms: float = 1.0, T_cyc_ms: float = 1.0) -> FrontierPoint:
    alpha = np.array([[1.0, 1.0, math.nan]])
    return FrontierPoint(Configuration(alpha, (4,), 0), accuracy, Times(0.0, 0.0, 0.0, T_lat_ms, T_cyc_ms, T_eff_ms),
                         False)


@st.composite
def frontiers(draw):
    """Three frontiers of points with all their times."""
    points = [point(*draw(st.tuples(shares, numbers, numbers, numbers))) for _ in range(draw(st.integers(1, 12)))]
    found = {}
    for name, objective in frontier.OBJECTIVES.items():
        kept = frontier.non_dominated([p.accuracy for p in points], [getattr(p.times, objective) for p in points])
        found[name] = [points[i] for i in kept]
    return points, found


def chosen(found, reference=1.0, **settings) -> FrontierPoint:
    return frontier.pick(found, dataclasses.replace(SETTINGS, **settings), reference, 10.0)


def J(p: FrontierPoint, reference: float, settings: config.Settings) -> float:
    return (p.times.T_eff_ms / 10.0 + settings.KAPPA * max(0.0, reference - settings.EPSILON - p.accuracy)
            - settings.MU * p.accuracy)


@given(frontiers(), shares, st.floats(0, 0.5))
def test_constraint_picks_the_lowest_J_of_all_networks_that_keep_the_accuracy(drawn, reference, epsilon):
    points, found = drawn
    settings = dataclasses.replace(SETTINGS, EPSILON=epsilon)
    picked = chosen(found, reference, EPSILON=epsilon)
    allowed = [p for p in points if p.accuracy >= reference - epsilon] or points
    assert any(picked is p for p in allowed)
    assert J(picked, reference, settings) == pytest.approx(min(J(p, reference, settings) for p in allowed))


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
    found = {name: [point(0.5, 1.0, 1.0, 4.0), point(0.9, 2.0, 2.0, 5.0)] for name in frontier.OBJECTIVES}
    with pytest.raises(UserError, match='BUDGET_MIN_FPS=400; the nearest has 250 fps at validation accuracy 0.500'):
        chosen(found, PICK='budget', BUDGET_MIN_FPS=400.0)


@given(frontiers(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_knee_is_on_the_frontier_above_its_chord_and_units_do_not_matter(drawn, ms_scale, accuracy_scale):
    _, found = drawn
    picked = frontier.knee(found['T_eff'], 0.0)
    first, last = found['T_eff'][0], found['T_eff'][-1]
    assert any(picked is p for p in found['T_eff'])

    def above(p: FrontierPoint) -> float:
        chord = first.accuracy + ((p.times.T_eff_ms - first.times.T_eff_ms) *
                                  (last.accuracy - first.accuracy) / (last.times.T_eff_ms - first.times.T_eff_ms))
        return p.accuracy - chord

    if len(found['T_eff']) > 1:
        assert above(picked) >= max(above(p) for p in found['T_eff']) - 1e-9
        scaled = [point(accuracy_scale * p.accuracy, ms_scale * p.times.T_eff_ms) for p in found['T_eff']]
        again = frontier.knee(scaled, 0.0)
        index = [p is again for p in scaled].index(True)
        assert above(found['T_eff'][index]) == pytest.approx(above(picked), abs=1e-6)


def test_the_knee_leaves_out_networks_that_lost_too_much():
    found = {'T_eff': [point(0.1, 1.0), point(0.93, 5.0), point(0.97, 7.0), point(0.98, 9.0)]}
    assert frontier.knee(found['T_eff'], 0.0).accuracy == 0.93
    assert chosen(found, 0.98, PICK='knee').accuracy == 0.97


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
