"""γ and λ of the unpruned network (step 2): both methods, their certificate, baselines and limits, as the result file
holds them and as a table for people."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np

import lut_manager
import throughput_optimizer
from config import Settings
from costs.cost_model import HardwareTable, Solution
from costs.limits import NothingFits, limited_to_json, limits_of, nearest_to_json
from network.alpha import surviving_branches, unpruned_alpha
from throughput_optimizer_limit import check_possible, solve_limited


def optimise(table: HardwareTable, settings: Settings, pruning_follows: bool = False) -> Dict[str, Any]:
    """Everything that the output file holds, from a table.

    Raises `NothingFits`; with `pruning_follows` only when no pruned network can be within the limits either.
    """
    surviving = surviving_branches(unpruned_alpha(table.has_identity))

    def to_json(solution: Solution) -> Dict[str, Any]:
        return {'wire': solution.wire, 'lambda': solution.split, 'gamma': dict(zip(table.block_names, solution.gamma)),
                **solution.times.as_dict()}

    exact = throughput_optimizer.solve_exact(table, surviving, settings)
    gradient = throughput_optimizer.solve_gradient(table, surviving, settings)
    per_split = throughput_optimizer.times_with_fastest(table, surviving, exact.wire, settings)
    splits = throughput_optimizer.split_range(table.n_blocks, settings)
    result = {
        'head_tier': settings.HEAD_TIER, 'omega': settings.OMEGA, 'wire': exact.wire,
        'lambda_range': [splits[0], splits[-1]],
        'exact': to_json(exact),
        'gradient': {**to_json(gradient.solution), 'steps': gradient.steps, 'wall_s': gradient.wall_s},
        'optimality_gap': gradient.solution.times.T_eff_ms / exact.times.T_eff_ms - 1,
        'optimal_lambda': exact.split, 'optimal_gamma': dict(zip(table.block_names, exact.gamma)),
        'per_split': [{'lambda': split, **per_split.at(split).as_dict()} for split in range(table.n_blocks + 1)],
        'baselines': {name: to_json(found) for name, found in
                      throughput_optimizer.baselines(table, surviving, settings).items()},
        'history': [{'step': step, 'T_eff_ms': value} for step, value in gradient.history],
    }
    if limits_of(settings).any:
        result['limited'] = limited(table, surviving, settings, pruning_follows)
    return result


def optimise_from(lut_file: str, settings: Settings, pruning_follows: bool = False) -> Dict[str, Any]:
    """`optimise` with the table in a file."""
    return optimise(lut_manager.load(lut_file, settings), settings, pruning_follows)


def limited(table: HardwareTable, surviving: np.ndarray, settings: Settings, pruning_follows: bool) -> Dict[str, Any]:
    """The best within the limits; with `pruning_follows` the nearest where only a pruned network can fit."""
    limits = limits_of(settings)
    try:
        return limited_to_json(solve_limited(table, surviving, settings), limits, table)
    except NothingFits as error:
        if not pruning_follows:
            raise
        check_possible(table, settings)
        return nearest_to_json(error, limits, table)


def summary(result: Dict[str, Any]) -> str:
    """A table for people: the answers beside the baselines, and whether splitting pays."""
    rows = [('exact', result['exact']), ('gradient', result['gradient'])]
    if 'limited' in result:
        rows.insert(0, ('limited' if result['limited']['fits'] else 'nearest', result['limited']))
    rows += [(name.replace('_', ' '), entry) for name, entry in result['baselines'].items()]
    lines = [f"{'':12} {'λ':>3} " + ' '.join(f'{word:>8}' for word in ('client', 'link', 'server', 'T_lat', 'T_cyc',
                                                                       'T_eff', 'fps'))]
    for name, entry in rows:
        lines.append(f"{name:12} {entry['lambda']:>3} " + ' '.join(
            f'{entry[key]:8.2f}' for key in ('T_client_ms', 'T_com_ms', 'T_server_ms', 'T_lat_ms', 'T_cyc_ms',
                                             'T_eff_ms')) + f" {entry['throughput_fps']:8.1f}")
    lines.append(f"(ms per image) gradient method {100 * result['optimality_gap']:.2f} % above the exact optimum")
    if 'limited' in result:
        lines.append(limits_used(result['limited']))
    lines.append(whether_splitting_pays(result))
    return '\n'.join(lines)


def limits_used(limited: Dict[str, Any]) -> str:
    """One line: how much of each limit the answer uses and what proves it; or what the nearest misses."""
    if not limited['fits']:
        return f"nothing unpruned is within the limits; the nearest has {', '.join(limited['exceeded'])}: step 3 prunes"
    used = ', '.join(f"{100 * factor:.1f} % of {name}={limited['limits'][name]:g}"
                     for name, factor in limited['used'].items())
    proof = 'optimal within the limits' if limited['certificate']['proven'] else 'best found within the limits'
    return f"limited: uses {used}; {proof} (nothing that fits is below {limited['certificate']['bound_ms']:.3f} ms)"


def whether_splitting_pays(result: Dict[str, Any]) -> str:
    """One sentence: the best split against everything on one tier."""
    best_name, best = min(((name, result['baselines'][name]) for name in ('all_client', 'all_server')),
                          key=lambda item: item[1]['T_eff_ms'])
    ratio = result['exact']['T_eff_ms'] / best['T_eff_ms']
    verdict = (f'splitting pays: T_eff is {100 * (1 - ratio):.1f} % below' if ratio < 1 else
               f'splitting does not pay here: T_eff is {100 * (ratio - 1):.1f} % above')
    return f"{verdict} {best_name.replace('_', ' ')} ({best['T_eff_ms']:.2f} ms)"
