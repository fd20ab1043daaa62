"""The sequential baseline, first half: prune one domain by importance alone, blind to time.

    python step3_accuracy_opt.py --domain_id 3
    python step3_accuracy_opt.py --domains 0-9 --jobs 4      # many at once (domain_engine.py)

Reads what step_3_joint.py reads; writes results/sequential/domain_D_accuracy.json (the same fields), in which the
pruned network runs at the split that step 2 chose for the unpruned one. step4_final_throughput_opt.py then chooses γ
and λ for it. A killed run goes on from its last round.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
import domain_engine
import json_files
from config import Settings

KIND = 'sequential_accuracy'


def run_domain(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """One domain."""
    import domain_search
    import joint_result
    import lut_manager
    from hyper_repvgg import surviving_branches
    from importance_pruning import ImportanceSearch
    from throughput_optimizer import solve_exact
    table = lut_manager.load(lut_file, settings)
    outcome = domain_search.run_search(domain, table, settings, ImportanceSearch, KIND, inputs)
    split = domain_search.solve_unpruned(table, settings).split
    search, alpha = outcome.search, outcome.state.alpha
    statistics = search.statistics_for(alpha)[0] if outcome.state.recalibrated else None
    configuration, accuracy = domain_search.best_on_wire(
        alpha, lambda chosen: solve_exact(table, surviving_branches(alpha), chosen, splits=[split]), search.model,
        search.val, search.J, settings, statistics)
    result = domain_search.assemble(outcome, configuration, accuracy, 'pseudo', statistics)
    joint_result.save(KIND, result, settings, inputs)
    joint_result.drop_state(f'{KIND}_state', domain, settings)
    print(domain_search.summary(result))
    print(f'  -> {json_files.path_of(KIND, settings, domain)}')


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    return domain_engine.command_line(__doc__, 'step3_accuracy_opt', KIND, argv)


if __name__ == '__main__':
    cli.run(main)
