"""Clients and servers as people write them down: a JSON or a CSV file (docs/fleet_planning.md).

    {"clients": [{"name": "gate", "count": 120, "profile": "jetson-tx2", "bandwidth_mbps": 40, "domain": 0}],
     "servers": [{"name": "rack", "count": 2, "workers": 4}]}

A CSV file has the same fields as columns, and a column `kind` that says `client` or `server`. A line stands for `count`
equal clients; with a count above 1 they are called gate-1, gate-2, ...
"""
from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from config import Settings, UserError
from fleet.links import Trace, read_csv, read_trace
from pipeline import documents
from pipeline.documents import Document

MAX_FILE_BYTES = 16 << 20
MAX_COUNT = {'clients': 100_000, 'servers': 10_000}  # of a fleet
MAX_NAME = 60  # characters


@dataclass(frozen=True)
class ClientGroup:
    """So many equal clients."""
    name: str
    count: int
    tier: str  # the device: '' (the table in RESULTS_DIR), 'table FILE' or 'profile NAME'
    bandwidth_mbps: float  # Mbit/s, of its own link
    rtt_ms: float
    trace: Optional[Trace]  # its link over time; the two numbers are then what it sustains
    trace_path: str  # where that was read; '': none
    domain: Optional[int]  # whose networks it runs; None: the unpruned one
    min_accuracy: Optional[float]  # fraction of 1; None: within EPSILON of the domain's A_ref
    fps: Optional[float]  # frames a second that it must get
    max_fps: Optional[float]  # that its source delivers


@dataclass(frozen=True)
class ServerGroup:
    """So many equal servers."""
    name: str
    count: int
    tier: str
    workers: int  # frames that one of them works on at a time
    bandwidth_mbps: Optional[float]  # of its link, which its clients share; None: no limit


@dataclass(frozen=True)
class Fleet:
    """All clients and servers."""
    path: str
    clients: Tuple[ClientGroup, ...]
    servers: Tuple[ServerGroup, ...]

    @property
    def n_clients(self) -> int:
        """Single clients."""
        return sum(group.count for group in self.clients)

    @property
    def n_servers(self) -> int:
        """Single servers."""
        return sum(group.count for group in self.servers)


def names_of(group_name: str, count: int) -> Iterator[str]:
    """The names of single clients or servers of a group."""
    return iter([group_name]) if count == 1 else (f'{group_name}-{k}' for k in range(1, count + 1))


class _Rule(NamedTuple):
    """What a field must be."""
    kind: type  # str, int or float
    lowest: float = -math.inf
    highest: float = math.inf
    lowest_allowed: bool = True


_ABOVE_0 = _Rule(float, 0, 1e9, False)
_SHARED = {'name': _Rule(str), 'count': _Rule(int, 1, max(MAX_COUNT.values())),
           'table': _Rule(str), 'bandwidth_mbps': _ABOVE_0}
_FIELDS: Dict[str, Dict[str, _Rule]] = {
    'clients': {**_SHARED, 'profile': _Rule(str), 'rtt_ms': _Rule(float, 0, 1e6), 'link_trace': _Rule(str),
                'domain': _Rule(int, 0, 9), 'min_accuracy': _Rule(float, 0, 1), 'fps': _ABOVE_0, 'max_fps': _ABOVE_0},
    'servers': {**_SHARED, 'workers': _Rule(int, 1, 10_000)},
}
_COLUMNS = ('kind', *dict.fromkeys([*_FIELDS['clients'], *_FIELDS['servers']]))


def read_fleet(path: str, settings: Settings) -> Fleet:
    """Read and check a fleet. Links that it does not give are those of the settings (LINK_TRACE, BANDWIDTH_MBPS,
    RTT_MS). Raises `UserError`, naming the line and the field."""
    entries = _csv_entries(path) if path.lower().endswith('.csv') else _json_entries(path)
    found: Dict[str, List[Any]] = {'clients': [], 'servers': []}
    traces: Dict[str, Trace] = {}
    for role, label, entry in entries:
        checked = _checked(path, role, label, entry)
        found[role].append(_client(path, label, checked, settings, traces) if role == 'clients' else
                           _server(checked, settings))
    for role, most in MAX_COUNT.items():
        if not found[role]:
            raise UserError(f'{path}: names no {role}')
        total = sum(group.count for group in found[role])
        if total > most:
            raise UserError(f'{path}: names {total} {role}, at most {most} can be planned')
        seen = set()
        for name in (name for group in found[role] for name in names_of(group.name, group.count)):
            if name in seen:
                raise UserError(f'{path}: two {role} are called {name!r}')
            seen.add(name)
    return Fleet(path, tuple(found['clients']), tuple(found['servers']))


def _client(path: str, label: str, entry: Dict[str, Any], settings: Settings, traces: Dict[str, Trace]) -> ClientGroup:
    named = entry.get('link_trace')
    if named and ('bandwidth_mbps' in entry or 'rtt_ms' in entry):
        raise UserError(f'{path}: {label}: a link is given by link_trace or by bandwidth_mbps and rtt_ms, not by both')
    if 'table' in entry and 'profile' in entry:
        raise UserError(f'{path}: {label}: a device is given by table or by profile, not by both')
    if 'fps' in entry and 'max_fps' in entry and entry['fps'] > entry['max_fps']:
        raise UserError(f'{path}: {label}: fps {entry["fps"]:g} is above max_fps {entry["max_fps"]:g}')
    if 'min_accuracy' in entry and 'domain' not in entry:
        raise UserError(f'{path}: {label}: min_accuracy needs a domain, whose images it is measured on')
    if entry.get('domain', 0) >= settings.NUM_DOMAINS:
        raise UserError(f'{path}: {label}: domain {entry["domain"]}: there are domains 0 to {settings.NUM_DOMAINS - 1}')
    default = '' if 'bandwidth_mbps' in entry or 'rtt_ms' in entry else settings.LINK_TRACE
    trace_path = named or default
    if trace_path and trace_path not in traces:
        traces[trace_path] = read_trace(trace_path)
    trace = traces[trace_path] if trace_path else None
    mbps, rtt_ms = trace.sustained() if trace else (entry.get('bandwidth_mbps', settings.BANDWIDTH_MBPS),
                                                    entry.get('rtt_ms', settings.RTT_MS))
    return ClientGroup(entry['name'], entry.get('count', 1), _tier(entry), mbps, rtt_ms, trace, trace_path,
                       entry.get('domain'), entry.get('min_accuracy'), entry.get('fps'), entry.get('max_fps'))


def _server(entry: Dict[str, Any], settings: Settings) -> ServerGroup:
    return ServerGroup(entry['name'], entry.get('count', 1), _tier(entry), entry.get('workers', 1),
                       entry.get('bandwidth_mbps'))


def _tier(entry: Dict[str, Any]) -> str:
    return next((f'{field} {entry[field]}' for field in ('table', 'profile') if field in entry), '')


def _json_entries(path: str) -> Iterator[Tuple[str, str, Dict[str, Any]]]:
    """(role, what to call it in messages, fields) of every entry."""
    document = documents.read_object(path, max_bytes=MAX_FILE_BYTES)
    for name in document.content:
        if name not in (*_FIELDS, 'schema_version', 'metadata', 'comment'):
            raise document.refuse(f'field {name[:40]!r} is unknown{_nearest(name, tuple(_FIELDS))}')
    for role in _FIELDS:
        for number, entry in enumerate(document.get(role, list), start=1):
            label = f'{role[:-1]} {number}'
            if not isinstance(entry, dict):
                raise document.refuse(f'{label} is {json.dumps(entry)[:40]}, not an object')
            yield role, label, entry


def _csv_entries(path: str) -> Iterator[Tuple[str, str, Dict[str, Any]]]:
    """`_json_entries` of a CSV file; an empty cell is a field that is not given."""
    for number, row in enumerate(read_csv(path, _COLUMNS, MAX_FILE_BYTES), start=2):
        role = f'{row.pop("kind")}s'
        if role not in _FIELDS:
            raise UserError(f"{path}: line {number}: kind is {role[:-1][:40]!r}, not 'client' or 'server'")
        entry: Dict[str, Any] = {}
        for name, text in row.items():
            if text:
                kind = _FIELDS[role][name].kind if name in _FIELDS[role] else str
                try:
                    entry[name] = kind(text)
                except ValueError:
                    entry[name] = text  # refused by its type
        yield role, f'line {number}', entry


def _checked(path: str, role: str, label: str, entry: Dict[str, Any]) -> Dict[str, Any]:
    """The entry with every field checked; None counts as not given."""
    rules, document, found = _FIELDS[role], Document(path, {}, ''), {}
    for name, value in entry.items():
        where = f'{label}: {name}'
        if name not in rules:
            raise document.refuse(f'{label}: field {name[:40]!r} is unknown for {role}{_nearest(name, tuple(rules))}')
        if value is None:
            continue
        rule = rules[name]
        value = document.check(value, (where,), rule.kind)
        if rule.kind is str:
            if not value.strip() or not value.isprintable() or (name == 'name' and len(value) > MAX_NAME):
                raise document.refuse(f'{where} must be a line of text' +
                                      (f' of at most {MAX_NAME} characters' if name == 'name' else ''))
        elif not (value > rule.lowest or rule.lowest_allowed and value == rule.lowest) or value > rule.highest:
            wanted = f'{rule.lowest:g} or more' if rule.lowest_allowed else f'above {rule.lowest:g}'
            wanted += '' if math.isinf(rule.highest) else f' and at most {rule.highest:g}'
            raise document.refuse(f'{where} is {json.dumps(value)[:40]}, must be {wanted}')
        found[name] = value
    if 'name' not in found:
        raise document.refuse(f'{label} has no name')
    return found


def _nearest(name: str, known: Tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f': did you mean {found[0]!r}?' if found else f'; there are {", ".join(known)}'
