"""Bandwidth and round-trip time of the link to the client, in both directions.

Requests of several payload sizes are timed here, on one clock: a payload there and nothing back, and the other way
round. The slope of time over size is the bandwidth of that direction, the intercept the round trip including what the
two programs add to every message. The line is Theil and Sen's (the median of the slopes of all pairs of points), which
a few disturbed transfers cannot tilt.
"""
from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Callable, List, Sequence, Tuple

import torch

from costs.cost_model import Link
from remote import replies
from remote.client import RemoteClient

SIZES_BYTES = (16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)
REPEATS = 5  # of every size; the median counts
LONGEST_S = 2.0  # no size that is expected to take longer than this, but at least two sizes
WARM_UP = 3  # transfers first: a new connection starts slowly


@dataclass(frozen=True)
class MeasuredLink:
    """Both directions."""
    up_mbps: float  # client to server
    down_mbps: float  # server to client
    rtt_ms: float

    def towards_tail(self, head_tier: str) -> Link:
        """The link as the cost model sees it: the bandwidth of the direction in which feature maps travel."""
        return Link(self.up_mbps if head_tier == 'client' else self.down_mbps, self.rtt_ms, measured=True)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Tuple[float, float]:
    """Theil-Sen: (slope, intercept). Needs two different x."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(zip(x, y), 2) if a[0] != b[0]]
    if not slopes:
        raise ValueError('a line needs two different x')
    slope = statistics.median(slopes)
    return slope, statistics.median(b - slope * a for a, b in zip(x, y))


def measure_link(client: RemoteClient) -> MeasuredLink:
    """Measure both directions; about 40 MB each on a fast link, a few seconds on a slow one."""
    def send(up: bool, n_bytes: int) -> float:
        data = torch.zeros(0 if up else n_bytes, dtype=torch.uint8)
        start = time.perf_counter()
        back = n_bytes if up else 0
        client.request('echo', lambda reply: replies.echo(reply, back), {'reply_bytes': back}, {'data': data},
                       reply_bytes=back)
        return time.perf_counter() - start

    empty_s = statistics.median(send(True, 0) for _ in range(WARM_UP + 4 * REPEATS))
    up_s_per_byte, down_s_per_byte = (_slope(lambda n, up=up: send(up, n), empty_s) for up in (True, False))
    return MeasuredLink(8e-6 / up_s_per_byte, 8e-6 / down_s_per_byte, 1000 * empty_s)


def _slope(send: Callable[[int], float], empty_s: float) -> float:
    """Seconds a byte in one direction."""
    x: List[float] = [0.0]
    y: List[float] = [empty_s]
    expected = 0.0  # seconds a byte so far
    for size in SIZES_BYTES:
        if len(x) >= 3 and expected * size > LONGEST_S:
            break
        taken = [send(size) for _ in range(REPEATS if expected * size < LONGEST_S / 4 else 3)]
        x.append(float(size))
        y.append(statistics.median(taken))
        expected = max(1e-12, (y[-1] - empty_s) / size)
    return max(fit_line(x, y)[0], 1e-12)
