"""Pictures show what they say: the frontier of their own axis, bars that add up, words for every γ, any name."""
from __future__ import annotations

import dataclasses
import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from made_results import configured, make_result, make_table, random_configuration
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

import config
from costs.cost_model import TIERS, SplitTimes, other_tier
from costs.importance import importance_of, model_branch_flops, ranking
from domains.division import SUBSETS
from network.alpha import unpruned_alpha
from network.gammas import GAMMAS
from network.outline import outline_for
from report import cost_figures, frontier_figures, preparation_figures, result_figures, style, summary
from report.frontier_figures import T_EFF, THROUGHPUT

NAMES = ['$x$', 'a_b', 'cost $5', r'back\slash', 'line\nbreak', 'a very long class name that nobody can read in a cell',
         '\udc80 undecodable', '$', '{x}^2', '']


@pytest.fixture(scope='module')
def made():
    """Settings, table and the results of ten domains."""
    settings = config.load((), {})
    table = make_table(settings)
    return settings, table, [make_result(table, settings, domain, domain > 2) for domain in range(10)]


def drawn(figure):
    """Draw a figure as it would be saved, with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure.set_dpi(40)  # faster
        figure.draw_without_rendering()
    return figure


def line_of(axes, start):
    """The one line whose label starts like this."""
    found = [line for line in axes.lines if str(line.get_label()).startswith(start)]
    assert len(found) == 1
    return found[0]


# --- frontiers ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('speed', (T_EFF, THROUGHPUT), ids=lambda speed: speed.word)
def test_the_drawn_frontier_is_that_of_the_axis(made, speed):
    result = made[2][0]
    figure = drawn(frontier_figures.two_domains([result], speed, {}))
    line = line_of(figure.axes[0], 'frontier')
    expected = [(getattr(point.times, speed.field), 100 * point.accuracy) for point in result.frontier[speed.frontier]]
    assert np.array_equal(line.get_xydata(), expected)


@pytest.mark.parametrize('speed', (T_EFF, THROUGHPUT), ids=lambda speed: speed.word)
@pytest.mark.parametrize('chosen', (0, 1, -1))
def test_a_star_below_the_line_is_hollow_and_says_what_it_was_chosen_for(made, speed, chosen):
    point = made[2][0].frontier['T_eff'][chosen]
    result = dataclasses.replace(made[2][0], times=point.times, accuracy=dataclasses.replace(
        made[2][0].accuracy, val_final=point.accuracy))
    axes = drawn(frontier_figures.two_domains([result], speed, {})).axes[0]
    star, line = line_of(axes, 'chosen'), line_of(axes, 'frontier')
    assert np.array_equal(star.get_xydata()[0], (getattr(point.times, speed.field), 100 * point.accuracy))
    on_line = (np.isclose(line.get_xydata(), star.get_xydata(), rtol=1e-9, atol=0).all(axis=1)).any()
    assert on_line or speed is THROUGHPUT  # of its own axis it is always one
    assert (to_rgba(star.get_markerfacecolor()) == to_rgba('white')) == (not on_line)
    assert ('chosen for T_eff' in star.get_label()) == (not on_line)


def test_networks_that_lost_far_too_much_are_left_out_unless_one_was_chosen(made):
    result = made[2][0]
    points = [dataclasses.replace(result.frontier['T_eff'][0], accuracy=accuracy) for accuracy in (0.5, 0.86, 0.89)]
    result = dataclasses.replace(result, frontier={'T_eff': points})
    assert [point.accuracy for point in frontier_figures.shown_points(result, T_EFF)] == [0.86, 0.89]
    chosen = dataclasses.replace(result, accuracy=dataclasses.replace(result.accuracy, val_final=0.5))
    assert len(frontier_figures.shown_points(chosen, T_EFF)) == 3


def test_the_large_picture_shows_the_domains_that_lose_least_and_most(made):
    results = [dataclasses.replace(result, accuracy=dataclasses.replace(result.accuracy, val_final=value))
               for result, value in zip(made[2], (0.89, 0.895, 0.885, 0.888))]
    figure = drawn(frontier_figures.two_domains(results, T_EFF, {}))
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert len(titles) == 2 and 'domain 1,' in titles[0] and 'domain 2,' in titles[1]


@pytest.mark.parametrize('n', (1, 2, 5, 10))
def test_every_number_of_domains_can_be_drawn(made, n):
    results = made[2][:n]
    for speed in (T_EFF, THROUGHPUT):
        figure = drawn(frontier_figures.all_domains(results, speed, {}))
        assert len([axes for axes in figure.axes if axes.axison]) == n
        figure = drawn(frontier_figures.two_domains(results, speed, {}))
        assert len([axes for axes in figure.axes if axes.axison]) == min(n, 2)
    drawn(result_figures.domain_comparison(results))


@pytest.mark.parametrize('n', (1, 2, 3, 7, 10))
def test_no_title_or_label_lies_on_another_or_beyond_the_picture(made, n):
    results = [dataclasses.replace(result, domain_name='Gaussian noise σ=0.20') for result in made[2][:n]]
    table = made[1]
    for figure in (frontier_figures.all_domains(results, THROUGHPUT, {}, ' (client times simulated)'),
                   frontier_figures.two_domains(results, THROUGHPUT, {}, ' (client times simulated)'),
                   result_figures.domain_comparison(results, 8, ' (client times simulated)'),
                   cost_figures.lut_heatmap(table),
                   result_figures.configuration(results[0], table, 'client', ' (client times simulated)')):
        renderer = FigureCanvasAgg(drawn(figure)).get_renderer()
        boxes = [(text.get_text(), text.get_window_extent(renderer).shrunk(0.98, 0.8)) for text in texts_of(figure)]
        for (text, box), (other_text, other) in itertools.combinations(boxes, 2):
            assert not box.overlaps(other), f'{text!r} lies on {other_text!r}'
        assert [text for text, box in boxes if box.x0 < figure.bbox.x0 or box.x1 > figure.bbox.x1] == []


def texts_of(figure):
    """Every text that is drawn: ticks beyond the limits of their axis are not."""
    texts = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else ())]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts += [axis.label, *(label for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
                                    for label in (tick.label1, tick.label2))]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


# --- one domain's configuration --------------------------------------------------------------------------------

@pytest.mark.parametrize('head_tier', TIERS)
@pytest.mark.parametrize('wire', ('float32', 'uint8'))
def test_the_bars_sum_to_the_times_of_both_tiers_and_of_the_link_at_every_split(made, head_tier, wire):
    _, table, results = made
    rng = np.random.default_rng(0)
    table = dataclasses.replace(table, codec_ms={'uint8': {tier: rng.uniform(0.1, 1, (table.n_blocks, 2))
                                                           for tier in TIERS}})
    for split in range(table.n_blocks + 1):
        result = configured(results[0], table, random_configuration(table, rng, split, wire), head_tier)
        rows = result_figures.stages(result, table, head_tier)
        for where in (*TIERS, 'link'):
            expected = result.times.T_com_ms if where == 'link' else getattr(result.times, f'T_{where}_ms')
            assert sum(row.ms for row in rows if row.where == where) == pytest.approx(expected)
        assert [row.label for row in rows if row.block is not None] == list(table.block_names)
        changes = [a.where for a, b in zip(rows, rows[1:]) if a.where != b.where] + [rows[-1].where]
        assert changes == (['link', other_tier(head_tier)] if split == 0 else [head_tier, 'link'] if
                           split == table.n_blocks else [head_tier, 'link', other_tier(head_tier)])


def test_the_drawn_bars_are_those_times_and_the_sums_stand_beside_them(made):
    _, table, results = made
    result = results[0]
    figure = drawn(result_figures.configuration(result, table, 'client'))
    bars = figure.axes[1].patches
    by_tier = {tier: sum(bar.get_width() for bar in bars if bar.get_facecolor() == to_rgba(style.TIER_COLOURS[tier]))
               for tier in TIERS}
    assert by_tier == pytest.approx({'client': result.times.T_client_ms, 'server': result.times.T_server_ms})
    texts = ' '.join(text.get_text() for text in figure.axes[1].texts)
    assert f'{result.times.T_client_ms:.2f} ms' in texts and f'{result.times.T_server_ms:.2f} ms' in texts


def test_pruned_branches_are_crossed_out_in_a_grey_that_no_alpha_has(made):
    _, table, results = made
    rng = np.random.default_rng(1)
    result = configured(results[0], table, random_configuration(table, rng, 4, 'float32'), 'client')
    axes = drawn(result_figures.configuration(result, table, 'client')).axes[0]
    grey = [patch for patch in axes.patches if patch.get_facecolor() == to_rgba(style.CROSSED_GREY)]
    assert len(grey) == len(result.pruned) and len(axes.lines) == 2 * len(result.pruned)
    of_alpha = matplotlib.colormaps['PuOr'](np.linspace(0, 1, 256))[:, :3]
    assert np.abs(of_alpha - to_rgba(style.CROSSED_GREY)[:3]).max(axis=1).min() > 0.15


def test_the_colours_of_alpha_mean_the_same_in_every_domain(made):
    _, table, results = made
    rng = np.random.default_rng(2)
    limits = set()
    for result in results[:3]:
        result = configured(result, table, random_configuration(table, rng, 4, 'float32'), 'client')
        limits.add(drawn(result_figures.configuration(result, table, 'client')).axes[0].images[0].get_clim())
    assert len(limits) == 1


# --- words and numbers --------------------------------------------------------------------------------------

def test_every_gamma_has_words_of_its_own_that_name_its_branches():
    words = [cost_figures.gamma_words(gamma) for gamma in GAMMAS]
    assert len(set(words)) == len(GAMMAS)
    for gamma, text in zip(GAMMAS, words):
        assert all((name in text) == (branch in gamma.branches) for branch, name in enumerate(style.BRANCH_WORDS))
        assert ('fused' in text.replace('unfused', '')) == any(len(path) > 1 for path in gamma.paths)
    assert {'3x3 alone', '1x1 + identity fused', '3x3 and 1x1 unfused', '3x3, 1x1 and identity unfused',
            '3x3 + 1x1 fused, identity beside it', '3x3 + 1x1 + identity fused'} <= set(words)


@pytest.mark.parametrize('value, expected', [(0.0256, '0.026'), (4.3142, '4.31'), (27.52, '27.5'), (312.4, '312'),
                                             (45123, '45.1k'), (1.2e6, '1.2M'), (0, '0.000'), (float('nan'), '')])
def test_short_numbers(value, expected):
    assert style.short(value) == expected


@pytest.mark.parametrize('factor', (1, 1e3, 1e6))
def test_the_columns_of_the_summary_never_touch(made, factor):
    results = [dataclasses.replace(result, times=dataclasses.replace(result.times, T_cyc_ms=1e-4 / factor))
               for result in made[2]]
    lines = summary.text(results, ['a note'], config.load((), {})).splitlines()
    table = lines[1:len(results) + 2]
    ends = [len(line) for line in table]
    assert len(set(ends[:-1])) == 1
    wide = max(map(len, table))
    gaps = [all(line.ljust(wide)[column] == ' ' for line in table) for column in range(wide)]
    columns = sum(1 for before, now in zip([True, *gaps], gaps) if before and not now)
    assert columns >= len(summary.HEADER)
    assert lines[-1] == 'a note'


def test_importance_ranks_by_alpha_per_flop_and_leaves_out_what_is_not_there():
    settings = config.load((), {})
    outline = outline_for(settings)
    names = list(outline.block_names)
    flops = model_branch_flops(settings)
    scores = importance_of(unpruned_alpha(outline.n_branches), flops)
    ranked = ranking(scores, names)
    assert len(ranked) == 2 * len(names) + sum(outline.has_identity)
    assert ranked[0] == f'{names[int(flops[:, 0].argmax())]}.dense' and ranked[-1].endswith('.identity')


# --- any model, any name ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('model', ('RepVGG-B3', 'RepVGG-D2se'))
def test_deep_networks_can_be_drawn(model):
    settings = config.load((f'MODEL_NAME={model}', 'INPUT_SIZE=224', 'NUM_CLASSES=1000'), {})
    table = make_table(settings)
    result = make_result(table, settings, 0)
    rng = np.random.default_rng(0)
    drawn(cost_figures.lut_heatmap(table))
    drawn(result_figures.configuration(result, table, 'client', ' (client times simulated)'))
    alpha = unpruned_alpha(table.n_branches) * rng.uniform(0.5, 1.5, (2, table.n_blocks, 3))
    drawn(preparation_figures.trained_alpha(alpha, ['0', '1'], table.block_names))
    flops = model_branch_flops(settings)
    for n in (1, 2):
        drawn(preparation_figures.importance(np.array([importance_of(values, flops) for values in alpha[:n]]),
                                             table.block_names))


def test_the_importance_picture_shows_the_mean_and_how_far_domains_are_apart(made):
    scores = np.array([[[1.0, 10.0, np.nan]], [[4.0, 10.0, np.nan]]])  # (domains, N, 3)
    top, bottom = drawn(preparation_figures.importance(scores, ['stage1.0'])).axes[:2]
    assert np.allclose(top.images[0].get_array().filled(-1).ravel(), [2.0, 10.0, -1])
    assert np.allclose(bottom.images[0].get_array().filled(-1).ravel(), [4.0, 1.0, -1])


@pytest.mark.parametrize('n_classes', (2, 10, 30, 1000))
@pytest.mark.parametrize('n_domains', (1, 10))
def test_names_of_classes_and_domains_do_not_break_a_picture(n_classes, n_domains):
    rng = np.random.default_rng(0)
    names = [NAMES[k % len(NAMES)] for k in range(n_classes)]
    counts = {subset: rng.integers(0, 50, (n_domains, n_classes)) for subset in SUBSETS}
    figure = drawn(preparation_figures.partition(counts, names, [NAMES[k % 10] for k in range(n_domains)], NAMES[0]))
    share = figure.axes[0].images[0].get_array()
    assert np.allclose(share.sum(axis=1), 100)
    sizes = [text.get_text() for text in figure.axes[1].texts]
    assert sizes == [str(counts[subset][domain].sum()) for domain in range(n_domains) for subset in counts]


@pytest.mark.parametrize('name', NAMES)
def test_a_domain_of_any_name_can_be_drawn(made, name):
    _, table, results = made
    result = dataclasses.replace(results[0], domain_name=name)
    drawn(frontier_figures.two_domains([result], T_EFF, {}))
    drawn(result_figures.domain_comparison([result]))
    drawn(result_figures.configuration(result, table, 'client'))


def test_the_unpruned_network_is_drawn_at_every_split_of_a_deep_network():
    n = 27
    rng = np.random.default_rng(0)
    client, server, com = rng.uniform(1, 9, (3, n + 1))
    lat, cyc = client + server + com + 2, np.maximum(np.maximum(client, server), com)
    unpruned = cost_figures.UnprunedSplits('client', 'float32', 0.5, (1, n - 1), 4,
                                           SplitTimes(client, server, com, lat, cyc, (lat + cyc) / 2, 0 * lat))
    axes = drawn(cost_figures.split_times(unpruned)).axes[0]
    assert sum(bar.get_height() for bar in axes.patches if bar.get_width() == 0.72) == pytest.approx(lat.sum())
