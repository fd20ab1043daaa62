"""The sequential baseline, second half: γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

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
    import torch

    import domain_search
    import joint_result
    import lut_manager
    from cost_model import goal
    from domain_dataset import load_domain
    from hyper_repvgg import surviving_branches
    from throughput_optimizer_limit import solve_within_limits
    table = lut_manager.load(json_files.path_of('lut', settings), settings)
    pruned = joint_result.load(domain, table, settings, 'sequential_accuracy')
    alpha = pruned.configuration.alpha
    T_eff_ref_ms, model = pruned.baselines['step2'].times.T_eff_ms, domain_search.base_model(settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    chosen, accuracy = domain_search.best_on_wire(
        alpha, lambda chosen: solve_within_limits(table, surviving_branches(alpha), chosen), model,
        load_domain(settings, domain, 'val'),
        lambda T_eff_ms, accuracy: goal(T_eff_ms, T_eff_ref_ms, accuracy, pruned.accuracy.val_reference,
                                        settings.EPSILON, settings.KAPPA, settings.MU)[0], settings)
    result = domain_search.as_chosen(pruned, chosen, accuracy, model, load_domain(settings, domain, 'test'), table,
                                     settings)
    joint_result.save('sequential', result, settings, inputs)
    joint_result.add_sequential_baseline(result, settings)
    print(domain_search.summary(result))
    print(f'  -> {path}')


if __name__ == '__main__':
    cli.run(main)
