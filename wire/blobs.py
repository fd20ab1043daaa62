"""A disk cache of bytes under their SHA-256: the client keeps weights and images here between runs.

A file that is being received is `<hash>.part`; it is continued where it ended, and becomes `<hash>` only when its
content has that hash. A file's size and name prove nothing: its content is hashed before it counts as complete, and
again when it is read. Whatever a kill, a full disk or a damaged file leaves behind is found and received again; links,
folders and pipes are none of ours. Several processes may use one folder: each change is made under a lock.
"""
from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import contextmanager
from typing import Dict, Iterator, Set, Tuple

import numpy as np

try:
    import fcntl
except ImportError:  # not a POSIX system: one process a folder
    fcntl = None

HASH = re.compile(r'[0-9a-f]{64}\Z')
PART = '.part'
PIECE_BYTES = 1 << 20  # hashed at a time
NO_LINK = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0)  # opening fails instead of going elsewhere
Stamp = Tuple[int, ...]


class BlobStore:
    """Blobs in `folder`, at most `max_bytes` in all: the ones unused for longest make room."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.wanted: Set[str] = set()  # hashes that must not make room for others: one job needs them together
        self._verified: Dict[str, Stamp] = {}  # files whose content had their hash, and when they were changed last
        os.makedirs(folder, exist_ok=True)

    def _path(self, digest: str) -> str:
        if not HASH.match(digest):
            raise ValueError('a hash has 64 hex digits')
        return os.path.join(self.folder, digest)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within: no other process changes the folder."""
        lock = os.open(os.path.join(self.folder, '.lock'), os.O_RDWR | os.O_CREAT | NO_LINK, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by a kill
            yield
        finally:
            os.close(lock)

    def present_bytes(self, digest: str) -> int:
        """How much of a blob is here (its size when complete). A part that is whole after all becomes the blob."""
        path = self._path(digest)
        with self._locked():
            part_bytes = _size(path + PART)
            if part_bytes and not self.has(digest) and _hash_of_file(path + PART) == digest:
                os.replace(path + PART, path)
            if self.has(digest):
                os.utime(path)  # in use: others make room first
                self._verified[digest] = _stamp(path)
                return _size(path)
            return part_bytes

    def has(self, digest: str) -> bool:
        """Is it complete, with the content that its name says? Anything else of that name is dropped."""
        path = self._path(digest)
        if not os.path.lexists(path):
            return False
        stamp = _stamp(path)
        if self._verified.get(digest) != stamp:
            if not _is_file(path) or _hash_of_file(path) != digest:
                os.unlink(path)
                return False
            self._verified[digest] = stamp
        return True

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
            if here > size or (here == 0 and os.path.lexists(path + PART)):
                os.unlink(path + PART)
                here = 0
            if not offset <= here < offset + data.nbytes:
                return here
            self._make_room(size - here, keep=digest)
            part = os.open(path + PART, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o600)
            with open(part, 'ab') as stream:
                stream.write(memoryview(data[here - offset:]))  # another process may have added the rest
                here = offset + data.nbytes
                if here < size:
                    return here
                stream.flush()
                os.fsync(part)  # the name of a blob stands for its content, also after a power failure
            if _hash_of_file(path + PART) != digest:
                os.unlink(path + PART)
                return 0
            os.replace(path + PART, path)
            return size

    def add(self, data: np.ndarray) -> str:
        """Store bytes that are already on this machine; returns their hash."""
        digest = hash_of(data)
        with self._locked():
            if not self.has(digest) and os.path.lexists(self._path(digest) + PART):
                os.unlink(self._path(digest) + PART)
        self.append(digest, data.nbytes, 0, data)
        return digest

    def read(self, digest: str) -> np.ndarray:
        """The bytes, uint8 [n]. Raises `KeyError` when they are not complete, or damaged; what is there of them is then
        dropped, so that they are sent from their beginning."""
        path = self._path(digest)
        with self._locked():
            data = np.fromfile(path, dtype=np.uint8) if _is_file(path) else None
            if data is None or hash_of(data) != digest:
                for name in (path, path + PART):
                    if os.path.lexists(name):
                        os.unlink(name)
                raise KeyError(digest)
            os.utime(path)
            self._verified[digest] = _stamp(path)
        return data

    def _make_room(self, size: int, keep: str) -> None:
        """For so many more bytes of the blob `keep`. At every piece: blobs that were begun together grow together."""
        paths = [os.path.join(self.folder, name) for name in os.listdir(self.folder)
                 if HASH.match(name.replace(PART, '')) and _is_file(os.path.join(self.folder, name))]
        used = sum(map(_size, paths))
        for path in sorted(paths, key=lambda path: os.lstat(path).st_mtime):
            if used + size <= self.max_bytes:
                return
            if os.path.basename(path).replace(PART, '') not in (*self.wanted, keep):
                used -= _size(path)
                os.unlink(path)
        if used + size > self.max_bytes:
            raise ValueError(f'the cache of {self.max_bytes >> 20} MiB cannot hold what one job needs; start the '
                             'client with a larger --cache_gib')


def _is_file(path: str) -> bool:
    """Is it a file itself, no link to one?"""
    return os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode)


def _size(path: str) -> int:
    return os.lstat(path).st_size if _is_file(path) else 0


def _stamp(path: str) -> Stamp:
    """What changes when a file is written to or replaced."""
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _hash_of_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | NO_LINK), 'rb') as stream:
        for piece in iter(lambda: stream.read(PIECE_BYTES), b''):
            digest.update(piece)
    return digest.hexdigest()


def hash_of(data: np.ndarray) -> str:
    """SHA-256 of bytes, hex digits."""
    return hashlib.sha256(memoryview(data)).hexdigest()
