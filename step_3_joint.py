"""Step 3: choose α, γ and λ of one domain together, within ε of the unpruned network's accuracy.

    python step_3_joint.py --domain_id 3 --mode pseudo       # times from the table, no client device

Reads the table (step 1), task 1's α, task 2's rankings and the dataset; writes
results/joint_optimization/domain_D_joint.json. A killed run goes on from its last round.
"""
from __future__ import annotations

import os
import time
from typing import Any, List, Optional, Sequence, Tuple

import cli
import json_files
from config import Settings, UserError


def reference_alpha(model: Any, val: Any, domain: int, settings: Settings) -> Tuple[Any, float]:
    """(α [N, 3], A_ref): task 1's α for the domain, or α = 1 where that is more accurate on validation images."""
    import alpha_training as training
    from code2_calculate_flops_importance import load_alphas
    from hyper_repvgg import unpruned_alpha
    alphas = load_alphas(settings)
    if str(domain) not in alphas:
        raise UserError(f"{json_files.path_of('alpha', settings)}: has no domain {domain}; make it with "
                        f'`python code1_train_and_record_weights.py --domains {domain}`')
    candidates = [alphas[str(domain)]['alpha'], unpruned_alpha([block.n_branches == 3 for block in model.blocks])]
    found = []
    for alpha in candidates:
        model.set_alpha_array(alpha)
        found.append((training.accuracy(model, val, settings), model.alpha_array()))
    value, alpha = max(found, key=lambda item: item[0])
    return alpha, value


def importance_ranking(domain: int, names: Sequence[str], settings: Settings) -> List[Tuple[int, int]]:
    """Task 2's ranking as (block, branch) indices, least important first."""
    from repvgg import BRANCHES
    document = json_files.read_kind('importance_rankings', settings)
    index = {f'{name}.{branch}': (k, b) for k, name in enumerate(names) for b, branch in enumerate(BRANCHES)}
    entries = document.get(('domains', str(domain), 'ranking'), list)
    unknown = [entry for entry in entries if entry not in index]
    if unknown:
        raise document.refuse(f'{unknown[0]!r} is no branch of {settings.MODEL_NAME}')
    return [index[entry] for entry in entries]


def test_accuracies(model: Any, alphas: Sequence[Any], test: Any, settings: Settings) -> List[int]:
    """Correctly classified test images under each α; the only use of test data."""
    import alpha_training as training
    from hyper_repvgg import deploy
    counts = []
    for alpha in alphas:
        model.set_alpha_array(alpha)
        counts.append(training.count_correct(deploy(model), test, settings))
    return counts


def optimise(domain: int, mode: str, lut_file: str, settings: Settings, inputs: str) -> Any:
    """Search one domain (or go on with its search) and assemble its result; returns (JointResult, state)."""
    import torch

    import joint_result
    import lut_manager
    from domain_dataset import load_domain
    from domain_transforms import domain_name
    from hyper_repvgg import create_hyper_repvgg, surviving_branches, unpruned_alpha
    from progressive_pruning import JointSearch
    from throughput_optimizer import solve_exact
    start = time.perf_counter()
    table = lut_manager.load(lut_file, settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    ranking = importance_ranking(domain, table.block_names, settings)
    train, val = load_domain(settings, domain, 'train'), load_domain(settings, domain, 'val')
    reference, A_ref = reference_alpha(model, val, domain, settings)
    unpruned = solve_exact(table, surviving_branches(unpruned_alpha(table.has_identity)), settings)
    search = JointSearch(model, table, train, val, settings, domain, A_ref, unpruned.times.T_eff_ms, ranking)
    resumed = joint_result.load_state(domain, table, settings, inputs)
    state, spent = resumed or (search.start(reference, A_ref), 0.0)
    if resumed:
        cli.say(f'domain {domain}: going on after round {state.rounds}')

    def keep(new_state: Any) -> None:
        joint_result.save_state(new_state, domain, table, settings, inputs, spent + time.perf_counter() - start)
        point = new_state.curve[-1]
        cli.say(f'domain {domain} round {new_state.rounds}: {point.n_pruned} branches pruned, validation accuracy '
                f'{point.accuracy:.3f}, T_eff {point.T_eff_ms:.3f} ms')

    search.run(state, keep)
    result = assemble(domain, domain_name(domain), mode, search, state, reference, table,
                      load_domain(settings, domain, 'test'), spent + time.perf_counter() - start)
    return result, state


def assemble(domain: int, name: str, mode: str, search: Any, state: Any, reference: Any, table: Any, test: Any,
             wall_s: float) -> Any:
    """The result file's content from a finished search."""
    from cost_model import Configuration, goal, times
    from evaluation import wilson_interval
    from hyper_repvgg import surviving_branches, unpruned_alpha
    from joint_result import AccuracyReport, Baseline, JointResult
    from throughput_optimizer import baselines, solve_exact
    settings = search.settings
    ones = unpruned_alpha(table.has_identity)
    original, at_reference, final = test_accuracies(search.model, [ones, reference, state.alpha], test, settings)
    chosen = search.solve(state.alpha)
    configuration = Configuration(state.alpha, chosen.gamma, chosen.split, chosen.wire)
    found = times(table, configuration, settings.HEAD_TIER, settings.OMEGA)
    J, xi = goal(found.T_eff_ms, search.T_eff_ref_ms, state.accuracy, search.reference, settings.EPSILON,
                 settings.KAPPA, settings.MU)
    unpruned = surviving_branches(ones)
    compared = {**baselines(table, unpruned, settings), 'step2': solve_exact(table, unpruned, settings)}
    del compared['unfused']
    return JointResult(
        domain, name, mode, table.block_names, configuration,
        AccuracyReport(original / len(test), at_reference / len(test), final / len(test), len(test),
                       wilson_interval(final, len(test)), search.reference, state.accuracy),
        settings.EPSILON, xi, J, found,
        {key: Baseline(at_reference / len(test), solution.times) for key, solution in compared.items()},
        state.curve, None, settings.SEED, wall_s)


def summary(result: Any) -> str:
    """What a user wants to know first, in three lines."""
    step2, a = result.baselines['step2'], result.accuracy
    best = min(result.baselines.values(), key=lambda baseline: baseline.times.T_eff_ms)
    lines = [f'domain {result.domain_id} ({result.domain_name}): {len(result.pruned)} branches pruned, '
             f'λ = {result.configuration.split}, T_eff {result.times.T_eff_ms:.3f} ms '
             f'({100 * (1 - result.times.T_eff_ms / step2.times.T_eff_ms):.1f} % below unpruned), '
             f'{result.times.throughput_fps:.0f} fps '
             f'({100 * (result.times.throughput_fps / step2.times.throughput_fps - 1):+.1f} %)',
             f'  test accuracy {a.final:.3f} [{a.ci95[0]:.3f}, {a.ci95[1]:.3f}], unpruned {a.reference:.3f}, '
             f'α = 1 {a.original:.3f}; validation {a.val_final:.3f}, reference {a.val_reference:.3f}']
    if best.times.T_eff_ms < result.times.T_eff_ms:
        lines.append('  splitting does not pay here: one of the single-tier baselines has the lower T_eff '
                     f'({best.times.T_eff_ms:.3f} ms)')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--domain_id', type=int, required=True)
    parser.add_argument('--mode', choices=('pseudo',), default='pseudo')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    domain = cli.domains(str(args.domain_id), settings)[0]
    path, lut_file = json_files.path_of('joint', settings, domain), args.lut_file or json_files.path_of('lut', settings)
    inputs = json_files.inputs_of('joint', settings, domain, lut=lut_file)
    if args.if_changed and json_files.is_current([path], inputs):
        cli.say(f'{path} is up to date')
        return
    import joint_result
    json_files.check_writable(path)
    result, state = optimise(domain, args.mode, lut_file, settings, inputs)
    joint_result.save(result, settings, inputs, state.block_evaluations)
    state_path = json_files.path_of('joint_state', settings, domain)
    if os.path.exists(state_path):
        os.unlink(state_path)  # only once the result is safely written
    print(summary(result))
    print(f'  -> {path}')


if __name__ == '__main__':
    cli.run(main)
