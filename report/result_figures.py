"""Pictures of what step 3 chose: all domains side by side, and one domain block by block."""
from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from costs.cost_model import HardwareTable, Times, gathered, other_tier
from network.gammas import GAMMAS
from report.cost_figures import gamma_words
from report.frontier_figures import BASELINE_LABEL, BASELINE_LOOK
from report.style import (
    BLACK,
    BRANCH_WORDS,
    CROSSED_GREY,
    LINK_COLOUR,
    PURPLE,
    RED,
    SKY,
    TIER_COLOURS,
    absent_key,
    add_colour_bar,
    cross_out,
    draw_heatmap,
    headline,
    numbers,
    plain,
    short,
    styled,
    subplots,
)
from report.summary import change, gain, mean_change, percent, without_split
from search.result import JointResult

ALPHA_LIMITS = (0.0, 2.0)  # colours of α, in every domain of every model; 1 is the original network
LONGEST_TRANSFER = 3.5  # times the longest other bar: a longer one is cut off, or the others could not be read
CHARACTER_WIDTH = 0.0145  # of the words beside a bar, in widths of their axes


# --- the domains side by side ----------------------------------------------------------------------------

@styled
def domain_comparison(results: Sequence[JointResult], clients: int = 1, note: str = '') -> Figure:
    """Test accuracy, T_eff and throughput of every domain; returns the figure. `clients` share the server; `note` is
    added to the title."""
    figure, (top, middle, bottom) = subplots(3, 1, size=(max(12.0, 6.5 + 1.05 * len(results)), 11), sharex=True)
    draw_accuracies(top, results)
    draw_times(middle, results, lambda times: times.T_eff_ms, 'T_eff (ms per image)\nlower is better')
    draw_times(bottom, results, lambda times: times.throughput_fps,
               f'frames/s of each of {clients} clients\nhigher is better' if clients > 1 else
               'throughput (frames/s)\nhigher is better')
    margin = 0.6 + max(0, 3 - len(results)) / 2  # one domain's bars are not as wide as the picture
    for axes in (top, middle, bottom):
        axes.set_xlim(-margin, len(results) - 1 + margin)
        if axes is not bottom:
            axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5))  # that of the middle serves the bottom too
    bottom.set_xticks(range(len(results)), [domain_label(result) for result in results])
    bottom.set_xlabel('domain')
    mean = mean_change(results)
    over = f'Mean of {len(results)} domains' if len(results) > 1 else 'One domain'
    headline(figure, f'{over}, chosen network against the best unpruned split: test accuracy '
                     f'{-100 * mean.accuracy_loss:+.1f} points, T_eff {percent(mean.T_eff_change)}, throughput '
                     f'{percent(mean.throughput_change)}; against the same network on one machine alone: throughput '
                     f'{percent(float(np.mean([gain(result) for result in results])))}{note}')
    return figure


def domain_label(result: JointResult) -> str:
    """'0', 'Gaussian', 'noise σ=0.20' on lines of their own."""
    words = plain(result.domain_name, 40).split(' ')
    half = min(range(1, len(words) + 1), key=lambda i: max(len(' '.join(words[:i])), len(' '.join(words[i:]))))
    return '\n'.join([str(result.domain_id), ' '.join(words[:half]), ' '.join(words[half:])])


def draw_accuracies(axes: Axes, results: Sequence[JointResult]) -> None:
    """Original, reference and final test accuracy (the last with its 95 % interval), and the sequential baseline's."""
    x = np.arange(len(results))
    reports = [result.accuracy for result in results]
    final = np.array([report.final for report in reports])
    low, high = np.array([report.ci95 for report in reports]).T
    axes.plot(x - 0.3, [100 * report.original for report in reports], 'o', color=SKY, markersize=8,
              label='original network (α = 1)')
    axes.plot(x - 0.1, [100 * report.reference for report in reports], 's', color=BLACK, markersize=7,
              label='unpruned, α trained for\nthe domain')
    axes.errorbar(x + 0.1, 100 * final, 100 * np.array([np.maximum(final - low, 0), np.maximum(high - final, 0)]),
                  fmt='*', color=RED, markersize=13, capsize=4, label='chosen (pruned),\nwith 95 % interval')
    known = [(k, result.baselines['sequential'].accuracy) for k, result in enumerate(results)
             if 'sequential' in result.baselines]
    if known:
        at, accuracies = np.array(known).T
        axes.plot(at + 0.3, 100 * accuracies, 'D', color=PURPLE, markersize=7,
                  label=BASELINE_LABEL['sequential'].replace(': ', ':\n'))
    axes.set_ylabel('test accuracy (%)\nhigher is better')
    axes.grid(axis='y', color='0.88', linewidth=0.6)


def draw_times(axes: Axes, results: Sequence[JointResult], value: Callable[[Times], float], label: str) -> None:
    """Bars for what was optimised, lines across each domain for what it is held against."""
    x = np.arange(len(results))
    bars = [('chosen (pruned)', RED, [value(result.times) for result in results])]
    if any('sequential' in result.baselines for result in results):
        bars.append((BASELINE_LABEL['sequential'].replace(': ', ':\n'), PURPLE,
                     [value(result.baselines['sequential'].times)
                      if 'sequential' in result.baselines else np.nan for result in results]))
    width = 0.66 / len(bars)
    for index, (name, colour, heights) in enumerate(bars):
        drawn = axes.bar(x + (index - (len(bars) - 1) / 2) * width, heights, 0.92 * width, color=colour, label=name,
                         zorder=2)
        for bar, height in zip(drawn, heights):
            if len(bars) * len(results) <= 20 and not np.isnan(height):
                axes.annotate(short(height), (bar.get_x() + bar.get_width() / 2, 0), (0, 4), fontsize=10,
                              textcoords='offset points', ha='center', color='white', zorder=5)
    lines = [(BASELINE_LABEL[name].replace(', ', ',\n'), BASELINE_LOOK[name][0], style,
              [result.baselines[name].times for result in results])
             for name, style in (('step2', '-'), ('all_client_pruned', ':'), ('all_server_pruned', '--'))]
    lines.append(('and there with the image\nas PNG or JPEG', SKY, '-.', [compressed(result) for result in results]))
    for name, colour, style, taken in lines:
        axes.hlines([value(times) for times in taken], x - 0.45, x + 0.45, linestyles=style, color=colour,
                    linewidth=2.4, zorder=3, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.grid(axis='y', color='0.88', linewidth=0.6)


def compressed(result: JointResult) -> Times:
    """The chosen network on the tier that is sent the image as PNG or JPEG, whichever has the lower T_eff."""
    return min((found.times for found in without_split(result)[2:] if found), key=lambda times: times.rank())


# --- one domain's configuration ------------------------------------------------------------------------

class Stage(NamedTuple):
    """One thing that is done to an image: a row of the picture."""
    label: str
    where: str  # 'client', 'server' or 'link'
    ms: float
    words: str  # how it is done
    block: Optional[int] = None  # its index; None: not a block


def stages(result: JointResult, table: HardwareTable, head_tier: str) -> List[Stage]:
    """Everything that is done to an image, in order: their times sum to T_client, T_server and T_com."""
    choice, n, tail_tier = result.configuration, table.n_blocks, other_tier(head_tier)
    tiers = [head_tier if k < choice.split else tail_tier for k in range(n)]
    first, last = tiers[0], tiers[-1]
    block_ms = {tier: gathered(table.T_ms[tier], choice.gamma) for tier in set(tiers)}
    blocks = [Stage(name, tier, float(block_ms[tier][k]), gamma_words(GAMMAS[choice.gamma[k]]), k)
              for k, (name, tier) in enumerate(zip(table.block_names, tiers))]
    undivided_ms = table.undivided_ms(first) if choice.split in (0, n) else 0.0
    computing = [Stage('stem', first, table.stem.T_ms[first], ''), *blocks,
                 Stage('classifier', last, table.classifier.T_ms[last] + undivided_ms, '')]
    what = {0: 'image', n: 'logits'}.get(choice.split, f'feature map, {choice.wire}')
    encode, decode = (values[choice.split] for values in table.cut_codec_ms(choice.wire, head_tier, tail_tier))
    sending = [Stage('encode', head_tier, float(encode), what), Stage('send', 'link', result.times.T_com_ms, what),
               Stage('decode', tail_tier, float(decode), what)]
    before = {0: 0, n: n + 2}.get(choice.split, choice.split + 1)  # stages in front of the cut
    return computing[:before] + [stage for stage in sending if stage.ms or stage.label == 'send'] + computing[before:]


@styled
def configuration(result: JointResult, table: HardwareTable, head_tier: str, note: str = '') -> Figure:
    """α and γ of every block, where the network is cut, and what each block costs there; returns the figure.
    `note` is added below the times."""
    rows, n = stages(result, table, head_tier), table.n_blocks
    alpha = np.full((len(rows), len(BRANCH_WORDS)), np.nan)
    for row, stage in enumerate(rows):
        if stage.block is not None:
            alpha[row] = result.configuration.alpha[stage.block]
    figure, (left, right) = subplots(1, 2, size=(14, 4.0 + 0.36 * len(rows)), sharey=True,
                                     gridspec_kw={'width_ratios': [1, 1.5]})
    draw_alpha(left, alpha, rows)
    draw_stage_times(right, rows)
    right.set_xlabel(f'ms per image{note}')
    label_parts(right, rows, result)
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.5, -0.5)
    surviving, present = surviving_counts(result.configuration.alpha)
    split = result.configuration.split
    head = (f'everything runs on the {head_tier if split else other_tier(head_tier)}' if split in (0, n) else
            f'the first {split} of {n} blocks run on the {head_tier}')
    headline(figure, f'Domain {result.domain_id}, {plain(result.domain_name, 30)}: {present - surviving} of {present} '
                     f'branches pruned, {head}; T_eff {result.times.T_eff_ms:.2f} ms, '
                     f'{percent(change(result).T_eff_change)} against the best unpruned split')
    return figure


def surviving_counts(alpha: np.ndarray) -> Tuple[int, int]:
    """(surviving branches, all branches) of α [N, 3]."""
    present = ~np.isnan(alpha)
    return int((present & (alpha != 0)).sum()), int(present.sum())


def draw_alpha(axes: Axes, alpha: np.ndarray, rows: Sequence[Stage]) -> None:
    """α as colour and number, a row per stage; pruned branches are crossed out, those that a block lacks hatched."""
    alive = np.where(alpha == 0, np.nan, alpha)
    image = draw_heatmap(axes, alive, [stage.label for stage in rows], BRANCH_WORDS, colormap='PuOr',
                         limits=ALPHA_LIMITS, texts=numbers(alive, 2), colour_bar=False)
    for row, column in np.argwhere(alpha == 0):
        cross_out(axes, row, column)
    for row, stage in enumerate(rows):
        if stage.block is None:
            axes.add_patch(Rectangle((-0.5, row - 0.5), len(BRANCH_WORDS), 1, facecolor='white', edgecolor='none'))
    axes.set_xticks(range(len(BRANCH_WORDS)), BRANCH_WORDS, rotation=0)
    axes.tick_params(labeltop=True, labelbottom=False)
    add_colour_bar(image, axes, 'α (1: as in the original network)', location='left', pad=0.02, shrink=0.7,
                   extend='both')
    axes.set_title('scale α of each branch')
    keys = [Patch(facecolor=CROSSED_GREY, label='× pruned')] if (alpha == 0).any() else []
    blocks = [row for row, stage in enumerate(rows) if stage.block is not None]
    keys += [absent_key('no such branch')] if np.isnan(alpha[blocks]).any() else []
    if keys:
        axes.legend(handles=keys, loc='upper center', bbox_to_anchor=(0.5, -0.01), ncol=2)


def draw_stage_times(axes: Axes, rows: Sequence[Stage]) -> None:
    """How long each stage takes where it runs, in numbers and words."""
    computing = max(stage.ms for stage in rows if stage.where != 'link')
    longest = LONGEST_TRANSFER * computing if computing > 0 else np.inf
    colours = {**TIER_COLOURS, 'link': LINK_COLOUR}
    width = 0.0  # of the axes, ms: room for every bar with its words
    for row, stage in enumerate(rows):
        cut_off = stage.ms > longest
        shown = min(stage.ms, longest)
        axes.barh(row, shown, 0.72, color=colours[stage.where], edgecolor='white' if cut_off else 'none',
                  hatch='//' if cut_off else None, linewidth=0)
        words = '   '.join(filter(None, [short(stage.ms) + ' ms' + (' (bar cut off)' if cut_off else ''), stage.words]))
        axes.annotate(words, (shown, row), (5, 0), textcoords='offset points', va='center', fontsize=11)
        width = max(width, shown / max(0.2, 1 - CHARACTER_WIDTH * (len(words) + 2)))
    axes.set_xlim(0, width or 1)
    axes.set_title('how long each stage takes, and how each block runs (γ)')


def label_parts(axes: Axes, rows: Sequence[Stage], result: JointResult) -> None:
    """At the right edge: what runs on which tier, with the sums of the bars; lines where the image changes hands."""
    beside = axes.get_yaxis_transform()  # x in axes' widths, y in rows
    colours = {**TIER_COLOURS, 'link': LINK_COLOUR}
    sums = {'client': f'client\nsum {result.times.T_client_ms:.2f} ms', 'link': f'link\n{result.times.T_com_ms:.2f} ms',
            'server': f'server\nsum {result.times.T_server_ms:.2f} ms'}
    first = 0
    for row, stage in enumerate(rows):
        if row + 1 < len(rows) and rows[row + 1].where == stage.where:
            continue
        axes.text(1.02, (first + row) / 2, sums[stage.where], va='center', ha='left', transform=beside,
                  bbox={'facecolor': colours[stage.where], 'alpha': 0.35, 'edgecolor': 'none'})
        if row + 1 < len(rows):
            axes.axhline(row + 0.5, color='0.4', linewidth=1, linestyle='--', zorder=0)
        first = row + 1
