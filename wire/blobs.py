"""A disk cache of bytes under their SHA-256: the client keeps weights and images here between runs.

A file that is being received is `<hash>.part`; it is continued where it ended, and becomes `<hash>` only when its
content has that hash. Whatever a kill, a full disk or a damaged file leaves behind is found and received again. Several
processes may use one folder: each change is made under a lock.
"""
from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager
from typing import Iterator, Set

import numpy as np

try:
    import fcntl
except ImportError:  # not a POSIX system: one process a folder
    fcntl = None

HASH = re.compile(r'[0-9a-f]{64}\Z')
PART = '.part'


class BlobStore:
    """Blobs in `folder`, at most `max_bytes` in all: the ones unused for longest make room."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.wanted: Set[str] = set()  # hashes that must not make room for others: one job needs them together
        os.makedirs(folder, exist_ok=True)

    def _path(self, digest: str) -> str:
        if not HASH.match(digest):
            raise ValueError('a hash has 64 hex digits')
        return os.path.join(self.folder, digest)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within: no other process changes the folder."""
        with open(os.path.join(self.folder, '.lock'), 'ab') as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by a kill
            yield

    def present_bytes(self, digest: str) -> int:
        """How much of a blob is here (its size when complete). A part that is whole after all becomes the blob."""
        path = self._path(digest)
        with self._locked():
            part_bytes = _size(path + PART)
            if part_bytes and not self.has(digest) and hash_of(np.fromfile(path + PART, dtype=np.uint8)) == digest:
                os.replace(path + PART, path)
            if self.has(digest):
                os.utime(path)  # in use: others make room first
                return _size(path)
            return part_bytes

    def has(self, digest: str) -> bool:
        """Is it complete?"""
        return os.path.isfile(self._path(digest))

    def append(self, digest: str, size: int, offset: int, data: np.ndarray) -> int:
        """Add bytes that belong at `offset`; returns how much is here now, from where the sender goes on: less than
        before when what was here has gone or turned out to be damaged. Raises `ValueError` for impossible sizes."""
        path = self._path(digest)
        if not 0 < size <= self.max_bytes or not 0 <= offset <= offset + data.nbytes <= size:
            raise ValueError(f'{data.nbytes} bytes at {offset} of {size} cannot be kept')
        with self._locked():
            if self.has(digest):
                return _size(path)
            here = _size(path + PART)
            if here > size:
                os.unlink(path + PART)
                here = 0
            if here == 0:
                self._make_room(size)
            if not offset <= here < offset + data.nbytes:
                return here
            with open(path + PART, 'ab') as stream:
                stream.write(memoryview(data[here - offset:]))  # another process may have added the rest
            here = offset + data.nbytes
            if here < size:
                return here
            if hash_of(np.fromfile(path + PART, dtype=np.uint8)) != digest:
                os.unlink(path + PART)
                return 0
            os.replace(path + PART, path)
            return size

    def add(self, data: np.ndarray) -> str:
        """Store bytes that are already on this machine; returns their hash."""
        digest = hash_of(data)
        with self._locked():
            if not self.has(digest) and os.path.exists(self._path(digest) + PART):
                os.unlink(self._path(digest) + PART)
        self.append(digest, data.nbytes, 0, data)
        return digest

    def read(self, digest: str) -> np.ndarray:
        """The bytes, uint8 [n]. Raises `KeyError` when they are not complete, or damaged; what is there of them is then
        dropped, so that they are sent from their beginning."""
        path = self._path(digest)
        with self._locked():
            data = np.fromfile(path, dtype=np.uint8) if self.has(digest) else None
            if data is None or hash_of(data) != digest:
                for name in (path, path + PART):
                    if os.path.exists(name):
                        os.unlink(name)
                raise KeyError(digest)
            os.utime(path)
        return data

    def _make_room(self, size: int) -> None:
        paths = [os.path.join(self.folder, name) for name in os.listdir(self.folder)
                 if HASH.match(name.replace(PART, ''))]
        used = sum(_size(path) for path in paths)
        for path in sorted(paths, key=os.path.getmtime):
            if used + size <= self.max_bytes:
                return
            if os.path.basename(path) not in self.wanted:
                used -= _size(path)
                os.unlink(path)
        if used + size > self.max_bytes:
            raise ValueError(f'the cache of {self.max_bytes >> 20} MiB cannot hold what one job needs; start the '
                             'client with a larger --cache_gib')


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def hash_of(data: np.ndarray) -> str:
    """SHA-256 of bytes, hex digits."""
    return hashlib.sha256(memoryview(data)).hexdigest()
