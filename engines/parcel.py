"""What travels with a job to a machine that shares no files with the driver, and what comes back from there.

A parcel holds the input files and images of one domain. On the other machine `work` unpacks it into a temporary folder,
runs the job there, and hands back every file that the job writes; the driver writes these files where they belong.
"""
from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

import domain_dataset
from config import ROOT, Settings, setting
from domains.image_sets import ImageSet
from domains.division import SUBSETS
from engines.jobs import Job, Outcome, attempt
from engines.processes import Lines
from pipeline import fingerprints, kinds, writing

SCAN_S = 1.0  # how often a job's folder is searched for files that it has written
MOVED = ('WEIGHT_PATH_SERVER', 'DEVICE_PROFILE')  # settings that name files
NOT_FOR_JOBS = ('benchmarks', 'tests')  # folders of modules that no job imports

Changes = Dict[str, Optional[bytes]]  # a file's path over there -> its content, None: removed


def not_code() -> List[str]:
    """What of the repository's top level no job imports (data, results, environments, documents, ...), as patterns of a
    .gitignore file: the code is what remains."""
    def is_code(entry: 'os.DirEntry[str]') -> bool:
        return entry.name.endswith('.py') or (entry.name not in NOT_FOR_JOBS and
                                              os.path.isfile(os.path.join(entry.path, '__init__.py')))

    with os.scandir(ROOT) as entries:
        names = sorted(entry.name for entry in entries if not is_code(entry))
    return [*('/' + re.sub(r'([^\w.-])', r'\\\1', name) for name in names), '__pycache__']


# --- packing: the driver's side ------------------------------------------------------------------------

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
    """A job as it travels. Files lie under a folder over there, by their paths relative to it."""
    job: Job  # with moved settings
    there: Dict[str, str]  # path here -> path there, of everything that may be read or written
    files: Dict[str, bytes]  # path there -> content, of this domain
    images: Dict[Tuple[int, str], ImageSet]  # by domain and subset


def moved(job: Job) -> Tuple[Job, Dict[str, str]]:
    """The job with its files in a folder over there, and where each of the files here is there."""
    settings, there = job.settings, {}
    partition = kinds.path_of('partition', settings)
    replaced = {'RESULTS_DIR': 'results', 'PARTITION_FILE': f'given/{os.path.basename(partition)}'}
    for name in MOVED:
        path = kinds.weights_file(settings) if name == 'WEIGHT_PATH_SERVER' else getattr(settings, name)
        if os.path.isfile(path):
            replaced[name] = there[path] = f'given/{name}/{os.path.basename(path)}'
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    settings_there = MovedSettings(**{**values, **replaced}, given=settings)
    for kind in kinds.KINDS:
        there[fingerprints.found_at(kind, settings, job.domain)] = kinds.path_of(kind, settings_there, job.domain)
        there[kinds.path_of(kind, settings, job.domain)] = kinds.path_of(kind, settings_there, job.domain)
    lut_file = there.setdefault(job.lut_file, f'given/lut/{os.path.basename(job.lut_file)}')
    return dataclasses.replace(job, settings=settings_there, lut_file=lut_file), there


def packed(job: Job) -> Tuple[Parcel, Dict[str, bytes]]:
    """A job's parcel, and the files that all domains read, by their path there. Raises `UserError` when the domain's
    images cannot be read."""
    job_there, there = moved(job)
    own = {kinds.path_of(kind, job.settings, job.domain) for kind, spec in kinds.KINDS.items()
           if '{domain}' in spec.path}
    images = {(job.domain, subset): domain_dataset.load_domain(job.settings, job.domain, subset) for subset in SUBSETS}
    files = contents({path: name for path, name in there.items() if path in own})
    return (Parcel(job_there, there, files, images),
            contents({path: name for path, name in there.items() if path not in own}))


def contents(there: Dict[str, str]) -> Dict[str, bytes]:
    """What of these files exists, by its path there."""
    found = {}
    for path, name in there.items():
        if os.path.isfile(path):
            with open(path, 'rb') as stream:
                found[name] = stream.read()
    return found


def write_here(changes: Changes, there: Dict[str, str]) -> None:
    """Write what a job wrote over there, remove what it removed; only paths that its domain may write."""
    here = {name: path for path, name in there.items()}
    for name, content in changes.items():
        path = here[name]
        if content is None:
            if os.path.exists(path):
                os.unlink(path)
            continue
        with writing.replacing(path) as temporary:
            with open(temporary, 'wb') as stream:
                stream.write(content)


def with_paths_here(text: str, there: Dict[str, str]) -> str:
    """A line that names files over there, naming ours."""
    here = {name: path for path, name in there.items()}
    longest_first = sorted(here, key=len, reverse=True)
    return re.sub('|'.join(map(re.escape, longest_first)), lambda found: here[found[0]], text)


# --- unpacking: on the machine that runs the job --------------------------------------------------------

class Written:
    """What a job has written into its folder since the last look."""

    def __init__(self, folder: str, names: Iterable[str], known: Dict[str, bytes]) -> None:
        self._paths, self._known = {os.path.join(folder, name): name for name in names}, known

    def changes(self) -> Changes:
        """New content by path; None for a file that was removed."""
        now = contents(self._paths)
        changed = [name for name in {*now, *self._known} if now.get(name) != self._known.get(name)]
        self._known = now
        return {name: now.get(name) for name in sorted(changed)}


def work(parcel: Parcel, common: Dict[str, bytes], hand_back: Callable[[Union[str, Changes]], None],
         ) -> Tuple[Outcome, Changes]:
    """Run a job in a folder of its own. Lines of progress, and files as they are written, are handed back on the way;
    returned are the outcome and what was written last."""
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
