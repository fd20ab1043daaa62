"""The sequential baseline, second half: γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3
    python step4_final_throughput_opt.py --domains 0-9 --jobs 4      # many at once (domain_engine.py)

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
import domain_engine
import json_files
from config import Settings


def run_domain(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """One domain."""
    import torch

    import domain_search
    import joint_result
    import lut_manager
    from cost_model import goal
    from hyper_repvgg import surviving_branches
    from throughput_optimizer_limit import solve_within_limits
    table = lut_manager.load(lut_file, settings)
    pruned = joint_result.load(domain, table, settings, 'sequential_accuracy')
    alpha = pruned.configuration.alpha
    T_eff_ref_ms, model = pruned.baselines['step2'].times.T_eff_ms, domain_search.base_model(settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    chosen, accuracy = domain_search.best_on_wire(
        alpha, lambda chosen: solve_within_limits(table, surviving_branches(alpha), chosen), model,
        domain_search.images_of(settings, domain, 'val'),
        lambda T_eff_ms, accuracy: goal(T_eff_ms, T_eff_ref_ms, accuracy, pruned.accuracy.val_reference,
                                        settings.EPSILON, settings.KAPPA, settings.MU)[0], settings, pruned.batchnorm)
    result = domain_search.as_chosen(pruned, chosen, accuracy, model, domain_search.images_of(settings, domain, 'test'),
                                     table, settings, pruned.batchnorm)
    joint_result.save('sequential', result, settings, inputs)
    joint_result.add_sequential_baseline(result, settings)
    print(domain_search.summary(result))
    print(f"  -> {json_files.path_of('sequential', settings, domain)}")


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    return domain_engine.command_line(__doc__, 'step4_final_throughput_opt', 'sequential', argv)


if __name__ == '__main__':
    cli.run(main)
