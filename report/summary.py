"""All domains in numbers: what pruning cost and won against the unpruned network at its best split."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from config import PICKS, Settings, UserError
from costs.cost_model import HardwareTable, other_tier, scenario_of, times
from costs.verdict import sentences
from report import measured
from search.one_tier import PRUNED_ENDS, verdict_on
from search.result import Baseline, JointResult

REQUIRED = ('step2', 'all_client', 'all_server', *PRUNED_ENDS)
PICK_WORDS = {'constraint': 'best trade of T_eff for accuracy (lowest J)',
              'knee': 'the knee of the T_eff frontier', 'budget': 'the most accurate within the budget'}
CONFIRMED_WORDS = 'the fastest whose loss is confirmed to be at most ε'


@dataclass(frozen=True)
class DomainChange:
    """One configuration of a domain against its unpruned network."""
    accuracy_loss: float  # test, fraction of 1: reference - this one
    T_eff_change: float  # fraction: below 0 is faster
    throughput_change: float  # fraction: above 0 is faster


def check(result: JointResult, path: str) -> None:
    """Raise `UserError` when a result lacks what a comparison needs or holds impossible numbers."""
    missing = [name for name in REQUIRED if name not in result.baselines]
    if missing:
        raise UserError(f"{path}: field 'baselines.{missing[0]}' is missing")
    if not result.curve:
        raise UserError(f"{path}: field 'curve' is empty: its first point is the unpruned network")
    if not result.frontier.get('T_eff') or result.pick is None or result.pick.rule not in PICKS:
        raise UserError(f'{path}: has no frontier, or no known rule of picking from it; make it again')
    for entry in [result, *result.baselines.values(), *(p for points in result.frontier.values() for p in points)]:
        if entry.times.T_cyc_ms <= 0 or entry.times.T_eff_ms <= 0:
            raise UserError(f'{path}: T_cyc_ms and T_eff_ms must be above 0')
    a = result.accuracy
    accuracies = [a.original, a.reference, a.final, a.val_reference, a.val_final, a.cal_reference, a.cal_final, *a.ci95]
    accuracies += [point.accuracy for points in result.frontier.values() for point in points]
    accuracies += [point.accuracy for point in result.curve] + [b.accuracy for b in result.baselines.values()]
    if max(accuracies) > 1:
        raise UserError(f'{path}: accuracy {max(accuracies):g} is above 1; accuracies are fractions of 1')
    if result.measured is not None:
        measured.check(result.measured, path)


def fits(result: JointResult, table: HardwareTable, settings: Settings) -> bool:
    """Do the result's tier times follow from this table? (The link and ω do not enter them.)"""
    try:
        found = times(table, result.configuration, scenario_of(settings, table))
    except ValueError:
        return False
    return all(math.isclose(getattr(found, name), getattr(result.times, name), rel_tol=1e-6, abs_tol=1e-9)
               for name in ('T_client_ms', 'T_server_ms'))


def change(result: JointResult, baseline: Optional[str] = None) -> DomainChange:
    """The final configuration (or one of the baselines) against step 2's unpruned answer."""
    unpruned = result.baselines['step2'].times
    reached = result.times if baseline is None else result.baselines[baseline].times
    accuracy = result.accuracy.final if baseline is None else result.baselines[baseline].accuracy
    return DomainChange(result.accuracy.reference - accuracy, reached.T_eff_ms / unpruned.T_eff_ms - 1,
                        reached.throughput_fps / unpruned.throughput_fps - 1)


def mean_change(results: Sequence[JointResult], baseline: Optional[str] = None) -> DomainChange:
    """The mean over domains of each change."""
    changes = [change(result, baseline) for result in results]
    return DomainChange(*(float(np.mean([getattr(c, name) for c in changes]))
                          for name in DomainChange.__dataclass_fields__))


def disagreements(results: Sequence[JointResult]) -> List[str]:
    """Why these results should not be averaged: other tables or settings; normally empty."""
    found = []
    unpruned = [result.baselines['step2'].times.T_eff_ms for result in results]
    if max(unpruned) > min(unpruned) * (1 + 1e-6):
        found.append(f"the domains were computed from different tables or settings: step 2's T_eff is "
                     f'{min(unpruned):.3f} to {max(unpruned):.3f} ms')
    epsilons = sorted({result.epsilon for result in results})
    if len(epsilons) > 1:
        found.append(f'the domains have different ε: {", ".join(f"{epsilon:g}" for epsilon in epsilons)}')
    return found


# --- as text ------------------------------------------------------------------------------------------------

HEADER = ['domain', 'unpruned', 'chosen', '95 % interval', 'loss', 'unpruned', 'chosen', 'change', 'unpruned', 'chosen',
          'client', 'server', 'PNG', 'JPEG', 'gain', 'λ', 'pruned']
GROUPS = (('', 1), ('test accuracy (%)', 4), ('T_eff (ms per image)', 3),
          ('{frames}: split, then on one tier', 7), ('', 2))
GAP = '  '


def text(results: Sequence[JointResult], notes: Sequence[str], settings: Settings) -> str:
    """A line per domain, the means, and what a reader must know besides, one line per fact."""
    mean = mean_change(results)
    rows = [HEADER, *(domain_row(result) for result in results),
            [f'mean of {len(results)}', '', '', '', points(mean.accuracy_loss), '', '', percent(mean.T_eff_change),
             *mean_rates(results), '', '']]
    lines = aligned(rows, settings.CLIENTS)
    sender, receiver = settings.HEAD_TIER, other_tier(settings.HEAD_TIER)
    lines += ['', 'unpruned: the whole network at the best allowed split (step 2)',
              'on one tier: the chosen network on the client alone, on the server alone, and on the '
              f'{receiver} with the image sent by the {sender} as PNG or as JPEG; gain: frames/s of the chosen split '
              'over the most of these',
              *(['-: no JPEG keeps the accuracy'] if any(None in without_split(result) for result in results) else []),
              'loss: percentage points of test accuracy; below 0 is a gain',
              'λ: blocks that run before the feature map is sent; pruned: branches taken out of the network']
    lines += fleet_lines(results, settings)
    lines += [f'chosen: {words}' for words in sorted({pick_words(result) for result in results})]
    lines += confirmation_lines(results)
    sequential = [result for result in results if 'sequential' in result.baselines]
    if sequential:
        other = mean_change(sequential, 'sequential')
        lines.append(f'sequential baseline (prune first, then split), mean of {len(sequential)}: test accuracy loss '
                     f'{points(other.accuracy_loss)} points, T_eff {percent(other.T_eff_change)}, throughput '
                     f'{percent(other.throughput_change)}')
    lines += sentences([verdict_on(result, settings) for result in results])
    for result in results:  # real mode
        if result.measured is not None:
            lines.append(f'domain {result.domain_id}: {measured.one_line(result.measured)}')
            lines += [measured.one_of(result.measured)] if result.measured.get('clients', 1) > 1 else []
            lines += measured.differences(result.measured)
    return '\n'.join(lines + list(notes))


def pick_words(result: JointResult) -> str:
    """What the answer is among all networks found."""
    return PICK_WORDS[result.pick.rule] if result.pick.confidence is None else CONFIRMED_WORDS


def confirmation_lines(results: Sequence[JointResult]) -> List[str]:
    """How the answers were confirmed on calibration images, and where nothing was."""
    asked = sorted({result.pick.confidence for result in results} - {None})
    lines = [f'confirmed with confidence {", ".join(f"{value:g}" for value in asked)} in each domain, on calibration '
             'images that training and search have not seen'] if asked else []
    without = [str(result.domain_id) for result in results if result.nothing_confirmed]
    return lines + ([f'domain {", ".join(without)}: no pruned network is confirmed to lose at most ε; chosen is the '
                     'unpruned one'] if without else [])


def domain_row(result: JointResult) -> List[str]:
    """One domain's cells."""
    a, step2, moved = result.accuracy, result.baselines['step2'].times, change(result)
    rates = [step2.throughput_fps, result.times.throughput_fps,
             *(found.times.throughput_fps if found else None for found in without_split(result))]
    return [f'{result.domain_id}  {" ".join(result.domain_name.split())}'[:29], points(a.reference), points(a.final),
            f'{points(a.ci95[0])} to {points(a.ci95[1])}', points(moved.accuracy_loss),
            f'{step2.T_eff_ms:.3f}', f'{result.times.T_eff_ms:.3f}', percent(moved.T_eff_change),
            *('-' if rate is None else f'{rate:.1f}' for rate in rates), percent(gain(result)),
            str(result.configuration.split), str(len(result.pruned))]


def without_split(result: JointResult) -> List[Optional[Baseline]]:
    """The chosen network on the client, on the server, and there with the image as PNG and as JPEG (None: no
    quality keeps the accuracy)."""
    sent = {found.image.name: found for name, found in result.baselines.items()
            if name.startswith(PRUNED_ENDS) and found.image is not None}
    return [*(result.baselines[name] for name in PRUNED_ENDS), sent.get('png'), sent.get('jpeg')]


def gain(result: JointResult) -> float:
    """Frames a second of the chosen split over the most that the same network reaches without one, as a fraction."""
    return result.times.throughput_fps / max(found.times.throughput_fps for found in without_split(result) if found) - 1


def mean_rates(results: Sequence[JointResult]) -> List[str]:
    """The cells of `domain_row` that are frames a second, and the gain, mean over the domains that have them."""
    columns = zip(*([result.baselines['step2'], result, *without_split(result)] for result in results))
    means = [[entry.times.throughput_fps for entry in column if entry] for column in columns]
    return [*(f'{np.mean(found):.1f}' if found else '-' for found in means),
            percent(float(np.mean([gain(result) for result in results])))]


def fleet_lines(results: Sequence[JointResult], settings: Settings) -> List[str]:
    """What several clients get together, and how long they wait for each other."""
    if settings.CLIENTS == 1:
        return []
    all_fps = [settings.CLIENTS * result.times.throughput_fps for result in results]
    waits = [result.times.wait_ms for result in results]
    gains = [gain(result) for result in results]
    return [f'{settings.CLIENTS} clients share the server: {np.mean(all_fps):.1f} frames/s in all at full rate (mean), '
            f'a frame waits {np.mean(waits):.2f} ms for those of others; gain {percent(min(gains))} to '
            f'{percent(max(gains))}']


def aligned(rows: Sequence[Sequence[str]], clients: int = 1) -> List[str]:
    """Columns as wide as their widest cell or their share of the group's title, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    first, title = 0, ''
    for name, count in GROUPS:
        name = name.format(frames=f'frames/s of each of {clients} clients' if clients > 1 else 'frames/s')
        group = slice(first, first + count)
        missing = len(name) - sum(widths[group]) - len(GAP) * (count - 1)
        widths[first] += max(0, missing)
        title += f'{name:^{sum(widths[group]) + len(GAP) * (count - 1)}}{GAP}'
        first += count
    return [title.rstrip(), *(GAP.join([f'{row[0]:{widths[0]}}', *(f'{cell:>{width}}' for cell, width in
                                                                zip(row[1:], widths[1:]))]).rstrip() for row in rows)]


def points(fraction: float) -> str:
    """An accuracy, or a difference of two, in percentage points."""
    return f'{100 * fraction:.1f}'


def percent(fraction: float) -> str:
    """A relative change, with its sign."""
    return f'{100 * fraction:+.1f}%'


# --- for programs ---------------------------------------------------------------------------------------------

def as_dict(results: Sequence[JointResult], settings: Settings) -> Dict[str, Any]:
    """summary.json's content: these numbers for programs; fractions of 1."""
    with_sequential = [result for result in results if 'sequential' in result.baselines]
    return {'domains': {str(result.domain_id): {'domain_name': result.domain_name, **vars(change(result)),
                                                'cal_p_value': result.accuracy.cal_p_value,
                                                'nothing_confirmed': result.nothing_confirmed,
                                                'throughput_gain': gain(result)}
                        for result in results},
            'mean': vars(mean_change(results)),
            'mean_sequential': vars(mean_change(with_sequential, 'sequential')) if with_sequential else None,
            'splitting': splitting(results, settings)}


def splitting(results: Sequence[JointResult], settings: Settings) -> Dict[str, Any]:
    """Whether splitting pays, in words and by domain."""
    verdicts = {str(result.domain_id): verdict_on(result, settings) for result in results}
    return {'text': sentences(list(verdicts.values())), 'domains': {
        domain: {'pays': found.pays, 'pays_if_images_may_leave': found.pays_anyway,
                 'counted': found.counted.name, 'counted_T_eff_ms': found.counted.times.T_eff_ms,
                 'not_counted': None if found.not_counted is None else found.not_counted.name,
                 'not_counted_T_eff_ms': None if found.not_counted is None else found.not_counted.times.T_eff_ms}
        for domain, found in verdicts.items()}}
