"""Pictures of the frontiers: the accuracy that is left at every speed, two domains large and all of them small."""
from __future__ import annotations

import math
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from costs.goal import SMALLEST_LOSS
from report.style import BLACK, BLUE, ORANGE, PURPLE, RED, headline, plain, styled, subplots
from report.summary import DomainChange, change, mean_change, percent, pick_words, points
from search.frontier import FrontierPoint
from search.result import JointResult

BASELINE_LOOK = {'all_client_pruned': (ORANGE, 'v'), 'all_server_pruned': (BLUE, '^'), 'step2': (BLACK, 's'),
                 'sequential': (PURPLE, 'D')}  # (colour, marker), in all pictures
BASELINE_LABEL = {'all_client_pruned': 'the chosen network, all of it on the client',
                  'all_server_pruned': 'the chosen network, all of it on the server',
                  'step2': 'best allowed split, unpruned', 'sequential': 'sequential: prune first, then split'}
SHOWN_LOSS = 2.5  # of ε: networks that lost more would flatten the rest of the picture
COLUMNS = {1: 1, 2: 2, 4: 2, 7: 4, 8: 4, 10: 5}  # of small multiples, by their number; otherwise 3


class Speed(NamedTuple):
    """The horizontal axis of a picture."""
    field: str  # of Times and of CurvePoint
    frontier: str  # of search.frontier.OBJECTIVES: the frontier of this axis
    label: str
    faster: str  # which way
    word: str  # for titles


THROUGHPUT = Speed('throughput_fps', 'throughput', 'throughput (frames/s)', 'further right is faster', 'throughput')
T_EFF = Speed('T_eff_ms', 'T_eff', 'T_eff (ms per image)', 'further left is faster', 'T_eff')


@styled
def two_domains(results: Sequence[JointResult], speed: Speed, sequential: Mapping[int, JointResult], note: str = '',
                ) -> Figure:
    """The domains that lose least and most accuracy, large; returns the figure.
    `sequential`: the sequential baseline's results by domain, as far as they exist. `note` is added to the title."""
    by_loss = sorted(results, key=lost)
    shown = [by_loss[0], by_loss[-1]] if len(results) > 1 else by_loss
    which = ['loses least of', 'loses most of'] if len(results) > 2 else []
    titles = [panel_title(result, speed, f'{which[index]} {len(results)}' if which else '')
              for index, result in enumerate(shown)]
    figure, grid = subplots(2, len(shown), size=(7.5 * len(shown) + 1.5, 7.4), squeeze=False,
                            gridspec_kw={'height_ratios': [1, 0.01]})
    draw_panels(figure, grid, shown, titles, speed, sequential)
    for axes in grid[0, :]:
        axes.set_xlabel(f'{speed.label}, {speed.faster}')
    headline(figure, message(results, speed) + note)
    return figure


@styled
def all_domains(results: Sequence[JointResult], speed: Speed, sequential: Mapping[int, JointResult], note: str = '',
                ) -> Figure:
    """Every domain small, on the same scales; the arguments of `two_domains`."""
    columns = COLUMNS.get(len(results), 3)
    rows = math.ceil(len(results) / columns)
    figure, grid = subplots(rows + 1, columns, size=(max(9.5, 3.7 * columns + 1), 3.4 * rows + 2.6), sharex=True,
                            squeeze=False, gridspec_kw={'height_ratios': [1] * rows + [0.01]})
    draw_panels(figure, grid, results, [panel_title(result, speed) for result in results], speed, sequential)
    for index, axes in enumerate(grid[:-1].ravel()[:len(results)]):
        lowest = index + columns >= len(results)
        axes.locator_params(nbins=5)
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel(speed.label if lowest else '')
    headline(figure, message(results, speed) + note)
    return figure


def draw_panels(figure: Figure, grid: np.ndarray, results: Sequence[JointResult], titles: Sequence[str], speed: Speed,
                sequential: Mapping[int, JointResult]) -> None:
    """Fill a grid [rows + 1, columns] of axes: a panel per domain, and in the last row one legend for all."""
    spans = [value_range(result, speed, sequential.get(result.domain_id)) for result in results]
    widest = max(high - low for low, high in spans)
    panels = grid[:-1].ravel()
    for axes, result, title, (low, high) in zip(panels, results, titles, spans):
        draw_panel(axes, result, speed, sequential.get(result.domain_id))
        axes.set_title(title)
        middle = (low + high) / 2
        axes.set_ylim(middle - 0.6 * widest, middle + 0.6 * widest)  # the same scale everywhere: slopes compare
    for axes in grid[:-1, 0]:
        axes.set_ylabel('validation accuracy (%)')
    entries: Dict[str, object] = {label: handle for axes in panels
                                  for handle, label in zip(*axes.get_legend_handles_labels())}
    width = figure.get_figwidth()
    legend_axes(figure, grid, len(results)).legend(list(entries.values()), list(entries), loc='upper center',
                                                   ncol=1 if width < 11 else 2 if width < 16.5 else 3)


def legend_axes(figure: Figure, grid: np.ndarray, used: int) -> Axes:
    """Remove the empty panels and the last row; in its place one frameless axes for the legend."""
    spec = grid[-1, 0].get_gridspec()
    for axes in [*grid[:-1].ravel()[used:], *grid[-1]]:
        axes.remove()
    bottom = figure.add_subplot(spec[-1, :])
    bottom.axis('off')
    return bottom


def draw_panel(axes: Axes, result: JointResult, speed: Speed, sequential: Optional[JointResult]) -> None:
    """One domain: the frontier of this axis, what was chosen, and what it is compared with."""
    reference = 100 * result.accuracy.val_reference
    shown, start = shown_points(result, speed), result.curve[0]
    axes.axhspan(reference - 100 * result.epsilon, reference, color='0.91', linewidth=0, zorder=0,
                 label=f'allowed loss: {points(result.epsilon)} points')
    axes.plot([getattr(point.times, speed.field) for point in shown], [100 * point.accuracy for point in shown], 'o-',
              color=RED, drawstyle='steps-post', markersize=5, zorder=3,  # fastest first on both axes
              label=f'frontier: best accuracy found at each {speed.word}, allowed splits')
    axes.plot(getattr(start, speed.field), 100 * start.accuracy, 's', color=BLACK, markersize=9, zorder=4,
              label=BASELINE_LABEL['step2'])
    for name in ('all_client_pruned', 'all_server_pruned'):  # these compute what the chosen network computes
        colour, marker = BASELINE_LOOK[name]
        axes.plot(getattr(result.baselines[name].times, speed.field), 100 * result.accuracy.val_final, marker,
                  color=colour, markersize=10, zorder=4, label=BASELINE_LABEL[name])
    if sequential:
        axes.plot(getattr(sequential.times, speed.field), 100 * sequential.accuracy.val_final, 'D', color=PURPLE,
                  markeredgecolor=BLACK, markersize=9, zorder=4, label=BASELINE_LABEL['sequential'])
    elif 'sequential' in result.baselines:  # its validation accuracy is not known
        axes.axvline(getattr(result.baselines['sequential'].times, speed.field), color=PURPLE, linestyle='--', zorder=2,
                     label=f"{BASELINE_LABEL['sequential']} (its {speed.word})")
    axes.plot(getattr(result.times, speed.field), 100 * result.accuracy.val_final, '*', markersize=19, zorder=5,
              color=RED if is_on_frontier(result, speed) else 'white', markeredgecolor=BLACK, markeredgewidth=1.3,
              label=chosen_label(result, speed))
    axes.margins(x=0.08)
    axes.grid(color='0.85', linewidth=0.6)


def shown_points(result: JointResult, speed: Speed) -> List[FrontierPoint]:
    """The frontier of this axis, fastest first, without the networks that lost far more than is allowed."""
    lowest = result.accuracy.val_reference - SHOWN_LOSS * max(result.epsilon, SMALLEST_LOSS)
    return [point for point in result.frontier[speed.frontier]
            if point.accuracy >= min(lowest, result.accuracy.val_final)]


def is_on_frontier(result: JointResult, speed: Speed) -> bool:
    """Is the chosen network, at its γ, λ and wire format, a point of the frontier of this axis?"""
    return any(point.accuracy == result.accuracy.val_final
               and math.isclose(getattr(point.times, speed.field), getattr(result.times, speed.field), rel_tol=1e-9)
               for point in result.frontier[speed.frontier])


def chosen_label(result: JointResult, speed: Speed) -> str:
    """The legend's entry of what was chosen: by which rule, or why it may lie below the line."""
    if is_on_frontier(result, speed):
        return f'chosen: {pick_words(result)}'
    chosen_for = 'the budget' if result.pick.rule == 'budget' else T_EFF.word
    if chosen_for == speed.word:
        return 'chosen; no point of this frontier'
    return f'chosen for {chosen_for}, so not the best at its {speed.word}'


def value_range(result: JointResult, speed: Speed, sequential: Optional[JointResult]) -> Tuple[float, float]:
    """Lowest and highest accuracy (%) that a panel must show."""
    reference = result.accuracy.val_reference
    shown = [point.accuracy for point in shown_points(result, speed)]
    shown += [result.accuracy.val_final, result.curve[0].accuracy, reference, reference - result.epsilon]
    shown += [sequential.accuracy.val_final] if sequential else []
    return 100 * min(shown), 100 * max(max(shown), min(shown) + 1e-3)


def lost(result: JointResult) -> float:
    """Validation accuracy that the chosen network loses, fraction of 1."""
    return result.accuracy.val_reference - result.accuracy.val_final


def panel_title(result: JointResult, speed: Speed, which: str = '') -> str:
    """Which domain, and what it won and lost; `which` says why it is shown."""
    name = f'{result.domain_id}  {plain(result.domain_name, 26)}' if not which else \
        f'domain {result.domain_id}, {plain(result.domain_name, 26)} ({which})'
    points_of = 'points of accuracy' if which else 'points'
    return f'{name}\n{percent(gain(change(result), speed))} {speed.word}, {-100 * lost(result):+.1f} {points_of}'


def gain(moved: DomainChange, speed: Speed) -> float:
    """The change that this axis shows."""
    return moved.throughput_change if speed is THROUGHPUT else moved.T_eff_change


def message(results: Sequence[JointResult], speed: Speed) -> str:
    """What the picture says."""
    over = f'on average over {len(results)} domains' if len(results) > 1 else 'in one domain'
    worst = max(0.0, *(lost(result) for result in results), 0.0)
    return (f'Pruning and splitting together: {speed.word} {percent(gain(mean_change(results), speed))} {over} against '
            f'the best unpruned split, at most {points(worst)} points of validation accuracy lost')
