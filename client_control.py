"""Ask a running client for its status, cancel its job, or shut it down, also while it works.

    python client_control.py status                     # on the device, or on the server through the tunnel (-R 6008)
    python client_control.py cancel
    python client_control.py shutdown --port 6008
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
from config import UserError


def ask(port: int, action: str) -> str:
    """What the client on this control port answers to status, cancel or shutdown. Raises `UserError`."""
    from network_utils import Address, connect, token_from_environment
    from wire.frames import Kind, NetworkError
    address = Address('127.0.0.1', port)
    try:
        connection = connect(address, token_from_environment(), 'control', 'worker')
        connection.send(Kind.REQUEST, {'id': 1, 'op': action})
        reply = connection.receive()
        connection.close()
        done, total, requests = (reply.integer(name, 0, 2 ** 62) for name in ('done', 'total', 'requests'))
        return (f"{reply.text('state')} {reply.text('op')}".strip() + (f', {done} of {total}' if total else '') +
                f'; {requests} requests so far')
    except NetworkError as error:
        raise UserError(f'{error}; is a client running, with its control port on {address}?') from None


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('action', choices=('status', 'cancel', 'shutdown'))
    parser.add_argument('--port', type=int, help='the control port (default: PORT_CONTROL)')
    args, settings = cli.parse(parser, argv)
    print(ask(args.port or settings.PORT_CONTROL, args.action))


if __name__ == '__main__':
    cli.run(main)
