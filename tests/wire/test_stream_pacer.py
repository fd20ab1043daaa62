"""The pacer on a simulated pipeline: full throughput, latency close to a lone frame's, whichever stage is slowest."""
from __future__ import annotations

import heapq
import random
import statistics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wire import stream
from wire.stream import LOCKSTEP_FRAMES, SETTLE_FRAMES, Pacer


def simulate(head: float, link: float, tail: float, rtt: float, jitter: float, hidden: float, frames: int = 400,
             seed: int = 0, changed=None):
    """(pace, latencies, windows W) of a stream, in seconds; `hidden`: part of the link's time that the receiver does
    not see. Each stage serves one frame at a time, in order; a stage time varies by up to `jitter` of itself.
    `changed`: frame -> (factor of the link's time, what its tail takes longer), instead of (1, 0)."""
    rng, pacer = random.Random(seed), Pacer()
    link_free = tail_free = head_free = 0.0
    pending, finished, latencies, ends, windows = [], [], [], [], []
    for i in range(frames):
        now = head_free
        while True:
            while pending and pending[0][0] <= now:
                done, h, sent, t, start = heapq.heappop(pending)
                finished.append(done)
                pacer.add(h, sent - min(hidden, sent), t, done - start)
            if i - len(finished) < pacer.window:
                break
            now = pending[0][0]
        allowed = finished[i - pacer.window] + pacer.delay_s if i >= pacer.window else 0.0
        start = max(now, allowed)
        h, sent, t = (value * rng.uniform(1 - jitter, 1 + jitter) for value in (head, link, tail))
        if changed is not None:
            sent, t = sent * changed(i)[0], t + changed(i)[1]
        head_free = start + h
        link_free = max(head_free, link_free) + sent
        tail_free = max(link_free + rtt / 2, tail_free) + t
        done = tail_free + rtt / 2
        heapq.heappush(pending, (done, h, sent, t, start))
        latencies.append(done - start)
        windows.append(pacer.window)
        ends.append(done)
    skip = LOCKSTEP_FRAMES + SETTLE_FRAMES + 100
    return (ends[-1] - ends[skip - 1]) / (frames - skip), latencies, windows


def settled(latencies):
    """The median of those that count."""
    return statistics.median(latencies[LOCKSTEP_FRAMES + SETTLE_FRAMES + 100:])


stage_s = st.floats(0.001, 0.1)


@given(stage_s, stage_s, stage_s, st.floats(0, 0.05), st.floats(0, 0.05), st.integers(0, 9))
@example(0.001, 0.001, 0.001, 0.046875, 0.0, 0)  # many frames in flight
@settings(max_examples=300)
def test_the_slowest_stage_is_busy_and_latency_stays_near_a_lone_frames(head, link, tail, rtt, jitter, seed):
    pace, latencies, _ = simulate(head, link, tail, rtt, jitter, 0.0, seed=seed)
    assert pace <= max(head, link, tail) / 0.97
    assert settled(latencies) <= 1.3 * (head + link + tail + rtt)


@given(stage_s, stage_s, stage_s, st.integers(0, 9))
@settings(max_examples=200)
def test_a_link_that_looks_faster_than_it_is_costs_neither(head, link, tail, seed):
    pace, latencies, _ = simulate(head, link, tail, 0.001, 0.03, 0.2 * link, seed=seed)
    assert pace <= max(head, link, tail) / 0.97
    assert settled(latencies) <= 1.3 * (head + link + tail + 0.001)


@given(stage_s, stage_s, stage_s, st.floats(0, 0.05), st.floats(3, 30), st.integers(0, 9))
@example(0.001, 0.001, 0.001, 0.05, 30.0, 0)  # many frames in flight
@settings(max_examples=100)
def test_a_link_that_slows_down_holds_no_queue_for_long(head, link, tail, rtt, factor, seed):
    """Three windows of frames later the latency is that of few frames, whatever the window was."""
    _, latencies, windows = simulate(head, link, tail, rtt, 0.03, 0.0, seed=seed,
                            changed=lambda i: (factor if i >= 200 else 1.0, 0.0))
    alone = head + factor * link + tail + rtt
    assert max(latencies[206 + 3 * windows[200]:]) <= 2.5 * alone


@given(stage_s, stage_s, stage_s, st.floats(0, 0.05), st.floats(0.1, 2.0), st.integers(0, 9))
@settings(max_examples=100)
def test_a_pause_costs_no_throughput_afterwards(head, link, tail, rtt, pause_s, seed):
    changed = lambda i: (1.0, pause_s if i == 200 else 0.0)  # noqa: E731
    pace, _, _ = simulate(head, link, tail, rtt, 0.03, 0.0, seed=seed, changed=changed)
    rest = 400 - (LOCKSTEP_FRAMES + SETTLE_FRAMES + 100)
    assert pace - pause_s / rest <= max(head, link, tail) / 0.95


def test_without_a_pacer_full_windows_would_raise_latency(monkeypatch):
    monkeypatch.setattr(Pacer, 'add', lambda self, *a: setattr(self, 'window', 8))
    pace, latencies, _ = simulate(0.01, 0.05, 0.01, 0.001, 0.02, 0.0)
    assert pace == pytest.approx(0.05, rel=0.05) and settled(latencies) > 4 * 0.071
    assert stream.MAX_WINDOW >= 8
