"""Connections: how two ends find each other, prove that they share a secret, and exchange messages with tensors.

    connection = connect_with_retries(address, token, 'worker')       # one end
    for connection in Listener(address, token, 'worker'): ...         # the other
    connection.send(Kind.REQUEST, {'id': 1, 'op': 'echo'}, {'data': tensor})
    data = connection.receive().tensor('data', torch.uint8)

Whatever arrives, `receive` returns a checked message or raises `ProtocolError` (the peer broke the rules of
docs/protocol.md) or `ConnectionLost` (the peer is gone, or silent for SILENCE_S). Tensors are sent from and received
into their own memory, which is claimed only after a frame's headers have been checked.
"""
from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import queue
import secrets
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import torch

from config import UserError
from frames import (DTYPE_NAMES, DTYPES, FIXED_BYTES, MAX_PAYLOAD_BYTES, SUM, VERSION, WORD_BYTES, Checksum,
                    ConnectionLost, Kind, Message, NetworkError, ProtocolError, VersionMismatch, bytes_of,
                    encode_headers, parse_fixed, parse_typed, printable)

HEARTBEAT_S = 2.0  # something is sent at least this often
SILENCE_S = 10.0  # a peer of which nothing is heard, or that takes nothing, for this long is lost
HANDSHAKE_S = 10.0  # in all
CONNECT_S = 5.0
BACK_OFF_S = (1, 2, 4, 8, 15, 30)  # between attempts to connect; the last one repeats
MAX_HANDSHAKES = 8  # at a time
CHUNK_BYTES = 1 << 18  # summed as soon as they are here, while they are in the cache and the rest is on its way


class Address(NamedTuple):
    """Host name or IP address, and port (0: any free one)."""
    host: str
    port: int

    def __str__(self) -> str:
        return f'{self.host}:{self.port}'


class Refused(NetworkError):
    """The peer does not accept this end (another secret); trying again is useless."""


def token_from_environment() -> bytes:
    """SPLIT_AUTH_TOKEN, empty when it is not set."""
    return os.environ.get('SPLIT_AUTH_TOKEN', '').encode()


class Connection:
    """Messages over one socket. `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self.max_payload_bytes = 0  # until the peer is trusted
        self.bytes_sent = self.bytes_received = 0
        self._sock, self._send_lock = sock, threading.Lock()
        self._closed = threading.Event()
        self._deadline: Optional[float] = None  # of the handshake
        self._last_sent_s = time.monotonic()
        sock.settimeout(None)
        self._limit_waits(SILENCE_S)
        _tune(sock)

    def _limit_waits(self, seconds: float) -> None:
        """How long a system call may go without moving a byte. The system's own limit: with Python's, a send that
        fills the buffer would return to Python each time, which halves the throughput on a fast link."""
        value = struct.pack('@ll', int(seconds), int(seconds % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    # --- sending ---

    def send(self, kind: Kind, fields: Optional[Mapping[str, Any]] = None,
             tensors: Optional[Mapping[str, torch.Tensor]] = None) -> None:
        """Send one message; blocks while the peer takes nothing, for at most SILENCE_S. Raises `ConnectionLost`."""
        ready = {name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
        specs = [(name, DTYPE_NAMES[value.dtype], tuple(value.shape)) for name, value in ready.items()]
        head = encode_headers(kind, fields or {}, specs)
        with self._send_lock:
            try:
                views = [bytes_of(value) for value in ready.values()]
                if any(view.nbytes for view in views):
                    checksum = Checksum()
                    for view in views:
                        checksum.update(view)
                    views.append(memoryview(checksum.packed()))
                self._send_all([memoryview(head), *views])  # at once: a peer woken for a part of it costs time
                self._last_sent_s = time.monotonic()
            except OSError as error:
                raise self._lost(error, 'takes no data') from None

    def _send_all(self, views: List[memoryview]) -> None:
        while views:
            sent = self._sock.sendmsg(views)
            self.bytes_sent += sent
            while views and sent >= len(views[0]):
                sent -= len(views[0])
                views = views[1:]
            if views and sent:
                views = [views[0][sent:]] + views[1:]

    # --- receiving ---

    def receive(self) -> Message:
        """The next message that is no heartbeat. Raises `ProtocolError` and `ConnectionLost`, after closing."""
        try:
            while True:
                message = self._receive_one()
                if message.kind != Kind.HEARTBEAT:
                    return message
        except OSError as error:
            raise self._lost(error, 'is silent') from None
        except ProtocolError as error:
            self.fail('version' if isinstance(error, VersionMismatch) else 'protocol', str(error))
            raise

    def _receive_one(self) -> Message:
        fixed = self._read(FIXED_BYTES)
        start = time.perf_counter()
        kind, header_bytes, payload_bytes, crc = parse_fixed(fixed, self.max_payload_bytes)
        fields, specs = parse_typed(self._read(header_bytes), crc, payload_bytes)
        tensors = {name: torch.empty(shape, dtype=DTYPES[dtype]) for name, dtype, shape in specs}
        if payload_bytes:
            checksum, given = Checksum(), bytearray(SUM.size)
            for value in tensors.values():
                self._read_into(bytes_of(value), checksum)
            self._read_into(memoryview(given), None)
            if given != checksum.packed():
                raise ProtocolError('damaged frame: checksum of the payload')
        return Message(kind, fields, tensors, time.perf_counter() - start)

    def _read(self, count: int) -> bytes:
        buffer = bytearray(count)
        self._read_into(memoryview(buffer), None)
        return bytes(buffer)

    def _read_into(self, view: memoryview, checksum: Optional[Checksum]) -> None:
        done = summed = 0
        while done < len(view):
            if self._deadline is not None:
                self._limit_waits(max(0.001, self._deadline - time.monotonic()))
            count = self._sock.recv_into(view[done:])
            if count == 0:
                raise ConnectionResetError('closed by the peer')
            done += count
            self.bytes_received += count
            if checksum is not None and (done == len(view) or done - summed >= CHUNK_BYTES):
                stop = done if done == len(view) else done // WORD_BYTES * WORD_BYTES
                checksum.update(view[summed:stop])
                summed = stop

    # --- life ---

    def handshake(self, role: str, peer_roles: Tuple[str, ...], token: bytes, starts: bool) -> None:
        """HELLO and, with a secret, PROOF (docs/protocol.md); closed unless it succeeds. Raises `NetworkError`."""
        self._deadline = time.monotonic() + HANDSHAKE_S
        try:
            self._prove(role, peer_roles, token, starts)
        except NetworkError as error:
            if not self.is_closed:
                self.fail('protocol', str(error))
            raise
        self._deadline = None
        self._limit_waits(SILENCE_S)
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        threading.Thread(target=self._beat, name=f'heartbeat {self.peer}', daemon=True).start()

    def _prove(self, role: str, peer_roles: Tuple[str, ...], token: bytes, starts: bool) -> None:
        nonce = secrets.token_hex(32)
        hello = {'role': role, 'nonce': nonce, 'secret': bool(token)}
        if starts:
            self.send(Kind.HELLO, hello)
        message = self._expect(Kind.HELLO)
        message.text('role', peer_roles)
        peer_nonce = message.text('nonce')
        if not starts:
            self.send(Kind.HELLO, hello)
        if message.flag('secret') != bool(token):
            self._refuse('SPLIT_AUTH_TOKEN is set on one end only: set the same on both')
        if token:
            mine, theirs = ('client', 'server') if starts else ('server', 'client')
            if starts:
                self.send(Kind.PROOF, {'hmac': proof(token, mine, peer_nonce, nonce)})
            given = self._expect(Kind.PROOF).text('hmac')
            if not hmac.compare_digest(given.encode(), proof(token, theirs, nonce, peer_nonce).encode()):
                self._refuse('SPLIT_AUTH_TOKEN differs between the two ends')
            if not starts:
                self.send(Kind.PROOF, {'hmac': proof(token, mine, peer_nonce, nonce)})

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

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S / 2):
            if time.monotonic() - self._last_sent_s >= HEARTBEAT_S / 2 and not self._send_lock.locked():
                try:
                    self.send(Kind.HEARTBEAT)
                except NetworkError:
                    return

    def _lost(self, error: OSError, silence: str) -> ConnectionLost:
        if isinstance(error, BlockingIOError) and not self._closed.is_set():
            waited = HANDSHAKE_S if self._deadline is not None else SILENCE_S
            reason = f'{self.peer} {silence} for {waited:g} s'
        elif isinstance(error, (ConnectionResetError, BrokenPipeError)) or self._closed.is_set():
            reason = f'{self.peer} closed the connection'
        else:
            reason = f'{self.peer}: {error.strerror or error}'
        self.close()
        return ConnectionLost(reason)

    @property
    def is_closed(self) -> bool:
        """True once it was closed by either end, as far as this end knows."""
        return self._closed.is_set()

    def fail(self, code: str, text: str) -> None:
        """Tell the peer why (if it still listens), then close."""
        try:
            self._limit_waits(1.0)
            self.send(Kind.ERROR, {'id': 0, 'code': code, 'text': printable(text)[:200]})
        except (NetworkError, OSError):
            pass
        self.close()

    def close(self) -> None:
        """Close; a thread that waits in `receive` or `send` gets `ConnectionLost`."""
        self._closed.set()
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


def proof(token: bytes, label: str, first_nonce: str, second_nonce: str) -> str:
    """HMAC-SHA256 of who proves and both nonces, hex digits."""
    return hmac.new(token, f'{label}|{VERSION}|{first_nonce}|{second_nonce}'.encode(), hashlib.sha256).hexdigest()


# --- finding each other ----------------------------------------------------------------------------

def connect(address: Address, token: bytes, role: str, peer_role: str) -> Connection:
    """One attempt. Raises `NetworkError`."""
    try:
        sock = socket.create_connection(address, timeout=CONNECT_S)
    except OSError as error:
        raise ConnectionLost(f'cannot connect to {address}: {error.strerror or error}') from None
    connection = Connection(sock, str(address))
    connection.handshake(role, (peer_role,), token, starts=True)
    return connection


def connect_with_retries(address: Address, token: bytes, role: str, peer_role: str, say: Callable[[str], None],
                         wait: Callable[[float], bool], attempts: int = 0) -> Optional[Connection]:
    """Connect, retrying with back-off and saying so. `wait(seconds)` returns True to give up (None is returned).

    `attempts` 0: without end. Raises `UserError` where trying again is useless, or after that many attempts.
    """
    attempt = 0
    while True:
        try:
            return connect(address, token, role, peer_role)
        except (Refused, VersionMismatch) as error:
            raise UserError(str(error)) from None
        except NetworkError as error:
            pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
            attempt += 1
            if attempts and attempt >= attempts:
                raise UserError(f'{error}; gave up after {attempt} attempts') from None
            say(f'{error}; next attempt in {pause} s')
            if wait(pause):
                return None


def check_address(address: Address, token: bytes, allow_open: bool) -> None:
    """Refuse to listen where strangers could connect, unless there is a secret or the user insists."""
    try:
        loopback = all(ipaddress.ip_address(info[4][0].partition('%')[0]).is_loopback
                       for info in socket.getaddrinfo(address.host or '0.0.0.0', None))
    except (OSError, ValueError):
        raise UserError(f'{address.host}: unknown host name or address') from None
    if not (loopback or token or allow_open):
        raise UserError(f'listening on {address.host} would let anyone connect: set SPLIT_AUTH_TOKEN on both ends '
                        '(`openssl rand -hex 32`), use an SSH tunnel to 127.0.0.1, or pass --allow_open')


class Listener:
    """Accepts peers in the background; those that pass the handshake come out of `get`."""

    def __init__(self, address: Address, token: bytes, role: str, peer_roles: Tuple[str, ...],
                 say: Callable[[str], None], allow_open: bool = False) -> None:
        check_address(address, token, allow_open)
        self._handshake_arguments = (role, peer_roles, token)
        self._say = say
        try:
            family = socket.getaddrinfo(address.host or '0.0.0.0', address.port, type=socket.SOCK_STREAM)[0][0]
            self._sock = socket.create_server((address.host, address.port), family=family, backlog=MAX_HANDSHAKES)
        except OSError as error:
            raise UserError(f'cannot listen on {address}: {error.strerror or error}') from None
        self.address = Address(address.host, self._sock.getsockname()[1])
        self._ready: 'queue.Queue[Connection]' = queue.Queue(MAX_HANDSHAKES)
        self._slots = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._said: Dict[str, float] = {}
        threading.Thread(target=self._accept, name=f'listen {self.address}', daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._sock.accept()
            except OSError:  # closed, or out of file descriptors
                if self._sock.fileno() < 0:
                    return
                time.sleep(0.1)
                continue
            if not self._slots.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._greet, args=(sock, f'{peer[0]}:{peer[1]}'), daemon=True).start()

    def _greet(self, sock: socket.socket, peer: str) -> None:
        try:
            connection = Connection(sock, peer)
            connection.handshake(*self._handshake_arguments, starts=False)
            self._ready.put(connection)
        except NetworkError as error:
            self._say_once(peer.rpartition(':')[0], str(error))
        except OSError:  # gone before anything was said
            sock.close()
        finally:
            self._slots.release()

    def _say_once(self, host: str, error: str) -> None:
        """A line for each host and minute at most: a port scan must not flood the log."""
        now = time.monotonic()
        if now - self._said.get(host, -60.0) >= 60.0:
            if len(self._said) > 1000:
                self._said.clear()
            self._said[host] = now
            self._say(f'refused a connection from {host}: {error}')

    def get(self, timeout_s: Optional[float] = None) -> Optional[Connection]:
        """The peer that has waited longest, or None after `timeout_s`."""
        try:
            return self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def __iter__(self) -> Iterator[Connection]:
        while self._sock.fileno() >= 0:
            connection = self.get(timeout_s=0.5)
            if connection is not None:
                yield connection

    def close(self) -> None:
        """Stop listening."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()
