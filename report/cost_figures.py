"""Pictures of what things cost: every block under every γ, and the unpruned network at every split."""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

import numpy as np
from matplotlib.figure import Figure

from config import Settings
from costs.cost_model import TIERS, HardwareTable, SplitTimes, Times, other_tier
from network.gammas import GAMMAS, Gamma
from pipeline import provenance
from pipeline.documents import Document
from report.style import (
    BLACK,
    BRANCH_WORDS,
    LINK_COLOUR,
    TIER_COLOURS,
    YELLOW,
    draw_heatmap,
    headline,
    plain,
    short,
    styled,
    subplots,
)
from search.result_file import times_from_json

LOG_FROM = 5.0  # colours are logarithmic when the largest time is this many times the smallest


# --- the hardware table -----------------------------------------------------------------------------

def gamma_words(gamma: Gamma) -> str:
    """'1x1 + identity fused': how a block runs under this γ."""
    paths = [' + '.join(BRANCH_WORDS[branch] for branch in path) + (' fused' if len(path) > 1 else '')
             for path in gamma.paths]
    if len(gamma.branches) == 1:
        return f'{paths[0]} alone'
    if gamma.n_streams == 1:
        return paths[0]
    listed = ', '.join(paths[:-1]) + ' and ' + paths[-1]
    return f'{listed} unfused' if gamma.n_streams == len(gamma.branches) else f'{paths[0]}, {paths[1]} beside it'


@styled
def lut_heatmap(table: HardwareTable) -> Figure:
    """T_client and T_server of every (γ, block), ms; returns the figure."""
    rows = [f'{gamma_words(gamma)}   γ {gamma.id}' for gamma in GAMMAS]
    figure, both = subplots(2, 1, size=(6.0 + 0.56 * table.n_blocks, 12.5), sharex=True)
    for axes, tier in zip(both, TIERS):
        values = np.where(table.T_ms[tier] > 0, table.T_ms[tier], np.nan).T
        log = bool(np.nanmax(values) > LOG_FROM * np.nanmin(values))
        draw_heatmap(axes, values, rows, table.block_names,
                     'ms per image, lighter is slower' + (' (logarithmic)' if log else ''),
                     texts=[[short(value) for value in row] for row in values], log=log)
        axes.set_title(f'on the {tier}: {tier_description(table, tier)}')
        axes.set_ylabel('how the block runs')
    both[-1].set_xlabel('block, in the order of execution (hatched: it would need an identity branch that this block '
                        'lacks)' if not table.has_identity.all() else 'block, in the order of execution')
    said = f'Time of every block of {plain(table.model)}'
    if table.n_branches.max() > 1:
        ratios = ' and '.join(f'{dense_over_1x1(table, tier):.1f} times on the {tier}' for tier in TIERS)
        said += f' by how it runs: its 3x3 alone takes {ratios} as long as its 1x1 alone (median over blocks)'
    headline(figure, said)
    return figure


def dense_over_1x1(table: HardwareTable, tier: str) -> float:
    """Median over blocks of T(γ 0: only 3x3) / T(γ 1: only 1x1)."""
    times = table.T_ms[tier]
    return float(np.median(times[:, 0] / np.maximum(times[:, 1], 1e-12)))


def tier_description(table: HardwareTable, tier: str) -> str:
    """'edge-cpu, SIMULATED, not measured' or 'NVIDIA H200, measured'."""
    info = table.tier_info[tier]
    if info.get('simulated'):
        return f"{plain(info.get('profile') or info.get('name', ''))}, SIMULATED, not measured"
    return f"{plain(info.get('name', ''))}, measured"


def simulated_note(table: HardwareTable) -> str:
    """' (client times simulated)', for titles; '' when everything was measured."""
    simulated = [tier for tier in TIERS if table.tier_info[tier].get('simulated')]
    return f' ({" and ".join(simulated)} times simulated)' if simulated else ''


# --- the unpruned network at every split ------------------------------------------------------------------

@dataclass(frozen=True)
class UnprunedSplits:
    """The unpruned network at every split, and the split that step 2 chose."""
    head_tier: str
    wire: str
    omega: float
    allowed: Tuple[int, int]  # smallest and largest λ that the optimisers may choose
    split: int  # λ of the exact optimum
    per_split: SplitTimes  # λ = 0..N
    objective: str = 'T_eff'  # of config.py: what T_eff is
    clients: int = 1  # that share the server

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.per_split.T_eff_ms) - 1

    @property
    def single_tier(self) -> Tuple[Tuple[int, str], Tuple[int, str]]:
        """The two baselines as (λ, tier that does everything)."""
        return (0, other_tier(self.head_tier)), (self.n_blocks, self.head_tier)


def load_splits(table: HardwareTable, settings: Settings, lut_file: str = '') -> UnprunedSplits:
    """Read and check step 2's file; `UserError` when it is missing, damaged, or made under other settings or from
    another table than that of `lut_file` ('': the one in RESULTS_DIR)."""
    document = provenance.read_kind('step2', settings, lut=lut_file)
    entries, last = document.get('per_split', list), table.n_blocks
    if len(entries) != last + 1:
        raise document.refuse(f"field 'per_split' has {len(entries)} entries, not {last + 1}")
    rows = []
    for split, entry in enumerate(entries):
        name = f'per_split[{split}]'
        row = Document(document.path, {name: entry}, document.made_by)
        if row.get((name, 'lambda'), int) != split:
            raise document.refuse(f"field '{name}.lambda' is not {split}")
        rows.append(times_from_json(row, (name,)))
    head_tier = document.get('head_tier', str)
    if head_tier not in TIERS:
        raise document.refuse(f'head_tier is {head_tier!r}, not client or server')
    low, high = document.numbers('lambda_range', 2, lowest=0)
    chosen = document.get('optimal_lambda', int)
    if not low <= chosen <= high <= last:
        raise document.refuse(f'optimal_lambda {chosen} and lambda_range [{low:g}, {high:g}] do not fit {last} blocks')
    arrays = {name: np.array([getattr(row, name) for row in rows]) for name in Times.__dataclass_fields__}
    return UnprunedSplits(head_tier, document.get('wire', str), document.number('omega', 0), (int(low), int(high)),
                          chosen, SplitTimes(**arrays), document.get('objective', str), document.get('clients', int))


@styled
def split_times(unpruned: UnprunedSplits, note: str = '') -> Figure:
    """T_client, T_com and T_server stacked to T_lat at every λ, with T_cyc and T_eff; returns the figure.
    `note` is added to the title."""
    times, splits = unpruned.per_split, np.arange(unpruned.n_blocks + 1)
    figure, axes = subplots(size=(max(11.0, 6.5 + 0.36 * len(splits)), 6.4))
    low, high = unpruned.allowed
    axes.axvspan(low - 0.5, high + 0.5, color='0.93', zorder=0, label=f'allowed splits: {low} to {high}')
    bottom = np.zeros(len(splits))
    round_trip = times.T_lat_ms - times.T_client_ms - times.T_com_ms - times.T_server_ms
    for label, heights, colour in (('client computes (T_client)', times.T_client_ms, TIER_COLOURS['client']),
                                   ('link transfers (T_com)', times.T_com_ms, LINK_COLOUR),
                                   ('server computes (T_server)', times.T_server_ms, TIER_COLOURS['server']),
                                   ('round trip of the link (RTT)', round_trip, '0.7')):
        axes.bar(splits, heights, 0.72, bottom, color=colour, label=label, zorder=2)
        bottom = bottom + heights
    axes.plot(splits, times.T_cyc_ms, 's:', color=BLACK, markerfacecolor='white', markersize=5, zorder=3,
              label='time between frames (T_cyc: slowest stage)' if unpruned.clients == 1 else
              f'time between frames of a client (T_cyc),\n{unpruned.clients} clients share the server')
    axes.plot(splits, times.T_eff_ms, 'o-', color=BLACK, markersize=5, zorder=4,
              label='T_eff: energy of the client, as ms of full power' if unpruned.objective == 'energy' else
              f'T_eff = {unpruned.omega:g} T_lat + {1 - unpruned.omega:g} T_cyc')
    axes.plot(unpruned.split, times.T_eff_ms[unpruned.split], '*', markersize=20, color=YELLOW, markeredgecolor=BLACK,
              zorder=5, label=f'chosen: λ = {unpruned.split}, lowest allowed T_eff')
    axes.set_xticks(splits, split_labels(unpruned))
    axes.set_xlim(-0.6, len(splits) - 0.4)
    axes.set_ylim(0, 1.06 * max(bottom.max(), times.T_cyc_ms.max()))
    axes.set_xlabel(f'split λ: how many blocks run on the {unpruned.head_tier} before the feature map is sent')
    axes.set_ylabel('ms per image (whole bar: latency T_lat)')
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc='center left', bbox_to_anchor=(1.0, 0.5))
    headline(figure, split_message(unpruned) + note)
    return figure


def split_labels(unpruned: UnprunedSplits) -> List[str]:
    """Tick labels; both ends also say that one tier does everything."""
    labels = [str(split) for split in range(unpruned.n_blocks + 1)]
    for split, tier in unpruned.single_tier:
        labels[split] += f'\nall\n{tier}'
    return labels


def split_message(unpruned: UnprunedSplits) -> str:
    """Which split is best, and whether splitting pays."""
    T_eff = unpruned.per_split.T_eff_ms
    split, tier = min(unpruned.single_tier, key=lambda end: T_eff[end[0]])
    best = f'Unpruned network, λ = {unpruned.split} is the best allowed split: T_eff {T_eff[unpruned.split]:.2f} ms'
    if split == unpruned.split:
        return f'{best}, everything on the {tier}'
    if T_eff[split] < T_eff[unpruned.split]:
        return f'{best}; splitting does not pay, everything on the {tier} takes {T_eff[split]:.2f} ms'
    return f'{best}; everything on the {tier} would take {T_eff[split]:.2f} ms'
