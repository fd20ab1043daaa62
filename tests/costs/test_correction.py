"""What the sums of a table miss of whole heads and tails: the fit, and times that come out of the corrected table."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import seeds, tier_costs
from table_files import content_of, settings_in, write_text

import lut_manager
from config import UserError
from costs.correction import Correction, fit_correction
from costs.cost_model import Configuration, Scenario, times
from tier.block_timing import PartTiming, draw_parts

SCALES, OFFSETS = st.floats(0.7, 1.4), st.floats(-0.08, 0.5)


def parts_of(costs, scale: float, offset_ms: float, noise: float = 0.0, seed: int = 0):
    """The tier's costs with parts that take scale · sum + offset, and noise."""
    rng = np.random.default_rng(seed)
    counts = [3 if np.isfinite(row[13]) else 2 for row in costs.block_ms]
    return dataclasses.replace(costs, parts=tuple(
        part._replace(ms=(scale * costs.sum_ms(part) + offset_ms) * (1 + noise * rng.standard_normal()))
        for part in draw_parts(counts)))


@given(seeds, SCALES, OFFSETS)
def test_scale_and_offset_are_found(tmp_path_factory, seed, scale, offset_ms):
    costs = tier_costs('server', settings_in(tmp_path_factory.getbasetemp()), seed, {})
    found = parts_of(costs, scale, offset_ms).correction()
    if found.held_out.median > 1e-9:  # the sums may be right as they are
        assert scale == pytest.approx(1) and offset_ms == pytest.approx(0, abs=1e-9)
    else:
        assert found.scale == pytest.approx(scale, rel=1e-3) and found.offset_ms == pytest.approx(offset_ms, abs=1e-3)
        assert found.held_out.n == 12 and found.held_out.worst < 1e-3 and found.held_out.share == 1


def test_one_disturbed_part_hardly_ever_tilts_the_fit(tmp_path):
    """Not never: the shortest head or tail may be the only part that tells the offset."""
    errors = []
    for seed in range(10):
        costs = parts_of(tier_costs('server', settings_in(tmp_path), seed, {}), 1.05, -0.08)
        for which, part in enumerate(costs.parts):
            parts = list(costs.parts)
            parts[which] = part._replace(ms=2 * part.ms)
            found = dataclasses.replace(costs, parts=tuple(parts)).correction()
            errors.append(max(abs(found.part_ms(costs.sum_ms(other)) / other.ms - 1) for other in costs.parts))
    assert np.mean(np.array(errors) < 0.01) >= 0.95


@given(seeds, st.floats(-5, -0.5))
def test_every_time_stays_above_0(tmp_path_factory, seed, offset_ms):
    chosen = settings_in(tmp_path_factory.getbasetemp())
    costs = tier_costs('server', chosen, seed, {})
    costs = parts_of(costs, 1.0, max(offset_ms, -0.9 * min(costs.sum_ms(p) for p in draw_parts([2] * 11))))
    table = lut_manager.merge(costs, tier_costs('client', chosen, seed, {}), chosen)
    assert table.stem.T_ms['server'] > 0 and table.classifier.T_ms['server'] > 0
    assert np.nanmin(table.T_ms['server']) > 0


def test_sums_that_are_right_are_left_as_they_are():
    rng = np.random.default_rng(0)
    sums = rng.uniform(1, 9, 12)
    assert fit_correction(sums, sums, 0.1) == Correction(held_out=fit_correction(sums, sums, 0.1).held_out)
    assert fit_correction(sums[:3], 2 * sums[:3], 0.1) == Correction()  # too few to tell


def test_a_part_left_out_of_the_fit_gives_its_error():
    sums = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    measured = 1.1 * sums - 0.05
    measured[7] *= 0.8  # left out, it is predicted 25 % too long
    held_out = fit_correction(sums, measured, 0.1).held_out
    assert held_out.worst == pytest.approx(0.25, abs=0.01) and held_out.share == pytest.approx(7 / 8)
    assert held_out.median < 0.01


@pytest.mark.parametrize('tier', ['client', 'server'])
def test_the_tables_times_are_those_of_the_measured_parts(tmp_path, tier):
    """Heads, tails and whole networks, from the file's own numbers and through the cost model."""
    chosen = settings_in(tmp_path)
    costs = {name: parts_of(tier_costs(name, chosen, 5, {}), 1.05, -0.06) for name in ('client', 'server')}
    path = lut_manager.save(lut_manager.merge(costs['server'], costs['client'], chosen), chosen)
    table, content = lut_manager.load(path, chosen), content_of(path)
    key, n = f'T_{tier}', table.n_blocks
    for part in costs[tier].parts:
        if part.last == n and part.first > 0:  # a tail
            scenario, split = Scenario('server' if tier == 'client' else 'client', 0.5), part.first
        else:
            scenario, split = Scenario(tier, 0.5), part.last
        found = times(table, Configuration(np.ones((n, 3)), part.gamma, split), scenario)
        assert getattr(found, f'T_{tier}_ms') == pytest.approx(part.ms)
        ends = content['stem'][key] * (part.first == 0) + content['classifier'][key] * (part.last == n)
        whole = content['correction'][tier]['offset_ms'] * (part.first == 0 and part.last == n)
        rows = [content[key][name][gamma] for name, gamma in zip(table.block_names, part.gamma)]
        assert ends - whole + sum(rows[part.first:part.last]) == pytest.approx(part.ms)
    assert content['correction'][tier]['held_out']['n'] == 12


def test_the_tiers_own_file_keeps_raw_numbers_and_the_parts(tmp_path):
    chosen = settings_in(tmp_path)
    costs = parts_of(tier_costs('server', chosen, 1, {}), 1.2, -0.05, noise=0.02)
    content = content_of(lut_manager.save_tier(costs, chosen))
    assert content['T_server']['stage1.0'][4] == costs.block_ms[0, 4]
    assert len(content['parts']) == 12 and set(content['parts'][0]) == {'first', 'last', 'gamma', 'ms'}


@pytest.mark.parametrize('change', [{'first': 11}, {'last': 12}, {'ms': 0}, {'ms': 'x'}, {'gamma': [13] * 10},
                                    {'gamma': [13] * 11}, {'first': 0.5}])
def test_a_part_that_cannot_be_is_refused(tmp_path, change):
    chosen = settings_in(tmp_path)
    path = lut_manager.save_tier(parts_of(tier_costs('server', chosen, 1, {}), 1.2, -0.05), chosen)
    content = content_of(path)
    content['parts'][3].update(change)
    with pytest.raises(UserError, match=r'parts\[3\]'):
        lut_manager.load_tier('server', chosen, write_text(path, json.dumps(content)))


def test_a_kernel_model_gets_no_correction(tmp_path):
    chosen = settings_in(tmp_path, DEVICE_PROFILE='jetson-tx2')
    costs = lut_manager.simulate_client(chosen, lut_manager.Roofline(1.0, 1.0))
    assert costs.parts == () and costs.correction() == Correction()


def test_parts_are_five_heads_five_tails_and_two_whole_networks():
    parts = draw_parts([2, *[3] * 26])
    kinds = [(part.first == 0, part.last == 27) for part in parts]
    assert sorted(kinds) == [(False, True)] * 5 + [(True, False)] * 5 + [(True, True)] * 2
    cuts = sorted(part.last for part in parts if part.last < 27)
    assert all(low <= cut <= high for cut, low, high in zip(cuts, (1, 6, 11, 16, 21), (6, 11, 16, 21, 26)))
    assert len({part.gamma for part in parts}) == 12 and parts == draw_parts([2, *[3] * 26])
    assert draw_parts([2]) == [PartTiming(0, 1, part.gamma, pytest.approx(np.nan, nan_ok=True))
                               for part in draw_parts([2])]
