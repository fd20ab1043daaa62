"""What one connection of a camera to its service holds, and how connections are found."""
from __future__ import annotations

import queue
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, Mapping, NamedTuple, Optional, Tuple

import torch

import cli
from network_utils import Address, connect_with_retries
from tier.sources import Numbered
from wire.connection import Connection
from wire.frames import Kind, NetworkError
from wire.stream import MAX_WINDOW, Pacer

PATIENCE = 4  # times as long as the last answer took may the next one take
BUSY_S = 10.0  # and as long as this: a server with much to do is not gone
POLL_S = 0.2  # a thread that waits looks about so often


class NoAnswer(NetworkError):
    """The server may live, and does not answer."""


class Choice(NamedTuple):
    """What the head is, and what its output travels as."""
    number: int
    split: int  # λ
    unit: int  # the head is units [0, unit) of the network
    wire: str  # how it is encoded
    name: str  # of the wire format, as the server calls it
    sent: Tuple[int, ...]  # the channels of it that travel; (): all
    place: int  # of the network, among those that the device holds
    network: str  # as the server calls it
    entry: str


@dataclass
class Frame:
    """A frame on its way."""
    numbered: Numbered
    start_s: float  # what its latency counts from
    begun_s: float = 0.0  # when its head was begun
    choice: Optional[Choice] = None
    head_s: float = 0.0


class Silence(NamedTuple):
    """For how long nothing was heard from the server."""
    n_bytes: int = 0  # heard so far
    clock_s: float = 0.0
    silent_s: float = 0.0

    def at(self, clock_s: float, n_bytes: int) -> 'Silence':
        """It now, with so many bytes heard in all. Where this device itself stood still, as under load, what came
        meanwhile may not have been read yet: between two looks at most 2·POLL_S counts."""
        if n_bytes != self.n_bytes:
            return Silence(n_bytes, clock_s)
        return Silence(n_bytes, clock_s, self.silent_s + min(clock_s - self.clock_s, 2 * POLL_S))


@dataclass
class Stream:
    """What one connection's frames share; guarded by `changed`."""
    connection: Connection
    choice: Choice
    patience_s: float  # without a sign of life before the device goes on alone
    pacer: Pacer = field(default_factory=Pacer)
    sent: int = 0
    back: Deque[float] = field(default_factory=lambda: deque(maxlen=MAX_WINDOW))  # when the last answers came
    answered: int = 0
    latency_s: float = 0.0  # of the last answer; 0: none yet
    moved_s: float = 0.0  # when something was answered last, or sent while nothing was under way
    lost: Optional[BaseException] = None
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    silence: Silence = Silence()

    def fail(self, error: BaseException) -> None:
        """End it, for the first reason that there is."""
        with self.changed:
            self.lost = self.lost or error
            self.changed.notify_all()
        self.connection.close()

    def check(self) -> None:
        """Raise what ended it, if anything did; `NoAnswer` when a frame is under way and the server gives no sign of
        life, or when it does and takes much longer than it did before. (The first answer may take as long as the
        connection lives.)"""
        if self.lost is not None:
            raise self.lost
        clock_s = time.perf_counter()
        self.silence = self.silence.at(clock_s, self.connection.bytes_received)
        if self.sent > self.answered and self.silence.silent_s > self.patience_s:
            raise NoAnswer(f'nothing heard for {self.silence.silent_s:.1f} s')
        waited_s = clock_s - self.moved_s
        if self.sent > self.answered > 0 and waited_s > max(self.patience_s, BUSY_S, PATIENCE * self.latency_s):
            raise NoAnswer(f'it lives, and no answer came for {waited_s:.1f} s')

    def wait_for_turn(self) -> bool:
        """Wait until the next frame may start; False when that takes longer than POLL_S."""
        with self.changed:
            self.check()
            if self.sent - self.answered >= self.pacer.window:
                self.changed.wait(POLL_S)
                self.check()
            late = self.answered - (self.sent - self.pacer.window)  # answers since the one that this frame waits for
            if late <= 0:
                return False
            delay_s = self.back[-late] + self.pacer.delay_s - time.perf_counter() if late <= len(self.back) else 0.0
        if delay_s > 0:
            time.sleep(min(delay_s, POLL_S))
        return True

    def send(self, fields: Dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Send a frame. What the system does not take at once goes on while the next head is computed; the frame
        behind it then has to wait."""
        self._wait_until_sent()
        with self.changed:
            if self.sent == self.answered:
                self.moved_s = time.perf_counter()
            self.sent += 1
        self.connection.post(Kind.FRAME, fields, tensors)

    def _wait_until_sent(self) -> None:
        while not self.connection.has_left(POLL_S):
            self.check()

    def end(self) -> None:
        """No more frames will come: return when all are answered."""
        self._wait_until_sent()
        self.connection.send(Kind.END)
        with self.changed:
            while not self.ended:
                self.changed.wait(POLL_S)
                self.check()
            self.check()


class Connector:
    """Connects in a thread of its own, with growing pauses, whenever it is told to."""

    def __init__(self, address: Address, token: bytes, tls: Optional[ssl.SSLContext] = None) -> None:
        self._address, self._token, self._tls = address, token, tls
        self._stopping = threading.Event()
        self._found: 'queue.Queue[Connection]' = queue.Queue()
        self._orders: 'queue.Queue[float]' = queue.Queue()
        threading.Thread(target=self._run, name='connect', daemon=True).start()

    def go(self, after_s: float) -> None:
        """Find a connection, beginning after so many seconds."""
        self._orders.put(after_s)

    def arrived(self, wait: bool) -> Optional[Connection]:
        """A connection that was found; with `wait`, as soon as there is one, otherwise None when there is none yet."""
        while True:
            try:
                return self._found.get(timeout=POLL_S) if wait else self._found.get_nowait()
            except queue.Empty:
                if not wait:
                    return None

    def stop(self) -> None:
        """Give up."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._orders.get()):
            connection = connect_with_retries(self._address, self._token, 'camera', 'service', cli.say,
                                              self._stopping.wait, tls=self._tls)
            if connection is not None:
                self._found.put(connection)
