"""How long frames of different clients wait at a server that they share."""
from __future__ import annotations

import math

import numpy as np

from costs import queueing


def mean_wait_ms(fps: np.ndarray, server_ms: np.ndarray, workers: int) -> float:
    """Mean wait, ms, of the frames of clients that send `fps` [n] frames a second each, evenly but not in step, and
    need `server_ms` [n] of one of the workers, in the order of arrival.

    Equal clients and one worker: `queueing.mean_wait_ms`. Different ones count as (Σf)² / Σf² equal ones whose mean
    work is theirs, times E[s²] / E[s]² (as in the formula of Pollaczek and Khinchine). W workers count as one that is W
    times as fast, times the share of frames that find all W busy (Erlang's formula C), over that of the one.
    """
    total_fps = float(np.sum(fps))
    mean_ms = float(np.sum(fps * server_ms)) / total_fps if total_fps else 0.0
    if mean_ms == 0:
        return 0.0
    load = total_fps * mean_ms / 1000 / workers
    if load >= 1:
        return math.inf
    spread = float(np.sum(fps * server_ms ** 2)) / total_fps / mean_ms ** 2
    clients = max(1, round(total_fps ** 2 / float(np.sum(fps ** 2))))
    service_ms = mean_ms / workers
    even_ms = queueing.mean_wait_ms(np.float64(service_ms), np.float64(clients * service_ms / load), clients)
    return float(even_ms) * spread * busy_share(load, workers) / load


def busy_share(load: float, workers: int) -> float:
    """Erlang's formula C: the share of frames that find all workers busy, at this load of each."""
    inverse_b = 1.0  # 1 / B of Erlang's formula B, by its recursion
    for k in range(1, workers + 1):
        inverse_b = 1 + inverse_b * k / (load * workers)
    blocked = 1 / inverse_b
    return blocked / (1 - load * (1 - blocked))


def median_wait_ms(mean_ms: float, load: float) -> float:
    """The median of a wait that is 0 for the share 1 - load of frames and exponential for the others."""
    return 0.0 if load <= 0.5 or mean_ms == 0 else mean_ms / load * math.log(2 * load)
