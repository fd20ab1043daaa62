"""Step 3: choose α, γ and λ of a domain together, within ε of the unpruned network's accuracy.

    python step_3_joint.py --domain_id 3 --mode pseudo       # times from the table, no client device
    python step_3_joint.py --domains 0-9 --jobs 4            # many at once
    python step_3_joint.py --domain_id 3 --mode real         # waits for client_worker.py; measures, trains and streams
    python step_3_joint.py --domain_id 3 --pick knee         # another point of the frontier, without a new search

Reads the table (step 1), task 1's α, task 2's rankings and the dataset; writes
results/joint_optimization/domain_D_joint.json: the frontiers of accuracy against T_eff, latency and throughput, and the
point that --pick chooses (docs/frontier.md). With --pick or --if_changed a finished search of the same inputs is only
picked from again; otherwise the domain is searched anew. A killed run goes on from its last round.
"""
from __future__ import annotations

from typing import Callable, Optional, Sequence

import cli
import config
from config import Settings, UserError
from costs.checks import check_settings
from engines import many_domains
from pipeline import fingerprints, kinds, writing


def load_work(settings: Settings, mode: str = 'pseudo') -> Callable[..., None]:
    """What does one domain in this mode. Warnings that hold for all domains are said now, once."""
    from steps import joint, real_mode, shared_warnings  # load PyTorch, which --help does not need
    shared_warnings.say(settings)
    return joint.joint if mode == 'pseudo' else real_mode.joint


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    many_domains.add_flags(parser)
    parser.add_argument('--mode', choices=('pseudo', 'real'), default='pseudo')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    cli.add_limits(parser)
    cli.add_pick(parser)
    cli.add_server(parser)
    args, settings = cli.parse(parser, argv)
    check_settings(settings)
    search_again = not args.if_changed and args.pick is None
    if args.mode == 'pseudo':
        lut_file = args.lut_file or kinds.path_of('lut', settings)
        return many_domains.run(lambda: load_work(settings), 'joint', args, settings, lut_file, lambda domain: {
            'search_inputs': fingerprints.inputs_of('joint_state', settings, domain, lut=lut_file),
            'search_again': search_again})
    if args.domain_id is None or args.engine is not None or args.jobs is not None:
        raise UserError('--mode real does one domain, without --engine and --jobs; server_main.py does many with one '
                        'client')
    if args.lut_file is not None:
        raise UserError('--mode real measures its table through the client: leave --lut_file out')
    settings = config.with_real_client(settings)
    domain = cli.domains(str(args.domain_id), settings)[0]
    path = kinds.path_of('joint', settings, domain)
    inputs = fingerprints.inputs_of('joint', settings, domain, fingerprints.REAL)
    if args.if_changed and fingerprints.is_current([path], inputs):
        cli.say(f'{path} is up to date')
        return 0
    writing.check_writable(path)
    load_work(settings, 'real')(domain, settings, cli.server_flags(args), search_again)
    return 0


if __name__ == '__main__':
    cli.run(main)
