"""A service in this process and client processes beside it: random networks, random images, what they must answer."""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Event
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from client_process import SETTINGS, batch, random_channels, random_model
from PIL import Image

import config
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from network.inputs import normalise
from network_utils import Address, Listener
from service.entries import Choice, Entry, ServedNetwork
from search.wire_loss import through_wire
from service.server import Service
from service.shift import References
from service.workers import StartWorkers, start_processes

N = 11


def weights_in(folder, seed: int) -> HyperRepVGG:
    """A random network, its weights in a file of this folder."""
    model = random_model(seed)
    torch.save({name: value for name, value in model.state_dict().items() if not name.endswith('alpha')},
               os.path.join(folder, 'weights.pt'))
    return model


def settings_in(folder) -> config.Settings:
    """Settings of a service with the weights of `weights_in`."""
    return replace(SETTINGS, WEIGHT_PATH_SERVER=os.path.join(folder, 'weights.pt'), SERVER_DEVICE='cpu')


def random_alpha(model: HyperRepVGG, seed: int) -> np.ndarray:
    """Another α of this network, some branches pruned."""
    rng = np.random.default_rng(seed)
    alpha = model.alpha_array()
    for row in alpha:
        present = np.flatnonzero(~np.isnan(row))
        row[present] = rng.uniform(0.5, 1.5, len(present))
        row[rng.permutation(present)[:rng.integers(0, len(present))]] = 0
    return alpha


def entry_of(name: str, alpha: np.ndarray, split: int, wire: str = 'float32', fps: Optional[float] = None,
             server_ms: float = 1.0) -> Entry:
    """An entry of this α, fused, that can change to any split."""
    gamma = tuple(fused_gamma(tuple(row)) for row in surviving_branches(alpha))
    channels = random_channels(split, split, wire)
    choices = {each: Choice(each, wire, 1.0 + each, server_ms * (N - each) / (N - split), 1000.0)
               for each in range(N + 1) if channels is None or each in (0, split, N)}  # channels are those of one split
    return Entry(name, ServedNetwork(name, alpha, {'client': gamma, 'server': gamma}, channels=channels),
                 choices[split], tuple(choices.values()), fps)


def expected(model: HyperRepVGG, entry: Entry, images: torch.Tensor, choice: Optional[Choice] = None) -> List[int]:
    """The classes of the whole network, with what the wire format loses at the split."""
    choice = entry.first if choice is None else choice
    served = entry.networks[choice.network]
    model.set_alpha_array(served.alpha)
    network = through_wire(deploy(model), choice.split, choice.wire, served.channels_at(choice.split, choice.wire))
    with torch.inference_mode():
        return [int(network(normalise(image[None], SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax())
                for image in images]


def images_in(folder, seed: int, count: int) -> torch.Tensor:
    """Random images, saved as PNG files in this folder."""
    os.makedirs(folder, exist_ok=True)
    images = batch(seed, count)[0]
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(os.path.join(folder, f'{i:04}.png'))
    return images


class Running:
    """A service that runs, and what it said."""

    def __init__(self, service: Service, listener: Listener, said: List[str]) -> None:
        self.service, self.port, self.said = service, listener.address.port, said


@contextmanager
def running(folder, entries: Sequence[Entry], workers: int = 1, port: int = 0, token: bytes = b'',
            references: Optional[References] = None, tls: Optional[ssl.SSLContext] = None,
            start_workers: StartWorkers = start_processes, **changed) -> Iterator[Running]:
    """Serve these entries from this process, under settings with some changed."""
    said: List[str] = []
    listener = Listener(Address('127.0.0.1', port), token, 'service', ('camera',), said.append, tls=tls)
    settings = replace(settings_in(folder), **changed)
    service = Service(settings, {entry.name: entry for entry in entries}, workers, say=said.append,
                      references=references, start_workers=start_workers)
    thread = threading.Thread(target=service.serve, args=(listener,), daemon=True)
    try:
        service.start()
        thread.start()
        yield Running(service, listener, said)
    finally:
        listener.close()
        service.close()
        thread.join()


class CameraProcess:
    """A client process; its lines go to a file."""

    def __init__(self, port: int, folder, source, entry: str, *arguments: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self.out, self.log = (os.path.join(folder, name) for name in ('out', 'log'))
        python = os.environ.get('CLIENT_PYTHON', sys.executable)
        command = [python, os.path.join(config.ROOT, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                   str(port), '--cache_dir', os.path.join(folder, 'cache'), '--source', str(source), '--entry', entry,
                   '--name', os.path.basename(folder), *arguments]
        with open(self.out, 'wb') as out, open(self.log, 'wb') as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log, cwd=config.ROOT,
                                            env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def lines(self) -> List[Dict]:
        """What it printed so far."""
        with open(self.out, encoding='utf-8') as stream:
            return [json.loads(line) for line in stream if line.endswith('\n')]

    def said(self) -> str:
        with open(self.log, encoding='utf-8') as stream:
            return stream.read()

    def finish(self, timeout_s: float = 60.0) -> Tuple[int, List[Dict]]:
        """Its status and its lines, when it has ended."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f'still running after {len(self.lines())} lines: {self.said()}') from None
        return status, self.lines()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def feed(client: CameraProcess, images: torch.Tensor) -> None:
    """Write frames to a client's stdin."""
    client.process.stdin.write(b''.join(image.permute(1, 2, 0).numpy().tobytes() for image in images))
    client.process.stdin.flush()


def wait_until(condition, timeout_s: float = 60.0) -> None:
    """Wait for something that happens soon; fail when it does not."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.01)


def _serve(folder, entries: Sequence[Entry], port: int, ready: Event) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running(folder, entries, port=port):
        ready.set()
        threading.Event().wait()


def serve_forever(folder, entries: Sequence[Entry], port: int) -> multiprocessing.Process:
    """A process that serves these entries, when it is ready."""
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    process = context.Process(target=_serve, args=(folder, entries, port, ready))
    process.start()
    assert ready.wait(60)
    return process
