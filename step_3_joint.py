"""Step 3: choose α, γ and λ of one domain together, within ε of the unpruned network's accuracy.

    python step_3_joint.py --domain_id 3 --mode pseudo       # times from the table, no client device
    python step_3_joint.py --domains 0-9 --jobs 4            # many at once (domain_engine.py)
    python step_3_joint.py --domain_id 3 --mode real         # waits for client_worker.py; measures, trains and streams
    python step_3_joint.py --domain_id 3 --pick knee         # another point of the frontier, without a new search

Reads the table (step 1), task 1's α, task 2's rankings and the dataset; writes
results/joint_optimization/domain_D_joint.json: the frontiers of accuracy against T_eff, latency and throughput, and the
point that --pick chooses (docs/frontier.md). With --pick or --if_changed a finished search of the same inputs is only
picked from again; otherwise the domain is searched anew. A killed run goes on from its last round.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

import cli
import domain_engine
import json_files
from config import Settings, UserError


class Inputs(NamedTuple):
    """Fingerprints of what shapes a result (`json_files.inputs_of`)."""
    result: str
    search: str  # the same without what is only picked


def inputs_of(domain: int, settings: Settings, lut_file: str) -> Inputs:
    """The fingerprints of a domain under these settings and this table."""
    return Inputs(*(json_files.inputs_of(kind, settings, domain, lut=lut_file) for kind in ('joint', 'joint_state')))


def optimise(domain: int, table: Any, settings: Settings, inputs: Inputs, mode: str = 'pseudo', search_type: Any = None,
             measure: Optional[Callable[[Any, Any], Dict[str, Any]]] = None, search_again: bool = True) -> None:
    """Search one domain (unless a finished search of the same inputs will do: `search_again`), pick from its frontier,
    write the result, print a summary. Real mode gives its own `search_type`, and `measure(model, result)`, what the
    file's `measured` holds."""
    import domain_search
    import joint_result
    from frontier_search import FrontierSearch
    found = None if search_again else joint_result.load_same_search(domain, table, settings, inputs.search, mode)
    if found is not None:
        model = domain_search.base_model(settings)
        result = domain_search.pick_again(found, table, settings, model)
    else:
        outcome = domain_search.run_search(domain, table, settings, search_type or FrontierSearch, 'joint',
                                           inputs.search)
        model, result = outcome.search.model, domain_search.pick_from_search(outcome, mode)
    sequential = joint_result.sequential_baseline(domain, table, settings)
    if sequential is not None:
        result.baselines['sequential'] = sequential
    if measure is not None:
        result = dataclasses.replace(result, measured=measure(model, result))
    joint_result.save('joint', result, settings, inputs.result, inputs.search)
    joint_result.drop_state('joint_state', domain, settings)
    print(domain_search.summary(result))
    print(f"  -> {json_files.path_of('joint', settings, domain)}")


def optimise_real(domain: int, session: Any, settings: Settings, remeasure: bool = False, search_again: bool = True,
                  ) -> None:
    """The same through a connected client (`real_mode.Session`): table, training, evaluation and stream."""
    from domain_dataset import load_domain
    table = session.table(load_domain(settings, domain, 'val').images, remeasure)
    test = load_domain(settings, domain, 'test')
    optimise(domain, table, settings, inputs_of(domain, settings, json_files.path_of('lut', settings)), 'real',
             session.search_type(table),
             lambda model, result: session.measure(model, result.configuration, table, test,
                                                   statistics=result.batchnorm), search_again)


def run_domain(domain: int, settings: Settings, inputs: str, lut_file: str, search_inputs: str,
               search_again: bool) -> None:
    """One domain in pseudo mode."""
    import lut_manager
    optimise(domain, lut_manager.load(lut_file, settings), settings, Inputs(inputs, search_inputs),
             search_again=search_again)


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    domain_engine.add_flags(parser)
    parser.add_argument('--mode', choices=('pseudo', 'real'), default='pseudo')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    cli.add_limits(parser)
    cli.add_pick(parser)
    cli.add_server(parser)
    args, settings = cli.parse(parser, argv)
    search_again = not args.if_changed and args.pick is None
    if args.mode == 'pseudo':
        lut_file = args.lut_file or json_files.path_of('lut', settings)
        return domain_engine.run('step_3_joint', 'joint', args, settings, lut_file, lambda domain: {
            'search_inputs': inputs_of(domain, settings, lut_file).search, 'search_again': search_again})
    if args.domain_id is None or args.engine is not None:
        raise UserError('--mode real does one domain, without --engine; server_main.py does many with one client')
    settings = dataclasses.replace(settings, DEVICE_PROFILE='')  # a real device is meant
    domain = cli.domains(str(args.domain_id), settings)[0]
    path = json_files.path_of('joint', settings, domain)
    if args.if_changed and json_files.is_current([path], json_files.inputs_of('joint', settings, domain)):
        cli.say(f'{path} is up to date')
        return 0
    json_files.check_writable(path)
    import real_mode
    with real_mode.open_session(settings, args.bind, args.port, args.allow_open) as session:
        optimise_real(domain, session, settings, args.remeasure, search_again)
    return 0


if __name__ == '__main__':
    cli.run(main)
