"""Times of pruned networks: those of the exact method, one by one and many at once, within limits and without."""
from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import fleets, seeds, tables, whole_table
from search_cases import SETTINGS, random_mask, slow_client_table

from config import Settings
from costs import cost_model
from costs.limits import NothingFits
from network.alpha import mask_of, unpruned_alpha
from search.pruned_times import PrunedTimes
from throughput_optimizer import solve_exact

WIRES = ('float32', 'uint8')


@st.composite
def allowed(draw, n_blocks: int) -> Settings:
    """Settings under which a table of so many blocks has a split."""
    return dataclasses.replace(SETTINGS, LAMBDA_MIN=0, LAMBDA_MAX=draw(st.integers(0, n_blocks)),
                               HEAD_TIER=draw(st.sampled_from(cost_model.TIERS)),
                               OMEGA=draw(st.sampled_from([0.0, 0.3, 1.0])),
                               WIRE_FORMATS=draw(st.sampled_from([WIRES, WIRES[:1], WIRES[1:]])), **draw(fleets))


@given(st.data(), tables(), seeds)
def test_times_of_many_masks_are_the_least_of_every_gamma_split_and_wire_format(data, table, seed):
    settings, rng = data.draw(allowed(table.n_blocks)), np.random.default_rng(seed)
    whole = mask_of(unpruned_alpha(table.n_branches))
    masks = [whole, *(random_mask(whole, rng) for _ in range(3))]
    found = PrunedTimes(table, 2.0, settings).relative([*masks, masks[0]])
    assert found.shape == (5,) and found[0] == found[4]
    for mask, relative in zip(masks[:2], found):
        least = min(times.T_eff_ms for *_, times in oracles.all_choices(
            table, np.array(mask), range(settings.LAMBDA_MAX + 1), settings.WIRE_FORMATS,
            cost_model.scenario_of(settings, table)))
        assert relative == pytest.approx(least / 2.0, rel=1e-9)


@hypothesis_settings(max_examples=30)
@given(seed=seeds, head_tier=st.sampled_from(cost_model.TIERS))
def test_times_of_many_masks_at_once_equal_those_of_each_alone(seed, head_tier):
    settings = dataclasses.replace(SETTINGS, HEAD_TIER=head_tier, WIRE_FORMATS=WIRES)
    table, rng = slow_client_table(settings=settings), np.random.default_rng(seed)
    whole = mask_of(unpruned_alpha(table.n_branches))
    masks = [random_mask(whole, rng) for _ in range(5)]
    times = PrunedTimes(table, 3.0, settings)
    alone = [solve_exact(table, np.array(mask), settings).times.T_eff_ms / 3.0 for mask in masks]
    np.testing.assert_allclose(times.relative(masks[:2]), alone[:2], rtol=1e-12)
    np.testing.assert_allclose(times.relative(masks), alone, rtol=1e-12)  # some of them known by now
    np.testing.assert_allclose([times.T_eff_ms(np.array(mask)) / 3.0 for mask in masks], alone, rtol=1e-12)
    assert times.relative([]).shape == (0,)


def fastest_everywhere(table, mask, settings):
    """The times of every split and wire format whose blocks run the fastest γ of their tier: where only times are
    limited no other γ can do better."""
    valid = [oracles.valid_gammas(row) for row in mask]
    for split in range(settings.LAMBDA_MIN, settings.LAMBDA_MAX + 1):
        gamma = [min(choices, key=table.T_ms[settings.HEAD_TIER if k < split else
                                             cost_model.other_tier(settings.HEAD_TIER)][k].__getitem__)
                 for k, choices in enumerate(valid)]
        for wire in settings.WIRE_FORMATS:
            yield oracles.naive_times(table, gamma, split, wire, cost_model.scenario_of(settings, table))


@hypothesis_settings(max_examples=60)
@given(st.data(), seeds, st.floats(0.3, 3))
def test_what_exceeds_a_limit_is_priced_like_lost_accuracy_and_what_is_within_is_exact(data, seed, factor):
    table, rng = whole_table(SETTINGS, seed % 1000), np.random.default_rng(seed)
    settings = data.draw(allowed(table.n_blocks))
    mask = random_mask(mask_of(unpruned_alpha(table.n_branches)), rng)
    every = list(fastest_everywhere(table, mask, settings))
    limit = factor * min(found.T_lat_ms + found.wait_ms for found in every)
    settings = dataclasses.replace(settings, MAX_LATENCY_MS=limit)
    times, alpha = PrunedTimes(table, 2.0, settings), np.where(np.array(mask), 1.0, 0.0)
    (relative,) = times.relative([mask])
    if factor >= 1 + 1e-6:
        least = min(found.T_eff_ms for found in every if found.T_lat_ms + found.wait_ms <= limit)
        assert times.solve_within_limits(alpha).times.T_eff_ms == pytest.approx(least)
        assert relative == pytest.approx(least / 2.0) == times.T_eff_ms(np.array(mask)) / 2.0
    elif factor <= 1 - 1e-6:
        with pytest.raises(NothingFits):
            times.solve_within_limits(alpha)
        nearest = times.solve(alpha).times
        assert nearest.loaded_latency_ms == pytest.approx(limit / factor)
        assert relative == pytest.approx(nearest.T_eff_ms / 2.0 + settings.KAPPA * (1 / factor - 1))


@given(tables(), st.sampled_from(['T_eff_ms', 'T_lat_ms', 'T_cyc_ms']))
def test_each_group_of_wire_formats_is_solved_on_its_own_for_any_objective(table, objective):
    settings = dataclasses.replace(SETTINGS, LAMBDA_MIN=0, WIRE_FORMATS=WIRES)
    times, alpha = PrunedTimes(table, 2.0, settings), unpruned_alpha(table.n_branches)
    assert sorted(wire for formats in times.formats for wire in formats) == sorted(WIRES)
    best = times.solve_within_limits(alpha, None, objective)
    alone = [times.solve_within_limits(alpha, formats, objective) for formats in times.formats]
    assert all(solution.wire in formats for solution, formats in zip(alone, times.formats))
    assert getattr(best.times, objective) == min(getattr(solution.times, objective) for solution in alone)
