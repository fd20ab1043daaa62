"""How two ends find each other and prove that they share a secret; they get a `Connection`.

    connection = connect_with_retries(address, token, 'worker', 'server', say, wait)   # one end
    for connection in Listener(address, token, 'server', ('worker',), say): ...        # the other
"""
from __future__ import annotations

import collections
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from config import UserError
from wire.connection import SILENCE_S, Connection
from wire.frames import ConnectionLost, Kind, NetworkError, PeerError
from wire.tls import Tls

CONNECT_S = 5.0
BACK_OFF_S = (1, 2, 4, 5)  # between attempts to connect; the last one repeats: a device is not alone long after a cut
MAX_HANDSHAKES = 32  # at a time: one more makes the oldest go, of the address that has most of them
MAX_WAITING = 8  # peers that are trusted and wait for their turn


class Address(NamedTuple):
    """Host name or IP address, and port (0: any free one)."""
    host: str
    port: int

    def __str__(self) -> str:
        return f'{self.host}:{self.port}'


def token_from_environment() -> bytes:
    """SPLIT_AUTH_TOKEN, empty when it is not set."""
    return os.fsencode(os.environ.get('SPLIT_AUTH_TOKEN', ''))  # any bytes, as they were given


def connect(address: Address, token: bytes, role: str, peer_role: str, tls: Optional[ssl.SSLContext] = None,
            ) -> Connection:
    """One attempt. Raises `NetworkError`."""
    try:
        sock = socket.create_connection(address, timeout=CONNECT_S)
    except UnicodeError:
        raise UserError(f'{address.host}: is no host name or address') from None
    except OSError as error:
        raise ConnectionLost(f'cannot connect to {address}: {error.strerror or error}') from None
    connection = Connection(sock, str(address), None if tls is None else Tls(tls, address.host))
    connection.handshake(role, (peer_role,), token, starts=True)
    return connection


def ask_client(control_port: int, action: str) -> str:
    """What the client on this control port answers to status, cancel or shutdown. Raises `UserError`."""
    address = Address('127.0.0.1', control_port)
    try:
        connection = connect(address, token_from_environment(), 'control', 'worker')
        connection.send(Kind.REQUEST, {'id': 1, 'op': action})
        reply = connection.receive(SILENCE_S)
        connection.close()
        reply.raise_error()
        done, total, requests = (reply.integer(name, 0, 2 ** 62) for name in ('done', 'total', 'requests'))
        state = (f"{reply.text('state')} {reply.text('op')}".strip() + (f', {done} of {total}' if total else '') +
                 f'; {requests} requests so far')
        return '\n'.join(filter(None, (state, reply.text('text'))))
    except (NetworkError, PeerError) as error:
        raise UserError(f'{error}; is a client running, with its control port on {address}?') from None


def connect_with_retries(address: Address, token: bytes, role: str, peer_role: str, say: Callable[[str], None],
                         wait: Callable[[float], bool], attempts: int = 0, tls: Optional[ssl.SSLContext] = None,
                         ) -> Optional[Connection]:
    """Connect, retrying with back-off; what is new of that is said. `wait(seconds)` returns True to give up (None is
    returned).

    `attempts` 0: without end, also where the other end refuses: until it has proved who it is, its words may be
    anybody's, or a damaged byte. Raises `UserError` after that many attempts.
    """
    attempt, said = 0, ''
    while True:
        try:
            return connect(address, token, role, peer_role, tls)
        except NetworkError as error:
            pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
            attempt += 1
            if attempts and attempt >= attempts:
                raise UserError(f'{error}; gave up after {attempt} attempts') from None
            repeats = pause == BACK_OFF_S[-1]
            line = f"{error}; {'trying again every' if repeats else 'next attempt in'} {pause} s"
            if line != said:
                say(line)
            said = line
            if wait(pause):
                return None


def check_address(address: Address, token: bytes, allow_open: bool, tls: Optional[ssl.SSLContext] = None) -> None:
    """Refuse to listen where strangers could connect, unless there is a secret, clients need certificates, or the user
    insists."""
    try:
        loopback = all(ipaddress.ip_address(info[4][0].partition('%')[0]).is_loopback
                       for info in socket.getaddrinfo(address.host or '0.0.0.0', None))
    except (OSError, ValueError):  # UnicodeError is a ValueError
        raise UserError(f'{address.host}: unknown host name or address') from None
    trusted = token or (tls is not None and tls.verify_mode == ssl.CERT_REQUIRED)
    if not (loopback or trusted or allow_open):
        raise UserError(f'listening on {address.host} would let anyone connect: set SPLIT_AUTH_TOKEN on both ends '
                        '(`openssl rand -hex 32`), use an SSH tunnel to 127.0.0.1, or pass --allow_open')


def _hang_up(sock: socket.socket) -> None:
    """End a connection, or listening; whoever waits on the socket is told by the system."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class Listener:
    """Accepts peers in the background; those that pass the handshake come out of `get`."""

    def __init__(self, address: Address, token: bytes, role: str, peer_roles: Tuple[str, ...],
                 say: Callable[[str], None], allow_open: bool = False, max_handshakes: int = MAX_HANDSHAKES,
                 tls: Optional[ssl.SSLContext] = None) -> None:
        """`tls`: who connects has to speak it."""
        check_address(address, token, allow_open, tls)
        self._handshake_arguments = (role, peer_roles, token)
        self._say, self._max_handshakes, self._tls = say, max_handshakes, tls
        try:
            family = socket.getaddrinfo(address.host or '0.0.0.0', address.port, type=socket.SOCK_STREAM)[0][0]
            self._sock = socket.create_server((address.host, address.port), family=family, backlog=max_handshakes)
        except OSError as error:
            raise UserError(f'cannot listen on {address}: {error.strerror or error}') from None
        self.address = Address(address.host, self._sock.getsockname()[1])
        self._ready: 'queue.Queue[Connection]' = queue.Queue(MAX_WAITING)
        self._strangers: Dict[socket.socket, str] = {}  # in the handshake, the oldest first, and their addresses
        self._lock = threading.Lock()
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
            with self._lock:
                if len(self._strangers) >= self._max_handshakes:
                    _hang_up(self._one_too_many())
                self._strangers[sock] = peer[0]
            threading.Thread(target=self._greet, args=(sock, f'{peer[0]}:{peer[1]}'), daemon=True).start()

    def _one_too_many(self) -> socket.socket:
        """The oldest connection of the address that has most: it has had more time than a handshake takes, and whoever
        opens many connections only closes his own."""
        counts = collections.Counter(self._strangers.values())
        sock = max(self._strangers, key=lambda each: counts[self._strangers[each]])  # the first of the largest
        del self._strangers[sock]
        return sock

    def _greet(self, sock: socket.socket, peer: str) -> None:
        try:
            connection = Connection(sock, peer, None if self._tls is None else Tls(self._tls))
            connection.handshake(*self._handshake_arguments, starts=False)
            self._ready.put_nowait(connection)
        except queue.Full:
            connection.fail('refused', f'{MAX_WAITING} others are waiting already')
        except NetworkError as error:
            self._say_once(peer.rpartition(':')[0], str(error))
        except OSError:  # gone before anything was said
            sock.close()
        finally:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        """Its place is free for another stranger."""
        with self._lock:
            self._strangers.pop(sock, None)

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
        _hang_up(self._sock)
        self._sock.close()
