"""How long frames of different clients wait at a server that they share."""
from __future__ import annotations

import math

import numpy as np

from costs import queueing


def mean_waits_ms(fps: np.ndarray, server_ms: np.ndarray, workers: int) -> np.ndarray:
    """Mean wait [n], ms, of the frames of clients that send `fps` [n] frames a second each, evenly but not in step, and
    need `server_ms` [n] of one of the workers, in the order of arrival; infinite from a load of 1 on.

    Equal clients and one worker: `queueing.mean_wait_ms`. Different ones count as (Σf)² / Σf² equal ones whose mean
    work is theirs, times E[s²] / E[s]² (as in the formula of Pollaczek and Khinchine); each waits for the others only,
    in proportion to their Σ f·s². W workers count as one that is W times as fast, times the share of frames that find
    all W busy (Erlang's formula C), over that of the one.
    """
    total_fps = float(np.sum(fps))
    mean_ms = float(np.sum(fps * server_ms)) / total_fps if total_fps else 0.0
    if mean_ms == 0:
        return np.zeros(len(fps))
    load = total_fps * mean_ms / 1000 / workers
    if load >= 1:
        return np.full(len(fps), np.inf)
    work = fps * server_ms ** 2
    clients = max(1, round(total_fps ** 2 / float(np.sum(fps ** 2))))
    service_ms = mean_ms / workers
    even_ms = queueing.mean_wait_ms(np.float64(service_ms), np.float64(clients * service_ms / load), clients)
    mean_wait_ms = float(even_ms) * work.sum() / total_fps / mean_ms ** 2 * busy_share(load, workers) / load
    others = work.sum() - work
    mean_others = float(np.sum(fps * others)) / total_fps
    return mean_wait_ms * others / mean_others if mean_others > 0 else np.zeros(len(fps))


def busy_share(load: float, workers: int) -> float:
    """Erlang's formula C: the share of frames that find all workers busy, at this load of each."""
    inverse_b = 1.0  # 1 / B of Erlang's formula B, by its recursion
    for k in range(1, workers + 1):
        inverse_b = 1 + inverse_b * k / (load * workers)
    blocked = 1 / inverse_b
    return blocked / (1 - load * (1 - blocked))


def median_wait_ms(mean_ms: float, load: float, workers: int) -> float:
    """The median of a wait with this mean that is 0 where a worker is free, and else of the gamma distribution of shape
    2: narrower than an exponential one, as evenly sent frames never pile up as random ones do."""
    waiting = busy_share(load, workers) if load > 0 else 0.0  # the share of frames that wait
    if waiting <= 0.5 or mean_ms == 0:
        return 0.0
    low, high = 0.0, 50.0  # of y, where (1 + y)·exp(-y) is the share that waits longer
    for _ in range(50):
        y = (low + high) / 2
        low, high = (y, high) if (1 + y) * math.exp(-y) > 0.5 / waiting else (low, y)
    return y * mean_ms / waiting / 2
