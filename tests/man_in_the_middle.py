"""Somebody between two ends who sees whole frames of a session with keys, and may do with one of them what he likes."""
from __future__ import annotations

import contextlib
import socket
import struct
import threading
import zlib
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

from wire.frames import CRC, FIXED, FIXED_BYTES, Kind
from wire.integrity import MAC_BYTES

TOKEN = b'known to both ends, and to nobody between them'


class Seen(NamedTuple):
    """What he has when a frame comes by."""
    frame: bytes
    earlier: List[bytes]  # of this direction
    back: List[bytes]  # of the other one
    elsewhere: List[bytes]  # of this direction of another session


def rewritten(frame: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The frame with a changed typed header, all its lengths and checksums right; the MAC stays as it is."""
    magic, version, kind, header_bytes, payload_bytes, _ = FIXED.unpack_from(frame)
    typed = change(frame[FIXED_BYTES:FIXED_BYTES + header_bytes])
    fixed = FIXED.pack(magic, version, kind, len(typed), payload_bytes, zlib.crc32(typed))
    return fixed + CRC.pack(zlib.crc32(fixed)) + typed + frame[FIXED_BYTES + header_bytes:]


def another_kind(frame: bytes, kind: Kind) -> bytes:
    """The frame as one of another kind."""
    fields = list(FIXED.unpack_from(frame))
    fields[2] = kind
    fixed = FIXED.pack(*fields)
    return fixed + CRC.pack(zlib.crc32(fixed)) + frame[FIXED_BYTES:]


def flipped(frame: bytes, place: float) -> bytes:
    """One bit of another byte."""
    data = bytearray(frame)
    data[int(place * len(data))] ^= 4
    return bytes(data)


# What is sent in the frame's stead, and whether the frame itself is among it, as it was sent and in its place. `place`
# is anywhere in [0, 1).
MANIPULATIONS: Dict[str, Tuple[Callable[[Seen, float], List[bytes]], bool]] = {
    'a changed byte': (lambda seen, place: [flipped(seen.frame, place)], False),
    'a changed header with right checksums': (
        lambda seen, place: [rewritten(seen.frame, lambda typed: typed.replace(b'1', b'2') + b' ')], False),
    'another kind': (lambda seen, place: [another_kind(seen.frame, Kind.GOODBYE)], False),
    'repeated at once': (lambda seen, place: [seen.frame, seen.frame], True),
    'an earlier one behind it': (
        lambda seen, place: [seen.frame, [*seen.earlier, seen.frame][int(place * len(seen.earlier))]], True),
    'an earlier one in its place': (
        lambda seen, place: [seen.earlier[int(place * len(seen.earlier))] if seen.earlier else b''], False),
    'left out': (lambda seen, place: [], False),
    'cut short': (lambda seen, place: [seen.frame[:int(place * len(seen.frame))], b''], False),
    'without its MAC': (lambda seen, place: [seen.frame[:-MAC_BYTES]], False),
    'a forged one before it': (
        lambda seen, place: [seen.frame[:-MAC_BYTES] + bytes(MAC_BYTES), seen.frame], False),
    'one of the other direction': (
        lambda seen, place: [*seen.back[len(seen.earlier):][:1], b''], False),
    'one of another session': (lambda seen, place: [seen.elsewhere[len(seen.earlier)]], False),
    'the connection ends': (lambda seen, place: [b''], False),
}


def frames_of(sock: socket.socket) -> Iterator[bytes]:
    """Whole frames of a session with keys, until the end of the stream."""
    def exactly(count: int) -> bytes:
        data = b''
        while len(data) < count:
            piece = sock.recv(count - len(data))
            if not piece:
                raise ConnectionError('closed')
            data += piece
        return data

    with contextlib.suppress(OSError):
        while True:
            fixed = exactly(FIXED_BYTES)
            _, _, kind, header_bytes, payload_bytes, _ = FIXED.unpack_from(fixed)
            trailer_bytes = 0 if kind in (Kind.HELLO, Kind.PROOF) else MAC_BYTES
            yield fixed + exactly(header_bytes + payload_bytes + trailer_bytes)


class Between:
    """Listens on `address` for one connection and passes it on to `target`. Frame number `number` (heartbeats and the
    handshake not counted) of the direction `towards_target` becomes what `meddle` makes of it; an empty piece ends the
    connection."""

    def __init__(self, target: Tuple[str, int], towards_target: bool = True, number: int = -1,
                 meddle: Callable[[Seen], List[bytes]] = lambda seen: [seen.frame],
                 elsewhere: Tuple[bytes, ...] = ()) -> None:
        self.passed: Dict[bool, List[bytes]] = {True: [], False: []}  # work's frames, as their senders meant them
        self._target, self._towards_target, self._number = target, towards_target, number
        self._meddle, self._elsewhere = meddle, list(elsewhere)
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address: Tuple[str, int] = self._listener.getsockname()
        self._sockets: List[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            near = self._listener.accept()[0]
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, drain, there in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, drain, there), daemon=True).start()

    def _pass_on(self, source: socket.socket, drain: socket.socket, there: bool) -> None:
        with contextlib.suppress(OSError):
            drain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for frame in frames_of(source):
                pieces = [frame]
                if frame[5] not in (Kind.HELLO, Kind.PROOF, Kind.HEARTBEAT):
                    earlier = list(self.passed[there])
                    self.passed[there].append(frame)
                    if there == self._towards_target and len(earlier) == self._number:
                        pieces = self._meddle(Seen(frame, earlier, self.passed[not there], self._elsewhere))
                for piece in pieces:
                    if not piece:
                        raise ConnectionError('ended')
                    drain.sendall(piece)
        for sock in (source, drain):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it all. A connection that still lives is reset: no end waits for the other."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                if sock is not self._listener:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
