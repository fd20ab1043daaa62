"""One client at the server's end: what it may run, its frames under way, and its answers in order."""
from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional

from fleet.decisions import Conditions, Switching, shed
from service.adapting import conditions_of
from service.arena import Layout
from service.entries import Choice, Entry, ServedNetwork
from service.figures import Answered, ClientFigures
from service.shift import Sums
from service.tails import TailKey
from wire.connection import Connection
from wire.frames import ConnectionLost, Kind, Message, ProtocolError, spec_bytes

MAX_UNANSWERED = 16  # frames of a client that the server holds; with more it stops reading, and the client has to wait
TURN_S = 0.5  # for a heartbeat that is being sent
LIVE_WAITING = 4  # frames of a live source that wait for a worker; one more drops the oldest


@dataclass
class Frame:
    """A frame that is on this machine and not answered yet. Times on the server's monotonic clock, s."""
    client: 'ServedClient'
    i: int
    number: int  # of the configuration that its head was computed under
    key: TailKey
    slot: int
    layout: Layout
    link_s: float  # from its first byte to its last
    arrived_s: float
    head_s: float = 0.0  # as the client says
    earlier_latency_s: float = 0.0  # of the frame whose answer the client had last; 0: none
    first_s: float = 0.0  # since when no older frame of its client waits
    taken_s: float = 0.0  # by a worker
    attempts: int = 0  # workers that died while they had it


class Configuration(NamedTuple):
    """What a client runs."""
    entry: Entry
    choice: Choice

    @property
    def network(self) -> ServedNetwork:
        """Which of its entry's networks."""
        return self.entry.networks[self.choice.network]


class ServedClient:
    """The state of one client. Methods may be called from several threads."""

    def __init__(self, connection: Connection, name: str, entry: Entry, choice: Choice, live: bool,
                 fps: Optional[float], held: List[ServedNetwork], others: Optional[Dict[str, Entry]] = None) -> None:
        """`held`: the networks that the device holds ready; its own entry's first one is among them. `others`: entries
        of other domains that it may be switched to, by name."""
        self.connection, self.name, self.live, self.fps, self.held = connection, name, live, fps, held
        self.entries = {entry.name: entry, **(others or {})}
        self.looks: Sums = {}  # what speaks for other domains
        self.telling = threading.Lock()  # one SWITCH after the other
        self.configurations: Dict[int, Configuration] = {0: Configuration(entry, choice)}  # by the number in frames
        self.number = 0  # of the newest one
        self.figures = ClientFigures()
        self.switching = Switching()
        self.received = self._next = 0  # numbers of the next frame to come, and to answer
        self.last_taken_s = 0.0
        self._answers: Dict[int, Dict[str, Any]] = {}  # of later frames than the next one
        self._changed = threading.Condition()

    @property
    def current(self) -> Configuration:
        """What the client runs, or is about to."""
        return self.configurations[self.number]

    @property
    def entry(self) -> Entry:
        """Of what it runs."""
        return self.current.entry

    @property
    def choice(self) -> Choice:
        """Of its entry's."""
        return self.current.choice

    def place_of(self, network: ServedNetwork) -> int:
        """Among the networks that it holds."""
        return [one.name for one in self.held].index(network.name)

    def expect_frame(self, message: Message) -> int:
        """Check a FRAME's number and configuration; the configuration's number."""
        if message.kind != Kind.FRAME or message.integer('i', self.received, self.received) != self.received:
            raise ProtocolError(f'expected frame {self.received}, got {message.kind.name}')
        number = message.integer('c', 0, self.number)
        if number not in self.configurations:
            raise message.wrong('c')
        return number

    def wait_for_room(self) -> int:
        """Wait until a frame may be added; its number, which is now taken."""
        with self._changed:
            while self.received - self._next >= MAX_UNANSWERED:
                self._changed.wait(timeout=1.0)
                self._check()
            self.received += 1
            return self.received - 1

    def wait_until_answered(self) -> None:
        """Return when no frame is under way."""
        with self._changed:
            while self._next < self.received:
                self._changed.wait(timeout=1.0)
                self._check()

    def _check(self) -> None:
        if self.connection.is_closed:
            raise ConnectionLost(f'{self.connection.peer} is gone')

    def answer(self, frame: Frame, fields: Dict[str, Any], tail_ms: float = 0.0, batch: int = 1) -> None:
        """Send a frame's answer as soon as all earlier ones have theirs. A client that does not read its answers is
        disconnected: waiting for it would make others wait. `tail_ms`: what its batch took, of so many frames."""
        now = time.monotonic()
        with self._changed:
            self._answers[frame.i] = {'i': frame.i, 'link_s': frame.link_s,
                                      'tail_s': now - (frame.first_s or frame.arrived_s), **fields}
            self.figures.dropped += 'dropped' in fields
            if 'dropped' not in fields:
                self.figures.add(Answered(
                    now, 1000 * frame.head_s, 1000 * frame.link_s, 1000 * (frame.taken_s - frame.arrived_s), tail_ms,
                    1000 * frame.earlier_latency_s or None, batch, frame.number, sum(map(spec_bytes, frame.layout))))
            while self._next in self._answers:
                self._send(self._answers.pop(self._next))
                self._next += 1
                self.figures.answered += 1
            self._changed.notify_all()

    def now(self, now_s: float) -> Optional[Conditions]:
        """What it meets now; None while that is not known."""
        with self._changed:
            return conditions_of(self.figures.recent, self.choice, self.number, now_s)

    def switch(self, entry: Entry, choice: Choice) -> None:
        """From its next frame on it runs this. The caller sends SWITCH."""
        if entry is not self.entry:  # what was considered were choices of another entry
            self.switching = Switching(last_s=self.switching.last_s)
        with self._changed:
            self.number += 1
            self.configurations[self.number] = Configuration(entry, choice)
            self.figures.switches += 1

    def too_many(self, waiting: int) -> int:
        """How many of its frames that wait are dropped, the oldest first."""
        return shed(waiting, LIVE_WAITING, self.live)

    def snapshot(self, now_s: float) -> Dict[str, Any]:
        """What is known of it, for reports."""
        with self._changed:
            choice = self.choice
            return {'name': self.name, 'peer': self.connection.peer, 'entry': self.entry.name,
                    'network': self.current.network.name, 'live': self.live,
                    'lambda': choice.split, 'wire': choice.wire, 'promised_fps': self.fps,
                    'predicted_head_ms': choice.T_client_ms, 'predicted_tail_ms': choice.T_server_ms,
                    'bytes_per_frame': choice.n_bytes, 'unanswered': self.received - self._next,
                    **self.figures.snapshot(now_s)}

    def _send(self, fields: Dict[str, Any]) -> None:
        try:
            if not self.connection.post(Kind.RESULT, fields, {}, TURN_S):
                self.connection.close()
        except ConnectionLost:
            pass  # its own thread finds out
