"""Workers on a Ray cluster: tails run on the machines behind this one, each worker an actor.

    pip install -r requirements-ray.txt
    python serve_split.py --engine ray                           # one machine
    RAY_ADDRESS=head:6379 python serve_split.py --engine ray     # the cluster that `ray start` made there

Code, networks and base weights travel to the nodes once (engines/ray_cluster.py says what these need); a frame travels
as the bytes of its slot. Ray restarts and repeats nothing by itself: an actor that ends, alone or with its node, is
replaced by the front like any worker, on whatever node has room.
"""
from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import ray
import torch

import cli
from config import Settings, UserError
from engines.ray_cluster import start_ray
from hyper_repvgg import HyperRepVGG
from service.arena import Arena, Layout, tensors_in
from service.entries import ServedNetwork
from service.tails import Answer, TailKey, Tails, base_model
from service.workers import Request, TailWorker, WorkerDied
from tier.devices import device_of

REASON_CHARACTERS = 200  # of what Ray says, which is long


def joined(settings: Settings, workers: Optional[int]) -> int:
    """Join the cluster, or start one on this machine; how many workers there will be: as many as are asked for (None:
    as it has room for). Raises `UserError`, also where there is no room."""
    start_ray()
    room = sum(room_on(node['Resources'], settings) for node in ray.nodes() if node['Alive'])
    if room < (workers or 1):
        needs = ', '.join(f'{count} {name}' for name, count in needs_of(settings).items())
        raise UserError(f'the Ray cluster has room for {room} worker(s) of {needs} each, not for {workers or 1}')
    return workers or room


def computes_on(settings: Settings) -> str:
    """'cpu' or 'cuda': the GPU that Ray gives a worker, whatever its number. 'auto' is what it is on this machine."""
    return 'cuda' if settings.SERVER_DEVICE.startswith('cuda') else device_of(settings.SERVER_DEVICE).type


def needs_of(settings: Settings) -> Mapping[str, int]:
    """What a worker reserves of its node: a CPU for each of its threads, and a GPU where it computes on one."""
    return {'CPU': max(1, settings.SERVER_THREADS), **({'GPU': 1} if computes_on(settings) == 'cuda' else {})}


def room_on(resources: Mapping[str, float], settings: Settings) -> int:
    """How many workers a node has room for."""
    return min(int(resources.get(name, 0) // count) for name, count in needs_of(settings).items())


def start_actors(settings: Settings, networks: Mapping[str, ServedNetwork], arena: Arena, workers: int,
                 ) -> List[TailWorker]:
    """Workers on the cluster, on as many nodes as there are."""
    needs, settings_there = needs_of(settings), replace(settings, SERVER_DEVICE=computes_on(settings))
    remote = ray.remote(num_cpus=needs['CPU'], num_gpus=needs.get('GPU', 0), max_restarts=0, max_task_retries=0,
                        scheduling_strategy='SPREAD')(TailActor)
    given = ray.put(base_model(settings)), ray.put(networks)
    start = partial(ActorCarrier, arena, lambda: remote.remote(settings_there, *given, needs['CPU']))
    return [TailWorker(number, start) for number in range(workers)]


class ActorCarrier:
    """An actor as the front sees it: a `Carrier`."""

    def __init__(self, arena: Arena, start: Callable[[], ray.actor.ActorHandle], number: int) -> None:
        self.pid, self._number, self._arena, self._actor = 0, number, arena, start()
        self._ready = self._actor.process.remote()

    def wait_until_ready(self) -> None:
        """Return when a node had room for it and it has loaded the network. Raises `WorkerDied`."""
        self.pid = self._result(self._ready)

    def ask(self, request: Request) -> Answer:
        """Run a batch. Raises `WorkerDied`."""
        frames = [(self._arena.used(slot, layout), layout) for slot, layout in request.frames]  # copied as they leave
        return self._result(self._actor.answer.remote(request.key, frames))

    def _result(self, reference: ray.ObjectRef) -> Any:
        """What an actor returns. One that Ray cannot reach, or that failed, is not asked again: it is ended."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            self.end()
            reason = ' '.join(str(error).split())[-REASON_CHARACTERS:]
            raise WorkerDied(f'worker {self._number}, a Ray actor, ended ({type(error).__name__}: {reason})') from None

    def end(self) -> None:
        """End it at once; who waits for it gets `WorkerDied`."""
        ray.kill(self._actor)

    def join(self) -> None:
        """Nothing is to be waited for: Ray ends it."""


# --- in the cluster ----------------------------------------------------------------------------------------------

class TailActor:
    """A worker, in a process of some node."""

    def __init__(self, settings: Settings, base: HyperRepVGG, networks: Mapping[str, ServedNetwork], threads: int,
                 ) -> None:
        cli.keep_freed_memory()
        torch.set_num_threads(threads)
        self._tails = Tails(settings, networks, base)

    def process(self) -> int:
        """Its process id, as soon as it is ready."""
        return os.getpid()

    def answer(self, key: TailKey, frames: Sequence[Tuple[np.ndarray, Layout]]) -> Answer:
        """Run a batch: of each frame the bytes of its slot, read-only in Ray's memory, and what lies there."""
        return self._tails.answer(key, [tensors_in(data.copy(), layout) for data, layout in frames])
