"""The client of a service (`serve_split.py`): streams a source's frames and gives every one its answer, in order.

The device holds the whole network of its entry: its first blocks are the head, at whatever split the server says, and
all of it is what the device goes on with alone while the server is away. Every frame is answered exactly once: what was
under way when a connection broke is computed here.
"""
from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional

import torch

import cli
from config import Settings, UserError
from network_utils import Address, token_from_environment
from tier.feed import POLL_S, Choice, Connector, Frame, NoAnswer, Stream
from tier.part import STATISTICS, NetworkPart, channel_statistics, cut_shape
from tier.sources import Numbered, Reader, open_source
from tier.tasks import MAX_INPUT_SIZE, Tasks
from tier.worker import Worker
from wire import codec
from wire.compression import available
from wire.connection import Connection
from wire.formats import AS_COMPUTED, WIRE_FORMATS, exists
from wire.frames import Kind, Message, NetworkError, PeerError, ProtocolError

AWAY_S = 30.0  # a client that was refused after it had been served asks again after this
CLOCK_S = 0.05  # clocks of two machines may differ by this much over one frame
MAX_CONFIGURATIONS = 2 ** 31


class Wish(NamedTuple):
    """What a client asks for."""
    source: str
    live: bool  # may frames be dropped?
    entry: str  # of the server's; '': its only one
    name: str  # of this client, for the server's reports
    fps: float  # that it wants to be sure of; 0: what is left


class Camera:
    """A source, and how its frames are answered."""

    def __init__(self, wish: Wish, tasks: Tasks, settings: Settings, write: Callable[[str], None]) -> None:
        self.wish, self._settings, self._write = wish, settings, write
        self._served = 0  # frames that a server has answered
        self._worker, self._tasks = Worker(tasks), tasks
        self._reader: Optional[Reader] = None
        self._parts: List[NetworkPart] = []  # the whole networks that it holds
        self._part: Optional[NetworkPart] = None  # the one of them that the newest configuration runs
        self._names: List[str] = []
        self._entry, self._watched = '', False
        self._under_way: Deque[Frame] = deque()  # in order; dropped ones, too
        self._lock = threading.RLock()  # guards them, and the order of lines
        self._finished = False

    # --- with a server or without ---

    def run(self, address: Address, token: bytes, tls: Optional[ssl.SSLContext] = None) -> None:
        """Answer all frames of the source. Raises `UserError`, also when the server refuses a client that it has not
        served yet."""
        connector = Connector(address, token, tls)
        connector.go(0.0)
        while not self._finished:
            connection = connector.arrived(wait=self._part is None)
            if connection is None:
                self._answer_alone()
                continue
            pause_s = self._while_connected(connection)
            connection.close()
            self._finish_alone()
            connector.go(pause_s)
        connector.stop()

    def _while_connected(self, connection: Connection) -> float:
        """Be served until all is done or the connection ends; how long to wait before the next one, s."""
        served = self._served
        try:
            self._serve_over(connection)
        except UserError:  # the source has failed: what came of it before has its answers
            connection.close()
            self._finish_alone()
            raise
        except PeerError as error:
            if self._part is None:
                raise UserError(f'the server refuses: {error}') from None
            cli.say(f'the server refuses ({error}); going on alone, asking again in {AWAY_S:g} s')
            return AWAY_S
        except NetworkError as error:
            cli.say(f'server lost ({error}); going on alone' if self._part else f'server lost ({error})')
            return self._settings.RETURN_AFTER_S if isinstance(error, NoAnswer) or served == self._served else 0.0
        return 0.0

    def _serve_over(self, connection: Connection) -> None:
        """Do what the server asks, until all frames are answered. Raises `NetworkError` and `PeerError`."""
        wish = self.wish
        connection.send(Kind.JOIN, {'entry': wish.entry, 'name': wish.name, 'fps': wish.fps, 'live': wish.live,
                                    'silent_s': self._settings.FALLBACK_AFTER_S,
                                    'hold_mb': self._settings.HELD_NETWORKS_MB, 'compressions': ' '.join(available())})
        self._tasks.connection = connection
        while True:
            message = connection.receive()
            message.raise_error()
            if message.kind == Kind.GOODBYE:
                return
            if message.kind != Kind.REQUEST:
                raise ProtocolError(f'expected a request, got {message.kind.name}')
            if message.text('op') == 'serve':
                self._stream(connection, message)
            else:
                self._worker.answer(connection, message)

    # --- through the server ---

    def _stream(self, connection: Connection, message: Message) -> None:
        """The request `serve`: send frames until the source ends, and take their answers."""
        parts, n_units = list(self._tasks.parts), self._tasks.current_part().spec.n_blocks + 2
        if any((part.spec.first, part.spec.last) != (0, n_units) or part.spec.gamma is None for part in parts):
            raise ProtocolError('serve: a network that was sent is not a whole one')
        size = message.integer('input_size', 1, MAX_INPUT_SIZE)
        stream = Stream(connection, self._choice_of(message, parts, size), self._settings.FALLBACK_AFTER_S)
        self._parts, self._names, self._watched = parts, message.texts('names'), message.flag('watch')
        self._part, self._entry = parts[stream.choice.place], stream.choice.entry
        if self._reader is None:
            self._reader = Reader(open_source(self.wish.source, size), self.wish.live)
        cli.say(f'served: {self._entry}, {_described(stream.choice)}')
        collector = threading.Thread(target=self._collect, args=(stream, size), name='answers', daemon=True)
        collector.start()
        try:
            self._send_frames(stream)
            stream.end()
        except BaseException as error:
            stream.fail(error)
            collector.join()
            raise stream.lost from None  # the first one: this may be a consequence
        collector.join()
        self._print_dropped()
        self._finished = True
        connection.send(Kind.REPLY, {'id': message.integer('id', 0, 2 ** 62), 'frames': stream.sent})

    def _send_frames(self, stream: Stream) -> None:
        while True:
            if not stream.wait_for_turn():
                continue
            frame = self._next_frame()
            if frame is None:
                return
            if frame.numbered.picture is None:
                continue
            frame.choice, frame.begun_s = stream.choice, time.perf_counter()
            tensors = self._run_head(frame)
            frame.head_s = time.perf_counter() - frame.begun_s
            fields = {'i': stream.sent, 'c': frame.choice.number, 'head_s': frame.head_s, 'latency_s': stream.latency_s}
            with self._lock:
                self._under_way.append(frame)
            stream.send(fields, tensors)

    def _run_head(self, frame: Frame) -> Dict[str, torch.Tensor]:
        """What is sent: the feature map, encoded, and, where the server asks for them, the statistics of what the stem
        puts out."""
        x, choice, first = frame.numbered.picture.image[None], frame.choice, 0
        part, statistics = self._parts[choice.place], {}
        with torch.inference_mode():
            if self._watched:
                stem = part(x, last=1)
                statistics[STATISTICS] = channel_statistics(stem)[0]
                if choice.unit > 0:
                    x, first = stem, 1
            z = part(x, first, choice.unit)
            return {**codec.encode(z[:, list(choice.sent)] if choice.sent else z, choice.wire), **statistics}

    def _next_frame(self) -> Optional[Frame]:
        """The next frame, None at the end of the source; without a picture where there is none to compute now. Dropped
        ones are noted."""
        found = self._reader.take(POLL_S)
        if found is None:
            return None
        clock_s = time.perf_counter()
        frames = [Frame(one, one.taken_s if self.wish.live else clock_s) for one in found]
        waiting = frames[:-1] if frames and frames[-1].numbered.picture is not None else frames
        with self._lock:
            self._under_way.extend(waiting)
            self._print_dropped()
        return frames[-1] if len(frames) > len(waiting) else Frame(Numbered(-1, None, clock_s), clock_s)

    def _collect(self, stream: Stream, input_size: int) -> None:
        """Take answers until the server ends the stream."""
        try:
            while True:
                message = stream.connection.receive()
                message.raise_error()
                if message.kind == Kind.RESULT:
                    self._take_answer(stream, message)
                elif message.kind == Kind.SWITCH:
                    stream.choice = self._choice_of(message, self._parts, input_size)
                    self._part, self._entry = self._parts[stream.choice.place], stream.choice.entry
                    with stream.changed:
                        stream.pacer.forget()
                    cli.say(f'switched: {_described(stream.choice)}')
                elif message.kind == Kind.END and stream.answered == stream.sent:
                    break
                else:
                    raise ProtocolError(f'a stream has no {message.kind.name} here')
        except BaseException as error:  # handed to the thread that sends
            stream.fail(error)
        with stream.changed:
            stream.ended = True
            stream.changed.notify_all()

    def _take_answer(self, stream: Stream, message: Message) -> None:
        if stream.answered >= stream.sent:
            raise ProtocolError('an answer to a frame that was not sent')
        message.integer('i', stream.answered, stream.answered)
        with self._lock:
            self._print_dropped()
            frame = self._under_way[0]
            back_s = time.perf_counter()
            latency_s = back_s - frame.start_s
            link_s, tail_s = (message.number(name, 0, latency_s + CLOCK_S) for name in ('link_s', 'tail_s'))
            if 'dropped' in message.fields:
                line: Dict[str, Any] = {'dropped': 'server'}
            else:
                label = message.integers('prediction', 0, 2 ** 31, 1)[0]
                probability = message.fields.get('probability')
                line = self._prediction(label, None if probability is None else message.number('probability', 0, 1))
            self._under_way.popleft()
            self._print(frame, line, latency_s)
            self._print_dropped()
        with stream.changed:
            stream.pacer.add(frame.head_s, link_s, tail_s, back_s - frame.begun_s)
            stream.answered += 1
            self._served += 1
            stream.latency_s, stream.moved_s = back_s - frame.begun_s, back_s
            stream.back.append(back_s)
            stream.changed.notify_all()

    @staticmethod
    def _choice_of(message: Message, parts: List[NetworkPart], input_size: int) -> Choice:
        """What `serve` or SWITCH says; raises `ProtocolError` for what these networks cannot do."""
        spec = parts[message.integer('place', 0, len(parts) - 1)].spec
        unit, name = message.integer('unit', 0, spec.last), message.text('format')
        if not exists(name):
            raise message.wrong('format')
        n_channels = cut_shape(spec.model_name, spec.num_classes, input_size, unit)[0]
        return Choice(message.integer('c', 0, MAX_CONFIGURATIONS), message.integer('split', 0, spec.n_blocks), unit,
                      message.text('wire', (AS_COMPUTED, *WIRE_FORMATS)), name,
                      tuple(message.integers('sent', 0, n_channels - 1)), message.integer('place', 0, len(parts) - 1),
                      message.text('network'), message.text('entry'))

    # --- alone ---

    def _answer_alone(self) -> None:
        """One frame, computed here."""
        frame = self._next_frame()
        if frame is None:
            self._print_dropped()
            self._finished = True
        elif frame.numbered.picture is not None:
            self._under_way.append(frame)
            self._finish_alone()

    def _finish_alone(self) -> None:
        """Compute what is under way here."""
        while self._under_way:
            self._print_dropped()
            if self._under_way:
                frame = self._under_way.popleft()
                with torch.inference_mode():
                    logits = self._part(frame.numbered.picture.image[None])
                probability, label = logits.softmax(dim=1).max(dim=1)
                frame.choice = None
                found = self._prediction(int(label), float(probability))
                self._print(frame, found, time.perf_counter() - frame.start_s)

    # --- lines ---

    def _print_dropped(self) -> None:
        """Lines for dropped frames that no frame under way stands before."""
        while self._under_way and self._under_way[0].numbered.picture is None:
            frame = self._under_way.popleft()
            self._write(json.dumps({'frame': frame.numbered.number, 'time_s': now(), 'dropped': 'client'}))

    def _prediction(self, label: int, probability: Optional[float]) -> Dict[str, Any]:
        name = self._names[label] if label < len(self._names) else str(label)
        return {'class': label, 'name': name, 'probability': None if probability is None else round(probability, 6)}

    def _print(self, frame: Frame, found: Dict[str, Any], latency_s: float) -> None:
        """A frame's line."""
        line: Dict[str, Any] = {'frame': frame.numbered.number, 'time_s': now()}
        if frame.numbered.picture.name:
            line['file'] = frame.numbered.picture.name
        line.update(found)
        if 'dropped' not in found:
            choice = frame.choice
            line.update(latency_ms=round(1000 * latency_s, 3), entry=self._entry if choice is None else choice.entry,
                        local=choice is None,
                        configuration=None if choice is None else {
                            'network': choice.network, 'lambda': choice.split, 'wire': choice.name})
        self._write(json.dumps(line))


def _described(choice: Choice) -> str:
    return f'{choice.network}, λ {choice.split}, {choice.name}'


def now() -> float:
    """The time of day, s since 1970, to the millisecond."""
    return round(time.time(), 3)


def run(wish: Wish, tasks: Tasks, settings: Settings, server_ip: str, port: int,
        tls: Optional[ssl.SSLContext] = None) -> None:
    """Stream a source to a service, with lines on stdout, until it ends."""
    Camera(wish, tasks, settings, write_line).run(Address(server_ip, port), token_from_environment(), tls)


def write_line(line: str) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f'{line}\n')
    sys.stdout.flush()
