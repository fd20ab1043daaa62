"""A plan: what every client runs where, how loaded every server is, and what limits whom."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from costs.cost_model import Link

SERVER, SERVER_LINK, DEVICE, LINK, SOURCE, ASKED, OTHERS = LIMITS = (
    'server', "server's link", 'client', 'link', 'source', 'as asked', 'others')  # what keeps a client's rate from
#     rising: its server or that one's link is full, its device or link is, its source delivers no more, it gets what it
#     asked for, or all get the same and others are limited


@dataclass(frozen=True)
class PlannedPoint:
    """What a client may run."""
    domain: Optional[int]
    network: str  # 'unpruned', or where it stands in the domain's result
    confirmed: bool
    split: int
    wire: str
    gamma: Tuple[int, ...]
    T_client_ms: float
    T_server_ms: float
    n_bytes: float  # across the link
    uses_link: bool
    accuracy: Optional[float]  # validation, fraction of 1

    def own_ms(self, link: Link) -> float:
        """The longer of T_client and T_com."""
        return max(self.T_client_ms, float(link.transfer_ms(self.n_bytes)))

    def latency_ms(self, link: Link, wait_ms: float = 0.0) -> float:
        """T_lat, with what a frame waits at the server."""
        if not self.uses_link:
            return self.T_client_ms + self.T_server_ms
        return self.T_client_ms + float(link.transfer_ms(self.n_bytes)) + link.rtt_ms + self.T_server_ms + wait_ms


@dataclass(frozen=True)
class PlannedGroup:
    """Equal clients, and what they may run at each kind of server."""
    name: str
    count: int
    link: Link
    link_trace: str  # '': none
    min_fps: float  # 0: none asked for
    max_fps: Optional[float]
    points: Dict[str, Tuple[int, ...]]  # by server group: numbers of points


@dataclass(frozen=True)
class PlannedClient:
    """What one client does."""
    name: str
    group: int
    server: Optional[int]  # None: everything itself
    point: int
    fps: float
    latency_ms: Optional[float]  # mean, with the wait; None: its server has no time left
    limited_by: str  # one of LIMITS


@dataclass(frozen=True)
class PlannedServer:
    """What one server does."""
    name: str
    group: str
    workers: int
    bandwidth_mbps: Optional[float]
    load: float  # of its workers' time
    link_load: float
    wait_ms: Optional[float]  # mean, of a frame; None: no time left
    n_clients: int


@dataclass(frozen=True)
class Plan:
    """The whole plan."""
    objective: str
    value: float  # frames a second, servers, or mean accuracy
    bound: float  # no plan is better
    proven: bool
    max_load: float
    points: Tuple[PlannedPoint, ...]
    groups: Tuple[PlannedGroup, ...]
    clients: Tuple[PlannedClient, ...]
    servers: Tuple[PlannedServer, ...]

    @property
    def gap(self) -> float:
        """How far it may be from the best plan, as a share of the bound."""
        return abs(self.bound - self.value) / abs(self.bound) if self.bound != self.value else 0.0
