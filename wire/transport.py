"""Bytes over one socket, in TLS or not, and when they must be there."""
from __future__ import annotations

import socket
import struct
import time
from typing import Callable, List, Optional

from wire.integrity import WORD_BYTES, Trailer
from wire.tls import PlainPeer, Tls

AHEAD_BYTES = 1 << 12  # a message's headers, all of a small one, the beginning of the next
ALIGNED_BYTES = 1 << 12  # where most pieces of a payload begin: the system copies to such places faster
SILENT_LOOKS = 5  # of a receiver, in the time that is silence
CHUNK_BYTES = 1 << 18  # summed as soon as they are here, while they are in the cache and the rest is on its way


class Transport:
    """One thread may receive while another one sends."""

    def __init__(self, sock: socket.socket, tls: Optional[Tls]) -> None:
        self.tls = tls
        self.deadline: Optional[float] = None  # nothing is received behind this point in time (monotonic clock)
        self.bytes_sent = self.bytes_received = 0
        self.last_sent_s = time.monotonic()
        self._sock = sock
        self._ahead, self._next, self._filled = memoryview(bytearray(AHEAD_BYTES)), 0, 0  # read, and not looked at yet
        sock.settimeout(None)

    def limit_waits(self, seconds: float, looks: int = SILENT_LOOKS) -> None:
        """How long nothing may move. The system's own limit: with Python's, a send that fills the buffer would return
        to Python each time, which halves the throughput on a fast link. A receiver waits in so many steps: one that
        ends with a few bytes does not say whether they came at its beginning or at its end."""
        for option, limit_s in ((socket.SO_SNDTIMEO, seconds), (socket.SO_RCVTIMEO, seconds / looks)):
            self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack('@ll', int(limit_s), int(limit_s % 1 * 1e6)))

    def begin_tls(self, send: Callable[[List[memoryview]], None]) -> None:
        """Greet. A peer that does not speak TLS is answered without it from now on. Raises `ProtocolError`."""
        try:
            self.tls.handshake(lambda data: send([data]), lambda view: self._receive_raw(view, self.deadline))
        except PlainPeer:
            self.tls = None  # it is told so in words that it understands
            raise

    # --- sending ---

    def as_sent(self, views: List[memoryview]) -> List[memoryview]:
        """What leaves for these bytes. To be called in the order in which they are sent."""
        return views if self.tls is None else self.tls.encrypted(views)

    def send_once(self, views: List[memoryview], flags: int = 0) -> List[memoryview]:
        """One system call; what is left. (All of a message at once: a peer woken for a part of it costs time.)"""
        sent = self._sock.sendmsg(views, (), flags)
        self.bytes_sent += sent
        self.last_sent_s = time.monotonic()
        done = 0
        while done < len(views) and sent >= len(views[done]):
            sent -= len(views[done])
            done += 1
        return [views[done][sent:], *views[done + 1:]] if done < len(views) else []

    # --- receiving ---

    def wait(self) -> None:
        """Return when something is there to be read."""
        if self._next == self._filled:
            self._next, self._filled = 0, self._receive_into(self._ahead, self.deadline)

    def read(self, count: int, end: float) -> bytes:
        """So many bytes, until the point in time `end`."""
        found = bytes(self._take(count))
        while len(found) < count:
            self._next, self._filled = 0, self._receive_into(self._ahead, end)
            found += self._take(count - len(found))
        return found

    def _take(self, count: int) -> memoryview:
        """At most so many bytes of those that were read ahead."""
        start, self._next = self._next, min(self._filled, self._next + count)
        return self._ahead[start:self._next]

    def read_into(self, view: memoryview, end: float, trailer: Optional[Trailer]) -> None:
        """Fill `view`, and count its bytes in `trailer`."""
        ahead = self._take(len(view))
        done, counted = len(ahead), 0
        view[:done] = ahead
        while counted < len(view):
            if done < len(view):
                size = CHUNK_BYTES - done % ALIGNED_BYTES
                done += self._receive_into(view[done:done + size], end, socket.MSG_WAITALL)
            if done == len(view) or done - counted >= CHUNK_BYTES:
                stop = done if done == len(view) else done // WORD_BYTES * WORD_BYTES
                if trailer is not None:
                    trailer.update(view[counted:stop])
                counted = stop

    def _receive_into(self, view: memoryview, end: Optional[float], flags: int = 0) -> int:
        if self.tls is None:
            return self._receive_raw(view, end, flags)
        count = self.tls.receive_into(view, lambda records: self._receive_raw(records, end))
        if count == 0:
            raise ConnectionResetError('closed by the peer')
        return count

    def _receive_raw(self, view: memoryview, end: Optional[float], flags: int = 0) -> int:
        """One system call. (With MSG_WAITALL it returns when all is there, or its time is over: a thread that woke up
        for every packet would take time from the one that computes.)"""
        for look in range(SILENT_LOOKS):
            if self.deadline is not None:
                self.limit_waits(max(0.001, self.deadline - time.monotonic()), 1)
            if end is not None and time.monotonic() > end:
                raise BlockingIOError if self.deadline is not None else TimeoutError('sends too slowly')
            try:
                count = self._sock.recv_into(view, 0, flags)
                break
            except BlockingIOError:
                if look == SILENT_LOOKS - 1:
                    raise
        if count == 0:
            raise ConnectionResetError('closed by the peer')
        self.bytes_received += count
        return count
