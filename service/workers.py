"""Workers as the front sees them: each runs one batch after the other, in a process of its own.

The process is this machine's (here), or a Ray actor's somewhere in a cluster (ray_workers); `TailWorker` does not know
which. A process of this machine gets batches through a pipe as slot numbers of the shared memory. A worker that dies is
replaced, and its batch is asked again: an answer exists only once it has come back.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from functools import partial
from multiprocessing.connection import Connection
from typing import Callable, List, Mapping, NamedTuple, Protocol, Tuple

import torch

import cli
import config
from config import Settings
from engines.processes import GRACE_S, how_it_ended, join_or_kill
from service.arena import Arena, Layout
from service.entries import ServedNetwork
from service.figures import BusyTime
from service.tails import Answer, TailKey, Tails, base_model
from tier.devices import device_of

RETRY_S = 1.0  # after a worker that died before it was ready


class Request(NamedTuple):
    """A batch, as the front hands it out."""
    key: TailKey
    frames: List[Tuple[int, Layout]]  # slots and what lies in them


class WorkerDied(Exception):
    """A worker's process ended; how."""


class Carrier(Protocol):
    """What runs a worker, from when it is started until it ends. It is started when it is made."""
    pid: int  # of its process, when it is ready

    def wait_until_ready(self) -> None:
        """Return when it has loaded the network. Raises `WorkerDied`."""

    def ask(self, request: Request) -> Answer:
        """Run a batch. Raises `WorkerDied`."""

    def end(self) -> None:
        """Tell it to end, from any thread; who waits for it gets `WorkerDied`, or the last answer."""

    def join(self) -> None:
        """Wait until it has ended."""


class TailWorker:
    """One of the workers, which has another carrier when one died."""

    def __init__(self, number: int, start: Callable[[int], Carrier]) -> None:
        """A carrier is started; `wait_until_ready` waits for it."""
        self.number, self.restarts, self.busy = number, 0, BusyTime()
        self._start, self._ended, self._asking = start, threading.Event(), threading.Lock()
        self.carrier = start(number)

    def wait_until_ready(self) -> None:
        """Return when it has loaded the network. Raises `WorkerDied`."""
        self.carrier.wait_until_ready()

    def ask(self, request: Request) -> Answer:
        """Run a batch; one thread after the other. Raises `WorkerDied`; the worker is of use again after `replace`."""
        with self._asking:
            return self.carrier.ask(request)

    def replace(self, say: Callable[[str], None]) -> None:
        """Start another carrier until one is ready, or `end` is called."""
        with self._asking:
            while not self._ended.is_set():
                self.restarts += 1
                self.carrier.join()
                self.carrier = self._start(self.number)
                if self._ended.is_set():  # `end` may have told the one before
                    self.carrier.end()
                try:
                    return self.carrier.wait_until_ready()
                except WorkerDied as error:
                    if not self._ended.wait(RETRY_S):
                        say(f'{error} before it was ready; another one is started')

    def end(self) -> None:
        """Tell it to end, from any thread."""
        self._ended.set()
        self.carrier.end()

    def join(self) -> None:
        """Wait until it has ended."""
        self.carrier.join()


StartWorkers = Callable[[Settings, Mapping[str, ServedNetwork], Arena, int], List[TailWorker]]  # so many of them


# --- processes of this machine ---------------------------------------------------------------------------------

def workers_of(settings: Settings) -> int:
    """How many workers pay: one a core, or one for a GPU, which runs one batch after the other anyway."""
    return 1 if device_of(settings.SERVER_DEVICE).type == 'cuda' else config.cores()


def start_processes(settings: Settings, networks: Mapping[str, ServedNetwork], arena: Arena, workers: int,
                    ) -> List[TailWorker]:
    """Workers of this machine, which divide its cores among them."""
    threads = min(settings.threads(settings.SERVER_THREADS), max(1, config.cores() // workers))
    start = partial(WorkerProcess, arena, settings, networks, threads)
    return [TailWorker(number, start) for number in range(workers)]


class WorkerProcess:
    """A worker process of this machine: a `Carrier`."""

    def __init__(self, arena: Arena, settings: Settings, networks: Mapping[str, ServedNetwork], threads: int,
                 number: int) -> None:
        """`threads`: PyTorch's, in this worker."""
        self._number = number
        context = multiprocessing.get_context('spawn')  # nothing inherited: PyTorch's threads do not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, arena, settings, networks, threads), daemon=True,
                                        name=f'tail worker {number}')
        self._process.start()
        self.pid = int(self._process.pid or 0)
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when it has loaded the network. Raises `WorkerDied`."""
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None

    def ask(self, request: Request) -> Answer:
        """Run a batch. Raises `WorkerDied`."""
        try:
            self._pipe.send(request)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> WorkerDied:
        self._process.join(GRACE_S)
        return WorkerDied(f'worker {self._number} {how_it_ended(self._process)}')

    def end(self) -> None:
        """Tell it to end, from any thread."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def join(self) -> None:
        """Wait until it has ended; it is killed when that takes too long."""
        join_or_kill(self._process)


def work(connection: Connection, arena: Arena, settings: Settings, networks: Mapping[str, ServedNetwork], threads: int,
         ) -> None:
    """In the process: batches come in, answers go out, until None comes or the front is gone."""
    cli.keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the front, which ends its workers
    torch.set_num_threads(threads)
    tails = Tails(settings, networks, base_model(settings))
    with contextlib.suppress(EOFError, OSError):  # the front is gone
        connection.send(None)  # ready
        for request in iter(connection.recv, None):
            connection.send(tails.answer(request.key, [arena.read(*frame) for frame in request.frames]))
