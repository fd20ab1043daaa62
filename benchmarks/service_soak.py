"""Many cameras on one service for minutes: nothing lost, doubled or out of order, memory flat, rates as promised.

    python -m benchmarks.service_soak --clients 32 --minutes 10

Each client is a process with one PyTorch thread and a paced source (`--fps` frames a second, promised by the service)
of the built-in network at one of four splits. Every client's lines are checked: each frame once, in order. Memory is
what the server's processes hold of their own, at the end against that after the first minute (or the first quarter of a
shorter run). Exit status 1 when a frame is lost, doubled or out of order, memory grew by more than 5 %, or a client's
rate is more than 10 % from what it was promised.

Claim (2-core Intel Xeon VM, PyTorch 2.14; --clients 32 --minutes 10 --fps 1.5): 28,800 frames, none lost, doubled, out
of order or computed without the server; rates 1.000 of what was promised; memory +0.0 % at the end; latency
3.9 ms (median), 7.7 ms (99 %). --clients 16 --minutes 1 --fps 1.5 while some 25 other processes wanted the two cores:
1,440 frames, none lost, doubled, out of order or computed without the server; rates 0.980 to 1.018; latency 5.4 ms
(median), 798 ms (99 %).
"""
from __future__ import annotations

import glob
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, NamedTuple, Tuple

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--clients', type=int, default=32)
PARSER.add_argument('--minutes', type=cli.above_0, default=10.0)
PARSER.add_argument('--fps', type=cli.above_0, default=4.0, help='frames a second of each client')
PARSER.add_argument('--workers', type=int, default=1, help='of the service')
PARSER.add_argument('--kill_workers', action='store_true', help='SIGKILL a worker every 15 s')
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch
import config
from hyper_repvgg import create_hyper_repvgg
from network.gammas import fused_gamma
from network_utils import Address, Listener
from service.entries import Choice, Entry, ServedNetwork
from service.server import Service

SPLITS = (2, 4, 6, 8)
WIRES = ('float32', 'uint8', 'float16', 'uint8+zlib')
TAIL_MS = 2.0  # of a whole network on a worker, about: what promises are counted by
GROWTH, RATE_ERROR = 0.05, 0.10
KILL_S = 15.0  # between two workers that are killed: one needs seconds to start
SOURCE = '''
import time
import numpy as np

def frames(size):
    start, rng = time.monotonic(), np.random.default_rng({seed})
    for i in range({count}):
        time.sleep(max(0.0, start + i / {fps} - time.monotonic()))
        yield rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
'''


def entries() -> List[Entry]:
    """The built-in network, unpruned, at four splits."""
    model = create_hyper_repvgg(None, config.Settings.MODEL_NAME)
    alpha = model.alpha_array()
    gamma = tuple(fused_gamma((True, True, row[2] == row[2])) for row in alpha)
    network = ServedNetwork('built-in', alpha, {'client': gamma, 'server': gamma})
    return [Entry(f'split_{split}', network, Choice(split, wire, 1.0, TAIL_MS, 0.0)) for split, wire in
            zip(SPLITS, WIRES)]


def serve(settings: config.Settings, workers: int, ready: Any) -> None:
    """A process that serves them; the port goes to `ready`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = Listener(Address('127.0.0.1', 0), b'', 'service', ('camera',), cli.say)
    service = Service(settings, {entry.name: entry for entry in entries()}, workers, say=lambda line: None)
    try:
        service.start()
        ready.send(listener.address.port)
        threading.Thread(target=service.serve, args=(listener,), daemon=True).start()
        threading.Event().wait()
    finally:
        service.close()


def family_of(pid: int) -> List[int]:
    """A process and those that it started, whichever of its threads did."""
    children: List[int] = []
    for path in glob.glob(f'/proc/{pid}/task/*/children'):
        with open(path, encoding='ascii') as stream:
            children += [int(text) for text in stream.read().split()]
    return [pid, *(found for child in children for found in family_of(child))]


def memory_mb(pids: List[int]) -> Tuple[float, float]:
    """Memory of processes in MB of 2^20 bytes: what is their own, in all, and the most that one of them shares. (Code
    is left out: other programs map it, too, and it does not grow.)"""
    own_kb, shared_kb = 0, 0
    for member in pids:
        with open(f'/proc/{member}/status', encoding='ascii') as stream:
            found = {line.split(':')[0]: line.split()[1] for line in stream if line.startswith('Rss')}
        own_kb += int(found['RssAnon'])
        shared_kb = max(shared_kb, int(found['RssShmem']))
    return own_kb / 1024, shared_kb / 1024


def kill_a_worker(server: int) -> None:
    """SIGKILL a worker of the service: that of its processes with most memory (another one only keeps names)."""
    workers = family_of(server)[1:]
    if workers:
        os.kill(max(workers, key=lambda pid: memory_mb([pid])[0]), signal.SIGKILL)


def samples_while(clients: List[subprocess.Popen], server: int, outputs: List[str], every_s: float, kills: bool,
                  ) -> List[Tuple[float, float]]:
    """(time in s, MB) of the server while all clients are served; returns when all have ended. With `kills` a worker is
    ended every KILL_S."""
    found: List[Tuple[float, float]] = []
    start_s = next_kill_s = time.monotonic()
    while any(client.poll() is None for client in clients):
        time.sleep(every_s)
        used_mb = sum(memory_mb(family_of(server)))
        served = all(map(os.path.getsize, outputs)) and all(client.poll() is None for client in clients)
        if served and kills and time.monotonic() >= next_kill_s:
            kill_a_worker(server)
            next_kill_s = time.monotonic() + KILL_S
        if served:
            found.append((time.monotonic(), used_mb))
        remark = '' if served else ' (not all clients are served)'
        print(f'{time.monotonic() - start_s:6.0f} s: {used_mb:.1f} MB{remark}', flush=True)
    return found


def start_client(number: int, port: int, folder: str, fps: float, count: int) -> subprocess.Popen:
    """A client process with a paced source; its lines go to `folder`."""
    source = os.path.join(folder, f'{number}.py')
    with open(source, 'w', encoding='utf-8') as stream:
        stream.write(SOURCE.format(seed=number, count=count, fps=fps))
    command = [sys.executable, os.path.join(config.ROOT, 'client_worker.py'), '--port', str(port), '--source', source,
               '--entry', f'split_{SPLITS[number % len(SPLITS)]}', '--fps', str(fps), '--name', str(number),
               '--cache_dir', os.path.join(folder, 'cache')]
    with open(os.path.join(folder, f'{number}.out'), 'wb') as out, open(f'{source}.log', 'wb') as log:
        return subprocess.Popen(command, stdout=out, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})


class Checked(NamedTuple):
    """A client's lines."""
    n_lines: int
    wrong: int  # frames that are lost or doubled
    disorder: int  # lines that stand behind a later frame's
    alone: int  # frames that were dropped, or answered without the server
    fps: float  # from the first line to the last
    latencies_ms: List[float]


def check(path: str) -> Checked:
    """Read a client's lines."""
    with open(path, encoding='utf-8') as stream:
        lines: List[Dict[str, Any]] = [json.loads(line) for line in stream]
    numbers = [line['frame'] for line in lines]
    wrong = len(numbers) - len(set(numbers)) + len(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    passed_s = lines[-1]['time_s'] - lines[0]['time_s'] if len(lines) > 1 else math.inf
    return Checked(len(lines), wrong, sum(after < before for before, after in zip(numbers, numbers[1:])),
                   sum(line.get('local', True) for line in lines), (len(lines) - 1) / passed_s,
                   [line['latency_ms'] for line in lines if 'latency_ms' in line])


def main() -> None:
    """Run it and print a table."""
    args, settings = cli.parse(PARSER, None)
    seconds, context = 60 * args.minutes, multiprocessing.get_context('spawn')
    count = int(seconds * args.fps)
    with tempfile.TemporaryDirectory() as folder:
        here, there = context.Pipe()
        server = context.Process(target=serve, args=(settings, args.workers, there))
        server.start()
        port = here.recv()
        clients = [start_client(number, port, folder, args.fps, count) for number in range(args.clients)]
        outputs = [os.path.join(folder, f'{number}.out') for number in range(args.clients)]
        memory = samples_while(clients, server.pid, outputs, min(10.0, seconds / 20), args.kill_workers)
        server.terminate()
        server.join()
        for number, client in enumerate(clients):
            if client.returncode:
                with open(os.path.join(folder, f'{number}.py.log'), encoding='utf-8') as stream:
                    cli.say(f'client {number}: {stream.read()[-300:]}')
        found = list(map(check, outputs))
    if not memory:
        sys.exit('not all clients were served at the same time')
    start_s = memory[0][0] + min(60.0, seconds / 4)
    counted = [mb for at_s, mb in memory if at_s >= start_s]
    first, growth = counted[0], counted[-1] / counted[0] - 1
    n_lines, wrong, disorder, alone = (sum(one[k] for one in found) for k in range(4))
    latencies, rates = sorted(ms for one in found for ms in one.latencies_ms), [one.fps / args.fps for one in found]
    missing = args.clients * count - n_lines
    failed = sum(client.returncode != 0 for client in clients)
    print(f'{args.clients} clients, {args.minutes:g} minutes, {args.fps:g} frames a second each: {n_lines} lines')
    print(f'lost or doubled {wrong + missing}, out of order {disorder}, dropped or without the server {alone}, clients '
          f'that failed {failed}')
    print(f'latency: median {statistics.median(latencies):.1f} ms, 99 % {latencies[int(0.99 * len(latencies))]:.1f} ms')
    print(f'rates: {min(rates):.3f} to {max(rates):.3f} of what was promised')
    print(f'memory: {first:.1f} MB, {100 * growth:+.1f} % at the end')
    if wrong + missing or disorder or failed or growth > GROWTH or max(abs(rate - 1) for rate in rates) > RATE_ERROR:
        sys.exit(cli.EXIT_FAILED)


if __name__ == '__main__':
    main()
