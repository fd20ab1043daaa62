"""A plan played frame by frame: sources, devices, links and servers with jitter, and what happens while it runs.

Every client's source delivers frames, its device works on one at a time, its link carries one at a time, its server has
some workers and one queue. Times and intervals vary around their planned values. Links change as traces say, servers
fail and come back, clients leave and come back; `decisions` decides what happens then. The event queue is a heap of
(second, handler) and nothing more: a library for simulations would hide these lines, and run several times slower.
"""
from __future__ import annotations

import heapq
import itertools
import math
import random
from array import array
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

from config import Settings
from fleet import decisions
from fleet.decisions import GO_ALONE, RETURN, Conditions, Moving, Reach, Server, Switching
from fleet.links import Trace
from fleet.plan import Plan, PlannedClient, PlannedPoint

MAX_WAITING = 2  # frames of a live source that wait before its device, and at its server; older ones are dropped
TICK_S = 0.5  # how often the servers and clients look around

AT_DEVICE, AT_SERVER, LOST, REFUSED, LEFT = DROPS = (
    'at the device', 'at the server', 'lost with a server', 'not admitted', 'waiting when their client left')


class Absence(NamedTuple):
    """A client that is away, or a server that is down, from one second to another."""
    name: str
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Scenario:
    """What is played."""
    seconds: float
    warm_up_s: float  # frames before count for nothing
    jitter: float  # coefficient of variation of stage times and of a source's intervals
    failures: Tuple[Absence, ...] = ()
    absences: Tuple[Absence, ...] = ()
    live: bool = True  # a source that does not wait: frames too many are dropped; False: files, never dropped


@dataclass
class ClientRun:
    """One client while it runs, and what came of its frames."""
    number: int  # in the plan
    planned: PlannedClient
    link: Conditions
    trace: Optional[Trace]
    server: Optional[int]  # None: it does everything itself
    point: int
    present: bool = True
    admitted: bool = True
    device_busy: bool = False
    waiting: Deque[float] = field(default_factory=deque)  # when the frames before its device were taken
    link_free_s: float = 0.0
    at_server: int = 0  # frames in the server's queue
    recent_mbps: Deque[Tuple[float, float]] = field(default_factory=deque)  # (second, rate), rates rising: the lowest
    #                                               of the last SWITCH_PAUSE_S stands first
    switching: Switching = field(default_factory=Switching)
    reach: Reach = field(default_factory=Reach)
    frames: int = 0  # that its source delivered after the warm-up, likewise the rest
    answered: int = 0
    answered_alone: int = 0  # by a client that should have a server
    dropped: Dict[str, int] = field(default_factory=dict)
    latencies_ms: array = field(default_factory=lambda: array('d'))
    switches: List[float] = field(default_factory=list)  # when, seconds


class Frame(NamedTuple):
    """A frame on its way."""
    client: ClientRun
    taken_s: float
    point: PlannedPoint
    server: int
    epoch: int  # of the server: one that failed meanwhile has lost it


@dataclass
class ServerRun:
    """One server while it runs."""
    workers: int
    bandwidth_mbps: Optional[float]
    promised: float = 0.0  # workers
    up: bool = True
    epoch: int = 0
    down_s: float = -math.inf  # since when it is, or was last, down
    busy: int = 0
    busy_s: float = 0.0
    link_free_s: float = 0.0
    queue: Deque[Frame] = field(default_factory=deque)


class Simulation:
    """One run of a plan."""

    def __init__(self, plan: Plan, traces: Dict[str, Trace], scenario: Scenario, settings: Settings) -> None:
        self.plan, self.scenario, self.settings = plan, scenario, settings
        self.now_s = 0.0
        self.random = random.Random(settings.SEED)
        self._events: List[Tuple[float, int, Callable[..., None], Tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._sigma = math.sqrt(math.log(1 + scenario.jitter ** 2))
        self.servers = [ServerRun(server.workers, server.bandwidth_mbps) for server in plan.servers]
        self.clients: List[ClientRun] = []
        for number, planned in enumerate(plan.clients):
            group = plan.groups[planned.group]
            trace = traces.get(group.link_trace)
            link = Conditions(*(trace.at(0) if trace else (group.link.bandwidth_mbps, group.link.rtt_ms)))
            self.clients.append(ClientRun(number, planned, link, trace, planned.server, planned.point,
                                          recent_mbps=deque([(0.0, group.link.bandwidth_mbps)])))
            self._promise(self.clients[-1], +1)

    def run(self) -> None:
        """Play it to the end; what came of it stands in `clients` and `servers`."""
        for client in self.clients:
            if client.planned.fps > 0:
                self._at(self.random.random() / client.planned.fps, self._take, client)
        by_name = {client.planned.name: client for client in self.clients}
        for absence in self.scenario.absences:
            self._at(absence.from_s, self._leave, by_name[absence.name])
            self._at(absence.to_s, self._come, by_name[absence.name])
        numbers = {server.name: number for number, server in enumerate(self.plan.servers)}
        for failure in self.scenario.failures:
            self._at(failure.from_s, self._fail, self.servers[numbers[failure.name]])
            self._at(failure.to_s, self._recover, self.servers[numbers[failure.name]])
        self._at(TICK_S, self._tick)
        while self._events:
            self.now_s, _, handler, arguments = heapq.heappop(self._events)
            handler(*arguments)

    def _at(self, second: float, handler: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (second, next(self._numbers), handler, arguments))

    def _varied(self, value: float) -> float:
        """The value times a factor of mean 1 (log-normal)."""
        sigma = self._sigma
        return value * math.exp(self.random.gauss(-sigma * sigma / 2, sigma)) if sigma else value

    def _counts(self, taken_s: float) -> bool:
        return taken_s >= self.scenario.warm_up_s

    def _drop(self, client: ClientRun, taken_s: float, why: str) -> None:
        if self._counts(taken_s):
            client.dropped[why] = client.dropped.get(why, 0) + 1

    def _drop_waiting(self, client: ClientRun, why: str) -> None:
        while client.waiting:
            self._drop(client, client.waiting.popleft(), why)

    # --- a frame's way ------------------------------------------------------------------------------

    def _take(self, client: ClientRun) -> None:
        """The source delivers a frame."""
        next_s = self.now_s + self._varied(1 / client.planned.fps)
        if next_s < self.scenario.seconds:
            self._at(next_s, self._take, client)
        if not client.present:
            return
        client.frames += self._counts(self.now_s)
        if not client.admitted:
            self._drop(client, self.now_s, REFUSED)
            return
        client.waiting.append(self.now_s)
        for _ in range(decisions.shed(len(client.waiting) - (not client.device_busy), MAX_WAITING, self.scenario.live)):
            self._drop(client, client.waiting.popleft(), AT_DEVICE)
        self._start(client)

    def _start(self, client: ClientRun) -> None:
        """The device begins with the frame that has waited longest."""
        if client.waiting and client.admitted and not client.device_busy:
            client.device_busy = True
            point, server = self.plan.points[client.point], client.server
            epoch = self.servers[server].epoch if server is not None else 0
            frame = Frame(client, client.waiting.popleft(), point, -1 if server is None else server, epoch)
            self._at(self.now_s + self._varied(point.T_client_ms) / 1000, self._head_done, frame)

    def _head_done(self, frame: Frame) -> None:
        """The link takes the frame when it has sent the one before; until then the device waits."""
        client, sent_s = frame.client, self.now_s
        if frame.server < 0:
            self._answered(frame, self.now_s)
        else:
            sent_s = max(self.now_s, client.link_free_s)
            client.link_free_s = sent_s + client.link.com_ms(frame.point) / 1000
            self._at(client.link_free_s + client.link.rtt_ms / 2000, self._arrive, frame)
        self._at(sent_s, self._device_free, client)

    def _device_free(self, client: ClientRun) -> None:
        client.device_busy = False
        self._start(client)

    def _arrive(self, frame: Frame) -> None:
        """At the server's own link."""
        server = self.servers[frame.server]
        if server.bandwidth_mbps is None:
            self._queue(frame)
        else:
            begin_s = max(self.now_s, server.link_free_s)
            server.link_free_s = begin_s + frame.point.n_bytes * 8e-6 / server.bandwidth_mbps
            self._at(server.link_free_s, self._queue, frame)

    def _queue(self, frame: Frame) -> None:
        server, client = self.servers[frame.server], frame.client
        if not server.up or server.epoch != frame.epoch:
            self._lose(frame)
            return
        server.queue.append(frame)
        client.at_server += 1
        for _ in range(decisions.shed(client.at_server - 1, MAX_WAITING, self.scenario.live)):
            oldest = next(other for other in server.queue if other.client is client)
            server.queue.remove(oldest)
            client.at_server -= 1
            self._drop(client, oldest.taken_s, AT_SERVER)
        self._serve(server)

    def _serve(self, server: ServerRun) -> None:
        while server.queue and server.busy < server.workers:
            frame = server.queue.popleft()
            frame.client.at_server -= 1
            server.busy += 1
            work_s = self._varied(frame.point.T_server_ms) / 1000
            server.busy_s += work_s if self._counts(self.now_s) else 0.0
            self._at(self.now_s + work_s, self._tail_done, server, frame)

    def _tail_done(self, server: ServerRun, frame: Frame) -> None:
        if server.epoch != frame.epoch:
            self._lose(frame)
            return
        server.busy -= 1
        self._answered(frame, self.now_s + frame.client.link.rtt_ms / 2000)
        self._serve(server)

    def _lose(self, frame: Frame) -> None:
        """A frame that its server took with it: gone, if its source is live; of a file it is computed again."""
        if self.scenario.live or not frame.client.present:
            self._drop(frame.client, frame.taken_s, LOST)
        else:
            frame.client.waiting.appendleft(frame.taken_s)
            self._start(frame.client)

    def _answered(self, frame: Frame, second: float) -> None:
        client = frame.client
        if self._counts(frame.taken_s):
            client.answered += 1
            client.answered_alone += frame.server < 0 and client.planned.server is not None
            client.latencies_ms.append(1000 * (second - frame.taken_s))

    # --- what happens while it runs -----------------------------------------------------------------

    def _promise(self, client: ClientRun, sign: int) -> None:
        if client.server is not None:
            load = decisions.load_of(client.planned.fps, self.plan.points[client.point])
            self.servers[client.server].promised += sign * load

    def _move(self, client: ClientRun, server: Optional[int], point: int) -> None:
        """From its next frame on a client runs another point, or at another server."""
        self._promise(client, -1)
        client.server, client.point = server, point
        self._promise(client, +1)

    def _leave(self, client: ClientRun) -> None:
        """A client that disappears frees its share at once."""
        if client.present:
            client.present = False
            if client.admitted:
                self._promise(client, -1)
            client.server = None
            self._drop_waiting(client, LEFT)

    def _come(self, client: ClientRun) -> None:
        """A client asks to be let in, at the server of the plan first."""
        if client.present:
            return
        client.present, client.admitted = True, True
        client.reach, client.switching = Reach(), Switching()
        if client.planned.server is None:
            client.point = client.planned.point
        else:
            self._rehome([client])

    def _fail(self, server: ServerRun) -> None:
        server.up, server.epoch, server.down_s, server.busy = False, server.epoch + 1, self.now_s, 0
        for frame in server.queue:
            frame.client.at_server -= 1
            self._lose(frame)
        server.queue.clear()

    def _recover(self, server: ServerRun) -> None:
        server.up = True

    def _tick(self) -> None:
        if self.now_s + TICK_S < self.scenario.seconds:
            self._at(self.now_s + TICK_S, self._tick)
        homeless: List[ClientRun] = []
        for client in self.clients:
            if client.trace:
                self._measure_link(client)
            if not client.present:
                continue
            if client.planned.server is not None:
                home = self.servers[client.planned.server]
                heard_s = self.now_s if home.up else home.down_s
                client.reach, action = decisions.reach(client.reach, self.now_s, heard_s, self.settings)
                if action == GO_ALONE and client.server == client.planned.server:
                    homeless.append(client)
                elif action == RETURN and client.server != client.planned.server:
                    self._rehome([client])
                    continue
            if client.trace and client.admitted:
                self._reconsider(client)
        if homeless:
            self._rehome(homeless)

    def _rehome(self, clients: Sequence[ClientRun]) -> None:
        """Find servers that are up for clients that need one: home, if it is up, else where there is most room; who is
        not admitted goes on alone, or not at all."""
        for client in clients:
            self._promise(client, -1)
            client.server = None
        up = {number: Server(server.workers, server.promised) for number, server in enumerate(self.servers)
              if server.up}
        for at_home in (True, False):
            moving = [self._moving(client, at_home) for client in clients
                      if client.server is None and (not at_home or client.planned.server in up)]
            for client, found in decisions.rehome(moving, up, self.plan.max_load).items():
                if found is not None:
                    run = self.clients[client]
                    run.server, run.point, run.admitted = found[0], self._number(run, *found), True
                    self._promise(run, +1)
                    up[found[0]] = up[found[0]]._replace(promised=self.servers[found[0]].promised)
        for client in clients:
            if client.server is None:
                alone = [number for number in self._points_at(client, client.planned.server)
                         if not self.plan.points[number].uses_link]
                client.admitted = bool(alone)
                client.point = alone[0] if alone else client.planned.point
                if not client.admitted:
                    self._drop_waiting(client, REFUSED)

    def _moving(self, client: ClientRun, at_home: bool) -> Moving:
        home = client.planned.server
        servers = [home] if at_home else [number for number, server in enumerate(self.servers) if server.up]
        options = {number: [self.plan.points[point] for point in self._points_at(client, number)
                            if self.plan.points[point].uses_link] for number in servers}
        return Moving(client.number, client.planned.fps, client.link, self.plan.points[client.planned.point], options)

    def _points_at(self, client: ClientRun, server: Optional[int]) -> Tuple[int, ...]:
        """The numbers of the points that a client may run at a server."""
        group = self.plan.groups[client.planned.group]
        name = self.plan.servers[0 if server is None else server].group
        return group.points.get(name, ())

    def _number(self, client: ClientRun, server: int, point: PlannedPoint) -> int:
        return next(number for number in self._points_at(client, server) if self.plan.points[number] is point)

    def _measure_link(self, client: ClientRun) -> None:
        client.link = Conditions(*client.trace.at(self.now_s))
        while client.recent_mbps and client.recent_mbps[-1][1] >= client.link.bandwidth_mbps:
            client.recent_mbps.pop()
        client.recent_mbps.append((self.now_s, client.link.bandwidth_mbps))
        while client.recent_mbps[0][0] < self.now_s - self.settings.SWITCH_PAUSE_S:
            client.recent_mbps.popleft()

    def _reconsider(self, client: ClientRun) -> None:
        """Is another point better on the link as it is now? Only one counts that sustains the rate on the link at its
        lowest of late, since a switch lasts; where there is none, on the link as it is now. The plan's link counts as
        having been there."""
        fps, options = client.planned.fps, self._points_at(client, client.server)
        left = math.inf
        if client.server is not None:
            server = self.servers[client.server]
            left = self.plan.max_load * server.workers - server.promised + decisions.load_of(
                fps, self.plan.points[client.point])
        fitting = [number for number in options if decisions.load_of(fps, self.plan.points[number]) <= left + 1e-9
                   and (client.server is not None or not self.plan.points[number].uses_link)]
        lowest = replace(client.link, bandwidth_mbps=client.recent_mbps[0][1])
        able: List[int] = []
        for link in (lowest, client.link):
            able = able or [number for number in fitting
                            if link.sustained_fps(self.plan.points[number]) >= fps * (1 - 1e-9)]
        costs = {number: decisions.cost_ms(self.plan.points[number], client.link, fps, self.settings.OMEGA)
                 for number in {*(able or fitting), client.point}}
        client.switching, chosen = decisions.switch(client.switching, self.now_s, client.point, costs, self.settings)
        if chosen is not None:
            client.switches.append(self.now_s)
            self._move(client, client.server, chosen)
