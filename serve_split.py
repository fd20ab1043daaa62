"""The service: many cameras stream to this machine, each through a split network of its own (docs/service.md).

    python serve_split.py                                            # all results of step 3
    python serve_split.py --domains 0,3 --workers 4 --bind 0.0.0.0   # with SPLIT_AUTH_TOKEN set, as on the devices
    python serve_split.py --plan rack-1                              # this server's clients in plan_fleet.py's plan
    python serve_split.py --engine ray                               # tails on the Ray cluster at RAY_ADDRESS, or here
    python serve_split.py --web_port 8080 --log_jsonl service.jsonl  # what happens: http://127.0.0.1:8080/
    device$ python client_worker.py --server_ip 192.168.1.10 --source photos/ --entry domain_0

Clients come and go; Ctrl-C ends it. Weights travel to the devices, which keep them. When a client's link, its device or
the server becomes faster or slower, its split and wire format follow.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
cli.add_listening(PARSER)
PARSER.add_argument('--domains', metavar='0,3,7', help='serve the results of these (default: all)')
PARSER.add_argument('--plan', metavar='SERVER', nargs='?', const='',
                    help='serve the clients that results/fleet_plan.json gives to this server (default: its only one)')
PARSER.add_argument('--workers', type=cli.count, metavar='N',
                    help='processes that run tails (default: one a core; one with a GPU)')
PARSER.add_argument('--engine', choices=('processes', 'ray'), default='processes',
                    help='where they run: on this machine, or as actors on a Ray cluster')
PARSER.add_argument('--fixed', action='store_true', help='never change what a client runs')
PARSER.add_argument('--adapt_network', action='store_true',
                    help='clients may change to other networks of their result, of those whose accuracy is confirmed')
PARSER.add_argument('--adapt_domain', action='store_true',
                    help="a client whose frames look like another served domain's changes to that one's network")
PARSER.add_argument('--log_jsonl', metavar='FILE', help='add the state to this file, a line of JSON a second')
PARSER.add_argument('--web_port', type=cli.port, metavar='PORT',
                    help='a live page and /metrics for Prometheus, on loopback (0: any free port)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

from typing import Optional, Sequence

from config import UserError
from costs.checks import check_settings
from service import running
from service.entries import entries_of_plan, entries_of_results
from service.looks import references_for
from service.tails import base_model
from service.workers import start_processes, workers_of
from wire.certificates import listening_context


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    check_settings(settings)
    ray_workers = cli.optional('service.ray_workers', 'ray', 'tails as Ray actors') if args.engine == 'ray' else None
    if args.plan is not None and args.domains:
        raise UserError('--plan says what is served: leave --domains out')
    for name in ('adapt_network', 'adapt_domain'):
        if getattr(args, name) and (args.fixed or args.plan is not None):
            raise UserError(f'--{name}: not with --fixed, nor with --plan, which has chosen the networks')
    listening = cli.listening(args)
    listening_context(listening.tls)  # mistakes are told before results are read
    entries = entries_of_plan(args.plan, settings) if args.plan is not None else entries_of_results(
        cli.domains(args.domains, settings), settings, args.adapt_network)
    references = None
    if args.adapt_domain:
        domains = {name: int(name.rpartition('_')[2]) for name in entries}
        references = references_for(domains, base_model(settings), settings)
    if ray_workers is None:
        workers, start_workers = args.workers or workers_of(settings), start_processes
    else:
        workers, start_workers = ray_workers.joined(settings, args.workers), ray_workers.start_actors
    running.run(settings, entries, workers, listening, running.Watching(args.log_jsonl, args.web_port),
                not args.fixed, references, start_workers)


if __name__ == '__main__':
    cli.run(main)
