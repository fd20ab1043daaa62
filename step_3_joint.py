"""Step 3: choose α, γ and λ of one domain together, within ε of the unpruned network's accuracy.

    python step_3_joint.py --domain_id 3 --mode pseudo       # times from the table, no client device
    python step_3_joint.py --domain_id 3 --mode real         # waits for client_worker.py; measures, trains and streams

Reads the table (step 1), task 1's α, task 2's rankings and the dataset; writes
results/joint_optimization/domain_D_joint.json. A killed run goes on from its last round.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Optional, Sequence

import cli
import json_files
from config import Settings


def optimise(domain: int, table: Any, settings: Settings, inputs: str, mode: str = 'pseudo', search_type: Any = None,
             measure: Optional[Callable[[Any, Any], Dict[str, Any]]] = None) -> None:
    """Search one domain, write its result, print a summary. Real mode gives its own `search_type`, and
    `measure(model, result)`, what the file's `measured` holds."""
    import domain_search
    import joint_result
    from progressive_pruning import JointSearch
    outcome = domain_search.run_search(domain, table, settings, search_type or JointSearch, 'joint', inputs)
    result = domain_search.assemble(outcome, outcome.search.final(outcome.state.alpha), mode)
    sequential = joint_result.sequential_baseline(domain, table, settings)
    if sequential is not None:
        result.baselines['sequential'] = sequential
    if measure is not None:
        result = dataclasses.replace(result, measured=measure(outcome.search.model, result))
    joint_result.save('joint', result, settings, inputs)
    joint_result.drop_state('joint_state', domain, settings)
    print(domain_search.summary(result))
    print(f"  -> {json_files.path_of('joint', settings, domain)}")


def optimise_real(domain: int, session: Any, settings: Settings, remeasure: bool = False) -> None:
    """The same through a connected client (`real_mode.Session`): table, training, evaluation and stream."""
    from domain_dataset import load_domain
    table = session.table(load_domain(settings, domain, 'val').images, remeasure)
    test = load_domain(settings, domain, 'test')
    optimise(domain, table, settings, json_files.inputs_of('joint', settings, domain), 'real',
             session.search_type(table),
             lambda model, result: session.measure(model, result.configuration, table, test,
                                                   statistics=result.batchnorm))


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--domain_id', type=int, required=True)
    parser.add_argument('--mode', choices=('pseudo', 'real'), default='pseudo')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    cli.add_limits(parser)
    cli.add_server(parser)
    args, settings = cli.parse(parser, argv)
    if args.mode == 'real':
        settings = dataclasses.replace(settings, DEVICE_PROFILE='')  # a real device is meant
    domain = cli.domains(str(args.domain_id), settings)[0]
    path, lut_file = json_files.path_of('joint', settings, domain), args.lut_file or json_files.path_of('lut', settings)
    inputs = json_files.inputs_of('joint', settings, domain, lut=lut_file)
    if args.if_changed and json_files.is_current([path], inputs):
        cli.say(f'{path} is up to date')
        return
    json_files.check_writable(path)
    if args.mode == 'real':
        import real_mode
        with real_mode.open_session(settings, args.bind, args.port, args.allow_open) as session:
            optimise_real(domain, session, settings, args.remeasure)
        return
    import lut_manager
    optimise(domain, lut_manager.load(lut_file, settings), settings, inputs)


if __name__ == '__main__':
    cli.run(main)
