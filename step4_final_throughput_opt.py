"""The sequential baseline, second half: γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

import cli
import json_files


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--domain_id', type=int, required=True)
    args, settings = cli.parse(parser, argv)
    domain = cli.domains(str(args.domain_id), settings)[0]
    path = json_files.path_of('sequential', settings, domain)
    inputs = json_files.inputs_of('sequential', settings, domain)
    if args.if_changed and json_files.is_current([path], inputs):
        cli.say(f'{path} is up to date')
        return
    json_files.check_writable(path)
    import domain_search
    import joint_result
    import lut_manager
    from cost_model import Configuration, goal
    from hyper_repvgg import surviving_branches
    from throughput_optimizer_limit import solve_within_limits
    table = lut_manager.load(json_files.path_of('lut', settings), settings)
    pruned = joint_result.load(domain, table, settings, 'sequential_accuracy')
    alpha = pruned.configuration.alpha
    chosen = solve_within_limits(table, surviving_branches(alpha), settings)
    J, xi = goal(chosen.times.T_eff_ms, pruned.baselines['step2'].times.T_eff_ms, pruned.accuracy.val_final,
                 pruned.accuracy.val_reference, settings.EPSILON, settings.KAPPA, settings.MU)
    result = dataclasses.replace(pruned, configuration=Configuration(alpha, chosen.gamma, chosen.split, chosen.wire),
                                 times=chosen.times, J=J, xi_A=xi)
    joint_result.save('sequential', result, settings, inputs)
    joint_result.add_sequential_baseline(result, settings)
    print(domain_search.summary(result))
    print(f'  -> {path}')


if __name__ == '__main__':
    cli.run(main)
