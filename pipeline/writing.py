"""Writing files in one step: a reader, or a run after a kill, sees the old file or the new one, never half of one."""
from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import tempfile
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterable, Iterator, List, Optional

from config import Settings, UserError
from pipeline.documents import SCHEMA_VERSION
from pipeline.fingerprints import made_from
from pipeline.kinds import KINDS, plain

_NUMBER = r'(?:null|-?\d[\d.eE+-]*)'
_LIST_OF_NUMBERS = re.compile(rf'\[\n *{_NUMBER}(?:,\n *{_NUMBER})*\n *\]')  # no text in JSON holds a line end


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error.

    Raises `UserError` when the folder or the file cannot be written; `path` then stays as it was.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        prefix, suffix = f'.{os.path.basename(path)}.{platform.node()}-', os.path.splitext(path)[1] or '.tmp'
        _remove_leftovers(folder, prefix, suffix)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f'{prefix}{os.getpid()}-', suffix=suffix)
        os.close(handle)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; free the path or choose another RESULTS_DIR') from None
    try:
        yield temporary
        with open(temporary, 'rb+') as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _remove_leftovers(folder: str, prefix: str, suffix: str) -> None:
    """Remove what processes of this machine that were killed while they wrote left behind."""
    leftover = re.compile(rf'{re.escape(prefix)}(\d+)-\w+{re.escape(suffix)}')
    for name in os.listdir(folder):
        found = leftover.fullmatch(name)
        if found and not _runs(int(found[1])):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        pass
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str) -> None:
    """Raise `UserError` now rather than after the work, when `path` could not be written later."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; free the path or choose another RESULTS_DIR') from None
    if os.path.isdir(path):
        raise UserError(f'cannot write {path}: a folder is in the way')


def write(path: str, content: Dict[str, Any], metadata: Dict[str, Any]) -> None:
    """Write one JSON file atomically, with `schema_version` and `metadata` first, a list of numbers in one line. NaN
    and infinity are programming errors (`ValueError`): a missing number is None."""
    text = json.dumps({'schema_version': SCHEMA_VERSION, 'metadata': metadata, **content}, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as stream:
            stream.write(_LIST_OF_NUMBERS.sub(lambda found: json.dumps(json.loads(found[0])), text) + '\n')


def make_metadata(settings: Settings, kind: str, inputs: str, domain: Optional[int] = None, **replaced: str,
                  ) -> Dict[str, Any]:
    """The metadata of a file of this kind; `inputs` is its `inputs_of`, with the same domain and `replaced` inputs."""
    versions = {module: _version(module) for module in ('torch', 'torchvision', 'numpy')}
    return {'model': settings.MODEL_NAME,
            'created': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
            'software': {'python': platform.python_version(), **{k: v for k, v in versions.items() if v}},
            'seed': settings.SEED, 'config': plain(settings.group(*KINDS[kind].groups)), 'inputs': inputs,
            'made_from': made_from(kind, settings, domain, **replaced)}


def _version(package: str) -> Optional[str]:
    from importlib import metadata  # slow to import (30 ms), and `--help` needs no versions
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def numbers_or_none(values: Iterable[float]) -> List[Optional[float]]:
    """A row of numbers for a JSON file: NaN becomes None."""
    return [None if math.isnan(value) else float(value) for value in values]
