"""A link that becomes slow and fast again under a served client: how soon it switches, for how long nothing comes, and
what it reaches afterwards.

    python -m benchmarks.service_switch            # needs root, `ip` and `tc`; about three minutes

The client, a process in a network namespace behind a token bucket, streams random frames as fast as they are taken
through the built-in network, unpruned, float32. The link goes from 100 to 5 Mbit/s and back. For both changes:
switch     time from the change to the first answer under another configuration; bar: SWITCH_AFTER_S + 1 s
pause      the longest time without an answer from the last one under the old configuration to the tenth under the new
           one; bar: the median time between answers before the switch or after it, whichever is longer, or the longest
           in the second before the switch, when nothing but the unrest of link and machine delayed answers
after      frames a second from one second after the switch to the end of the phase, against services that are started
           anew at this rate, with the configuration it has now and with that of the beginning; bar: 0.95 of the faster

Claim (2-core Intel Xeon VM, PyTorch 2.14, one thread each; a device 6 times slower than the server): to 5 Mbit/s from
λ 1 to λ 8 after 3.4 s (SWITCH_AFTER_S is 3, bar 4), longest pause 43 ms (55 ms between answers, longest in the second
before 59), then 1.02 of a fresh start's frames a second. Back to 100 Mbit/s to λ 1 after 3.1 s, longest pause 7 ms
(6 ms between answers, longest before 13), then 1.04. Beside five other processes: 3.5 and 3.4 s, 40 and 7 ms, 1.01 and
0.93.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--phase_s', type=cli.above_0, default=20.0, help='how long each rate lasts')
PARSER.add_argument('--slower', type=cli.above_0, default=6.0, help='device, as the profile edge-cpu')
PARSER.add_argument('--fast_mbps', type=cli.above_0, default=100.0)
PARSER.add_argument('--slow_mbps', type=cli.above_0, default=5.0)
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from typing import Iterator, List, NamedTuple, Tuple

import torch

import config
from benchmarks.stream_throughput import SERVER_IP, in_namespace, namespace, shape
from hyper_repvgg import create_hyper_repvgg, deploy
from network.gammas import fused_gamma
from network.inputs import normalise
from network_utils import Address, Listener
from service.entries import Choice, Entry, ServedNetwork
from service.server import Service
from tier.part import cut_shape

BURST_BYTES = 8 << 10  # of the token bucket: a quarter of the largest frame, so that none passes at once
PAUSE_S = 10.0  # SWITCH_PAUSE_S here, so that both changes are seen soon
AT_ONCE = 10  # answers under a configuration that is new: what a first run costs shows in them
ENOUGH = 0.95
SLOW_CLIENT = '''
import sys, time
sys.stdout = open({out!r}, "w")
import client_worker
from tier import part
at_once = part.NetworkPart.__call__

def slower(*arguments, **named):
    start_s = time.thread_time()
    y = at_once(*arguments, **named)
    time.sleep({more} * (time.thread_time() - start_s))
    return y

part.NetworkPart.__call__ = slower
client_worker.main(sys.argv[1:])
'''
SOURCE = '''
import numpy as np

def frames(size):
    while True:
        yield np.random.randint(0, 256, (size, size, 3), dtype=np.uint8)
'''


class Line(NamedTuple):
    """A frame's answer."""
    time_s: float
    split: int


def entry_of(settings: config.Settings, slower: float) -> Entry:
    """The built-in network, unpruned, at every split, with times measured now on one thread; the client's are so many
    times longer."""
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    network, n = deploy(model), len(model.blocks)
    x = normalise(torch.zeros(1, 3, settings.INPUT_SIZE, settings.INPUT_SIZE, dtype=torch.uint8), settings.NORM_MEAN,
                  settings.NORM_STD)

    def ms(split: int) -> Tuple[float, float]:
        found: List[Tuple[float, float]] = []
        for _ in range(30):
            times = [time.perf_counter()]
            with torch.inference_mode():
                z = network.head(x, split)
                times.append(time.perf_counter())
                network.tail(z, split)
            times.append(time.perf_counter())
            found.append((times[1] - times[0], times[2] - times[1]))
        head_ms, tail_ms = (1000 * statistics.median(stage) for stage in zip(*found))
        return slower * head_ms, tail_ms

    def n_bytes(split: int) -> float:
        return 4.0 * math.prod(cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, split + 1))

    choices = tuple(Choice(split, 'float32', *ms(split), n_bytes(split)) for split in range(1, n))
    alpha = model.alpha_array()
    gamma = tuple(fused_gamma((True, True, row[2] == row[2])) for row in alpha)
    return Entry('built-in', ServedNetwork('built-in', alpha, {'client': gamma, 'server': gamma}), choices[0], choices)


@contextlib.contextmanager
def served(entry: Entry, settings: config.Settings, adapts: bool, folder: str, slower: float) -> Iterator[str]:
    """Within: a service and a client of it in the namespace, so many times slower; where its lines are."""
    listener = Listener(Address(SERVER_IP, 0), b'', 'service', ('camera',), cli.say, allow_open=True)
    service = Service(settings, {entry.name: entry}, 1, say=cli.say, adapts=adapts)
    service.start()
    threading.Thread(target=service.serve, args=(listener,), daemon=True).start()
    source, out = os.path.join(folder, 'source.py'), os.path.join(folder, 'out')
    with open(source, 'w', encoding='utf-8') as stream:
        stream.write(SOURCE)
    client = in_namespace('-c', SLOW_CLIENT.format(out=out, more=slower - 1), '--server_ip', SERVER_IP, '--port',
                          str(listener.address.port), '--source', source, '--cache_dir', os.path.join(folder, 'cache'))
    try:
        yield out
    finally:
        client.kill()
        client.wait()
        listener.close()
        service.close()


def lines_of(path: str) -> List[Line]:
    """What the client has printed."""
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as stream:
        found = [json.loads(line) for line in stream if line.endswith('\n')]
    return [Line(line['time_s'], line['configuration']['lambda']) for line in found if line.get('configuration')]


def rate_of(lines: List[Line], from_s: float, to_s: float) -> float:
    """Frames a second between two points in time."""
    return sum(from_s <= line.time_s < to_s for line in lines) / (to_s - from_s)


def fresh_fps(entry: Entry, split: int, settings: config.Settings, seconds: float, slower: float) -> float:
    """Frames a second of a service that is started with this split."""
    first = next(choice for choice in entry.choices if choice.split == split)
    with tempfile.TemporaryDirectory() as folder, served(replace(entry, first=first), settings, False, folder,
                                                       slower) as out:
        while len(lines_of(out)) < 20:
            time.sleep(0.2)
        start_s = time.time()
        time.sleep(seconds)
        return rate_of(lines_of(out), start_s, start_s + seconds)


def gaps(lines: List[Line], from_s: float, to_s: float) -> List[float]:
    """Times between answers, s, between two points in time."""
    times = [line.time_s for line in lines if from_s <= line.time_s <= to_s]
    return [after - before for before, after in zip(times, times[1:])]


def report(name: str, lines: List[Line], change_s: float, end_s: float, settings: config.Settings,
           ) -> Tuple[int, bool, float]:
    """Print what a change did; the split afterwards, whether switch and pause keep their bars, and the rate after
    it."""
    before = [line for line in lines if line.time_s < change_s][-1]
    later = [line for line in lines if change_s <= line.time_s < end_s and line.split != before.split]
    if not later:
        fps = rate_of(lines, change_s + 1, end_s)
        print(f'{name}: stays at λ {before.split}, {fps:.1f} frames a second')
        return before.split, True, fps
    at_s = later[0].time_s
    last_s = max(line.time_s for line in lines if line.time_s <= at_s and line.split == before.split)
    pause_s = max(gaps(lines, last_s, at_s + 1)[:AT_ONCE])
    usual = gaps(lines, last_s - 1, last_s)
    period_s = max(map(statistics.median, (usual, gaps(lines, at_s, at_s + 1))))
    fps = rate_of(lines, at_s + 1, end_s)
    print(f'{name}: λ {before.split} -> {later[0].split} after {at_s - change_s:.2f} s, longest pause '
          f'{1000 * pause_s:.0f} ms (median time between answers {1000 * period_s:.0f} ms, longest in the second '
          f'before {1000 * max(usual):.0f} ms), then {fps:.1f} frames a second')
    in_time = at_s - change_s <= settings.SWITCH_AFTER_S + 1
    return later[-1].split, in_time and pause_s <= max(period_s, *usual), fps


def main() -> None:
    """Run it and print the figures."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    settings = replace(config.load((), {}), SWITCH_PAUSE_S=PAUSE_S)
    entry, kept = entry_of(settings, args.slower), True
    with namespace(), tempfile.TemporaryDirectory() as folder:
        shape(args.fast_mbps, BURST_BYTES)
        with served(entry, settings, True, folder, args.slower) as out:
            while len(lines_of(out)) < 20:
                time.sleep(0.2)
            changes = []
            for mbps in (args.fast_mbps, args.slow_mbps, args.fast_mbps):
                shape(mbps, BURST_BYTES)
                changes.append(time.time())
                time.sleep(args.phase_s)
            changes.append(time.time())
            lines = lines_of(out)
        for k, mbps in ((1, args.slow_mbps), (2, args.fast_mbps)):
            split, keeps, fps = report(f'to {mbps:g} Mbit/s', lines, changes[k], changes[k + 1], settings)
            shape(mbps, BURST_BYTES)
            fresh = 0.0
            for other in {split, entry.first.split}:  # one that does not switch must not have been better off before
                reached = fresh_fps(entry, other, settings, args.phase_s / 2, args.slower)
                print(f'  started anew at λ {other}: {reached:.1f} frames a second')
                fresh = max(fresh, reached)
            print(f'  {fps / fresh:.3f} of the faster one')
            kept = kept and keeps and fps >= ENOUGH * fresh
    if not kept:
        sys.exit(cli.EXIT_FAILED)


if __name__ == '__main__':
    main()
