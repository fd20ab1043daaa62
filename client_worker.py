"""The client tier: connects to the server, and does what it asks until it is told to stop.

    python client_worker.py --server_ip 192.168.1.10 --port 6006
    python client_worker.py --set CLIENT_THREADS=4              # through an SSH tunnel to 127.0.0.1:6006

    ssh -CN -L 6006:127.0.0.1:6006 -R 6008:127.0.0.1:6008 user@server      # the tunnel, on this device

    python client_worker.py --source photos/ --entry domain_0            # stream to serve_split.py (docs/service.md)
    python client_worker.py --source camera:0 --fps 15

With --source it is a camera of a service: every frame of a folder, a video, a camera, raw frames on stdin (-) or a
Python file gets a line of JSON on stdout. Weights and images that the server sends are kept in --cache_dir. It never
gives up: when the server is not there or goes away, it tries again with growing pauses. `python client_control.py
status|cancel|shutdown` talks to it through PORT_CONTROL while it works. Set SPLIT_AUTH_TOKEN to the same secret on both
ends where strangers could connect.
"""
import contextlib
import sys
from typing import Optional, Sequence

if sys.version_info < (3, 8):  # the rest of the code cannot even be read by an older Python
    sys.stderr.write('client_worker.py: error: needs Python 3.8 or newer, this is %d.%d; docs/real_mode.md says how to '
                     'get it on a Jetson\n' % sys.version_info[:2])
    sys.exit(2)

import cli
from wire.certificates import connecting_context


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('--server_ip', help='address or name of the server (default: SERVER_IP)')
    parser.add_argument('--port', type=cli.port, help='its port (default: PORT_MAIN)')
    parser.add_argument('--control_port', type=cli.port,
                        help='listen here on loopback (default: PORT_CONTROL; 0: do not)')
    parser.add_argument('--cache_dir', default='client_cache', help='weights and images are kept here')
    parser.add_argument('--cache_gib', type=cli.above_0, default=4.0, help='at most this much of them')
    parser.add_argument('--once', action='store_true', help='stop when the server says goodbye')
    group = parser.add_argument_group('frames of this device for serve_split.py (docs/service.md)')
    group.add_argument('--source', metavar='PATH|camera:N|URL|-', help='where frames come from')
    group.add_argument('--entry', default='',
                       help='what the server is to run, such as domain_0 (default: its only entry)')
    group.add_argument('--fps', type=cli.above_0, help='frames a second to be sure of (default: what is left)')
    group.add_argument('--live', action='store_true', help='frames that come too fast may be dropped (cameras: always)')
    group.add_argument('--name', default='', help="of this client, in the server's reports")
    cli.add_tls(parser, 'of this device, if the server asks for one',
                "connect with TLS: the certificate that signed the server's")
    args, settings = cli.parse(parser, argv)
    tls = connecting_context(cli.tls_files(args))

    with contextlib.redirect_stdout(sys.stderr):  # PyTorch 1.10 may print a line; stdout is for predictions
        from tier import camera, sources, worker  # load PyTorch, which --help does not need
    if args.source is not None:
        sources.check_source(args.source)
        live = args.live or sources.is_live(args.source)
        wish = camera.Wish(args.source, live, args.entry, args.name, args.fps or 0.0)
        camera.run(wish, worker.make_tasks(settings, args.cache_dir, args.cache_gib), settings,
                   args.server_ip or settings.SERVER_IP, args.port or settings.PORT_MAIN, tls)
        return
    control_port = settings.PORT_CONTROL if args.control_port is None else args.control_port
    worker.run(settings, args.server_ip or settings.SERVER_IP, args.port or settings.PORT_MAIN, control_port,
               args.cache_dir, args.cache_gib, args.once, tls)


if __name__ == '__main__':
    cli.run(main)
