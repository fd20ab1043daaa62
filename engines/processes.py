"""Runs jobs in worker processes of this machine."""
from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Callable, Deque, List, Optional, Sequence

import cli
from config import Settings
from engines.jobs import Job, Outcome, Report, attempt

GRACE_S = 5.0  # a worker that is told to end is killed after this


def train_devices(settings: Settings) -> List[str]:
    """The devices that domains may train and search on, each serving one domain after another."""
    name = settings.TRAIN_DEVICE
    if name not in ('auto', 'cuda'):
        return [name]
    import torch  # slow, and not needed for most devices or for --help
    count = torch.cuda.device_count()
    return [f'cuda:{index}' for index in range(count)] or ['cpu' if name == 'auto' else name]


# --- worker processes ------------------------------------------------------------------------------------

class Lines(io.TextIOBase):
    """A text stream that hands on whole lines, so that those of several workers do not mix; no terminal, so no bars."""

    def __init__(self, hand_on: Callable[[str], None]) -> None:
        self._hand_on, self._rest = hand_on, ''

    def write(self, text: str) -> int:
        """Keep what follows the last newline for later."""
        *whole, self._rest = (self._rest + text).split('\n')
        for line in whole:
            self._hand_on(line)
        return len(text)


def serve(connection: Connection) -> None:
    """A worker process: jobs come in, lines of progress and outcomes go out, until None comes or the driver is gone."""
    cli.keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception: half-written files are removed
    threading.Thread(target=_end_with_driver, daemon=True).start()
    sys.stderr = Lines(connection.send)
    try:
        for job in iter(connection.recv, None):
            connection.send(attempt(job))
    except (EOFError, OSError):
        pass  # the driver is gone


def _end_with_driver() -> None:
    """No orphan, even when the driver was killed."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def how_it_ended(process: BaseProcess) -> str:
    """What a process that is gone died of, as the end of a sentence."""
    code = process.exitcode
    return f'was killed by signal {-code}' if code is not None and code < 0 else f'ended with status {code}'


def join_or_kill(process: BaseProcess) -> None:
    """Wait until a process that was told to end has ended; it is killed when that takes too long."""
    process.join(GRACE_S)
    if process.is_alive():
        process.kill()
        process.join()


class Worker:
    """A worker process, the device that it trains on, and the job that it has."""

    def __init__(self, device: str) -> None:
        self.device = device
        context = multiprocessing.get_context('spawn')  # nothing inherited: the same state as in a process of its own
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,))
        self.process.start()
        theirs.close()
        self.job: Optional[Job] = None

    def give(self, job: Job) -> None:
        """Hand over a job. A worker that died meanwhile shows when its outcome is waited for."""
        self.job = replace(job, settings=replace(job.settings, TRAIN_DEVICE=self.device))
        with contextlib.suppress(OSError):
            self.connection.send(self.job)

    def outcome(self) -> Optional[Outcome]:
        """Take what it sent: a line is said; an outcome is returned, also for a worker that died."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            message = Outcome(self.job.domain, error=f'its worker process {how_it_ended(self.process)}')
        if isinstance(message, Outcome):
            self.job = None
            return message
        cli.say(message)
        return None

    def end(self) -> None:
        """Ask it to end: at once when it is at work."""
        if self.job is not None:
            self.process.terminate()
        else:
            with contextlib.suppress(OSError):
                self.connection.send(None)

    def join(self) -> None:
        """Wait until it has ended; it is killed when that takes too long."""
        join_or_kill(self.process)


def run_in_processes(jobs: Sequence[Job], at_once: int, report: Report, devices: Sequence[str]) -> None:
    """Run jobs in `at_once` worker processes, which take turns on `devices`. A worker that dies costs its domain and is
    replaced."""
    waiting: Deque[Job] = deque(jobs)
    workers: List[Worker] = []
    try:
        for index in range(min(at_once, len(jobs))):
            workers.append(Worker(devices[index % len(devices)]))
            workers[-1].give(waiting.popleft())
        while any(worker.job for worker in workers):
            ready = wait([worker.connection for worker in workers if worker.job])
            for index, worker in enumerate(workers):
                outcome = worker.outcome() if worker.connection in ready else None
                if outcome is not None:
                    report(outcome)
                    if waiting:
                        if not worker.process.is_alive():
                            workers[index] = worker = Worker(worker.device)
                        worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()
