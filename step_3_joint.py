"""Step 3: choose α, γ and λ of one domain together, within ε of the unpruned network's accuracy.

    python step_3_joint.py --domain_id 3 --mode pseudo       # times from the table, no client device

Reads the table (step 1), task 1's α, task 2's rankings and the dataset; writes
results/joint_optimization/domain_D_joint.json. A killed run goes on from its last round.
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
    parser.add_argument('--mode', choices=('pseudo',), default='pseudo')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    domain = cli.domains(str(args.domain_id), settings)[0]
    path, lut_file = json_files.path_of('joint', settings, domain), args.lut_file or json_files.path_of('lut', settings)
    inputs = json_files.inputs_of('joint', settings, domain, lut=lut_file)
    if args.if_changed and json_files.is_current([path], inputs):
        cli.say(f'{path} is up to date')
        return
    json_files.check_writable(path)
    import domain_search
    import joint_result
    import lut_manager
    from progressive_pruning import JointSearch
    table = lut_manager.load(lut_file, settings)
    outcome = domain_search.run_search(domain, table, settings, JointSearch, 'joint', inputs)
    result = domain_search.assemble(outcome, outcome.search.solve(outcome.state.alpha), args.mode)
    sequential = joint_result.sequential_baseline(domain, table, settings)
    if sequential is not None:
        result.baselines['sequential'] = sequential
    joint_result.save('joint', result, settings, inputs)
    joint_result.drop_state('joint_state', domain, settings)
    print(domain_search.summary(result))
    print(f'  -> {path}')


if __name__ == '__main__':
    cli.run(main)
