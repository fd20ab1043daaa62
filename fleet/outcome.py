"""What came of a simulation, held against the plan."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from fleet.plan import Plan
from fleet.simulation import ClientRun, Simulation
from fleet.waiting import median_wait_ms

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class GroupOutcome:
    """Equal clients: rates are means a client, latencies of all their frames."""
    name: str
    count: int
    planned_fps: float
    fps: float
    planned_mean_ms: Optional[float]  # latency; None: a server has no time left
    planned_median_ms: Optional[float]
    mean_ms: Optional[float]  # None: no frame was answered
    percentiles_ms: Dict[str, Optional[float]]
    frames: int
    dropped: Dict[str, int]  # by why
    alone: int  # frames answered without the server that the client should have
    switches: int


@dataclass(frozen=True)
class ServerOutcome:
    """One server."""
    name: str
    planned_load: float
    load: float


@dataclass(frozen=True)
class Outcome:
    """All of it."""
    seconds: float  # that count
    groups: List[GroupOutcome]
    servers: List[ServerOutcome]

    def as_dict(self) -> Dict[str, Any]:
        """As its file holds it."""
        return {'seconds': self.seconds, 'groups': [vars(group) for group in self.groups],
                'servers': [vars(server) for server in self.servers]}


def outcome_of(simulation: Simulation) -> Outcome:
    """What came of a simulation that has run."""
    plan, scenario = simulation.plan, simulation.scenario
    seconds = scenario.seconds - scenario.warm_up_s
    by_group: Dict[int, List[ClientRun]] = {}
    for client in simulation.clients:
        by_group.setdefault(client.planned.group, []).append(client)
    groups = [_group(plan, clients, seconds) for _, clients in sorted(by_group.items())]
    servers = [ServerOutcome(planned.name, planned.load, run.busy_s / seconds / run.workers)
               for planned, run in zip(plan.servers, simulation.servers)]
    return Outcome(seconds, groups, servers)


def _group(plan: Plan, clients: Sequence[ClientRun], seconds: float) -> GroupOutcome:
    latencies = np.concatenate([np.frombuffer(client.latencies_ms) for client in clients])
    dropped: Dict[str, int] = {}
    for client in clients:
        for why, number in client.dropped.items():
            dropped[why] = dropped.get(why, 0) + number
    group = plan.groups[clients[0].planned.group]
    medians = [_planned_median_ms(plan, client) for client in clients]
    means = [client.planned.latency_ms for client in clients]
    return GroupOutcome(
        group.name, len(clients), float(np.mean([client.planned.fps for client in clients])),
        sum(client.answered for client in clients) / seconds / len(clients),
        None if None in means else float(np.mean(means)), None if None in medians else float(np.median(medians)),
        float(latencies.mean()) if len(latencies) else None,
        {str(p): float(np.percentile(latencies, p)) if len(latencies) else None for p in PERCENTILES},
        sum(client.frames for client in clients), dropped, sum(client.answered_alone for client in clients),
        sum(len(client.switches) for client in clients))


def _planned_median_ms(plan: Plan, client: ClientRun) -> Optional[float]:
    """The predicted median latency of a client's frames."""
    link, point = plan.groups[client.planned.group].link, plan.points[client.planned.point]
    if client.planned.server is None or client.planned.latency_ms is None:
        return client.planned.latency_ms
    server, alone_ms = plan.servers[client.planned.server], point.latency_ms(link)
    return alone_ms + median_wait_ms(client.planned.latency_ms - alone_ms, server.load, server.workers)


def text_of(outcome: Outcome) -> str:
    """A table for people."""
    lines = [f"{'clients':20} {'number':>7} {'fps: plan':>10} {'simulated':>10} {'median, ms: plan':>17} "
             f"{'simulated':>10} {'95 %':>8} {'99 %':>8} {'dropped':>8} {'alone':>7} {'switches':>9}"]
    for group in outcome.groups:
        dropped = sum(group.dropped.values())
        shown = [_shown(group.percentiles_ms[str(p)]) for p in PERCENTILES]
        lines.append(f'{group.name[:20]:20} {group.count:7} {group.planned_fps:10.2f} {group.fps:10.2f} '
                     f'{_shown(group.planned_median_ms):>17} {shown[0]:>10} {shown[1]:>8} {shown[2]:>8} '
                     f'{_percent(dropped, group.frames):>8} {_percent(group.alone, group.frames):>7} '
                     f'{group.switches:9}')
    reasons: Dict[str, int] = {}
    for group in outcome.groups:
        for why, number in group.dropped.items():
            reasons[why] = reasons.get(why, 0) + number
    if reasons:
        lines.append('frames dropped: ' + ', '.join(f'{number} {why}' for why, number in sorted(reasons.items())))
    loads = [100 * server.load for server in outcome.servers]
    planned = [100 * server.planned_load for server in outcome.servers]
    lines.append(f'load of the servers: {min(loads):.1f} to {max(loads):.1f} %, planned {min(planned):.1f} to '
                 f'{max(planned):.1f} %')
    return '\n'.join(lines)


def _shown(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.2f}'


def _percent(part: int, whole: int) -> str:
    return f'{100 * part / whole:.1f}%' if whole else '-'
