"""What the receiver of a frame checks it by: a MAC under a session's key, or a checksum (docs/protocol.md).

    trailers = Trailers(key)                     # of one direction of one connection; no key: checksums
    trailer = trailers.begin(header, has_payload)
    trailer.update(payload)                      # in pieces
    trailer.packed()                             # the bytes that follow the frame
"""
from __future__ import annotations

import hashlib
import hmac
import itertools
import struct
from typing import Iterator, Optional, Union

import numpy as np

SUM = struct.Struct('<Q')
COUNT = struct.Struct('<Q')
WORD_BYTES = 8
MAC_BYTES = 16  # of HMAC-SHA256's 32: a forgery succeeds once in 2^128 attempts, and the first attempt ends the session


class Checksum:
    """The payload checksum: the sum of all 64-bit words. Feed a tensor in pieces of whole words; only its last piece
    may be shorter. It finds damage, not forgery."""
    n_bytes = SUM.size
    fault = 'damaged frame: checksum of the payload'

    def __init__(self) -> None:
        self.total = 0

    def update(self, piece: memoryview) -> None:
        """Add bytes."""
        whole = len(piece) // WORD_BYTES * WORD_BYTES
        self.total += int(np.add.reduce(np.frombuffer(piece[:whole], dtype='<u8')))
        if whole < len(piece):
            self.total += int.from_bytes(piece[whole:], 'little')

    def packed(self) -> bytes:
        """The bytes that follow the payload."""
        return SUM.pack(self.total % 2 ** 64)


class Mac:
    """A frame's MAC: HMAC-SHA256 of the frame and of its number among those of its direction."""
    n_bytes = MAC_BYTES
    fault = 'a frame that the peer did not send so, or not now: its MAC is wrong'

    def __init__(self, keyed: hmac.HMAC, numbers: Iterator[int]) -> None:
        self._hmac, self._numbers = keyed, numbers

    def update(self, piece: Union[bytes, memoryview]) -> None:
        """Add bytes of the frame, in their order. (`hashlib` lets other threads work meanwhile.)"""
        self._hmac.update(piece)

    def packed(self) -> bytes:
        """The bytes that follow the frame. The number is taken now: whoever sends holds the lock that orders frames."""
        self._hmac.update(COUNT.pack(next(self._numbers)))
        return self._hmac.digest()[:MAC_BYTES]


Trailer = Union[Checksum, Mac]


class Trailers:
    """What follows each frame of one direction of one connection."""

    def __init__(self, key: bytes = b'', sums: bool = True) -> None:
        """`key`: of the session and the direction; without one there are checksums, or nothing without `sums`."""
        self._sums = sums
        self._keyed = hmac.new(key, digestmod=hashlib.sha256) if key else None
        self._numbers = itertools.count()

    def begin(self, header: bytes, has_payload: bool) -> Optional[Trailer]:
        """The trailer of a frame with this header (both its parts); None where nothing follows."""
        if self._keyed is None:
            return Checksum() if has_payload and self._sums else None
        mac = Mac(self._keyed.copy(), self._numbers)
        mac.update(header)
        return mac
