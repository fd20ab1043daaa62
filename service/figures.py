"""What is known of each client and of the service, over the last seconds: for terminal, log file, page and
Prometheus."""
from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, NamedTuple, Optional, Tuple

WINDOW_S = 10.0  # rates and medians are those of so long
MOST = 2000  # answers that are looked at, of a client


class Answered(NamedTuple):
    """One answer."""
    at_s: float  # monotonic clock
    head_ms: float
    link_ms: float
    wait_ms: float  # for a worker
    tail_ms: float  # of its batch on the worker
    latency_ms: Optional[float]  # of an earlier frame, as the client saw it
    batch: int  # frames in the batch
    number: int = 0  # of the configuration
    n_bytes: int = 0  # of the feature map, as it was sent


@dataclass
class ClientFigures:
    """What one client's frames took. The caller sees to it that one thread at a time uses it."""
    recent: Deque[Answered] = field(default_factory=lambda: deque(maxlen=MOST))
    joined_s: float = field(default_factory=time.monotonic)
    answered: int = 0
    dropped: int = 0
    switches: int = 0

    def add(self, answer: Answered) -> None:
        """One more answer."""
        self.recent.append(answer)
        self._forget(answer.at_s)

    def _forget(self, now_s: float) -> None:
        while self.recent and now_s - self.recent[0].at_s > WINDOW_S:
            self.recent.popleft()

    def snapshot(self, now_s: float) -> Dict[str, Any]:
        """Rates, medians and counts; None where nothing was answered lately."""
        self._forget(now_s)
        recent = list(self.recent)
        span_s = min(WINDOW_S, max(now_s - self.joined_s, 1e-3))
        if len(self.recent) == MOST:
            span_s = max(now_s - recent[0].at_s, 1e-3)

        def median(name: str) -> Optional[float]:
            values = [value for value in (getattr(answer, name) for answer in recent) if value is not None]
            return round(statistics.median(values), 3) if values else None

        latencies = sorted(answer.latency_ms for answer in recent if answer.latency_ms is not None)
        return {'fps': round(len(recent) / span_s, 3), 'latency_p50_ms': median('latency_ms'),
                'latency_p99_ms': round(latencies[int(0.99 * len(latencies))], 3) if latencies else None,
                **{name: median(name) for name in ('head_ms', 'link_ms', 'wait_ms', 'tail_ms')},
                'batch': round(statistics.mean(answer.batch for answer in recent), 2) if recent else None,
                'answered': self.answered, 'dropped': self.dropped, 'switches': self.switches}


class BusyTime:
    """How much of the last seconds a worker had work."""

    def __init__(self) -> None:
        self._spans: Deque[Tuple[float, float]] = deque()
        self._lock = threading.Lock()
        self._since_s: Optional[float] = None

    def begin(self, now_s: float) -> None:
        """It has got work."""
        self._since_s = now_s

    def end(self, now_s: float) -> None:
        """It has finished it."""
        with self._lock:
            self._spans.append((self._since_s or now_s, now_s))
            self._since_s = None
            while self._spans and now_s - self._spans[0][1] > WINDOW_S:
                self._spans.popleft()

    def share(self, now_s: float) -> float:
        """Of the last WINDOW_S seconds."""
        with self._lock:
            spans = [*self._spans, *([(self._since_s, now_s)] if self._since_s is not None else [])]
        start_s = now_s - WINDOW_S
        return min(1.0, sum(max(0.0, end - max(begin, start_s)) for begin, end in spans) / WINDOW_S)
