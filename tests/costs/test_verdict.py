"""Whether splitting pays: against the same α on one tier and the image as anybody would send it."""
from __future__ import annotations

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import fleets, surviving_arrays, tables

from config import Settings
from costs.cost_model import Times, scenario_of
from costs.verdict import OneTier, sentences, verdict_of, words_of
from throughput_optimizer import solve_exact


def split(T_eff_ms: float) -> Times:
    return Times(0, T_eff_ms, 0, T_eff_ms, T_eff_ms, T_eff_ms)


def way(name: str, T_eff_ms: float, sends_image: bool) -> OneTier:
    return OneTier(name, split(T_eff_ms), sends_image)


ENDS = [way('all_client', 6.2, False), way('all_client_pruned', 3.4, False), way('all_server', 4.1, True),
        way('all_server_pruned', 2.638, True)]


def test_the_same_pruned_network_on_the_server_counts():
    """The figures of a run at 1000 Mbit/s that was called 'splitting pays in every domain'."""
    assert not verdict_of(split(3.105), ENDS, images_stay=False).pays
    assert sentences([verdict_of(split(3.105), ENDS, images_stay=False)]) == [
        'splitting does not pay: T_eff 3.105 ms against 2.638 ms (the server alone, same pruning); 322.1 frames/s for '
        'each client, without a split at most 379.1']


def test_where_images_stay_sending_them_is_shown_and_not_counted():
    verdict = verdict_of(split(3.105), ENDS, images_stay=True)
    assert verdict.pays and not verdict.pays_anyway
    pays, shown = sentences([verdict])
    assert 'only because raw images must stay' in pays and '3.400 ms (the client alone, same pruning)' in pays
    assert 'not counted' in shown and '2.638 ms (the server alone, same pruning)' in shown


def test_a_png_or_a_jpeg_counts_like_any_other_way():
    jpeg = way('all_server_pruned_jpeg', 2.0, True)
    assert verdict_of(split(2.5), [*ENDS, jpeg], images_stay=False).counted is jpeg
    assert verdict_of(split(1.9), [*ENDS, jpeg], images_stay=False).pays_anyway
    assert words_of(jpeg.name) == 'the server alone, same pruning, image as JPEG'


def test_domains_are_counted_and_no_split_is_called_no_split():
    found = [verdict_of(split(ms), ENDS, images_stay=False) for ms in (2.0, 2.2, 2.638, 5.0)]
    lines = sentences(found)
    assert lines[0].startswith('splitting pays in 2 of 4 domains: T_eff 2.100 ms against 2.638 ms')
    assert lines[1].startswith('splitting does not pay in 1 of 4 domains: T_eff 5.000 ms')
    assert 'the best choice is no split in 1 of 4 domains' in lines[2]


@given(tables(), st.data())
def test_it_agrees_with_a_walk_through_the_network_on_each_tier(table, data):
    surviving = data.draw(surviving_arrays(table.has_identity))
    settings = Settings(HEAD_TIER=data.draw(st.sampled_from(['client', 'server'])), OMEGA=data.draw(st.floats(0, 1)),
                        RESULT_AT=data.draw(st.sampled_from(['client', 'server'])), LAMBDA_MIN=0,
                        LAMBDA_MAX=table.n_blocks, **data.draw(fleets))
    allowed = range(1, table.n_blocks) or [0]
    best = solve_exact(table, surviving, settings, splits=list(allowed)).times
    ways = [OneTier(name, solve_exact(table, surviving, settings, splits=[at]).times, at == 0)
            for name, at in (('all_tail', 0), ('all_head', table.n_blocks))]

    def least(at: int) -> float:
        return min(times.T_eff_ms for *_, times in oracles.all_choices(table, surviving, [at], settings.WIRE_FORMATS,
                                                                       scenario_of(settings, table)))

    for images_stay in (False, True):
        ends = [least(table.n_blocks), *([] if images_stay else [least(0)])]
        found = verdict_of(best, ways, images_stay)
        if not np.isclose(best.T_eff_ms, min(ends), rtol=1e-8):
            assert found.pays == (best.T_eff_ms < min(ends))
        assert found.counted.times.T_eff_ms == pytest.approx(min(ends))
