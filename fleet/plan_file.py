"""results/fleet_plan.json: written, read back and checked."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from config import Settings
from costs.cost_model import Link
from fleet.plan import LIMITS, Plan, PlannedClient, PlannedGroup, PlannedPoint, PlannedServer
from network.gammas import gamma_by_id
from network.outline import outline_for
from pipeline import kinds, provenance, writing
from pipeline.documents import Document
from wire.formats import exists


def save(plan: Plan, settings: Settings, inputs: Dict[str, str]) -> str:
    """Write the plan; returns its path. `inputs`: what it was made from, path -> SHA-256."""
    path = kinds.path_of('fleet_plan', settings)
    names = outline_for(settings).block_names
    sets: Dict[Tuple[int, ...], int] = {}  # thousands of groups share few sets of points
    groups = [{'name': group.name, 'count': group.count, 'bandwidth_mbps': group.link.bandwidth_mbps,
               'rtt_ms': group.link.rtt_ms, 'link_trace': group.link_trace, 'min_fps': group.min_fps,
               'max_fps': group.max_fps, 'point_sets': {server: sets.setdefault(points, len(sets))
                                                        for server, points in group.points.items()}}
              for group in plan.groups]
    content = {
        'objective': plan.objective, 'value': plan.value, 'bound': plan.bound, 'gap': plan.gap, 'proven': plan.proven,
        'max_load': plan.max_load,
        'servers': [vars(server) for server in plan.servers],
        'clients': [vars(client) for client in plan.clients],
        'groups': groups, 'point_sets': [list(points) for points in sets],
        'points': [{**_point_numbers(point), 'lambda': point.split, 'gamma': dict(zip(names, point.gamma))}
                   for point in plan.points]}
    metadata = writing.make_metadata(settings, 'fleet_plan', '')
    writing.write(path, content, {**metadata, 'made_from': {name: {'sha256': digest}
                                                            for name, digest in inputs.items()}})
    return path


def _point_numbers(point: PlannedPoint) -> Dict[str, Any]:
    return {name: value for name, value in vars(point).items() if name not in ('split', 'gamma')}


def load(settings: Settings) -> Plan:
    """Read and check the plan in RESULTS_DIR; `UserError` when it is missing, damaged, or of other settings."""
    document = provenance.read_kind('fleet_plan', settings)
    points = tuple(_point(entry, settings) for entry in _entries(document, 'points'))
    servers = tuple(_server(entry) for entry in _entries(document, 'servers'))
    sets = [tuple(_index(document, f'point_sets[{k}]', index, len(points)) for index in
                  document.check(values, f'point_sets[{k}]', list))
            for k, values in enumerate(document.get('point_sets', list))]
    groups = tuple(_group(entry, sets) for entry in _entries(document, 'groups'))
    clients = tuple(_client(entry, len(groups), len(servers), len(points)) for entry in _entries(document, 'clients'))
    for name, found in (('points', points), ('servers', servers), ('groups', groups), ('clients', clients)):
        if not found:
            raise document.refuse(f"field '{name}' is empty")
    for client in clients:
        if client.server is not None and servers[client.server].group not in groups[client.group].points:
            raise document.refuse(f'client {client.name[:60]!r} has no points at its server')
    return Plan(document.get('objective', str), document.number('value', 0), document.number('bound', 0),
                document.get('proven', bool), document.number('max_load', 1e-9), points, groups, clients, servers)


def _entries(document: Document, field: str) -> List[Document]:
    """The objects of a list, each as a document of its own, whose errors say where it stands."""
    found = []
    for index, entry in enumerate(document.get(field, list)):
        document.check(entry, f'{field}[{index}]', dict)
        found.append(Document(f'{document.path}: {field}[{index}]', entry, document.made_by))
    return found


def _index(document: Document, field: str, value: object, length: int) -> int:
    index = document.check(value, field, int)
    if not 0 <= index < length:
        raise document.refuse(f"field '{field}' is {index}, there are {length}")
    return index


def _maybe(entry: Document, field: str, lowest: float = 0) -> Optional[float]:
    return None if entry.find(field) is None else entry.number(field, lowest)


def _point(entry: Document, settings: Settings) -> PlannedPoint:
    names = outline_for(settings).block_names
    gamma = tuple(gamma_by_id(entry.get(('gamma', name), int), entry.path).id for name in names)
    split, wire = _index(entry, 'lambda', entry.find('lambda'), len(names) + 1), entry.get('wire', str)
    if not exists(wire):
        raise entry.refuse(f'unknown wire format {wire[:40]!r}')
    domain = None if entry.find('domain') is None else entry.get('domain', int)
    return PlannedPoint(domain, entry.get('network', str), entry.get('confirmed', bool), split, wire, gamma,
                        entry.number('T_client_ms', 0), entry.number('T_server_ms', 0), entry.number('n_bytes', 0),
                        entry.get('uses_link', bool), _maybe(entry, 'accuracy'))


def _server(entry: Document) -> PlannedServer:
    workers = int(entry.number('workers', 1))
    return PlannedServer(entry.get('name', str), entry.get('group', str), workers,
                         _maybe(entry, 'bandwidth_mbps', 1e-9), entry.number('load', 0),
                         entry.number('link_load', 0), _maybe(entry, 'wait_ms'),
                         int(entry.number('n_clients', 0)))


def _group(entry: Document, sets: List[Tuple[int, ...]]) -> PlannedGroup:
    link = Link(entry.number('bandwidth_mbps', 1e-9), entry.number('rtt_ms', 0), False)
    points = {server: sets[_index(entry, f'point_sets.{server}', index, len(sets))]
              for server, index in entry.get('point_sets').items()}
    return PlannedGroup(entry.get('name', str), int(entry.number('count', 1)), link, entry.get('link_trace', str),
                        entry.number('min_fps', 0), _maybe(entry, 'max_fps', 1e-9), points)


def _client(entry: Document, n_groups: int, n_servers: int, n_points: int) -> PlannedClient:
    server = entry.find('server')
    limited_by = entry.get('limited_by', str)
    if limited_by not in LIMITS:
        raise entry.refuse(f'limited_by is {limited_by[:40]!r}, not one of {", ".join(LIMITS)}')
    return PlannedClient(entry.get('name', str), _index(entry, 'group', entry.find('group'), n_groups),
                         None if server is None else _index(entry, 'server', server, n_servers),
                         _index(entry, 'point', entry.find('point'), n_points), entry.number('fps', 0),
                         _maybe(entry, 'latency_ms'), limited_by)
