"""The frontier against brute force, and its hypervolume against sampling."""
from __future__ import annotations

import math
from typing import Dict, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import seeds, tables
from search_cases import made_problem, random_mask, with_settings

from benchmarks.known_networks import hypervolume
from costs.cost_model import Configuration, Solution, Times
from network.alpha import mask_of, pruned, unpruned_alpha
from search import frontier
from search.frontier import Candidate
from search.state import EvaluatedNetwork, Measurement, SearchState

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


@given(st.lists(st.tuples(st.integers(0, 4), shares, numbers), max_size=12), shares)
def test_what_is_confirmed_prunes_more_each_time_and_is_the_lowest_J_of_all_that_prune_no_more(points, least):
    n_pruned, accuracy, J = zip(*points) if points else ((), (), ())
    order = frontier.order_of_tests(n_pruned, accuracy, J, least)
    assert [n_pruned[i] for i in order] == sorted({n_pruned[i] for i in order})
    for n in range(5):
        within = [J[i] for i in range(len(points)) if n_pruned[i] <= n and accuracy[i] >= least]
        reached = [J[i] for i in order if n_pruned[i] <= n]
        assert reached[-1:] == sorted(within)[:1]  # the last of these tests is of the lowest J
    assert all(accuracy[i] >= least for i in order) and all(J[i] > J[j] for i, j in zip(order, order[1:]))


@given(pairs, shares, numbers)
def test_the_hypervolume_is_the_share_of_the_box_that_some_point_beats(points, lowest, slowest):
    accuracy, ms = (np.array(values) for values in zip(*points))
    levels = np.unique([lowest, *accuracy[accuracy > lowest]])  # between two levels the box is cut straight
    area = sum((high - low) * max(0.0, slowest - min((ms[accuracy >= high]), default=math.inf))
               for low, high in zip(levels, levels[1:]))
    assert hypervolume(accuracy, ms, lowest, slowest) == pytest.approx(area, abs=1e-9)


# --- measured behind the wire ----------------------------------------------------------------------------------

class MadeUpWire:
    """In the place of WireLoss: what every network keeps of its accuracy, by its split."""

    def __init__(self, kept: List[float]) -> None:
        self.kept, self.asked = kept, 0

    def accuracy(self, alpha, split, wire, lossless, recalibrated=False) -> float:
        self.asked += 1
        return lossless * self.kept[split]

    def configuration(self, alpha, solution, recalibrated) -> Configuration:
        return Configuration(alpha, solution.gamma, solution.split, solution.wire)


@given(st.lists(st.tuples(shares, numbers, shares, st.booleans()), min_size=1, max_size=12))
def test_every_point_has_its_measured_accuracy_and_no_measured_point_beats_another(drawn):
    wire = MadeUpWire([kept for _, _, kept, _ in drawn])
    candidates = [Candidate(np.full((1, 3), float(i + 1)), accuracy, recovered,
                            Solution((0,), i, 'uint8', Times(0, 0, 0, 0, ms, 0)))
                  for i, (accuracy, ms, _, recovered) in enumerate(drawn)]
    points = frontier.measured_frontier(candidates, 'T_cyc_ms', wire)
    assert wire.asked <= len(drawn) and points
    for point in points:
        accuracy, ms, kept, recovered = drawn[point.configuration.split]
        assert (point.accuracy, point.times.T_cyc_ms, point.recovered) == (accuracy * kept, ms, recovered)
        assert point.configuration.alpha[0, 0] == point.configuration.split + 1
    for faster, slower in zip(points, points[1:]):
        assert faster.times.T_cyc_ms < slower.times.T_cyc_ms and faster.accuracy < slower.accuracy
    for accuracy, ms, kept, _ in drawn:  # what no point beats by its accuracy without loss was measured
        assert any(point.times.T_cyc_ms <= ms and point.accuracy >= accuracy * kept for point in points)


# --- of a search ----------------------------------------------------------------------------------------------

def made_search(table, seed: int, count: int):
    """A problem without model and images, and a state with networks that were measured and recovered."""
    settings = with_settings(LAMBDA_MIN=0, WIRE_FORMATS=('float32', 'float32+zlib') if seed % 2 else ('float32',))
    table.block_bytes['float32+zlib'] = table.block_bytes['float32']
    rng, alpha = np.random.default_rng(seed), unpruned_alpha(table.n_branches)
    problem = made_problem(table, settings, alpha, 0.9)
    state = SearchState(EvaluatedNetwork(alpha, 0.9, 0.9), [])
    networks: Dict[tuple, List[float]] = {}
    for number in range(count):
        mask = random_mask(mask_of(alpha), rng) if number else mask_of(alpha)
        if mask in networks:
            continue
        margins = rng.normal(0.5, 1, 20).astype(np.float16)
        state.measured[mask] = Measurement(rng.choice([1, 1.2]) * pruned(alpha, mask), margins)
        networks[mask] = [float((margins > 0).mean())]
        if rng.random() < 0.5:
            value = float(rng.integers(0, 21) / 20)
            state.recovered[mask] = EvaluatedNetwork(1.1 * pruned(alpha, mask), value, value, recovered=True)
            networks[mask].append(value)
    for network in list(state.recovered.values())[-1:]:
        state.best = network
    return problem, state, networks


@given(tables(), seeds, st.integers(1, 8))
def test_the_frontiers_of_a_search_are_those_of_all_its_networks(table, seed, count):
    problem, state, networks = made_search(table, seed, count)
    frontiers = frontier.frontiers_of(problem, state)
    assert set(frontiers) == {*frontier.OBJECTIVES, frontier.TESTS}
    for name, objective in frontier.OBJECTIVES.items():
        ms = {mask: getattr(problem.times.solve_within_limits(pruned(problem.unpruned, mask), None, objective).times,
                            objective) for mask in networks}
        every = [(accuracy, ms[mask]) for mask, accuracies in networks.items() for accuracy in accuracies]
        every.append((state.best.accuracy, ms[mask_of(state.best.alpha)]))
        expected = {every[i] for i in oracle(*zip(*every))}
        assert {(point.accuracy, getattr(point.times, objective)) for point in frontiers[name]} == expected
        for point in frontiers[name]:
            assert point.n_pruned == int((point.configuration.alpha == 0).sum())
            assert point.recovered == bool(np.nanmax(point.configuration.alpha) == 1.1)
