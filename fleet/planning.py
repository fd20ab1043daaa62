"""From a fleet's file to a plan; what nobody can satisfy is named: which client, which limit, by how much."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

import cli
from config import Settings, UserError
from costs.cost_model import Link
from fleet import plan as plans
from fleet.fleet_file import ClientGroup, Fleet, names_of
from fleet.objectives import OBJECTIVES, NothingFits
from fleet.plan import Plan, PlannedClient, PlannedGroup, PlannedPoint, PlannedServer
from fleet.points import Network, Points, Tables, load_result, networks_of, points_of, unpruned_network
from fleet.problem import NO_SERVER, Allocation, FleetProblem, Placement, server_load
from fleet.waiting import mean_waits_ms
from search.result import JointResult

GIVEN_RATES = ('fewest_servers', 'max_accuracy')  # objectives for which every client says what it needs
PointKey = Tuple[str, str, Optional[int], Optional[float]]  # tiers of client and server, domain, min_accuracy


@dataclass(frozen=True)
class FleetModel:
    """A fleet with the points of every pair of a client group and a server group, and all of it as arrays."""
    fleet: Fleet
    settings: Settings
    points: Dict[PointKey, Points]
    problem: FleetProblem

    def points_of(self, group: int, server_kind: int) -> Points:
        """The points of a client group at a server group."""
        return self.points[_key(self.fleet.clients[group], self.fleet.servers[server_kind].tier)]


def _key(client: ClientGroup, server_tier: str) -> PointKey:
    return client.tier, server_tier, client.domain, client.min_accuracy


def link_of(client: ClientGroup) -> Link:
    """A client's link; of one that changes, what it sustains."""
    return Link(client.bandwidth_mbps, client.rtt_ms, False)


# --- the model --------------------------------------------------------------------------------------

def model_of(fleet: Fleet, settings: Settings) -> FleetModel:
    """Read the tables and results that a fleet needs. Raises `UserError` for what is missing or does not fit."""
    if settings.HEAD_TIER != 'client':
        raise UserError("a fleet's clients have the images: HEAD_TIER must be 'client'")
    tables, results, points = Tables(settings), {}, {}
    for client in fleet.clients:
        for server in fleet.servers:
            key = _key(client, server.tier)
            if key not in points:
                table = tables.pair(client.tier, server.tier)
                if client.domain is not None and client.domain not in results:
                    results[client.domain] = load_result(client.domain, table, settings)
                    if results[client.domain] is None:
                        cli.say(f'note: no result of step 3 for domain {client.domain}: its clients run the unpruned '
                                'network')
                result = results.get(client.domain)
                networks = [unpruned_network(table)] if result is None else networks_of(result, table)
                points[key] = points_of(table, _accurate(client, networks, result, settings), settings)
    return FleetModel(fleet, settings, points, problem_of(fleet, points, settings))


def _accurate(client: ClientGroup, networks: Sequence[Network], result: Optional[JointResult], settings: Settings,
              ) -> List[Network]:
    """The networks that are accurate enough for a client."""
    if result is None:
        if client.min_accuracy is not None:
            raise UserError(f'client {client.name}: min_accuracy needs the result of step 3 for domain {client.domain}')
        return list(networks)
    lowest = client.min_accuracy
    if lowest is None:
        lowest = result.accuracy.val_reference - settings.EPSILON
    found = [network for network in networks if network.accuracy >= lowest - 1e-9]
    if not found:
        best = max(network.accuracy for network in networks)
        raise UserError(f'client {client.name}: min_accuracy {lowest:g}: the most accurate network of domain '
                        f'{client.domain} has {best:.4f} on validation images, {lowest - best:.4f} less')
    return found


def problem_of(fleet: Fleet, points: Dict[PointKey, Points], settings: Settings) -> FleetProblem:
    """The arrays of the objectives. Every device, link and server is used for at most MAX_LOAD of its time."""
    clients, servers = fleet.clients, fleet.servers
    shape = len(clients), len(servers), max(len(found.split) for found in points.values())
    own_ms, server_ms, mbit, accuracy = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
    for g, client in enumerate(clients):
        for s, server in enumerate(servers):
            found = points[_key(client, server.tier)]
            at = g, s, slice(len(found.split))
            own_ms[at] = np.maximum(found.T_client_ms, link_of(client).transfer_ms(found.n_bytes)) / settings.MAX_LOAD
            server_ms[at], mbit[at], accuracy[at] = found.T_server_ms, 8e-6 * found.n_bytes, found.accuracy
    return FleetProblem(
        np.array([client.count for client in clients]), np.array([server.count for server in servers]),
        np.maximum(own_ms, 1e-9), server_ms, mbit, accuracy, np.array([client.fps or 0.0 for client in clients]),
        np.array([client.max_fps or np.inf for client in clients]),
        np.array([1000.0 * server.workers * settings.MAX_LOAD for server in servers]),
        np.array([(server.bandwidth_mbps or np.inf) * settings.MAX_LOAD for server in servers]))


# --- what nobody can satisfy ------------------------------------------------------------------------

def check_each(model: FleetModel, objective: str) -> None:
    """Raise `UserError` for the first client that asks for what its device, its link, or any server alone cannot do."""
    problem, own_fps = model.problem, model.problem.own_fps
    for g, client in enumerate(model.fleet.clients):
        who = f'{model.fleet.path}: client {client.name}'
        if objective in GIVEN_RATES and client.fps is None:
            raise UserError(f'{who}: {objective} needs the frame rate (fps) of every client')
        if objective == 'max_accuracy' and np.isnan(problem.accuracy[g][np.isfinite(problem.own_ms[g])]).any():
            raise UserError(f'{who}: max_accuracy needs a domain with a result of step 3')
        if client.fps is None:
            continue
        best = float(own_fps[g].max())
        if client.fps > best * (1 + 1e-9):
            s, p = np.unravel_index(int(own_fps[g].argmax()), own_fps[g].shape)
            points = model.points_of(g, int(s))
            com_ms = float(link_of(client).transfer_ms(points.n_bytes[p]))
            what = 'device' if points.T_client_ms[p] >= com_ms else f'link of {client.bandwidth_mbps:g} Mbit/s'
            raise UserError(f'{who}: asks for {client.fps:g} fps, its {what} sustains {best:.4g} '
                            f'(λ = {points.split[p]}, MAX_LOAD={model.settings.MAX_LOAD:g}): '
                            f'{100 * (client.fps / best - 1):.3g} % too much')
        able = own_fps[g] >= client.fps * (1 - 1e-9)
        share = np.where(able, np.maximum(client.fps * problem.server_ms[g] / problem.capacity_ms[:, None],
                                          client.fps * problem.mbit[g] / problem.link_mbps[:, None]), np.inf)
        if share.min() > 1 + 1e-9:
            s = int(share.min(axis=1).argmin())
            raise UserError(f'{who}: no server can carry it: {client.fps:g} fps take {100 * share.min():.4g} % of what '
                            f'one {model.fleet.servers[s].name} gives (MAX_LOAD={model.settings.MAX_LOAD:g})')


def too_much(model: FleetModel, found: NothingFits) -> UserError:
    """What to say when all together ask for too much: the clients that ask for most of it, and by how much."""
    problem = model.problem
    wide = problem.min_fps[:, None, None]
    share = np.where(problem.own_fps >= wide * (1 - 1e-9), np.maximum(
        wide * problem.server_ms / (problem.capacity_ms * problem.servers)[:, None],
        wide * problem.mbit / (problem.link_mbps * problem.servers)[:, None]), np.inf).min(axis=(1, 2))
    heaviest = int((share * problem.clients).argmax())
    client = model.fleet.clients[heaviest]
    if found.use > 1 + 1e-9:
        how = f'take at least {found.use:.4g} times what the servers give (MAX_LOAD={model.settings.MAX_LOAD:g})'
    else:
        how = (f'leave at most {100 * (1 - found.use):.2g} % of the servers free, and no way to place whole clients on '
               'single servers was found')
    return UserError(f'{model.fleet.path}: the rates that clients ask for {how}; {client.count} x {client.name} at '
                     f'{client.fps or 0:g} fps ask for most of it')


# --- the plan ---------------------------------------------------------------------------------------

def make_plan(model: FleetModel, objective: str) -> Plan:
    """The best plan for one of `objectives.OBJECTIVES`. Raises `UserError` where clients ask for what is impossible."""
    check_each(model, objective)
    try:
        allocation = OBJECTIVES[objective](model.problem)
    except NothingFits as found:
        raise too_much(model, found) from None
    return _plan(model, objective, allocation)


def _plan(model: FleetModel, objective: str, allocation: Allocation) -> Plan:
    """The allocation with names, times and limits."""
    numbers: Dict[PointKey, Tuple[int, ...]] = {}  # of a set's points
    points: List[PlannedPoint] = []
    for key, found in model.points.items():
        numbers[key] = tuple(range(len(points), len(points) + len(found.split)))
        points += [_point(found, index, key[2], model.settings) for index in range(len(found.split))]
    servers, waits = _servers(model, allocation)
    groups = tuple(PlannedGroup(
        client.name, client.count, link_of(client), client.trace_path, client.fps or 0.0, client.max_fps,
        {server.name: numbers[_key(client, server.tier)] for server in model.fleet.servers})
        for client in model.fleet.clients)
    number = _server_numbers(model.fleet)
    names = [names_of(client.name, client.count) for client in model.fleet.clients]
    clients: List[PlannedClient] = []
    for number_of, item in sorted(enumerate(allocation.placements), key=lambda entry: entry[1].group):
        group = model.fleet.clients[item.group]
        at = None if item.server == NO_SERVER else number[item.server_kind] + item.server
        index = numbers[_key(group, model.fleet.servers[item.server_kind].tier)][item.point]
        wait_ms = 0.0 if at is None else waits[at][number_of]
        latency = points[index].latency_ms(link_of(group), wait_ms)
        limited_by = _limited_by(model, points[index], link_of(group), item, None if at is None else servers[at])
        clients += [PlannedClient(next(names[item.group]), item.group, at, index, item.fps,
                                  latency if math.isfinite(latency) else None, limited_by)
                    for _ in range(item.count)]
    return Plan(objective, float(allocation.value), float(allocation.bound), allocation.proven, model.settings.MAX_LOAD,
                tuple(points), groups, tuple(clients), tuple(servers))


def _point(found: Points, index: int, domain: Optional[int], settings: Settings) -> PlannedPoint:
    network, accuracy = found.networks[found.network[index]], float(found.accuracy[index])
    return PlannedPoint(domain, network.name, network.confirmed, int(found.split[index]), found.wire[index],
                        found.gamma(index, settings), float(found.T_client_ms[index]), float(found.T_server_ms[index]),
                        float(found.n_bytes[index]), bool(found.uses_link[index]),
                        None if math.isnan(accuracy) else accuracy)


def _server_numbers(fleet: Fleet) -> List[int]:
    """The number of the first server of each group."""
    return [sum(server.count for server in fleet.servers[:kind]) for kind in range(len(fleet.servers))]


def _servers(model: FleetModel, allocation: Allocation) -> Tuple[List[PlannedServer], List[Dict[int, float]]]:
    """Every server's load, and the mean wait there of each placement's frames, ms (infinite where it has no time left);
    placements by number."""
    problem, number = model.problem, _server_numbers(model.fleet)
    work_ms, mbps = server_load(problem, allocation.placements)
    at: List[List[int]] = [[] for _ in range(model.fleet.n_servers)]  # numbers of placements
    for index, item in enumerate(allocation.placements):
        if item.server != NO_SERVER:
            at[number[item.server_kind] + item.server].append(index)
    found: List[PlannedServer] = []
    waits: List[Dict[int, float]] = []
    for kind, server in enumerate(model.fleet.servers):
        for k, name in enumerate(names_of(server.name, server.count)):
            placed = [allocation.placements[index] for index in at[number[kind] + k]]
            count = np.array([item.count for item in placed], dtype=int)
            fps = np.repeat([item.fps for item in placed], count)
            wait_ms = mean_waits_ms(fps, np.repeat([problem.server_ms[item.at] for item in placed], count),
                                    server.workers)
            first = np.cumsum(count) - count
            waits.append(dict(zip(at[number[kind] + k], wait_ms[first].tolist())))
            mean_ms = float(np.average(wait_ms, weights=fps)) if fps.sum() else 0.0
            link_load = mbps[kind, k] / server.bandwidth_mbps if server.bandwidth_mbps else 0.0
            found.append(PlannedServer(name, server.name, server.workers, server.bandwidth_mbps,
                                       float(work_ms[kind, k] / (1000 * server.workers)), float(link_load),
                                       mean_ms if math.isfinite(mean_ms) else None, int(count.sum())))
    return found, waits


def _limited_by(model: FleetModel, point: PlannedPoint, link: Link, item: Placement,
                server: Optional[PlannedServer]) -> str:
    """What keeps a client's rate from rising."""
    client, full = model.fleet.clients[item.group], 0.999 * model.settings.MAX_LOAD
    if client.max_fps is not None and item.fps >= 0.999 * client.max_fps:
        return plans.SOURCE
    if item.fps * point.T_client_ms / 1000 >= full:
        return plans.DEVICE
    if item.fps * float(link.transfer_ms(point.n_bytes)) / 1000 >= full:
        return plans.LINK
    if server is not None and server.load >= 0.99 * model.settings.MAX_LOAD:
        return plans.SERVER
    if server is not None and server.link_load >= 0.99 * model.settings.MAX_LOAD:
        return plans.SERVER_LINK
    return plans.ASKED if client.fps is not None and item.fps <= client.fps * (1 + 1e-9) else plans.OTHERS
