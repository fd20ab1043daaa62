"""Domains on a Ray cluster: code, input files and images travel to the workers, result files travel back.

    pip install ray
    python step_3_joint.py --domains 0-9 --engine ray                        # one machine
    RAY_ADDRESS=head:6379 python step_3_joint.py --domains 0-9 --engine ray  # the cluster that `ray start` made there

No shared file system is needed, and no copy of this repository or of the dataset on the other nodes; they need what
requirements.txt names, and the driver's Python and Ray (a rule of Ray). A cluster may ask for Ray's token: set
RAY_AUTH_TOKEN. A node keeps the files of a domain in a temporary folder while it works. Every file that a domain
writes, the state after each round included, is sent to the driver and written there, so that an interrupted run goes
on as with the other engines.
"""
from __future__ import annotations

import dataclasses
import glob
import os
import pickle
import re
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from config import ROOT, Settings, UserError, setting
from engines.jobs import Job, Outcome, Report, attempt
from engines.processes import Lines
from pipeline import kinds, writing

POLL_S = 0.5  # how often the driver looks for lines and files
SCAN_S = 1.0  # how often a worker looks for files that it has written
CONNECT_S = 10.0  # a cluster that does not answer for so long is not there
SPLITS = ('train', 'val', 'test')
MOVED = ('WEIGHT_PATH_SERVER', 'DEVICE_PROFILE')  # settings that name files

Changes = Dict[str, Optional[bytes]]  # the worker's path -> content, None: removed


@dataclass(frozen=True)
class MovedSettings(Settings):
    """Settings whose files lie elsewhere; what results record of them is what the user gave."""
    given: Optional[Settings] = setting(None, 'none')

    def group(self, *groups: str) -> Dict[str, Any]:
        """With the names of files as they were given."""
        return {name: getattr(self.given, name) if name in MOVED else value
                for name, value in super().group(*groups).items()}


@dataclass(frozen=True)
class Parcel:
    """A job as it travels. Files lie under the worker's folder, by their paths relative to it."""
    job: Job  # with moved settings
    there: Dict[str, str]  # the driver's path -> the worker's, of everything that may be read or written
    files: Dict[str, bytes]  # the worker's path -> content, of this domain
    images: Dict[Tuple[int, str], Any]  # (domain, split) -> evaluation.ImageSet


def moved(job: Job) -> Tuple[Job, Dict[str, str]]:
    """The job with its files in a worker's folder, and where each of the driver's files is there."""
    settings, there = job.settings, {}
    replaced = {'RESULTS_DIR': 'results', 'PARTITION_FILE': f'given/{os.path.basename(settings.PARTITION_FILE)}'}
    for name in MOVED:
        path = getattr(settings, name)
        if os.path.isfile(path):
            replaced[name] = there[path] = f'given/{name}/{os.path.basename(path)}'
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    settings_there = MovedSettings(**{**values, **replaced}, given=settings)
    for kind in kinds.KINDS:
        there[kinds.path_of(kind, settings, job.domain)] = kinds.path_of(kind, settings_there, job.domain)
    lut_file = there.setdefault(job.lut_file, f'given/lut/{os.path.basename(job.lut_file)}')
    return dataclasses.replace(job, settings=settings_there, lut_file=lut_file), there


def of_domain(job: Job) -> Set[str]:
    """Paths of the files that belong to this domain alone."""
    return {kinds.path_of(kind, job.settings, job.domain) for kind, spec in kinds.KINDS.items()
            if '{domain}' in spec.path}


def contents(there: Dict[str, str]) -> Dict[str, bytes]:
    """What of these files exists, by the worker's path."""
    found = {}
    for path, name in there.items():
        if os.path.isfile(path):
            with open(path, 'rb') as stream:
                found[name] = stream.read()
    return found


def code() -> Dict[str, bytes]:
    """Every module that runs a domain, by its path in the repository: the top level and its packages."""
    packages = [os.path.dirname(path) for path in glob.glob(os.path.join(ROOT, '*', '__init__.py'))]
    paths = [path for folder in (ROOT, *packages) if os.path.basename(folder) != 'benchmarks'
             for path in glob.glob(os.path.join(folder, '*.py'))]
    return contents({path: os.path.relpath(path, ROOT) for path in paths})


def packed(job: Job) -> Tuple[bytes, Dict[str, bytes]]:
    """A pickled `Parcel`, and the files that all domains read, by the worker's path. Raises `UserError` when the
    domain's images cannot be read."""
    from domain_dataset import load_domain
    job_there, there = moved(job)
    own = of_domain(job)
    images = {(job.domain, split): load_domain(job.settings, job.domain, split) for split in SPLITS}
    files = contents({path: name for path, name in there.items() if path in own})
    return (pickle.dumps(Parcel(job_there, there, files, images)),
            contents({path: name for path, name in there.items() if path not in own}))


# --- on a worker ----------------------------------------------------------------------------------------

class Written:
    """What a job has written into its folder since the last look."""

    def __init__(self, folder: str, names: Iterable[str], known: Dict[str, bytes]) -> None:
        self._paths, self._known = {os.path.join(folder, name): name for name in names}, known

    def changes(self) -> Changes:
        """New content by path; None for a file that was removed."""
        now = contents(self._paths)
        changed = {name: now.get(name) for name in {*now, *self._known} if now.get(name) != self._known.get(name)}
        self._known = now
        return changed


def work(parcel: Parcel, common: Dict[str, bytes], hand_back: Callable[[Union[str, Changes]], None],
         ) -> Tuple[Outcome, Changes]:
    """Run a job in a folder of its own. Lines of progress, and files as they are written, are handed back on the way;
    returned are the outcome and what was written last."""
    import domain_dataset
    before, stderr, folder = os.getcwd(), sys.stderr, tempfile.mkdtemp(prefix='domain_')
    files, done = {**common, **parcel.files}, threading.Event()
    written = Written(folder, parcel.there.values(), files)

    def watch() -> None:
        while not done.wait(SCAN_S):
            changes = written.changes()
            if changes:
                hand_back(changes)

    watcher = threading.Thread(target=watch)
    try:
        for name, content in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'wb') as stream:
                stream.write(content)
        os.chdir(folder)
        sys.stderr = Lines(hand_back)
        domain_dataset.IN_MEMORY.update(parcel.images)
        watcher.start()
        outcome = attempt(parcel.job)
        done.set()
        watcher.join()
        return outcome, written.changes()
    finally:
        done.set()
        domain_dataset.IN_MEMORY.clear()
        sys.stderr = stderr
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def remote_function() -> Callable[..., Any]:
    """What Ray runs. Defined in here so that Ray sends its code: a node does not have this module before it runs."""

    def remote_work(modules: Dict[str, bytes], common: Dict[str, bytes], parcel: bytes, outbox: Any) -> bytes:
        import atexit
        import os
        import pickle
        import shutil
        import sys
        import tempfile
        if 'engines' not in sys.modules:  # the first job of this worker process
            folder = tempfile.mkdtemp(prefix='modules_')
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for name, content in modules.items():
                os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
                with open(os.path.join(folder, name), 'wb') as stream:
                    stream.write(content)
            sys.path.insert(0, folder)
        from engines import ray_cluster
        job = pickle.loads(parcel)
        return pickle.dumps(ray_cluster.work(job, common, lambda message: outbox.put((job.job.domain, message))))

    return remote_work


# --- the driver -----------------------------------------------------------------------------------------

def run_on_ray(jobs: Sequence[Job], at_once: Optional[int], report: Report) -> None:
    """Run jobs as Ray tasks, at most `at_once` of them at a time (None: as many as the cluster has room for)."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing about a user's runs is sent to Ray's makers
    import ray
    from ray.util.queue import Queue
    if not jobs:
        return
    start_ray(ray)
    try:
        cpus = max(1, jobs[0].settings.TORCH_THREADS)
        most = max((node['Resources'].get('CPU', 0) for node in ray.nodes() if node['Alive']), default=0)
        if most < cpus:
            raise UserError(f'TORCH_THREADS={cpus}: no node of the Ray cluster has more than {most:g} CPUs')
        room = max(1, int(ray.cluster_resources().get('CPU', 1) // cpus))
        remote = ray.remote(num_cpus=cpus, max_retries=0)(remote_function())
        outbox = Queue(actor_options={'num_cpus': 0})
        _Driver(ray, remote, outbox, report).run(list(jobs), at_once or room)
    finally:
        ray.shutdown()


def start_ray(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine, or start one on this machine."""
    address = os.environ.get('RAY_ADDRESS')
    try:
        if address and ':' in address:  # Ray itself tries for two minutes before it says that nobody is there
            host, port = address.rpartition('://')[2].rsplit(':', 1)
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level='ERROR')
    except Exception as error:  # Ray raises many kinds
        text = ' '.join(f'{error}'.split())[:200]
        where = f'join the Ray cluster at RAY_ADDRESS={address}' if address else 'start Ray on this machine'
        raise UserError(f'cannot {where}: {text}') from None


class _Driver:
    """What the driver does while tasks run."""

    def __init__(self, ray: Any, remote: Any, outbox: Any, report: Report) -> None:
        self.ray, self.remote, self.outbox, self.report = ray, remote, outbox, report
        self.modules, self.common = ray.put(code()), None
        self.running: Dict[Any, Job] = {}
        self.here: Dict[int, Dict[str, str]] = {}  # domain: the worker's path -> ours

    def run(self, waiting: List[Job], at_once: int) -> None:
        """Keep `at_once` tasks running until none is left; when interrupted, cancel them."""
        try:
            while waiting or self.running:
                while waiting and len(self.running) < at_once:
                    self.submit(waiting.pop(0))
                done, _ = self.ray.wait(list(self.running), timeout=POLL_S) if self.running else ([], [])
                self.empty_outbox()
                for reference in done:
                    self.finish(reference)
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)

    def submit(self, job: Job) -> None:
        """Load what the job needs and send it; what all domains read is sent to a node once."""
        try:
            parcel, common = packed(job)
        except UserError as error:
            self.report(Outcome(job.domain, error=str(error), bad_input=True))
            return
        if self.common is None:
            self.common = self.ray.put(common)
        self.here[job.domain] = {name: path for path, name in moved(job)[1].items()}
        self.running[self.remote.remote(self.modules, self.common, parcel, self.outbox)] = job

    def empty_outbox(self) -> None:
        """Say the lines and write the files that have come."""
        while not self.outbox.empty():
            for domain, message in self.outbox.get_nowait_batch(self.outbox.qsize()):
                if isinstance(message, str):
                    print(self.with_our_paths(domain, message), file=sys.stderr, flush=True)
                else:
                    self.keep(domain, message)

    def keep(self, domain: int, files: Changes) -> None:
        """Write what a worker wrote, remove what it removed; only paths that the domain may write."""
        for name, content in files.items():
            path = self.here[domain][name]
            if content is None:
                if os.path.exists(path):
                    os.unlink(path)
                continue
            with writing.replacing(path) as temporary:
                with open(temporary, 'wb') as stream:
                    stream.write(content)

    def with_our_paths(self, domain: int, text: str) -> str:
        """A line that names files of the worker's folder, naming ours."""
        here = self.here[domain]
        longest_first = sorted(here, key=len, reverse=True)
        return re.sub('|'.join(map(re.escape, longest_first)), lambda found: here[found[0]], text)

    def finish(self, reference: Any) -> None:
        """Keep what a task wrote last and report how it ended; what it handed back before is in the outbox by then."""
        job = self.running.pop(reference)
        try:
            outcome, changes = pickle.loads(self.ray.get(reference))
        except self.ray.exceptions.RayError as error:
            outcome, changes = Outcome(job.domain, error=f'Ray: {" ".join(str(error).split())[:200]}'), {}
        self.empty_outbox()
        self.keep(job.domain, changes)
        self.report(dataclasses.replace(outcome, printed=self.with_our_paths(job.domain, outcome.printed),
                                        error=self.with_our_paths(job.domain, outcome.error)))
