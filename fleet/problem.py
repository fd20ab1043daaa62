"""A fleet as arrays: what every kind of client may run at every kind of server, and what that takes."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Sequence, Tuple

import numpy as np

TOLERANCE = 1e-9  # relative; sums of times are rounded
SOLVER_TOLERANCE = 1e-6  # relative; that of HiGHS: what it says fits may be this much too large
NO_SERVER = -1


@dataclass(frozen=True)
class FleetProblem:
    """G kinds of clients, S kinds of servers, P operating points at most. A point that a client must not use, or that
    fills up the array, has own_ms = inf."""
    clients: np.ndarray  # int [G]: how many
    servers: np.ndarray  # int [S]: how many
    own_ms: np.ndarray  # [G, S, P]: the longer of T_client and T_com; 1000 / own_ms frames a second at most
    server_ms: np.ndarray  # [G, S, P]: T_server
    mbit: np.ndarray  # [G, S, P]: of a frame on the server's link
    accuracy: np.ndarray  # [G, S, P]: fraction of 1; NaN: not known
    min_fps: np.ndarray  # [G]: frames a second that a client must get; 0: none
    max_fps: np.ndarray  # [G]: that its source delivers; inf: no limit
    capacity_ms: np.ndarray  # [S]: ms of work that a server does in a second
    link_mbps: np.ndarray  # [S]: of a server's link; inf: no limit

    @property
    def shape(self) -> Tuple[int, int, int]:
        """G, S, P."""
        return self.own_ms.shape

    @property
    def own_fps(self) -> np.ndarray:
        """[G, S, P]: the rate that a client's device and link sustain; 0 where it must not use the point."""
        with np.errstate(divide='ignore'):
            return np.where(np.isinf(self.own_ms), 0.0, 1000 / self.own_ms)

    @property
    def shared_link(self) -> bool:
        """Does the link of any server have a limit?"""
        return bool(np.isfinite(self.link_mbps).any())

    @property
    def single_servers(self) -> FleetProblem:
        """This problem with every server a kind of its own, in the order of `server_at`."""
        return replace(self, servers=np.ones(int(self.servers.sum()), dtype=int), **{
            name: np.repeat(getattr(self, name), self.servers, axis=axis) for name, axis in
            (('own_ms', 1), ('server_ms', 1), ('mbit', 1), ('accuracy', 1), ('capacity_ms', 0), ('link_mbps', 0))})

    @property
    def server_at(self) -> List[Tuple[int, int]]:
        """(kind, number within its kind) of every server."""
        return [(kind, number) for kind, count in enumerate(self.servers) for number in range(count)]

    def rates_at(self, common_fps: float) -> np.ndarray:
        """[G]: every client's rate when all are to get this one, none less than it must and more than its source
        delivers."""
        return np.clip(common_fps, self.min_fps, self.max_fps)


@dataclass(frozen=True)
class Placement:
    """Equal clients that run one point at one server."""
    group: int
    server_kind: int
    server: int  # number within its kind; NO_SERVER: the client does everything itself
    point: int
    count: int
    fps: float  # of each

    @property
    def at(self) -> Tuple[int, int, int]:
        """Where its point stands in the problem's arrays."""
        return self.group, self.server_kind, self.point


@dataclass(frozen=True)
class Allocation:
    """Who runs what where, how good that is, and what no allocation can beat."""
    placements: Tuple[Placement, ...]
    value: float  # frames a second, servers, or mean accuracy
    bound: float  # no allocation is better than this
    proven: bool  # found by an exact method, up to its tolerance

    @property
    def gap(self) -> float:
        """How far the value may be from the best one, as a share of the bound."""
        return 0.0 if self.bound == self.value else abs(self.bound - self.value) / max(abs(self.bound), 1e-12)


def server_load(problem: FleetProblem, placements: Sequence[Placement]) -> Tuple[np.ndarray, np.ndarray]:
    """Work in ms a second and Mbit/s of every server, [S, most of a kind] each."""
    work_ms, mbps = np.zeros((2, len(problem.servers), int(problem.servers.max())))
    for item in (item for item in placements if item.server != NO_SERVER):
        work_ms[item.server_kind, item.server] += item.count * item.fps * problem.server_ms[item.at]
        mbps[item.server_kind, item.server] += item.count * item.fps * problem.mbit[item.at]
    return work_ms, mbps
