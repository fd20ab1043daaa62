"""From a programme's answer to whole clients on single servers."""
from __future__ import annotations

import heapq
from typing import List, Optional, Tuple

import numpy as np

from fleet.problem import NO_SERVER, SOLVER_TOLERANCE, Placement
from fleet.programme import Options


def whole_clients(share: np.ndarray, group: np.ndarray, clients: np.ndarray) -> np.ndarray:
    """Real numbers of clients [O] rounded so that every group's sum stays: the largest remainders are rounded up."""
    share = np.maximum(share, 0)
    found = np.floor(share + 1e-6).astype(int)
    missing = clients - np.bincount(group, found, len(clients)).astype(int)
    for option in np.argsort(found - share, kind='stable'):  # the largest remainder first
        if missing[group[option]] > 0:
            found[option] += 1
            missing[group[option]] -= 1
    return found


def packed(options: Options, count: np.ndarray, fps: np.ndarray, servers: np.ndarray, capacity_ms: np.ndarray,
           link_mbps: np.ndarray) -> Tuple[List[Placement], List[int]]:
    """`count` clients of every option at `fps` each, spread over the servers of its kind: the heaviest first, each to
    the server that is used least; a client that needs no server gets none (NO_SERVER). Also returns the kinds on which
    they do not fit."""
    placements: List[Placement] = []
    too_small: List[int] = []
    for kind in range(len(servers)):
        here = (options.server_kind == kind) & (count > 0)
        needs = (options.server_ms > 0) | (options.mbit > 0)
        placements += [_placement(options, kind, NO_SERVER, option, count[option], fps[option])
                       for option in np.flatnonzero(here & ~needs)]
        chosen = np.flatnonzero(here & needs)
        if not len(chosen):
            continue
        share = np.stack([options.server_ms[chosen] * fps[chosen] / capacity_ms[kind],
                          options.mbit[chosen] * fps[chosen] / link_mbps[kind]])  # (2, options) of a server
        at = _spread(share, count[chosen], int(servers[kind]))
        if at is None:
            too_small.append(kind)
            continue
        placements += [_placement(options, kind, server, chosen[item], number, fps[chosen[item]])
                       for item, server, number in at]
    return placements, too_small


def _placement(options: Options, kind: int, server: int, option: int, count: int, fps: float) -> Placement:
    return Placement(int(options.group[option]), kind, server, int(options.point[option]), int(count), float(fps))


def _spread(share: np.ndarray, count: np.ndarray, n_servers: int) -> Optional[List[Tuple[int, int, int]]]:
    """(item, server, how many) for items that take `share` [2, I] of a server's two capacities."""
    if not n_servers:
        return None
    used = np.zeros((2, n_servers))
    waiting = [(0.0, server) for server in range(n_servers)]  # least used first
    found: List[Tuple[int, int, int]] = []
    for item in np.argsort(-share.max(axis=0), kind='stable'):
        own = np.zeros(n_servers, dtype=int)
        for _ in range(count[item]):
            server = waiting[0][1]
            used[:, server] += share[:, item]
            own[server] += 1
            most = used[:, server].max()
            if most > 1 + SOLVER_TOLERANCE:
                return None
            heapq.heapreplace(waiting, (most, server))
        found += [(int(item), int(server), int(own[server])) for server in np.flatnonzero(own)]
    return found
