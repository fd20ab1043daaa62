"""Streaming: frames flow through head, link and tail, and the three work at the same time.

The head end runs `stream_head`, the tail end `stream_tail`; either may be the client. Full buffers would raise latency
and not throughput, so the head end admits a frame only when the frames in flight are what the stages need and little
more (`Pacer`).
"""
from __future__ import annotations

import collections
import math
import queue
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Deque, Dict, Generic, List, Mapping, Optional, Tuple, TypeVar

import torch

from wire import codec
from wire.connection import Connection
from wire.frames import Kind, Message, NetworkError, ProtocolError

Tensors = Mapping[str, torch.Tensor]
OnResult = Callable[[int, List[int], float], None]  # frame, prediction, latency of the last frame that came back, s
Item = TypeVar('Item')
MAX_WINDOW = 64
LOCKSTEP_FRAMES = 6  # sent one at a time before a stream, to learn what a frame takes when it waits for nothing
SETTLE_FRAMES = 8  # after them, while the stream fills; like them, they do not count
LEAST_FRAMES = LOCKSTEP_FRAMES + SETTLE_FRAMES + 2  # of a stream that is measured
SLACK = 1.2  # latency that the pacer wants, as a multiple of a frame's that waits for nothing
LATE = 2  # times the wanted latency
MOST = 1.5  # times the frames in flight that stage times speak for: where the head is slowest, latency limits none
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

    A pause makes the frames late that are under way, at most W. When more than that come back late one after the other,
    a stage has become slower: w starts again from what these frames took.
    """

    def __init__(self) -> None:
        self.recent: Deque[Tuple[float, float, float]] = collections.deque(maxlen=RECENT)
        self.lockstep: List[Tuple[float, float, float, float]] = []
        self.rest_s = self.link_s = 0.0  # of the lockstep frames: latency outside the stages; the link's time
        self.in_flight = 1.0  # w
        self.late = 0  # frames that came late, one after the other
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
        slowest, target, most = self._wanted()
        self.late = self.late + 1 if latency_s > LATE * target else 0
        restarts = self.late > self.window
        if restarts:
            for _ in range(len(self.recent) - self.late):
                self.recent.popleft()
            slowest, target, most = self._wanted()
        if learning or restarts:
            self.in_flight, self.late = target / slowest, 0
        else:
            error = (target - latency_s) / slowest  # in frames; one long pause must not count for more than a frame
            self.in_flight += GAIN * min(1.0, max(-1.0, error))
        self.in_flight = min(MAX_WINDOW, most, max(1.0, self.in_flight))
        self.window = math.ceil(self.in_flight)
        self.delay_s = (self.window - self.in_flight) * slowest

    def _wanted(self) -> Tuple[float, float, float]:
        """Time of the slowest stage, s; the latency that is wanted, s; the most frames in flight."""
        head, seen, tail = (statistics.median(stage) for stage in zip(*self.recent))
        link = max(seen, self.link_s)  # a receiver that was busy elsewhere sees a frame arrive faster than it was sent
        target = SLACK * (head + link + tail + self.rest_s)
        return max(head, link, tail, 1e-6), target, MOST * target / max(head, seen, tail, 1e-6)


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


class _Reader(Generic[Item]):
    """The thread that receives at one end of a stream. What it makes of messages, and its error, waits in a queue."""

    def __init__(self, connection: Connection, receive: Callable[[Callable[[Item], None]], None]) -> None:
        """`receive(put)` runs in the thread."""
        self._connection, self._receive = connection, receive
        self._items: 'queue.SimpleQueue[Any]' = queue.SimpleQueue()
        self.error: Optional[BaseException] = None
        threading.Thread(target=self._run, name='stream', daemon=True).start()

    def _run(self) -> None:
        try:
            self._receive(self._items.put)
        except BaseException as error:  # handed to the thread that runs the stream
            self.error = error
        self._items.put(None)

    def get(self) -> Optional[Item]:
        """The next item, None behind the last one; raises the thread's error."""
        item = self._items.get()
        if item is None and self.error is not None:
            raise self.error
        return item

    def stop(self, error: BaseException) -> BaseException:
        """End the connection because of `error`, or because of that of this thread, which came first: a broken
        connection is often a consequence. Returns the cause."""
        if self.error is not None and isinstance(error, NetworkError):
            error = self.error
        if isinstance(error, NetworkError) or getattr(error, 'from_peer', False):
            self._connection.close()
        else:  # tell the other end that going on is useless
            self._connection.fail(getattr(error, 'code', 'failed'), str(error) or type(error).__name__)
        return error


def stream_head(connection: Connection, compute: Callable[[int], Tensors], first: int, last: int,
                on_result: OnResult = lambda i, prediction, latency_s: None) -> StreamRecord:
    """Send frames [first, last); `compute(i)` gives a frame's tensors, ready to send. Returns when all results are
    back. Raises `NetworkError`, and whatever `compute` raises."""
    record, pacer = StreamRecord(), Pacer()
    latest: List[float] = []  # latency of the last frame that came back, s

    def collect(put: Callable[[float], None]) -> None:
        for i in range(first, last):
            message = connection.receive(HUNG_S)
            message.raise_error()
            if message.kind != Kind.RESULT or message.integer('i', i, i) != i or i - first >= len(record.frames):
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
            put(frame.done)
        if connection.receive(HUNG_S).kind != Kind.END:
            raise ProtocolError('stream: expected END')

    reader = _Reader(connection, collect)
    try:
        back: List[float] = []  # when results came back
        for i in range(first, last):
            number, window = i - first, pacer.window
            while number - len(back) >= window:
                back.append(reader.get())
                window = pacer.window
            early_s = back[number - window] + pacer.delay_s - time.perf_counter() if number >= window else 0.0
            if early_s > 0:
                time.sleep(early_s)
            frame = FrameRecord(time.perf_counter())
            tensors = compute(i)
            frame.head_s = time.perf_counter() - frame.start
            frame.n_bytes = codec.encoded_bytes(tensors)
            record.frames.append(frame)
            start = time.thread_time()  # without the time that an earlier frame is waited for
            connection.post(Kind.FRAME, {'i': i, 'latency_s': latest[0] if latest else None}, tensors)
            frame.head_s += time.thread_time() - start
        connection.send(Kind.END)
        while reader.get() is not None:
            pass
    except BaseException as error:
        raise reader.stop(error) from None
    return record


def stream_tail(connection: Connection, compute: Callable[[Tensors], List[int]], first: int, last: int,
                on_result: OnResult = lambda i, prediction, latency_s: None) -> None:
    """Receive frames [first, last) and answer each with `compute(tensors)`, its prediction."""
    room: 'queue.SimpleQueue[None]' = queue.SimpleQueue()  # an entry for each message that may wait
    room.put(None)

    def receive(put: Callable[[Message], None]) -> None:
        for i in range(first, last):
            message = connection.receive(HUNG_S)
            message.raise_error()
            if message.kind != Kind.FRAME or message.integer('i', i, i) != i:
                raise ProtocolError(f'stream: expected frame {i}, got {message.kind.name}')
            room.get()
            put(message)
        if connection.receive(HUNG_S).kind != Kind.END:
            raise ProtocolError('stream: expected END')

    reader = _Reader(connection, receive)
    try:
        for i in range(first, last):
            message = reader.get()
            room.put(None)
            start = time.perf_counter()
            prediction = compute(message.tensors)
            known = message.fields.get('latency_s') is not None
            on_result(i, prediction, message.number('latency_s', 0, LONGEST_S) if known else math.nan)
            connection.send(Kind.RESULT, {'i': i, 'prediction': prediction, 'link_s': message.receive_s,
                                          'tail_s': time.perf_counter() - start})
        reader.get()
        connection.send(Kind.END)
    except BaseException as error:
        room.put(None)
        raise reader.stop(error) from None


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
