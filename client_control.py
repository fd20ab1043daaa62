"""Ask a running client for its status, cancel its job, or shut it down, also while it works.

    python client_control.py status                     # on the device, or on the server through the tunnel (-R 6008)
    python client_control.py cancel
    python client_control.py shutdown --port 6008
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('action', choices=('status', 'cancel', 'shutdown'))
    parser.add_argument('--port', type=cli.port, help='the control port (default: PORT_CONTROL)')
    args, settings = cli.parse(parser, argv)
    from network_utils import ask_client  # loads PyTorch, which --help does not need
    print(ask_client(args.port or settings.PORT_CONTROL, args.action))


if __name__ == '__main__':
    cli.run(main)
