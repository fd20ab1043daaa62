"""Pictures of what step 3 found: the frontier, the comparison of domains, one configuration."""
from __future__ import annotations

import math
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from costs.cost_model import HardwareTable, Times, gathered, other_tier
from network.gammas import GAMMAS
from report.cost_figures import TIER_COLOURS
from report.style import (
    BLACK,
    BLUE,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    add_colour_bar,
    draw_heatmap,
    headline,
    plain,
    styled,
    subplots,
)
from report.summary import change, mean_change, percent, points
from search.frontier import FrontierPoint, lowest_explored
from search.joint_result import JointResult

BASELINE_LOOK = {'all_client': (ORANGE, 'v'), 'all_server': (BLUE, '^'), 'step2': (BLACK, 's'),
                 'sequential': (PURPLE, 'D')}  # (colour, marker), in all pictures
BASELINE_LABEL = {'all_client': 'everything on the client (unpruned)',
                  'all_server': 'everything on the server (unpruned)',
                  'step2': 'best split (unpruned, step 2)', 'sequential': 'sequential: prune, then split'}


PICK_LABEL = {'constraint': 'picked: lowest J within ε', 'knee': 'picked: knee of the frontier',
              'budget': 'picked: most accurate within the budget'}


# --- the frontier of accuracy and speed ------------------------------------------------------------------

class Speed(NamedTuple):
    """The horizontal axis of a curve."""
    field: str  # of CurvePoint and of Times
    frontier: str  # whose points are drawn
    label: str
    word: str  # for titles


THROUGHPUT = Speed('throughput_fps', 'throughput', 'throughput (frames/s), further right is faster', 'throughput')
T_EFF = Speed('T_eff_ms', 'T_eff', 'T_eff (ms per image), further left is faster', 'T_eff')


@styled
def accuracy_curves(results: Sequence[JointResult], speed: Speed, sequential: Mapping[int, JointResult],
                    note: str = '') -> Any:
    """One panel a domain: the highest validation accuracy at every speed; returns the figure.
    `sequential`: the sequential baseline's results by domain, as far as they exist. `note` is added to the title."""
    columns = {1: 1, 2: 2, 4: 2, 7: 4, 8: 4, 10: 5}.get(len(results), 3)
    rows = math.ceil(len(results) / columns)
    width, height = (max(8.5, 3.5 * columns), 3.2 * rows + 2.2) if len(results) > 1 else (9.5, 6.5)
    figure, grid = subplots(rows + 1, columns, size=(width, height), sharex=True, squeeze=False,
                            gridspec_kw={'height_ratios': [1] * rows + [0.01]})
    spans = [value_range(result, sequential.get(result.domain_id)) for result in results]
    widest = max(high - low for low, high in spans)
    panels = grid[:-1].ravel()
    for axes, result, (low, high) in zip(panels, results, spans):
        draw_curve(axes, result, speed, sequential.get(result.domain_id))
        middle = (low + high) / 2
        axes.set_ylim(middle - 0.62 * widest, middle + 0.62 * widest)  # same scale everywhere: slopes compare
        axes.tick_params(labelbottom=False)
    for index in range(len(results)):
        if index + columns >= len(results):
            panels[index].tick_params(labelbottom=True)
            panels[index].set_xlabel(speed.label if columns < 3 else speed.label.split(',')[0])
        if index % columns == 0:
            panels[index].set_ylabel('validation accuracy (%)')
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    legend_axes(figure, grid, len(results)).legend(handles.values(), handles.keys(), loc='upper center',
                                                   ncol=2 if width < 13 else 3 if width < 17 else 4)
    headline(figure, curve_message(results, speed) + note)
    return figure


def legend_axes(figure: Any, grid: Any, used: int) -> Any:
    """Remove the empty panels and the last row; in its place one frameless axes for the legend."""
    spec = grid[-1, 0].get_gridspec()
    for axes in [*grid[:-1].ravel()[used:], *grid[-1]]:
        axes.remove()
    bottom = figure.add_subplot(spec[-1, :])
    bottom.axis('off')
    return bottom


def value_range(result: JointResult, sequential: Optional[JointResult]) -> Tuple[float, float]:
    """Lowest and highest accuracy (%) that a panel must show."""
    reference = result.accuracy.val_reference
    shown = [point.accuracy for points in result.frontier.values() for point in shown_points(result, points)]
    shown += [result.accuracy.val_final, result.curve[0].accuracy, reference, reference - result.epsilon]
    shown += [sequential.accuracy.val_final] if sequential else []
    return 100 * min(shown), 100 * max(max(shown), min(shown) + 1e-3)


def shown_points(result: JointResult, points: Sequence[FrontierPoint]) -> List[FrontierPoint]:
    """The part of a frontier that was explored; networks that lost more say nothing and would flatten the rest."""
    lowest = min(lowest_explored(result.accuracy.val_reference, result.epsilon), result.accuracy.val_final)
    return [point for point in points if point.accuracy >= lowest]


def draw_curve(axes: Any, result: JointResult, speed: Speed, sequential: Optional[JointResult]) -> None:
    """One domain's panel."""
    reference = 100 * result.accuracy.val_reference
    points, start = shown_points(result, result.frontier[speed.frontier]), result.curve[0]
    x = [getattr(point.times, speed.field) for point in points]
    y = [100 * point.accuracy for point in points]
    axes.axhspan(reference - 100 * result.epsilon, reference, color='0.91', linewidth=0, zorder=0,
                 label='allowed: up to ε below the reference accuracy')
    axes.plot(x, y, 'o-', color=RED, drawstyle='steps-post', markersize=4, zorder=3,  # fastest first on both axes
              label='frontier: nothing found beats it')
    axes.plot(getattr(start, speed.field), 100 * start.accuracy, 's', color=BLACK, markersize=8, zorder=4,
              label=BASELINE_LABEL['step2'])
    axes.plot(getattr(result.times, speed.field), 100 * result.accuracy.val_final, '*', color=RED, markersize=17,
              markeredgecolor=BLACK, zorder=5, label=PICK_LABEL[result.pick.rule])
    for name in ('all_client', 'all_server'):  # these compute what the unpruned network computes
        colour, marker = BASELINE_LOOK[name]
        axes.plot(getattr(result.baselines[name].times, speed.field), reference, marker, color=colour, markersize=9,
                  zorder=4, label=BASELINE_LABEL[name])
    if sequential:
        axes.plot(getattr(sequential.times, speed.field), 100 * sequential.accuracy.val_final, 'D', color=PURPLE,
                  markeredgecolor=BLACK, markersize=9, zorder=4, label=BASELINE_LABEL['sequential'])
    elif 'sequential' in result.baselines:  # its validation accuracy is not known
        axes.axvline(getattr(result.baselines['sequential'].times, speed.field), color=PURPLE, linestyle='--', zorder=2,
                     label=f'sequential: prune, then split (its {speed.word})')
    moved = change(result)
    gain = moved.throughput_change if speed is THROUGHPUT else moved.T_eff_change
    axes.set_title(f'{result.domain_id}  {plain(result.domain_name, 26)}\n{percent(gain)} {speed.word}, '
                   f'{100 * (result.accuracy.val_final - result.accuracy.val_reference):+.1f} points', fontsize=11)
    axes.margins(x=0.08)
    axes.grid(color='0.85', linewidth=0.6)


def curve_message(results: Sequence[JointResult], speed: Speed) -> str:
    """What the curves say."""
    mean = mean_change(results)
    gain = mean.throughput_change if speed is THROUGHPUT else mean.T_eff_change
    lost = [result.accuracy.val_reference - result.accuracy.val_final for result in results]
    over = f'on average over {len(results)} domains' if len(results) > 1 else 'for one domain'
    return (f'Joint pruning and splitting: {speed.word} {percent(gain)} {over}, '
            f'validation accuracy at most {points(max(0.0, *lost, 0.0))} points below the reference')


# --- the domains side by side ----------------------------------------------------------------------------

@styled
def domain_comparison(results: Sequence[JointResult], note: str = '') -> Any:
    """Test accuracy, T_eff and throughput of every domain; returns the figure. `note` is added to the title."""
    figure, (top, middle, bottom) = subplots(3, 1, size=(max(10.0, 6.0 + 1.05 * len(results)), 11), sharex=True)
    draw_accuracies(top, results)
    draw_times(middle, results, lambda times: times.T_eff_ms, 'T_eff (ms per image)\nlower is better')
    draw_times(bottom, results, lambda times: times.throughput_fps, 'throughput (frames/s)\nhigher is better')
    for axes in (top, middle, bottom):
        axes.set_xlim(-0.6, len(results) - 0.4)
        if axes is not bottom:
            axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5))  # that of the middle serves the bottom too
    bottom.set_xticks(range(len(results)), [domain_label(result) for result in results])
    bottom.set_xlabel('domain')
    mean = mean_change(results)
    over = f'Mean of {len(results)} domains' if len(results) > 1 else 'One domain'
    headline(figure, f'{over} against the unpruned best split: test accuracy {-100 * mean.accuracy_loss:+.1f} points, '
                     f'T_eff {percent(mean.T_eff_change)}, throughput {percent(mean.throughput_change)}{note}')
    return figure


def domain_label(result: JointResult) -> str:
    """'0', 'Gaussian', 'noise σ=0.20' on lines of their own."""
    words = plain(result.domain_name, 40).split(' ')
    half = min(range(1, len(words) + 1), key=lambda i: max(len(' '.join(words[:i])), len(' '.join(words[i:]))))
    return '\n'.join([str(result.domain_id), ' '.join(words[:half]), ' '.join(words[half:])])


def draw_accuracies(axes: Any, results: Sequence[JointResult]) -> None:
    """Original, reference and final test accuracy (the last with its 95 % interval), and the sequential baseline's."""
    x = np.arange(len(results))
    reports = [result.accuracy for result in results]
    final = np.array([report.final for report in reports])
    low, high = np.array([report.ci95 for report in reports]).T
    axes.plot(x - 0.3, [100 * report.original for report in reports], 'o', color=SKY, markersize=8,
              label='original (α = 1)')
    axes.plot(x - 0.1, [100 * report.reference for report in reports], 's', color=BLACK, markersize=7,
              label='reference (α trained,\nunpruned)')
    axes.errorbar(x + 0.1, 100 * final, 100 * np.array([np.maximum(final - low, 0), np.maximum(high - final, 0)]),
                  fmt='*', color=RED, markersize=13, capsize=4, label='final (pruned),\n95 % interval')
    known = [(k, result.baselines['sequential'].accuracy) for k, result in enumerate(results)
             if 'sequential' in result.baselines]
    if known:
        at, accuracies = np.array(known).T
        axes.plot(at + 0.3, 100 * accuracies, 'D', color=PURPLE, markersize=7, label='sequential')
    axes.set_ylabel('test accuracy (%)')
    axes.grid(axis='y', color='0.88', linewidth=0.6)


def draw_times(axes: Any, results: Sequence[JointResult], value: Callable[[Times], float], label: str) -> None:
    """Bars for what was optimised, lines across each domain for the unpruned baselines."""
    x = np.arange(len(results))
    bars = [('joint (final)', RED, [value(result.times) for result in results])]
    if any('sequential' in result.baselines for result in results):
        bars.append(('sequential', PURPLE, [value(result.baselines['sequential'].times)
                                            if 'sequential' in result.baselines else np.nan for result in results]))
    width = 0.66 / len(bars)
    for index, (name, colour, heights) in enumerate(bars):
        drawn = axes.bar(x + (index - (len(bars) - 1) / 2) * width, heights, 0.92 * width, color=colour, label=name,
                         zorder=2)
        for bar, height in zip(drawn, heights):
            if len(bars) * len(results) <= 12 and not np.isnan(height):
                axes.annotate(f'{height:.3g}' if height < 1000 else f'{height:.0f}',
                              (bar.get_x() + bar.get_width() / 2, 0), (0, 4), textcoords='offset points',
                              ha='center', color='white', weight='bold', zorder=5)
    for name, style in (('step2', '-'), ('all_client', ':'), ('all_server', '--')):
        axes.hlines([value(result.baselines[name].times) for result in results], x - 0.45, x + 0.45, linestyles=style,
                    color=BASELINE_LOOK[name][0], linewidth=2.4, zorder=3,
                    label=BASELINE_LABEL[name].replace(' (', '\n('))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.grid(axis='y', color='0.88', linewidth=0.6)


# --- one domain's configuration ------------------------------------------------------------------------

@styled
def configuration(result: JointResult, table: HardwareTable, head_tier: str, note: str = '') -> Any:
    """α and γ of every block, where the network is cut, and what each block costs there; returns the figure.
    `note` is added below the times."""
    choice, n = result.configuration, table.n_blocks
    figure, (left, right) = subplots(1, 2, size=(11.5, 3.0 + 0.33 * n), sharey=True,
                                     gridspec_kw={'width_ratios': [1.15, 1]})
    tiers = [head_tier if k < choice.split else other_tier(head_tier) for k in range(n)]
    draw_alpha(left, choice.alpha, result.block_names)
    draw_block_times(right, table, choice.gamma, tiers)
    for axes in (left, right):
        axes.axhline(choice.split - 0.5, color=RED, linewidth=2.5, clip_on=False, zorder=6)
        axes.set_ylim(n - 0.5, -0.5)
    right.set_xlabel(f'time of the block (ms per image){note}')
    label_tiers(right, choice.split, n, head_tier, result)
    kept = surviving_counts(choice.alpha)
    headline(figure, f'Domain {result.domain_id}, {plain(result.domain_name, 30)}: {len(result.pruned)} of {kept[1]} '
                     f'branches pruned, {choice.split} of {n} blocks on the {head_tier}; T_eff '
                     f'{result.times.T_eff_ms:.2f} ms, {percent(change(result).T_eff_change)} against unpruned')
    return figure


def surviving_counts(alpha: np.ndarray) -> Tuple[int, int]:
    """(surviving branches, all branches) of α [N, 3]."""
    present = ~np.isnan(alpha)
    return int((present & (alpha != 0)).sum()), int(present.sum())


def draw_alpha(axes: Any, alpha: np.ndarray, names: Sequence[str]) -> None:
    """α as colour and number; pruned branches are white, branches that a block does not have hatched."""
    alive = np.where(alpha == 0, np.nan, alpha)
    spread = max(0.1, float(np.nanmax(np.abs(alive - 1))))
    texts: List[List[str]] = [['' if np.isnan(a) else 'pruned' if a == 0 else f'{a:.2f}' for a in row] for row in alpha]
    for k, b in np.argwhere(alpha == 0):
        axes.fill_between([b - 0.5, b + 0.5], k - 0.5, k + 0.5, color='white', zorder=0.5, linewidth=0)
    image = draw_heatmap(axes, alive, names, ('3x3', '1x1', 'identity'), colormap='PuOr',
                         limits=(1 - spread, 1 + spread), texts=texts, colour_bar=False)
    axes.set_xticks(range(3), ('3x3', '1x1', 'identity'), rotation=0)
    add_colour_bar(image, axes, 'α (1: as in the original network)', location='left', pad=0.02, shrink=0.7)
    axes.set_title('scale α of each branch\n(white: pruned, hatched: no such branch)', fontsize=11)


def draw_block_times(axes: Any, table: HardwareTable, gamma: Sequence[int], tiers: Sequence[str]) -> None:
    """What each block costs on the tier that it runs on, with its γ."""
    block_ms = {tier: gathered(table.T_ms[tier], gamma) for tier in set(tiers)}
    times = np.array([block_ms[tier][k] for k, tier in enumerate(tiers)])
    axes.barh(range(len(tiers)), times, 0.72, color=[TIER_COLOURS[tier] for tier in tiers])
    for k, value in enumerate(times):
        axes.annotate(f'γ {gamma[k]}  {GAMMAS[gamma[k]].name}', (value, k), (5, 0), textcoords='offset points',
                      va='center', fontsize=9.5)
    axes.set_xlim(0, 1.55 * times.max())
    axes.set_title('how each block runs (γ), and what it costs\non its tier', fontsize=11)


def label_tiers(axes: Any, split: int, n: int, head_tier: str, result: JointResult) -> None:
    """At the right edge: the cut, and which tier is on either side of it."""
    beside = axes.get_yaxis_transform()  # x in axes' widths, y in blocks
    axes.text(1.01, split - 0.5, f'λ = {split}\nlink {result.times.T_com_ms:.2f} ms', color=RED, transform=beside,
              ha='left', va={0: 'top', n: 'bottom'}.get(split, 'center'), fontsize=10)
    for tier, first, last, part in ((head_tier, 0, split, 'head'), (other_tier(head_tier), split, n, 'tail')):
        if last > first:
            axes.text(1.28, (first + last) / 2 - 0.5, f'{part}: {tier}', rotation=270, va='center', ha='left',
                      transform=beside, bbox={'facecolor': TIER_COLOURS[tier], 'alpha': 0.35, 'edgecolor': 'none'})
