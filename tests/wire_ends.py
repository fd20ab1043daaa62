"""Connections and frames by hand, for tests of the protocol and of how two ends meet."""
from __future__ import annotations

import socket

from wire.connection import Connection
from wire.frames import Kind, NetworkError


def pair(max_payload_bytes=1 << 20):
    """Two connected, trusted ends without heartbeats."""
    a, b = socket.socketpair()
    ends = Connection(a, 'a'), Connection(b, 'b')
    for end in ends:
        end.max_payload_bytes = max_payload_bytes
    return ends


def raw_frame(kind=Kind.REQUEST, fields=None, tensors=None) -> bytes:
    """The bytes of a frame."""
    a, b = socket.socketpair()
    sender = Connection(a, 'a')
    sender.send(kind, fields or {}, tensors or {})
    a.shutdown(socket.SHUT_WR)
    data = b''.join(iter(lambda: b.recv(1 << 16), b''))
    b.close()
    return data


def outcome(data: bytes, max_payload_bytes=1 << 20):
    """What `receive` makes of these bytes followed by the end of the stream."""
    a, b = socket.socketpair()
    receiver = Connection(b, 'peer')
    receiver.max_payload_bytes = max_payload_bytes
    a.sendall(data)  # at most 64 KiB: fits into the socket's buffer
    a.shutdown(socket.SHUT_WR)
    try:
        return receiver.receive()
    except NetworkError as error:
        assert receiver.is_closed and '\n' not in str(error)
        return error
    finally:
        receiver.close()
        a.close()
