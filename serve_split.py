"""The service: many cameras stream to this machine, each through a split network of its own (docs/service.md).

    python serve_split.py                                            # all results of step 3
    python serve_split.py --domains 0,3 --workers 4 --bind 0.0.0.0   # with SPLIT_AUTH_TOKEN set, as on the devices
    python serve_split.py --web_port 8080 --log_jsonl service.jsonl  # what happens: http://127.0.0.1:8080/
    device$ python client_worker.py --server_ip 192.168.1.10 --source photos/ --entry domain_0

Clients come and go; Ctrl-C ends it. Weights travel to the devices, which keep them.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
import config
from config import UserError


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_listening(parser)
    parser.add_argument('--domains', metavar='0,3,7', help='serve the results of these (default: all)')
    parser.add_argument('--workers', type=int, default=config.cores(), metavar='N',
                        help='processes that run tails (default: one a core)')
    parser.add_argument('--log_jsonl', metavar='FILE', help='add the state to this file, a line of JSON a second')
    parser.add_argument('--web_port', type=cli.port, metavar='PORT',
                        help='a live page and /metrics for Prometheus, on loopback (0: any free port)')
    args, settings = cli.parse(parser, argv)
    if not 1 <= args.workers <= 256:
        raise UserError(f'--workers {args.workers}: must be between 1 and 256')
    from service import running  # loads PyTorch, which --help does not need
    running.run(settings, cli.domains(args.domains, settings), args.workers, args.bind, args.port, args.allow_open,
                running.Watching(args.log_jsonl, args.web_port))


if __name__ == '__main__':
    cli.run(main)
