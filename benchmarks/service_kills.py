"""Server, workers and clients that are killed, and links that are cut, at random moments: no frame is lost or doubled.

    python -m benchmarks.service_kills --events 50
    python -m benchmarks.service_kills --events 50 --engine ray    # workers are actors of a Ray cluster on this machine

A service with two workers runs in processes of its own, with three clients of the built-in network behind a relay: one
streams frames of a file (20 a second, none may be dropped), one is live, and one is there to be killed. After random
pauses of 0 to 3 s one of these happens: a worker is ended by SIGKILL, the server and all its workers are and the server
is started again, the third client is and is started again, or the relay passes nothing for 15 s and says so to nobody.
Every event is over before the next begins (the server listens again, the link passes bytes); the next one may meet
clients that are about to come back, with --wait_served clients that are served.

Checked at the end: the file's client has a line for every frame, once, in order, with the class that the whole network
gives. So has the live one, but that a line may say that its frame was dropped. The lines of each third client up to its
end are in order and without gaps. Exit status 1 otherwise.

Claim (2-core Intel Xeon VM, PyTorch 2.14, some 20 other processes on both cores; 50 events: 16 workers, 12 servers,
12 clients, 10 cuts): 16,004 frames of the file and 16,087 of the live source, none lost, doubled or out of order, no
wrong class; 3,662 of the live ones dropped and said so. 14,769 and 11,673 of them were computed on the devices: on
that machine the next event came before most returns. --events 20 --wait_served --seed 1: 5,771 and 5,761 frames, none
lost, doubled or out of order, no wrong class; 1,375 of the live ones dropped and said so. --events 20 --wait_served
--engine ray (7 actors, 5 servers, 4 clients, 4 cuts): 6,767 and 6,785 frames, none lost, doubled or out of order, no
wrong class; 2,566 of the live ones dropped and said so.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--events', type=cli.count, default=50)
PARSER.add_argument('--cut_s', type=cli.above_0, default=15.0, help='how long a link is cut')
PARSER.add_argument('--wait_served', action='store_true', help='before an event: until the server answers the file')
PARSER.add_argument('--engine', choices=('processes', 'ray'), default='processes', help='what workers are')
PARSER.add_argument('--seed', type=int, default=0)
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import collections
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Tuple

import numpy as np
import torch

import config
from benchmarks.relay import Relay
from benchmarks.service_soak import family_of
from hyper_repvgg import create_hyper_repvgg, deploy
from network.inputs import normalise
from network_utils import Address, Listener
from service.entries import Choice, Entry, ServedNetwork
from service.server import Service
from service.workers import start_processes

SPLIT, POOL, FPS = 6, 64, 20
KINDS = {'worker': 16, 'server': 12, 'client': 12, 'cut': 10}  # how many of 50
MANY_S = 600.0  # more than a server or a client needs to start or to end, on a busy machine, too
SOURCE = '''
import os, time
import numpy as np

def frames(size):
    pool, start, i = np.load({pool!r}), time.monotonic(), 0
    while not os.path.exists({stop!r}):
        time.sleep(max(0.0, start + i / {fps} - time.monotonic()))
        yield pool[i % len(pool)]
        i += 1
'''


def entry_of(settings: config.Settings) -> Entry:
    """The built-in network, unpruned, fused."""
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    alpha = model.alpha_array()
    gamma = tuple(13 if row[2] == row[2] else 4 for row in alpha)
    return Entry('built-in', ServedNetwork('built-in', alpha, {'client': gamma, 'server': gamma}),
                 Choice(SPLIT, 'float32', 1.0, 1.0, 0.0))


def serve(settings: config.Settings, port: int, engine: str, ready: Any) -> None:
    """A process that serves it; `ready` is set when it listens."""
    os.setpgrp()  # killed with its workers
    listener = Listener(Address('127.0.0.1', port), b'', 'service', ('camera',), lambda line: None)
    start_workers = start_processes
    if engine == 'ray':
        ray_workers = cli.optional('service.ray_workers', 'ray', 'tails as Ray actors')
        ray_workers.joined(settings, 2)
        start_workers = ray_workers.start_actors
    service = Service(settings, {'built-in': entry_of(settings)}, 2, say=lambda line: None, start_workers=start_workers)
    service.start()
    ready.set()
    service.serve(listener)


class Scene:
    """Server, cable and clients."""

    def __init__(self, folder: str, settings: config.Settings, pool: np.ndarray, engine: str) -> None:
        self.folder, self.settings, self.engine = folder, settings, engine
        with socket.create_server(('127.0.0.1', 0)) as sock:
            self.port = sock.getsockname()[1]
        np.save(os.path.join(folder, 'pool.npy'), pool)
        source = SOURCE.format(pool=os.path.join(folder, 'pool.npy'), stop=os.path.join(folder, 'stop'), fps=FPS)
        with open(os.path.join(folder, 'source.py'), 'w', encoding='utf-8') as stream:
            stream.write(source)
        self.start_server()
        self.cable = Relay(('127.0.0.1', self.port))
        self.n_victims = 0
        self.file, self.live = self.client('file'), self.client('live', '--live')
        self.victim = self.client('victim 0')

    def start_server(self) -> None:
        """Return when it listens."""
        context = multiprocessing.get_context('spawn')
        ready = context.Event()
        self.server = context.Process(target=serve, args=(self.settings, self.port, self.engine, ready))
        self.server.start()
        if not ready.wait(MANY_S):
            raise RuntimeError('the server does not start')

    def client(self, name: str, *arguments: str) -> subprocess.Popen:
        """A client process; its lines go to a file of its name."""
        command = [sys.executable, os.path.join(config.ROOT, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                   str(self.cable.port), '--source', os.path.join(self.folder, 'source.py'), '--name', name,
                   '--cache_dir', os.path.join(self.folder, 'cache'), *arguments]
        with open(self.lines_at(name), 'wb') as out, open(self.lines_at(name) + '.log', 'wb') as log:
            return subprocess.Popen(command, stdout=out, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def lines_at(self, name: str) -> str:
        """Where a client's lines are."""
        return os.path.join(self.folder, name)

    def lines(self, name: str) -> List[Dict[str, Any]]:
        """What a client has printed, but for a last line that is not whole."""
        with open(self.lines_at(name), encoding='utf-8') as stream:
            return [json.loads(line) for line in stream if line.endswith('\n')]

    def wait_for_lines(self, name: str, count: int) -> None:
        """Return when a client has printed so many."""
        end_s = time.monotonic() + MANY_S
        while len(self.lines(name)) < count:
            if time.monotonic() > end_s:
                raise RuntimeError(f'{name} prints nothing')
            time.sleep(0.2)

    def wait_until_served(self) -> None:
        """Return when the newest line of the file's client is of a frame that the server answered."""
        end_s = time.monotonic() + MANY_S
        while self.lines('file')[-1]['local']:
            if time.monotonic() > end_s:
                raise RuntimeError('the client does not return')
            time.sleep(0.2)

    def happen(self, kind: str, cut_s: float) -> None:
        """One event, until it is over."""
        if kind == 'worker':
            name = {'processes': b'spawn_main', 'ray': b'ray::TailActor'}[self.engine]
            own = [pid for pid in family_of(self.server.pid)[1:] if name in command_of(pid)]
            if own:
                os.kill(random.choice(own), signal.SIGKILL)
        elif kind == 'server':
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.join()
            self.start_server()
        elif kind == 'client':
            self.victim.kill()
            self.victim.wait()
            self.n_victims += 1
            self.victim = self.client(f'victim {self.n_victims}')
        else:
            self.cable.is_cut = True
            time.sleep(cut_s)
            self.cable.is_cut = False

    def finish(self) -> None:
        """End the sources, and wait for the clients."""
        with open(os.path.join(self.folder, 'stop'), 'wb'):
            pass
        for client in (self.file, self.live, self.victim):
            if client.wait(MANY_S) != 0:
                raise RuntimeError('a client failed')
        self.close()

    def close(self) -> None:
        """End what runs."""
        for client in (self.file, self.live, self.victim):
            client.kill()
        if self.server.is_alive():
            os.killpg(self.server.pid, signal.SIGKILL)


def command_of(pid: int) -> bytes:
    """Of a process; b'' when it is gone."""
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as stream:
            return stream.read()
    except OSError:
        return b''


def classes_of(pool: np.ndarray, settings: config.Settings) -> List[int]:
    """What the whole network says to each of these frames."""
    network = deploy(create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES))
    images = torch.from_numpy(pool).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network(normalise(images, settings.NORM_MEAN, settings.NORM_STD)).argmax(dim=1).tolist()


def wrong_in(lines: List[Dict[str, Any]], classes: List[int], drops: bool) -> Tuple[int, int]:
    """(frames that are lost, doubled or out of order, classes that are wrong), for all lines of a client."""
    order = sum(line['frame'] != k for k, line in enumerate(lines))
    answered = [line for line in lines if not (drops and 'dropped' in line)]
    return order, sum(line.get('class') != classes[line['frame'] % len(classes)] for line in answered)


def main() -> None:
    """Run it and print what was found."""
    args, settings = PARSER.parse_args(), config.load((), {})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(cli.EXIT_FAILED))  # the processes are ended
    torch.set_num_threads(1)
    random.seed(args.seed)
    size = settings.INPUT_SIZE
    pool = np.random.default_rng(args.seed).integers(0, 256, (POOL, size, size, 3), dtype=np.uint8)
    classes = classes_of(pool, settings)
    kinds = [kind for kind, count in KINDS.items() for _ in range(-(-count * args.events // sum(KINDS.values())))]
    random.shuffle(kinds)
    kinds = kinds[:args.events]
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder, settings, pool, args.engine)
        try:
            scene.wait_for_lines('file', 20)
            scene.wait_for_lines('live', 20)
            for number, kind in enumerate(kinds):
                if args.wait_served:
                    scene.wait_until_served()
                time.sleep(random.uniform(0, 3))
                print(f'{number + 1:3}: {kind}', flush=True)
                scene.happen(kind, args.cut_s)
            scene.finish()
        finally:
            scene.close()
        failed = False
        print(', '.join(f'{count} times {kind}' for kind, count in sorted(collections.Counter(kinds).items())))
        for name in ['file', 'live', *(f'victim {k}' for k in range(scene.n_victims + 1))]:
            lines = scene.lines(name)
            order, wrong = wrong_in(lines, classes, name == 'live')
            failed = failed or order + wrong > 0
            if not name.startswith('victim') or order + wrong:
                print(f"{name}: {len(lines)} frames, lost, doubled or out of order {order}, wrong classes {wrong}, "
                      f"computed on the device {sum(line.get('local', False) for line in lines)}, dropped and said so "
                      f"{sum('dropped' in line for line in lines)}")
        print(f'{scene.n_victims + 1} clients that were killed or ended: their lines are '
              f"{'wrong' if failed else 'in order and without gaps'}")
    if failed:
        sys.exit(cli.EXIT_FAILED)


if __name__ == '__main__':
    main()
