"""Streaming: frames flow through head, link and tail, and the three work at the same time.

The head end runs `stream_head`, the tail end `stream_tail`; either may be the client. Full buffers would raise latency
and not throughput, so the head end admits a frame only when the frames in flight are what the stages need and little
more (`Pacer`).
"""
from __future__ import annotations

import collections
import functools
import math
import queue
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Tuple, TypeVar

import torch

from wire import codec
from wire.connection import Connection
from wire.frames import Kind, NetworkError, ProtocolError

Tensors = Mapping[str, torch.Tensor]
OnResult = Callable[[int, List[int], float], None]  # frame, prediction, latency of the last frame that came back, s
Item = TypeVar('Item')
MAX_WINDOW = 64
LOCKSTEP_FRAMES = 6  # sent one at a time before a stream, to learn what a frame takes when it waits for nothing
SETTLE_FRAMES = 8  # after them, while the stream fills; like them, they do not count
LEAST_FRAMES = LOCKSTEP_FRAMES + SETTLE_FRAMES + 2  # of a stream that is measured
SLACK = 1.2  # latency that the pacer wants, as a multiple of a frame's that waits for nothing
GAIN = 0.1  # share of a frame's error in latency that is corrected at once
HUNG_S = 300.0  # a peer that lives and sends nothing of what is waited for is given up, whatever its heartbeats say
STAGES = ('head', 'link', 'tail')
FIGURES = ('n_frames', 'wall_s', 'throughput_fps', 'latency_p50_ms', 'latency_p90_ms', 'latency_p99_ms',
           'lockstep_latency_ms', *(f'lockstep_{stage}_ms' for stage in STAGES), 'bytes_per_frame',
           *(f'{stage}_ms' for stage in STAGES), *(f'{stage}_busy' for stage in STAGES))  # of a stream
LONGEST_S = 1e5  # of a frame's latency, as it is told
CLOCK_S = 0.05  # clocks of two machines may differ by this much over one frame
RECENT = 32  # frames that the pacer looks back


class Pacer:
    """When may the next frame start?

    With stage times h, l, t, a round trip r, and S = h + l + t + r, a frame that never waits takes S, and the slowest
    stage, C = max(h, l, t), sets the pace. Little's law: with w frames in flight at pace C the latency is w·C. The
    pacer wants the latency SLACK·S: what is above S keeps the slowest stage busy when times vary. It starts from
    w = SLACK·S / C and lets every result correct it: up where a frame took less than SLACK·S, down where it took more,
    so that errors of h, l, t do not matter (a receiver sees a frame of a slow link arrive faster than the link is,
    where there are buffers on the way). For w that is no whole number, frame i may start when the result of frame
    i - W is back, W = ceil(w), and (W - w)·C after that.
    """

    def __init__(self) -> None:
        self.recent: Deque[Tuple[float, float, float]] = collections.deque(maxlen=RECENT)
        self.lockstep: List[Tuple[float, float, float, float]] = []
        self.rest_s = self.link_s = 0.0  # of the lockstep frames: latency outside the stages; the link's time
        self.in_flight = 1.0  # w
        self.window, self.delay_s = 1, 0.0

    def forget(self) -> None:
        """The stages will take other times from now on."""
        self.recent.clear()
        self.link_s = 0.0

    def add(self, head_s: float, link_s: float, tail_s: float, latency_s: float) -> None:
        """A frame came back."""
        learning = len(self.lockstep) < LOCKSTEP_FRAMES
        if learning:
            self.lockstep.append((head_s, link_s, tail_s, latency_s))
            if len(self.lockstep) < LOCKSTEP_FRAMES:
                return
            warm = self.lockstep[1:]
            self.link_s = statistics.median(frame[1] for frame in warm)
            self.rest_s = max(0.0, statistics.median(frame[3] - sum(frame[:3]) for frame in warm))
            self.recent.extend(frame[:3] for frame in warm)
        self.recent.append((head_s, link_s, tail_s))
        head, link, tail = (statistics.median(stage) for stage in zip(*self.recent))
        link = max(link, self.link_s)  # a receiver that was busy elsewhere sees a frame arrive faster than it was sent
        slowest = max(head, link, tail, 1e-6)
        target = SLACK * (head + link + tail + self.rest_s)
        if learning:
            self.in_flight = target / slowest
        else:
            error = (target - latency_s) / slowest  # in frames; one long pause must not count for more than a frame
            self.in_flight += GAIN * min(1.0, max(-1.0, error))
        self.in_flight = min(float(MAX_WINDOW), max(1.0, self.in_flight))
        self.window = math.ceil(self.in_flight)
        self.delay_s = (self.window - self.in_flight) * slowest


@dataclass
class FrameRecord:
    """One frame at the head end; times in seconds on its clock."""
    start: float
    head_s: float = 0.0
    done: float = 0.0
    link_s: float = 0.0
    tail_s: float = 0.0
    n_bytes: int = 0


@dataclass
class StreamRecord:
    """What the head end saw: one entry a frame, in order."""
    frames: List[FrameRecord] = field(default_factory=list)
    results: List[List[int]] = field(default_factory=list)

    def figures(self) -> Dict[str, Any]:
        """Throughput, latency percentiles, bytes, stage times and busy shares of the frames after the first
        LOCKSTEP_FRAMES + SETTLE_FRAMES. Empty when there are fewer than two such frames."""
        skip = LOCKSTEP_FRAMES + SETTLE_FRAMES
        counted = [frame for frame in self.frames[skip:] if frame.done]
        if len(counted) < 2:
            return {}
        wall_s = counted[-1].done - self.frames[skip - 1].done
        latencies_ms = sorted(1000 * (frame.done - frame.start) for frame in counted)
        stages = {'head': [f.head_s for f in counted], 'link': [f.link_s for f in counted],
                  'tail': [f.tail_s for f in counted]}
        alone = self.frames[1:LOCKSTEP_FRAMES]
        return {'n_frames': len(counted), 'wall_s': wall_s, 'throughput_fps': len(counted) / wall_s,
                **{f'latency_p{p}_ms': latencies_ms[min(len(counted) - 1, p * len(counted) // 100)]
                   for p in (50, 90, 99)},
                'lockstep_latency_ms': 1000 * statistics.median(frame.done - frame.start for frame in alone),
                **{f'lockstep_{name}_ms': 1000 * statistics.median(getattr(frame, f'{name}_s') for frame in alone)
                   for name in stages},
                'bytes_per_frame': sum(frame.n_bytes for frame in counted) / len(counted),
                **{f'{name}_ms': 1000 * statistics.mean(values) for name, values in stages.items()},
                **{f'{name}_busy': sum(values) / wall_s for name, values in stages.items()}}


class _Failure:
    """The first error of any of an end's threads; the others then stop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.error: Optional[BaseException] = None
        self.happened = threading.Event()
        self._lock = threading.Lock()

    def set(self, error: BaseException) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        self.happened.set()
        if isinstance(error, NetworkError) or getattr(error, 'from_peer', False):
            self.connection.close()
        else:  # tell the other end that going on is useless
            self.connection.fail(getattr(error, 'code', 'failed'), str(error) or type(error).__name__)

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _put(target: 'queue.Queue[Item]', item: Item, failure: _Failure) -> None:
    while True:
        failure.check()
        try:
            return target.put(item, timeout=0.5)
        except queue.Full:
            continue


def _get(source: 'queue.Queue[Item]', failure: _Failure) -> Item:
    while True:
        failure.check()
        try:
            return source.get(timeout=0.5)
        except queue.Empty:
            continue


def _thread(target: Callable[[], None], failure: _Failure, name: str) -> threading.Thread:
    def guarded() -> None:
        try:
            target()
        except BaseException as error:  # handed to the thread that runs the stream
            failure.set(error)

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def stream_head(connection: Connection, compute: Callable[[int], Tensors], first: int, last: int,
                on_result: OnResult = lambda i, prediction, latency_s: None) -> StreamRecord:
    """Send frames [first, last); `compute(i)` gives a frame's tensors, ready to send. Returns when all results are
    back. Raises `NetworkError`, and whatever `compute` raises."""
    record, failure, pacer = StreamRecord(), _Failure(connection), Pacer()
    outbox: 'queue.Queue[Any]' = queue.Queue(maxsize=1)
    came_back = threading.Condition()
    finished: List[float] = []  # when each result came back
    latest: List[float] = []  # latency of the last one, s

    def send() -> None:
        while True:
            rest = _get(outbox, failure)
            if rest is None:
                return connection.send(Kind.END, {})
            rest()
            outbox.task_done()

    def collect() -> None:
        for i in range(first, last):
            message = connection.receive(HUNG_S)
            message.raise_error()
            if message.kind != Kind.RESULT or message.integer('i', i, i) != i:
                raise ProtocolError(f'stream: expected the result of frame {i}, got {message.kind.name}')
            frame = record.frames[i - first]
            frame.done = time.perf_counter()
            longest_s = frame.done - frame.start + CLOCK_S  # both lie between the frame's start and its result
            frame.link_s, frame.tail_s = (message.number(name, 0, longest_s) for name in ('link_s', 'tail_s'))
            prediction = message.integers('prediction', 0, 2 ** 31)
            record.results.append(prediction)
            latest[:] = [frame.done - frame.start]
            on_result(i, prediction, latest[0])
            pacer.add(frame.head_s, frame.link_s, frame.tail_s, latest[0])
            with came_back:
                finished.append(frame.done)
                came_back.notify()
        if connection.receive(HUNG_S).kind != Kind.END:
            raise ProtocolError('stream: expected END')

    threads = [_thread(send, failure, 'stream send'), _thread(collect, failure, 'stream results')]
    try:
        for i in range(first, last):
            number = i - first
            with came_back:
                while number - len(finished) >= pacer.window:
                    failure.check()
                    came_back.wait(timeout=0.5)
                allowed = finished[number - pacer.window] + pacer.delay_s if number >= pacer.window else 0.0
            failure.happened.wait(max(0.0, allowed - time.perf_counter()))
            frame = FrameRecord(time.perf_counter())
            tensors = compute(i)
            frame.head_s = time.perf_counter() - frame.start
            frame.n_bytes = codec.encoded_bytes(tensors)
            record.frames.append(frame)
            message = (Kind.FRAME, {'i': i, 'latency_s': latest[0] if latest else None}, tensors)
            rest: Any = functools.partial(connection.send, *message)
            if not outbox.unfinished_tasks:  # what the system takes at once needs no other thread
                rest = connection.begin_send(*message)
                frame.head_s = time.perf_counter() - frame.start
            if rest is not None:
                _put(outbox, rest, failure)
        _put(outbox, None, failure)
        _join(threads, failure)
    except BaseException as error:
        failure.set(error)
        raise failure.error from None  # the first one: this may be a consequence
    return record


def _join(threads: List[threading.Thread], failure: _Failure) -> None:
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(timeout=0.05)
    failure.check()


def stream_tail(connection: Connection, compute: Callable[[Tensors], List[int]], first: int, last: int,
                on_result: OnResult = lambda i, prediction, latency_s: None) -> None:
    """Receive frames [first, last) and answer each with `compute(tensors)`, its prediction."""
    failure = _Failure(connection)
    inbox: 'queue.Queue[Any]' = queue.Queue(maxsize=1)

    def receive() -> None:
        for i in range(first, last):
            message = connection.receive(HUNG_S)
            message.raise_error()
            if message.kind != Kind.FRAME or message.integer('i', i, i) != i:
                raise ProtocolError(f'stream: expected frame {i}, got {message.kind.name}')
            _put(inbox, message, failure)
        if connection.receive(HUNG_S).kind != Kind.END:
            raise ProtocolError('stream: expected END')
        _put(inbox, None, failure)

    thread = _thread(receive, failure, 'stream receive')
    try:
        for i in range(first, last):
            message = _get(inbox, failure)
            start = time.perf_counter()
            prediction = compute(message.tensors)
            known = message.fields.get('latency_s') is not None
            on_result(i, prediction, message.number('latency_s', 0, LONGEST_S) if known else math.nan)
            connection.send(Kind.RESULT, {'i': i, 'prediction': prediction, 'link_s': message.receive_s,
                                          'tail_s': time.perf_counter() - start})
        _get(inbox, failure)
        connection.send(Kind.END, {})
        _join([thread], failure)
    except BaseException as error:
        failure.set(error)
        raise failure.error from None  # the first one: this may be a consequence


# --- what the two ends compute --------------------------------------------------------------------------

def head_compute(part: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, wire: str,
                 ) -> Callable[[int], Tensors]:
    """Frame i is image i modulo the set's size: run the head, encode for the wire."""
    def compute(i: int) -> Tensors:
        row = i % len(images)
        with torch.inference_mode():
            return codec.encode(part(images[row:row + 1]), wire)
    return compute


def tail_compute(part: Callable[[torch.Tensor], torch.Tensor], wire: str, shape: Tuple[int, ...],
                 ) -> Callable[[Tensors], List[int]]:
    """Decode, run the tail, and take the best class. `shape` is that of one frame, with its batch of 1."""
    def compute(tensors: Tensors) -> List[int]:
        try:
            with torch.inference_mode():
                return part(codec.decode(tensors, wire, shape)).argmax(dim=1).tolist()
        except ValueError as error:
            raise ProtocolError(f'stream: {error}') from None
    return compute
