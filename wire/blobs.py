"""A disk cache of bytes under their SHA-256: the client keeps weights and images here between runs.

A file that is being received is `<hash>.part`; it is continued where it ended, and becomes `<hash>` only when its
content has that hash.
"""
from __future__ import annotations

import hashlib
import os
import re

import numpy as np

HASH = re.compile(r'[0-9a-f]{64}\Z')


class BlobStore:
    """Blobs in `folder`, at most `max_bytes` in all: the ones unused for longest make room."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        os.makedirs(folder, exist_ok=True)

    def _path(self, digest: str) -> str:
        if not HASH.match(digest):
            raise ValueError('a hash has 64 hex digits')
        return os.path.join(self.folder, digest)

    def present_bytes(self, digest: str) -> int:
        """How much of a blob is here (its whole size when complete)."""
        path = self._path(digest)
        for candidate in (path, path + '.part'):
            if os.path.isfile(candidate):
                return os.path.getsize(candidate)
        return 0

    def has(self, digest: str) -> bool:
        """Is it complete?"""
        return os.path.isfile(self._path(digest))

    def append(self, digest: str, size: int, offset: int, data: np.ndarray) -> int:
        """Add bytes at `offset`, which must be where the part ends; returns how much is here now. Raises `ValueError`
        when it does not fit, or when the complete content has another hash (it is then dropped)."""
        path = self._path(digest)
        if self.has(digest):
            return self.present_bytes(digest)
        if offset != self.present_bytes(digest) or not 0 < size <= self.max_bytes or offset + data.nbytes > size:
            raise ValueError(f'{data.nbytes} bytes at {offset} of {size} do not continue what is here')
        if offset == 0:
            self._make_room(size)
        with open(path + '.part', 'ab') as stream:
            stream.write(memoryview(data))
        if offset + data.nbytes == size:
            if hash_of(np.fromfile(path + '.part', dtype=np.uint8)) != digest:
                os.unlink(path + '.part')
                raise ValueError('the content does not have the announced hash')
            os.replace(path + '.part', path)
        return offset + data.nbytes

    def add(self, data: np.ndarray) -> str:
        """Store bytes that are already on this machine; returns their hash."""
        digest = hash_of(data)
        if not self.has(digest):
            if os.path.exists(self._path(digest) + '.part'):
                os.unlink(self._path(digest) + '.part')
            self.append(digest, data.nbytes, 0, data)
        return digest

    def read(self, digest: str) -> np.ndarray:
        """The bytes, uint8 [n]. Raises `KeyError` when it is not complete, or damaged (it is then dropped)."""
        path = self._path(digest)
        if not self.has(digest):
            raise KeyError(digest)
        data = np.fromfile(path, dtype=np.uint8)
        if hash_of(data) != digest:
            os.unlink(path)
            raise KeyError(digest)
        os.utime(path)
        return data

    def _make_room(self, size: int) -> None:
        paths = [os.path.join(self.folder, name) for name in os.listdir(self.folder)
                 if HASH.match(name.replace('.part', ''))]
        used = sum(os.path.getsize(path) for path in paths)
        for path in sorted(paths, key=os.path.getmtime):
            if used + size <= self.max_bytes:
                return
            used -= os.path.getsize(path)
            os.unlink(path)


def hash_of(data: np.ndarray) -> str:
    """SHA-256 of bytes, hex digits."""
    return hashlib.sha256(memoryview(data)).hexdigest()
