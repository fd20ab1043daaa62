"""Step 2: γ and λ of the unpruned network, by gradient and exactly, with certificate and baselines.

    python step2_initial_throughput_opt.py --lut_file results/hardware_lut_complete.json

Writes results/initial_throughput_config.json.
"""
from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

import cli
from config import Settings
from pipeline import documents, fingerprints, kinds, writing


def optimise(table: Any, settings: Settings, pruning_follows: bool = False) -> Dict[str, Any]:
    """Everything that the output file holds, from a table.

    Raises `limits.NothingFits`; with `pruning_follows` only when no pruned network can be within the limits either.
    """
    import throughput_optimizer
    from costs import cost_model
    from costs.limits import limits_of
    from network.alpha import surviving_branches, unpruned_alpha
    surviving = surviving_branches(unpruned_alpha(table.has_identity))

    def to_json(solution: cost_model.Solution) -> Dict[str, Any]:
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
    limits = limits_of(settings)
    if limits.any:
        result['limited'] = limited(table, surviving, settings, pruning_follows)
    return result


def limited(table: Any, surviving: Any, settings: Settings, pruning_follows: bool) -> Dict[str, Any]:
    """The best within the limits; with `pruning_follows` the nearest where only a pruned network can fit."""
    from costs.limits import NothingFits, limited_to_json, limits_of, nearest_to_json
    from throughput_optimizer_limit import check_possible, solve_limited
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


def fits(path: str) -> bool:
    """Is what a file of ours reports within its limits?"""
    return documents.read(path, '').content.get('limited', {}).get('fits', True)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    cli.add_limits(parser)
    parser.add_argument('--pruning_follows', action='store_true',
                        help='limits that only a pruned network can meet are no error: report the nearest')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    path, lut_file = kinds.path_of('step2', settings), args.lut_file or kinds.path_of('lut', settings)
    inputs = fingerprints.inputs_of('step2', settings, lut=lut_file)
    if args.if_changed and fingerprints.is_current([path], inputs) and (args.pruning_follows or fits(path)):
        cli.say(f'{path} is up to date')
        return
    import lut_manager
    table = lut_manager.load(lut_file, settings)
    writing.check_writable(path)
    result = optimise(table, settings, args.pruning_follows)
    writing.write(path, result, writing.make_metadata(settings, 'step2', inputs))
    print(summary(result))
    print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
