"""One connection: messages with tensors over a socket, in both directions.

    connection.send(Kind.REQUEST, {'id': 1, 'op': 'echo'}, {'data': tensor})
    data = connection.receive().tensor('data', torch.uint8)

Whatever arrives, `receive` returns a checked message or raises `ProtocolError` (the peer broke the rules of
docs/protocol.md) or `ConnectionLost` (the peer is gone, or silent for SILENCE_S). Tensors are sent from and received
into their own memory, which is claimed only after a frame's headers have been checked.
"""
from __future__ import annotations

import collections
import contextlib
import hmac
import math
import socket
import threading
import time
from typing import Any, Deque, List, Mapping, Optional, Tuple

import torch

from wire.frames import (
    DTYPE_NAMES,
    DTYPES,
    FIXED_BYTES,
    MAX_PAYLOAD_BYTES,
    ConnectionLost,
    Kind,
    Message,
    NetworkError,
    ProtocolError,
    VersionMismatch,
    bytes_of,
    encode_headers,
    parse_fixed,
    parse_typed,
    printable,
)
from wire.handshake import NONCE, Nonces, SessionKeys, new_nonce, proof, session_keys
from wire.integrity import Trailer, Trailers
from wire.tls import Tls
from wire.transport import Transport

HEARTBEAT_S = 2.0  # as a rule
SILENCE_S = 10.0  # a peer of which nothing is heard, or that takes nothing, for this long is lost
HANDSHAKE_S = 10.0  # in all
SLOWEST_BYTES_PER_S = 16 << 10  # a message that takes SILENCE_S longer than it would at this rate is given up
DRAIN_S, DRAIN_BYTES = 0.5, 1 << 18  # after the last words to a peer; at a time


class Refused(NetworkError):
    """The peer does not accept this end, or this end not the peer: another secret, or no place for one more."""


class Connection:
    """Messages over one socket. `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket, peer: str, tls: Optional[Tls] = None) -> None:
        self.peer = peer
        self.max_payload_bytes = 0  # until the peer is trusted
        self._sock, self._transport, self._send_lock = sock, Transport(sock, tls), threading.Lock()
        self.use_keys(SessionKeys())
        self._closed, self._woken = threading.Event(), threading.Event()
        self._rest: Deque[List[memoryview]] = collections.deque()  # of a message that the system did not take at once
        self._reason = ''  # why it was lost
        self.heartbeat_s = HEARTBEAT_S  # something is sent at least this often
        self._transport.limit_waits(SILENCE_S)
        _tune(sock)

    @property
    def bytes_sent(self) -> int:
        """Bytes that left through the socket."""
        return self._transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes that came through the socket."""
        return self._transport.bytes_received

    # --- sending ---

    def send(self, kind: Kind, fields: Optional[Mapping[str, Any]] = None,
             tensors: Optional[Mapping[str, torch.Tensor]] = None, turn_s: float = -1) -> None:
        """Send one message; blocks while the peer takes nothing, for at most SILENCE_S. Not sent when another one has
        been on its way for `turn_s` (-1: that may take as long as the peer lives). Raises `ConnectionLost`."""
        views, trailer = self._prepared(kind, fields or {}, tensors or {})
        if self._send_lock.acquire(timeout=turn_s):
            try:
                self._send_all(self._whole(views, trailer))
            finally:
                self._send_lock.release()

    def post(self, kind: Kind, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor],
             turn_s: float = -1) -> bool:
        """Send a message, behind the handshake, without waiting for the link: what the system does not take at once is
        sent by this connection's own thread, while other messages wait. Has all of it left? Raises `ConnectionLost`,
        also when another message has been on its way for `turn_s` (-1: that may take as long as the peer lives)."""
        views, trailer = self._prepared(kind, fields, tensors)
        if not self._send_lock.acquire(timeout=turn_s):
            raise self._lost(TimeoutError('takes data too slowly'), 'takes no data')
        try:
            rest = self._once(self._whole(views, trailer), socket.MSG_DONTWAIT)
        except BaseException:
            self._send_lock.release()
            raise
        if not rest:
            self._send_lock.release()
            return True
        self._rest.append(rest)
        self._woken.set()
        if self.is_closed:  # the thread may be gone
            self._finish()
        return False

    def has_left(self, timeout_s: float) -> bool:
        """Wait until no message is on its way; False when that takes longer."""
        free = self._send_lock.acquire(timeout=timeout_s)
        if free:
            self._send_lock.release()
        return free

    def _finish(self) -> None:
        """Send what `post` left; it has kept the lock."""
        try:
            rest = self._rest.pop()
        except IndexError:
            return
        try:
            self._send_all(rest)
        finally:
            self._send_lock.release()

    def _prepared(self, kind: Kind, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor],
                  ) -> Tuple[List[memoryview], Optional[Trailer]]:
        """A message as the pieces of memory to send, the tensors' own among them, and what will follow them."""
        ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        specs = [(name, DTYPE_NAMES[value.dtype], tuple(value.shape)) for name, value in ready.items()]
        payload = [bytes_of(value) for value in ready.values() if value.numel()]
        header = encode_headers(kind, fields, specs)
        trailer = self._outgoing.begin(header, bool(payload))
        if trailer is not None:
            for view in payload:
                trailer.update(view)
        return [memoryview(header), *payload], trailer

    def _whole(self, views: List[memoryview], trailer: Optional[Trailer]) -> List[memoryview]:
        """A whole frame. To be called in the order in which frames are sent: MACs and TLS number them."""
        views = views if trailer is None else [*views, memoryview(trailer.packed())]
        return self._transport.as_sent(views)

    def _once(self, views: List[memoryview], flags: int = 0) -> List[memoryview]:
        try:
            return self._transport.send_once(views, flags)
        except OSError as error:
            if isinstance(error, BlockingIOError) and flags & socket.MSG_DONTWAIT:
                return views
            raise self._lost(error, 'takes no data') from None

    def _send_all(self, views: List[memoryview]) -> None:
        end = _latest_end(sum(map(len, views)))
        while views:
            if time.monotonic() > end:
                raise self._lost(TimeoutError('takes data too slowly'), 'takes no data')
            views = self._once(views)

    # --- receiving ---

    def receive(self, timeout_s: float = math.inf) -> Message:
        """The next message that is no heartbeat. Raises `ProtocolError` and `ConnectionLost`, after closing; the latter
        also when nothing but heartbeats comes for `timeout_s` (noticed at the next of them)."""
        start = time.monotonic()
        try:
            while True:
                message = self._receive_one()
                is_stranger = self._transport.deadline is not None
                if message.kind != Kind.HEARTBEAT or is_stranger:  # for whom nobody waits
                    return message
                if time.monotonic() - start > timeout_s:
                    self.close()
                    raise ConnectionLost(f'{self.peer} lives but has not answered for {timeout_s:.3g} s')
        except OSError as error:
            raise self._lost(error, 'is silent') from None
        except ProtocolError as error:
            self.fail('version' if isinstance(error, VersionMismatch) else 'protocol', str(error))
            raise

    def _receive_one(self) -> Message:
        transport = self._transport
        transport.wait()  # its first byte may take as long as the peer lives
        start = time.perf_counter()
        fixed = transport.read(FIXED_BYTES, transport.deadline or _latest_end(FIXED_BYTES))
        kind, header_bytes, payload_bytes, crc = parse_fixed(fixed, self.max_payload_bytes)
        end = transport.deadline or _latest_end(header_bytes + payload_bytes)
        typed = transport.read(header_bytes, end)
        fields, specs = parse_typed(typed, crc, payload_bytes)
        tensors = {name: torch.empty(shape, dtype=DTYPES[dtype]) for name, dtype, shape in specs}
        trailer = self._incoming.begin(fixed + typed, payload_bytes > 0)
        for value in tensors.values():
            transport.read_into(bytes_of(value), end, trailer)
        if trailer is not None and not hmac.compare_digest(transport.read(trailer.n_bytes, end), trailer.packed()):
            raise ProtocolError(trailer.fault)
        return Message(kind, fields, tensors, time.perf_counter() - start)

    # --- life ---

    def handshake(self, role: str, peer_roles: Tuple[str, ...], token: bytes, starts: bool) -> None:
        """HELLO and, with a secret, PROOF (docs/protocol.md); closed unless it succeeds. Raises `NetworkError`."""
        self._transport.deadline = time.monotonic() + HANDSHAKE_S
        try:
            if self._transport.tls is not None:
                self._transport.begin_tls(self._send_all)
            keys = self._prove(role, peer_roles, token, starts)
        except OSError as error:  # of TLS
            raise self._lost(error, 'is silent') from None
        except NetworkError as error:
            if not self.is_closed:
                self.fail('protocol', str(error))
            raise
        self.use_keys(keys)
        self._transport.deadline = None
        self._transport.limit_waits(SILENCE_S)
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        threading.Thread(target=self._keep_sending, name=f'send {self.peer}', daemon=True).start()

    def use_keys(self, keys: SessionKeys) -> None:
        """From now on every frame carries a MAC, unless the keys are empty, or TLS makes it needless."""
        self._outgoing, self._incoming = (
            Trailers(key if self._transport.tls is None else b'', sums=self._transport.tls is None) for key in keys)

    def _prove(self, role: str, peer_roles: Tuple[str, ...], token: bytes, starts: bool) -> SessionKeys:
        nonce = new_nonce()
        hello = {'role': role, 'nonce': nonce, 'secret': bool(token)}
        if starts:
            self.send(Kind.HELLO, hello)
        message = self._expect(Kind.HELLO)
        peer_role, peer_nonce = message.text('role', peer_roles), message.text('nonce')
        if not NONCE.match(peer_nonce) or peer_nonce == nonce:
            raise message.wrong('nonce')
        if not starts:
            self.send(Kind.HELLO, hello)
        if message.flag('secret') != bool(token):
            self._refuse('SPLIT_AUTH_TOKEN is set on one end only: set the same on both')
        if not token:
            return SessionKeys()
        nonces = Nonces(nonce, peer_nonce) if starts else Nonces(peer_nonce, nonce)
        mine = {'hmac': proof(token, role, peer_role, nonces)}
        if starts:
            self.send(Kind.PROOF, mine)
        given = self._expect(Kind.PROOF).text('hmac')
        if not hmac.compare_digest(given.encode(), proof(token, peer_role, role, nonces).encode()):
            self._refuse('SPLIT_AUTH_TOKEN differs between the two ends')
        if not starts:
            self.send(Kind.PROOF, mine)
        return session_keys(token, (role, peer_role), nonces)

    def _expect(self, kind: Kind) -> Message:
        message = self.receive()
        if message.kind == Kind.ERROR:
            error = VersionMismatch if message.text('code') == 'version' else Refused
            self.close()
            raise error(f'{self.peer} refused this end: {message.text("text")}')
        if message.kind != kind:
            raise ProtocolError(f'{self.peer}: expected {kind.name}, got {message.kind.name}')
        return message

    def _refuse(self, text: str) -> None:
        self.fail('refused', text)
        raise Refused(text)

    def beat_every(self, seconds: float) -> None:
        """From now on something is sent at least this often."""
        self.heartbeat_s = seconds
        self._woken.set()

    def _keep_sending(self) -> None:
        """This connection's own thread: what others did not wait for, and heartbeats."""
        try:
            while not self.is_closed:
                self._woken.wait(self.heartbeat_s / 2)
                self._woken.clear()
                self._finish()
                if time.monotonic() - self._transport.last_sent_s >= self.heartbeat_s / 2:
                    self.send(Kind.HEARTBEAT, turn_s=0)  # no wait: it may be this thread that others wait for
        except NetworkError:
            pass
        with contextlib.suppress(NetworkError):
            self._finish()  # whoever left something meanwhile: others wait for the lock

    def _lost(self, error: OSError, silence: str) -> ConnectionLost:
        """Close. Whatever fails afterwards fails for the first reason."""
        if isinstance(error, BlockingIOError) and not self.is_closed:
            waited = HANDSHAKE_S if self._transport.deadline is not None else SILENCE_S
            reason = f'{self.peer} {silence} for {waited:g} s'
        elif isinstance(error, (ConnectionResetError, BrokenPipeError)) or self.is_closed:
            reason = f'{self.peer} closed the connection'
        else:
            reason = f'{self.peer}: {error.strerror or error}'
        self._reason = self._reason or reason
        self.close()
        return ConnectionLost(self._reason)

    @property
    def is_closed(self) -> bool:
        """True once it was closed by either end, as far as this end knows."""
        return self._closed.is_set()

    def fail(self, code: str, text: str) -> None:
        """Tell the peer why (if it still listens, and is not in the middle of a message), then close."""
        try:
            self._transport.limit_waits(1.0)
            self.send(Kind.ERROR, {'id': 0, 'code': code, 'text': printable(text)[:200]}, turn_s=1.0)
        except (NetworkError, OSError):
            pass
        self._drain()
        self.close()

    def _drain(self) -> None:
        """Say that nothing more will come, and let what is under way arrive, for a moment: a socket that is closed with
        bytes unread takes back what was sent last."""
        end = time.monotonic() + DRAIN_S
        try:
            self._sock.shutdown(socket.SHUT_WR)
            self._transport.limit_waits(DRAIN_S, 1)
            while time.monotonic() < end and self._sock.recv(DRAIN_BYTES):
                pass
        except OSError:
            pass

    def close(self) -> None:
        """Close; a thread that waits in `receive` or `send` gets `ConnectionLost`."""
        self._closed.set()
        self._woken.set()  # nothing is left to beat for
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()


def _tune(sock: socket.socket) -> None:
    """No delay for small messages; let the system notice a cut cable within SILENCE_S."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (('TCP_KEEPIDLE', 4), ('TCP_KEEPINTVL', 2), ('TCP_KEEPCNT', 3),
                        ('TCP_USER_TIMEOUT', int(1000 * SILENCE_S))):
        if hasattr(socket, name):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _latest_end(n_bytes: int) -> float:
    """When a message of this size must have moved that starts now: a point in time, on the monotonic clock."""
    return time.monotonic() + SILENCE_S + n_bytes / SLOWEST_BYTES_PER_S
