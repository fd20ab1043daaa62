"""Runs domains on a Ray cluster: code, input files and images travel to its nodes, result files travel back.

    pip install ray
    python step_3_joint.py --domains 0-9 --engine ray                        # one machine
    RAY_ADDRESS=head:6379 python step_3_joint.py --domains 0-9 --engine ray  # the cluster that `ray start` made there

No shared file system is needed, and no copy of this repository or of the dataset on the other nodes: Ray sends them the
code (its `runtime_env`). They need what requirements.txt names, and the driver's Python and Ray (a rule of Ray). A
cluster may ask for Ray's token: set RAY_AUTH_TOKEN. A node keeps the files of a domain in a temporary folder while it
works. Every file that a domain writes, the state after each round included, is sent to the driver and written there, so
that an interrupted run goes on as with the other engines.
"""
from __future__ import annotations

import dataclasses
import os
import socket
import sys
from typing import Dict, List, Optional, Sequence, Tuple

import ray
from ray.util.queue import Queue

from config import ROOT, UserError
from engines.jobs import Job, Outcome, Report
from engines.parcel import Changes, Parcel, not_code, packed, with_paths_here, work, write_here

POLL_S = 0.5  # how often the driver looks for lines and files
CONNECT_S = 10.0  # a cluster that does not answer for so long is not there


def run_on_ray(jobs: Sequence[Job], at_once: Optional[int], report: Report) -> None:
    """Run jobs as Ray tasks, at most `at_once` of them at a time (None: as many as the cluster has room for)."""
    if not jobs:
        return
    start_ray()
    try:
        cpus = max(1, jobs[0].settings.TORCH_THREADS)
        most = max((node['Resources'].get('CPU', 0) for node in ray.nodes() if node['Alive']), default=0)
        if most < cpus:
            raise UserError(f'TORCH_THREADS={cpus}: no node of the Ray cluster has more than {most:g} CPUs')
        room = max(1, int(ray.cluster_resources().get('CPU', 1) // cpus))
        _Driver(cpus, report).run(list(jobs), at_once or room)
    finally:
        ray.shutdown()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine, or start one on this machine."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing about a user's runs is sent to Ray's makers
    address = os.environ.get('RAY_ADDRESS')
    try:
        if address and ':' in address:  # Ray itself tries for two minutes before it says that nobody is there
            host, port = address.rpartition('://')[2].rsplit(':', 1)
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, runtime_env={'working_dir': ROOT, 'excludes': not_code()}, log_to_driver=False,
                 logging_level='ERROR')
    except Exception as error:  # Ray raises many kinds
        text = ' '.join(f'{error}'.split())[:200]
        where = f'join the Ray cluster at RAY_ADDRESS={address}' if address else 'start Ray on this machine'
        raise UserError(f'cannot {where}: {text}') from None


def run_parcel(parcel: Parcel, common: Dict[str, bytes], outbox: Queue) -> Tuple[Outcome, Changes]:
    """A Ray task: one job, on whatever node. Lines and files go to the outbox on the way."""
    return work(parcel, common, lambda message: outbox.put((parcel.job.domain, message)))


class _Driver:
    """What the driver does while tasks run."""

    def __init__(self, cpus: int, report: Report) -> None:
        self.remote = ray.remote(num_cpus=cpus, max_retries=0)(run_parcel)
        self.outbox = Queue(actor_options={'num_cpus': 0})
        self.report = report
        self.common: Optional[ray.ObjectRef] = None  # the files that all domains read
        self.running: Dict[ray.ObjectRef, Job] = {}
        self.there: Dict[int, Dict[str, str]] = {}  # domain: path here -> path on the node

    def run(self, waiting: List[Job], at_once: int) -> None:
        """Keep `at_once` tasks running until none is left; when interrupted, cancel them."""
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.submit(waiting.pop(0))
                done, _ = ray.wait(list(self.running), timeout=POLL_S) if self.running else ([], [])
                self.empty_outbox()
                for reference in done:
                    self.finish(reference)
        finally:
            for reference in self.running:
                ray.cancel(reference, force=True)

    def submit(self, job: Job) -> None:
        """Load what the job needs and send it; what all domains read is sent to a node once."""
        try:
            parcel, common = packed(job)
        except UserError as error:
            self.report(Outcome(job.domain, error=str(error), bad_input=True))
            return
        if self.common is None:
            self.common = ray.put(common)
        self.there[job.domain] = parcel.there
        self.running[self.remote.remote(parcel, self.common, self.outbox)] = job

    def empty_outbox(self) -> None:
        """Say the lines and write the files that have come."""
        while not self.outbox.empty():
            for domain, message in self.outbox.get_nowait_batch(self.outbox.qsize()):
                if isinstance(message, str):
                    print(with_paths_here(message, self.there[domain]), file=sys.stderr, flush=True)
                else:
                    write_here(message, self.there[domain])

    def finish(self, reference: ray.ObjectRef) -> None:
        """Keep what a task wrote last and report how it ended; what it handed back before is in the outbox by then."""
        job = self.running.pop(reference)
        there = self.there[job.domain]
        try:
            outcome, changes = ray.get(reference)
        except ray.exceptions.RayError as error:
            outcome, changes = Outcome(job.domain, error=f'Ray: {" ".join(str(error).split())[:200]}'), {}
        self.empty_outbox()
        write_here(changes, there)
        self.report(dataclasses.replace(outcome, printed=with_paths_here(outcome.printed, there),
                                        error=with_paths_here(outcome.error, there)))
