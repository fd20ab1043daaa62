"""What a frame costs beside its network: processor time and switches of both ends, our stream and a loop that pushes.

    python -m benchmarks.frame_cost --rounds 3 --frames 80

Two processes, one core and one thread for PyTorch each, stream feature maps of RepVGG-A0 at 224x224 over loopback, in
turns: `ours` with a token (a MAC of every byte), `open` without, `push` as in benchmarks/stream_baselines.py, which
checks nothing and sends no results back. For each end: microseconds of processor time a frame, all threads together,
less the computation of head or tail itself; how often a thread waited; threads. Medians of --rounds. Processor time
says what helpers take from the core that computes, also where other programs run (caches are cold then: it is more).
Claim (2-core Intel Xeon virtual machine, Python 3.11, PyTorch 2.14, other programs on both cores, --rounds 3 --frames
80): λ = 20, ours 828 at the head and 899 at the tail, without a token 739 and 784, push 510 and 737; λ = 5, ours 1133
and 964, without a token 865 and 746, push 547 and 481. Three threads at each end.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--splits', type=int, nargs='+', default=[5, 20])
PARSER.add_argument('--frames', type=int, default=120)
PARSER.add_argument('--rounds', type=int, default=5)
PARSER.add_argument('--only', default='ours,open,push')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import multiprocessing
import os
import resource
import statistics
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

from benchmarks import stream_baselines
from benchmarks.engines import free_port
from benchmarks.stream_throughput import SETTINGS, network_of, part_for
from network_utils import Address, Listener, connect_with_retries
from tier.part import NetworkPart
from wire.stream import head_compute, stream_head, stream_tail, tail_compute

SKIP = 20  # frames at the beginning, which learn what a frame takes
WIRE = 'float32'


class Usage(NamedTuple):
    """Of this process so far."""
    cpu_s: float
    waits: int


class Meter:
    """Runs a part of the network, and knows what the process used beside it."""

    def __init__(self, part: NetworkPart, frames: int) -> None:
        self._part, self._last = part, frames - 1
        self._calls, self._own_s, self._start, self.row = 0, 0.0, Usage(0.0, 0), (0.0, 0.0, 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._calls == SKIP:
            self._own_s, self._start = 0.0, usage()
        if self._calls == self._last:
            used, n = usage(), self._last - SKIP
            self.row = (1e6 * (used.cpu_s - self._start.cpu_s - self._own_s) / n, (used.waits - self._start.waits) / n,
                        threading.active_count())
        start = time.thread_time()
        y = self._part(x)
        self._own_s += time.thread_time() - start
        self._calls += 1
        return y


def usage() -> Usage:
    """What this process has used."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(found.ru_utime + found.ru_stime, found.ru_nvcsw)


def end_of(side: str, method: str, split: int, frames: int, address: Address, send: Callable[[Any], None]) -> None:
    """One end of one stream, in a process of its own."""
    os.sched_setaffinity(0, {0 if side == 'tail' else 1})
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    network, configuration = network_of(SETTINGS.MODEL_NAME, split)
    head, part = part_for(network, configuration, 'head'), part_for(network, configuration, side)
    images = torch.randint(0, 256, (8, 3, SETTINGS.INPUT_SIZE, SETTINGS.INPUT_SIZE), dtype=torch.uint8)
    meter, token = Meter(part, frames), b'' if method == 'open' else b'benchmark'
    if method == 'push' and side == 'head':
        stream_baselines.client('push', meter, images[:1], address, frames)
    elif method == 'push':
        stream_baselines.server('push', meter, address, frames)
    elif side == 'head':
        connection = connect_with_retries(address, token, 'worker', 'server', lambda text: None, time.sleep)
        stream_head(connection, head_compute(meter, images, WIRE), 0, frames)
    else:
        with torch.inference_mode():
            shape = tuple(head(images[:1]).shape)
        listener = Listener(address, token, 'server', ('worker',), cli.say)
        stream_tail(listener.get(), tail_compute(meter, WIRE, shape), 0, frames)
    send((side, meter.row))


def measured(method: str, split: int, frames: int) -> Dict[str, Tuple[float, float, int]]:
    """Row of each end."""
    context = multiprocessing.get_context('spawn')
    found = context.SimpleQueue()
    address = Address('127.0.0.1', free_port())
    ends = [context.Process(target=end_of, args=(side, method, split, frames, address, found.put))
            for side in ('tail', 'head')]
    for end in ends:
        end.start()
    rows = dict(found.get() for _ in ends)
    for end in ends:
        end.join()
    return rows


def main() -> None:
    """Run and report."""
    args = PARSER.parse_args()
    for split in args.splits:
        rows: Dict[Tuple[str, str], List[Tuple[float, float, int]]] = {}
        for _ in range(args.rounds):
            for method in args.only.split(','):
                for side, row in measured(method, split, args.frames).items():
                    rows.setdefault((side, method), []).append(row)
        for (side, method), found in sorted(rows.items()):
            us, waits, threads = (statistics.median(column) for column in zip(*found))
            print(f'split {split:2}  {side}  {method:5} {us:6.0f} us a frame, {waits:5.2f} waits, {threads:g} threads',
                  flush=True)


if __name__ == '__main__':
    main()
