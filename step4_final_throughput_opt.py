"""The sequential baseline, second half: γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3
    python step4_final_throughput_opt.py --domains 0-9 --jobs 4      # many at once (domain_engine.py)

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

import cli
import domain_engine
import json_files
from config import Settings


def run_domain(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """One domain."""
    import domain_search
    import joint_result
    import lut_manager
    from cost_model import Configuration, goal
    from hyper_repvgg import surviving_branches
    from throughput_optimizer_limit import solve_within_limits
    table = lut_manager.load(lut_file, settings)
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
    print(f"  -> {json_files.path_of('sequential', settings, domain)}")


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    domain_engine.add_flags(parser)
    cli.add_limits(parser)
    args, settings = cli.parse(parser, argv)
    return domain_engine.run('step4_final_throughput_opt', 'sequential', args, settings)


if __name__ == '__main__':
    cli.run(main)
