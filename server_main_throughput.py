"""Real mode without pruning, in one process on the server: wait for a client, measure, choose γ and λ, stream, compare.

    python server_main_throughput.py                   # then start client_worker.py on the device
    python server_main_throughput.py --frames 1000 --max_client_ms 5 --set HEAD_TIER=server

Writes results/stream_measured.json: the measured stream beside the predicted times.
"""
from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, Optional, Sequence

import cli
from pipeline import fingerprints, writing


def comparison(measured: Dict[str, Any]) -> str:
    """Prediction and measurement side by side."""
    predicted = measured['predicted']
    rows = (('frames a second', predicted['throughput_fps'], measured['throughput_fps']),
            ('latency of a lone frame, ms', predicted['T_lat_ms'], measured['lockstep_latency_ms']),
            ('median latency in the stream, ms', None, measured['latency_p50_ms']),
            ('slowest stage, ms', predicted['T_cyc_ms'], max(measured[f'{s}_ms'] for s in ('head', 'link', 'tail'))))
    lines = [f"{'':34}{'predicted':>10}{'measured':>10}"]
    for name, before, after in rows:
        lines.append(f"{name:34}{'' if before is None else format(before, '.2f'):>10}{after:10.2f}")
    busy = ', '.join(f"{stage} {100 * measured[f'{stage}_busy']:.0f} %" for stage in ('head', 'link', 'tail'))
    lines.append(f"busy: {busy}; {measured['bytes_per_frame'] / 1000:.1f} kB a frame as {measured['wire']}")
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_server(parser)
    cli.add_limits(parser)
    parser.add_argument('--frames', type=int, default=300, help='frames to stream (at least 16)')
    args, settings = cli.parse(parser, argv)
    settings = dataclasses.replace(settings, DEVICE_PROFILE='')  # a real device is meant
    path = os.path.join(settings.RESULTS_DIR, 'stream_measured.json')
    writing.check_writable(path)
    from steps import real_mode  # loads PyTorch, which --help does not need
    table, chosen, measured = real_mode.stream_unpruned(settings, cli.server_flags(args), args.frames)
    writing.write(path, {'gamma': dict(zip(table.block_names, chosen.gamma)), 'measured': measured},
                  writing.make_metadata(settings, 'lut', fingerprints.inputs_of('lut', settings)))
    print(f'λ = {chosen.split} of {table.n_blocks}, {chosen.wire}')
    print(comparison(measured))
    print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
