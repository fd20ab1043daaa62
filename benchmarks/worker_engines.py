"""What it costs to have a worker run a frame's tail: in a process of this machine, and as a Ray actor of it.

    pip install -r requirements-ray.txt
    python -m benchmarks.worker_engines            # about a minute

RepVGG-A0 at 224x224 with random weights, one frame in float32 at a time, at splits of other sizes; both kinds of worker
are asked in turn. Printed is the median time from the front's request until its answer is there, less the time that the
worker computes: what the way there and back costs. To another machine its link comes on top.

Claim (2-core Intel Xeon VM, PyTorch 2.14, Ray 2.60, some 10 other processes on both cores): 602 kB 0.8 ms for a process
and 6.1 for an actor, 301 kB 0.8 and 7.1, 151 kB 0.5 and 3.6.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--frames', type=cli.count, default=100, help='at each split')
PARSER.add_argument('--splits', type=int, nargs='+', default=[1, 6, 20])
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import statistics
import time
from typing import Dict, List

import torch

import config
from network.gammas import fused_gamma
from service.arena import Arena
from service.entries import ServedNetwork
from service.tails import TailKey, base_model
from service.workers import Request, TailWorker, start_processes
from tier.part import cut_shape, head_units
from wire import codec
from wire.formats import encoding_at

SETTINGS = config.load(('WEIGHT_PATH_SERVER=', 'DEVICE_PROFILE=', 'INPUT_SIZE=224', 'MODEL_NAME=RepVGG-A0',
                        'SERVER_DEVICE=cpu', 'SERVER_THREADS=1'), {})
SLOT_BYTES = 8 << 20


def way_ms(worker: TailWorker, request: Request) -> float:
    """Of one frame: the time that is not the worker's."""
    start = time.perf_counter()
    answer = worker.ask(request)
    return 1000 * (time.perf_counter() - start) - answer.ms


def main() -> None:
    """Run it and print the figures."""
    args = PARSER.parse_args()
    ray_workers = cli.optional('service.ray_workers', 'ray', 'tails as Ray actors')
    model, arena = base_model(SETTINGS), Arena(SLOT_BYTES, 1)
    alpha, n_blocks = model.alpha_array(), len(model.blocks)
    gamma = tuple(fused_gamma((True, True, row[2] == row[2])) for row in alpha)
    networks = {'one': ServedNetwork('one', alpha, {'client': gamma, 'server': gamma})}
    ray_workers.joined(SETTINGS, 1)
    workers: Dict[str, TailWorker] = {'process': start_processes(SETTINGS, networks, arena, 1)[0],
                                      'Ray actor': ray_workers.start_actors(SETTINGS, networks, arena, 1)[0]}
    try:
        for worker in workers.values():
            worker.wait_until_ready()
        for split in args.splits:
            shape = (1, *cut_shape(SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES, SETTINGS.INPUT_SIZE,
                                   head_units(split, n_blocks)[1]))
            layout = arena.write(0, codec.encode(torch.rand(shape), encoding_at(split, n_blocks, 'float32')))
            request = Request(TailKey('one', split, 'float32'), [(0, layout)])
            found: Dict[str, List[float]] = {name: [] for name in workers}
            for _ in range(args.frames):
                for name, worker in workers.items():
                    found[name].append(way_ms(worker, request))
            medians = {name: statistics.median(times) for name, times in found.items()}
            print(f'λ {split:2}, {len(arena.used(0, layout)) / 1000:6.1f} kB: ' + ', '.join(
                f'{name} {ms:.2f} ms' for name, ms in medians.items()), flush=True)
    finally:
        for worker in workers.values():
            worker.end()
            worker.join()


if __name__ == '__main__':
    main()
