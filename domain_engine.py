"""Many domains at once: one after another here, in worker processes of this machine, or on a Ray cluster.

    python step_3_joint.py --domains 0-9 --jobs 4                    # processes, the default
    python step_3_joint.py --domains 0,3,7 --engine serial
    RAY_ADDRESS=head:6379 python step_3_joint.py --domains 0-9 --engine ray

The results are the same whatever the engine. A worker serves one domain after another, so PyTorch is imported once in
each. A domain that fails is one line, the others finish; with --if_changed the same command then does what is missing,
a search that was interrupted going on from its last round.
"""
from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence

import allocator
import cli
import json_files
from config import Settings, UserError

ENGINES = ('serial', 'processes', 'ray')
GRACE_S = 5.0  # a worker that is told to end is killed after this


@dataclass(frozen=True)
class Job:
    """One domain's work: `script`.run_domain(domain, settings, inputs, lut_file, **options)."""
    script: str  # a module, 'step_3_joint'
    domain: int
    settings: Settings
    inputs: str  # json_files.inputs_of what it writes
    lut_file: str
    options: Dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Do it, here. Raises whatever it raises."""
        importlib.import_module(self.script).run_domain(self.domain, self.settings, self.inputs, self.lut_file,
                                                         **self.options)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""
    domain: int
    printed: str = ''  # what it wrote to stdout
    error: str = ''  # one line; '': it is done
    bad_input: bool = False  # the error is something that the user can put right


Report = Callable[[Outcome], None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of scripts that do one domain or many."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--domain_id', type=int, metavar='D', help='one domain')
    which.add_argument('--domains', metavar='0-9', help='many, as 0-9 or 0,3,7')
    add_engine(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How many at a time, and where."""
    parser.add_argument('--jobs', type=int, metavar='N', help='domains at a time (default: what the cores allow)')
    parser.add_argument('--engine', choices=ENGINES, help='where they run (default with --domains: processes)')


def check_flags(args: argparse.Namespace) -> None:
    """Raise `UserError` for what argparse lets pass."""
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f'--jobs {args.jobs}: must be 1 or more')
    if args.engine == 'ray' and importlib.util.find_spec('ray') is None:
        raise UserError('--engine ray needs Ray, which is not installed here; get it with `pip install ray`')


def command_line(docstring: str, script: str, kind: str, argv: Optional[Sequence[str]]) -> int:
    """The whole command line of a script that makes the files of this kind and has no flags of its own."""
    parser = cli.parser(docstring)
    cli.add_if_changed(parser)
    add_flags(parser)
    cli.add_limits(parser)
    args, settings = cli.parse(parser, argv)
    return run(script, kind, args, settings)


def run(script: str, kind: str, args: argparse.Namespace, settings: Settings, lut_file: Optional[str] = None,
        options: Callable[[int], Dict[str, Any]] = lambda domain: {}) -> int:
    """Make the files of this kind for the domains that `args` names; the exit status.

    One domain without --engine runs in this process and raises what it raises. `options(domain)`: what else the
    script's `run_domain` is told.
    """
    check_flags(args)
    domains = cli.domains(str(args.domain_id) if args.domains is None else args.domains, settings)
    lut_file = lut_file or json_files.path_of('lut', settings)
    jobs = []
    for domain in domains:
        path, inputs = json_files.path_of(kind, settings, domain), json_files.inputs_of(kind, settings, domain,
                                                                                        lut=lut_file)
        if args.if_changed and json_files.is_current([path], inputs):
            cli.say(f'{path} is up to date')
        else:
            json_files.check_writable(path)
            jobs.append(Job(script, domain, settings, inputs, lut_file, options(domain)))
    if args.domains is None and args.engine is None:
        for job in jobs:
            job.run()
        return 0
    failures = run_jobs(jobs, args.engine or 'processes', args.jobs)
    if not failures:
        return 0
    names = ', '.join(str(failure.domain) for failure in sorted(failures, key=lambda failure: failure.domain))
    flag = '' if args.if_changed else ' with --if_changed'
    cli.say(f'{script}.py: error: domain {names} failed, {len(domains) - len(failures)} of {len(domains)} done; '
            f'the same command{flag} goes on with what is missing')
    return cli.EXIT_BAD_INPUT if all(failure.bad_input for failure in failures) else cli.EXIT_FAILED


def run_jobs(jobs: Sequence[Job], engine: str, at_once: Optional[int] = None) -> List[Outcome]:
    """Run jobs, saying how each ends; the outcomes of those that failed. `at_once`: None: what the cores allow."""
    failures: List[Outcome] = []

    def report(outcome: Outcome) -> None:
        print(outcome.printed, end='', flush=True)
        if outcome.error:
            cli.say(f'domain {outcome.domain}: error: {outcome.error}')
            failures.append(outcome)

    if engine == 'ray':
        import ray_engine
        ray_engine.run_on_ray(jobs, at_once, report)
    elif engine == 'processes' and jobs:
        settings, devices = jobs[0].settings, train_devices(jobs[0].settings)
        on_cores = max(1, settings.threads(0) // settings.threads(settings.TORCH_THREADS))
        run_in_processes(jobs, at_once or (on_cores if devices == ['cpu'] else len(devices)), report, devices)
    else:
        for job in jobs:
            report(attempt(job))
    return failures


def train_devices(settings: Settings) -> List[str]:
    """The devices that domains may train and search on, each serving one domain after another."""
    name = settings.TRAIN_DEVICE
    if name not in ('auto', 'cuda'):
        return [name]
    import torch
    count = torch.cuda.device_count()
    return [f'cuda:{index}' for index in range(count)] or ['cpu' if name == 'auto' else name]


def attempt(job: Job) -> Outcome:
    """Run a job here; its errors become one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            job.run()
    except UserError as error:
        return Outcome(job.domain, printed.getvalue(), str(error), bad_input=True)
    except Exception as error:  # a fault of the program must not cost the other domains their results
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        return Outcome(job.domain, printed.getvalue(), f'{text} ({os.path.basename(where.filename)}:{where.lineno})')
    return Outcome(job.domain, printed.getvalue())


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
    allocator.keep_freed_memory()
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
            code = self.process.exitcode
            ended = f'was killed by signal {-code}' if code < 0 else f'ended with status {code}'
            message = Outcome(self.job.domain, error=f'its worker process {ended}')
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
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


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


def print_domains(argv: Optional[Sequence[str]]) -> None:
    """Check settings and flags and print the chosen domains: run_pipeline.sh's first step."""
    parser = cli.parser('Check settings and flags, and print the chosen domains.')
    parser.add_argument('--domains', metavar='0-9')
    add_engine(parser)
    args, settings = cli.parse(parser, argv)
    check_flags(args)
    print(*cli.domains(args.domains, settings), sep=',')


if __name__ == '__main__':
    cli.run(print_domains)
