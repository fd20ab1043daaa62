"""Pictures of what things cost: the hardware table, and the times at every split."""
from __future__ import annotations

from typing import Any, List

import numpy as np

from costs.cost_model import TIERS, HardwareTable
from network.gammas import GAMMAS
from report.step2_result import Step2Result
from report.style import BLACK, BLUE, GREEN, ORANGE, YELLOW, draw_heatmap, headline, plain, styled, subplots

TIER_COLOURS = {'client': ORANGE, 'server': BLUE}
LOG_FROM = 5.0  # colours are logarithmic when the largest time is this many times the smallest


# --- the hardware table -----------------------------------------------------------------------------

@styled
def lut_heatmap(table: HardwareTable) -> Any:
    """T_client and T_server of every (block, γ), ms; returns the figure."""
    columns = [f'{gamma.id}  {gamma.name}' for gamma in GAMMAS]
    figure, both = subplots(1, 2, size=(17, 3.2 + 0.34 * table.n_blocks), sharey=True)
    for axes, tier in zip(both, TIERS):
        values = np.where(table.T_ms[tier] > 0, table.T_ms[tier], np.nan)
        log = bool(np.nanmax(values) > LOG_FROM * np.nanmin(values))
        draw_heatmap(axes, values, table.block_names, columns,
                     'ms per image' + (', logarithmic' if log else '') + ' (lighter is slower)',
                     texts=[[short_ms(value) for value in row] for row in values], log=log)
        axes.set_title(f'{tier}: {tier_description(table, tier)}')
        axes.set_xlabel('γ: how the block runs (hatched: it needs an identity branch that the block lacks)')
    both[0].set_ylabel('block')
    ratios = ' and '.join(f'{dense_over_1x1(table, tier):.1f}× (on the {tier})' for tier in TIERS)
    headline(figure, f'{plain(table.model)}: a block with only its 3x3 (γ 0) takes {ratios} as long as one with '
                     'only its 1x1 (γ 1; median over blocks)')
    return figure


def dense_over_1x1(table: HardwareTable, tier: str) -> float:
    """Median over blocks of T(γ 0: only 3x3) / T(γ 1: only 1x1)."""
    times = table.T_ms[tier]
    return float(np.median(times[:, 0] / np.maximum(times[:, 1], 1e-12)))


def tier_description(table: HardwareTable, tier: str) -> str:
    """'edge-cpu, SIMULATED' or 'NVIDIA H200, measured'."""
    info = table.tier_info[tier]
    if info.get('simulated'):
        return f"{plain(info.get('profile') or info.get('name', ''))}, SIMULATED, not measured"
    return f"{plain(info.get('name', ''))}, measured"


def simulated_note(table: HardwareTable) -> str:
    """' (client times simulated)', for titles; '' when everything was measured."""
    simulated = [tier for tier in TIERS if table.tier_info[tier].get('simulated')]
    return f' ({" and ".join(simulated)} times simulated)' if simulated else ''


def short_ms(value: float) -> str:
    """Three characters or so: '0.026', '4.31', '27.5', '312'; '' for NaN."""
    if np.isnan(value):
        return ''
    digits = int(np.clip(2 - np.floor(np.log10(value)), 0, 3))
    return f'{value:.{min(digits, 3)}f}'


# --- the split ----------------------------------------------------------------------------------------

@styled
def split_times(step2: Step2Result, note: str = '') -> Any:
    """T_client, T_com and T_server stacked to T_lat at every λ, with T_cyc and T_eff; returns the figure.
    `note` is added to the title."""
    times, splits = step2.per_split, np.arange(step2.n_blocks + 1)
    figure, axes = subplots(size=(max(9.0, 4.5 + 0.36 * len(splits)), 6.2))
    low, high = step2.allowed
    axes.axvspan(low - 0.5, high + 0.5, color='0.93', zorder=0, label=f'allowed splits: {low} to {high}')
    bottom = np.zeros(len(splits))
    round_trip = times.T_lat_ms - times.T_client_ms - times.T_com_ms - times.T_server_ms
    for label, heights, colour in (('T_client', times.T_client_ms, ORANGE), ('T_com (transfer)', times.T_com_ms, GREEN),
                                   ('T_server', times.T_server_ms, BLUE), ('round trip (RTT)', round_trip, '0.7')):
        axes.bar(splits, heights, 0.72, bottom, color=colour, label=label, zorder=2)
        bottom = bottom + heights
    axes.plot(splits, times.T_cyc_ms, 's:', color=BLACK, markerfacecolor='white', markersize=5, zorder=3,
              label='T_cyc (slowest stage)')
    axes.plot(splits, times.T_eff_ms, 'o-', color=BLACK, markersize=5, zorder=4,
              label=f'T_eff = {step2.omega:g} T_lat + {1 - step2.omega:g} T_cyc')
    axes.plot(step2.split, times.T_eff_ms[step2.split], '*', markersize=20, color=YELLOW, markeredgecolor=BLACK,
              zorder=5, label=f'chosen: λ = {step2.split}')
    axes.set_xticks(splits, split_labels(step2))
    axes.set_xlim(-0.6, len(splits) - 0.4)
    axes.set_ylim(0, 1.06 * bottom.max())
    axes.set_xlabel(f'split λ: how many blocks run on the {step2.head_tier} before the feature map is sent')
    axes.set_ylabel('ms per image (whole bar: T_lat)')
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc='center left', bbox_to_anchor=(1.0, 0.5))
    headline(figure, split_message(step2) + note)
    return figure


def split_labels(step2: Step2Result) -> List[str]:
    """Tick labels; both ends also say that one tier does everything."""
    labels = [str(split) for split in range(step2.n_blocks + 1)]
    for split, tier in step2.single_tier:
        labels[split] += f'\nall\n{tier}'
    return labels


def split_message(step2: Step2Result) -> str:
    """Which split is best, and whether splitting pays."""
    T_eff = step2.per_split.T_eff_ms
    split, tier = min(step2.single_tier, key=lambda end: T_eff[end[0]])
    best = f'Unpruned, λ = {step2.split} is the best allowed split: T_eff {T_eff[step2.split]:.2f} ms'
    if split == step2.split:
        return f'{best}, everything on the {tier}'
    if T_eff[split] < T_eff[step2.split]:
        return f'{best}; splitting does not pay, everything on the {tier} takes {T_eff[split]:.2f} ms'
    return f'{best}; everything on the {tier} would take {T_eff[split]:.2f} ms'
