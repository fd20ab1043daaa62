"""Real mode without pruning, in one process on the server: wait for a client, measure, choose γ and λ, stream, compare.

    python server_main_throughput.py                   # then start client_worker.py on the device
    python server_main_throughput.py --frames 1000 --max_client_ms 5 --set HEAD_TIER=server

Writes results/stream_measured.json: the measured stream beside the predicted times.
"""
from __future__ import annotations

import os
from typing import Optional, Sequence

import cli
import config
from costs.checks import check_settings
from pipeline import fingerprints, writing
from report.measured import comparison


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_server(parser)
    cli.add_limits(parser)
    parser.add_argument('--frames', type=int, default=300, help='frames to stream (at least 16)')
    args, settings = cli.parse(parser, argv)
    check_settings(settings)
    settings = config.with_real_client(settings)
    path = os.path.join(settings.RESULTS_DIR, 'stream_measured.json')
    writing.check_writable(path)
    from steps import real_mode  # loads PyTorch, which --help does not need
    table, chosen, measured = real_mode.stream_unpruned(settings, cli.server_flags(args), args.frames)
    writing.write(path, {'gamma': dict(zip(table.block_names, chosen.gamma)), 'measured': measured},
                  writing.make_metadata(settings, 'lut', fingerprints.inputs_of('lut', settings)))
    print(f'λ = {chosen.split} of {table.n_blocks}, {chosen.wire}')
    print('\n'.join(comparison(measured)))
    print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
