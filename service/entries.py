"""What may be served: one entry for everything that a client can ask for by name, with all that it may run of it.

An entry is a domain's result of step 3 ('domain_0'), or a client of a fleet's plan ('gate-7').
"""
from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

import lut_manager
from config import Settings, UserError
from costs.cost_model import TIERS, Configuration, HardwareTable
from fleet import plan_file, points
from fleet.plan import PlannedPoint
from gamma_mask_builder import build_gamma_mask
from network.alpha import surviving_branches
from network.channels import CutChannels
from pipeline import documents, fingerprints, kinds
from search.frontier import TESTS
from search.result import JointResult
from throughput_optimizer import fastest_gammas, times_with_fastest
from wire.formats import can_be_packed, check_compressions, format_at, share_of


@dataclass(frozen=True)
class Choice:
    """A network, a split and a wire format, and what they cost by the table."""
    split: int  # λ
    wire: str
    T_client_ms: float
    T_server_ms: float
    n_bytes: float  # that cross the link, a frame
    uses_link: bool = True
    network: int = 0  # of its entry's networks


@dataclass(frozen=True)
class ServedNetwork:
    """A network as it is served. A tier runs its blocks under the γ that they have here, whatever the split, so that a
    changed split needs nothing else. Entries may share one."""
    name: str
    alpha: np.ndarray = field(repr=False)  # [N, 3]
    gamma: Mapping[str, Tuple[int, ...]]  # by tier: [N]
    batchnorm: Optional[np.ndarray] = field(default=None, repr=False)  # re-estimated statistics; None: the model's own
    channels: Optional[CutChannels] = field(default=None, repr=False)  # that are sent in formats with a share

    def channels_at(self, split: int, wire: str) -> Optional[CutChannels]:
        """The channels that are sent at a split in this format; None: all."""
        return None if share_of(format_at(split, len(self.alpha), wire)) == 1 else self.channels


@dataclass(frozen=True)
class Entry:
    """What a client can ask for by name."""
    name: str
    network: ServedNetwork  # what a client begins with
    first: Choice  # what a client begins with
    choices: Tuple[Choice, ...] = ()  # what it may change to; its accuracy there is known
    promised_fps: Optional[float] = None  # by the plan; None: the client says
    bandwidth_mbps: float = 100.0  # of the client's link, by the table or the plan
    rtt_ms: float = 0.0
    others: Tuple[ServedNetwork, ...] = ()  # networks that it may change to

    @property
    def networks(self) -> Tuple[ServedNetwork, ...]:
        """All that a client of this entry may run; a choice names one by its place here."""
        return (self.network, *self.others)

    def within(self, held: Collection[str]) -> 'Entry':
        """This entry for a client that holds the networks of these names only, its first one among them."""
        return replace(self, choices=tuple(choice for choice in self.choices
                                           if self.networks[choice.network].name in held))

    def for_compressions(self, there: Collection[str]) -> Entry:
        """The entry for a client with these compressions. Raises `UserError` where the first choice needs another."""
        check_compressions([self.first.wire], there, 'the device')
        return replace(self, choices=tuple(choice for choice in self.choices if can_be_packed(choice.wire, there)))


# --- results of step 3 --------------------------------------------------------------------------------------

def entries_of_results(domains: Sequence[int], settings: Settings, any_network: bool = False) -> Dict[str, Entry]:
    """The results of step 3 that are there, of these domains; with `any_network` a client may change to every network
    of its result that `may_be_served`. Raises `UserError` when there is none, and for a file
    that is damaged or was made under other settings."""
    table = _table(settings)
    found: Dict[str, Entry] = {}
    for domain in domains:
        result = points.load_result(domain, table, settings)
        if result is not None:
            name = f'domain_{domain}'
            found[name] = entry_of(name, result, table, settings, any_network)
    if not found:
        raise UserError(f"{kinds.path_of('joint', settings, domains[0])}: no such file, nor another domain's result; "
                        f"make one with `{kinds.command_for('joint', settings, domains[0])}`")
    return found


def entry_of(name: str, result: JointResult, table: HardwareTable, settings: Settings, any_network: bool = False,
             ) -> Entry:
    """The entry of a domain's result, which begins with its configuration and may change to every split and lossless
    format, or, where its own format is a lossy one, to what its accuracy was measured with."""
    picked = result.configuration
    networks = [points.Network('result', picked.alpha, result.accuracy.val_final, True, points.lossy_at(picked),
                               picked.channels)]
    if any_network and result.batchnorm is None:  # a result holds the statistics of its own choice only
        networks += [network for network in points.networks_of(result, table) if may_be_served(network, result)
                     and not np.array_equal(network.alpha, picked.alpha, equal_nan=True)]
    first = choice_of(picked, table, settings)
    choices = [first, *(choice for choice in _choices(points.points_of(table, networks, settings))
                        if (choice.network, choice.split, choice.wire) != (0, first.split, first.wire))]
    used = sorted({choice.network for choice in choices})  # others never pay
    choices = [replace(choice, network=used.index(choice.network)) for choice in choices]
    served = [_served(f'{name}/{networks[k].name}' if k else name, networks[k], table, result.batchnorm) for k in used]
    return Entry(name, served[0], first, tuple(choices), None, table.link.bandwidth_mbps, table.link.rtt_ms,
                 tuple(served[1:]))


def may_be_served(network: points.Network, result: JointResult) -> bool:
    """Does a network of a result lose at most ε, as far as the result itself may be trusted? Where that was to be
    confirmed on calibration images, it must have passed there, as the networks did that were tested before the picked
    one: those that lack fewer branches (frontier.order_of_tests). Otherwise validation images decide."""
    if network.name == points.UNPRUNED or result.pick is None:  # the one saves nothing, the other has no frontier
        return False
    if result.pick.confidence is None:
        return network.accuracy >= result.accuracy.val_reference - result.epsilon
    passed = [point.configuration for point in result.frontier[TESTS] if point.n_pruned <= len(result.pruned)]
    return bool(result.pick.n_passed) and any(
        points.lossy_at(one) == network.lossy_at and np.array_equal(one.alpha, network.alpha, equal_nan=True)
        for one in passed)


def choice_of(configuration: Configuration, table: HardwareTable, settings: Settings) -> Choice:
    """A configuration's split and format with what they cost."""
    at = times_with_fastest(table, surviving_branches(configuration.alpha), configuration.wire, settings).at(
        configuration.split)
    n_bytes = table.cut_bytes(configuration.wire)[configuration.split]
    return Choice(configuration.split, configuration.wire, at.T_client_ms, at.T_server_ms, float(n_bytes))


def _choices(found: points.Points) -> Iterator[Choice]:
    for k in range(len(found.split)):
        yield Choice(int(found.split[k]), found.wire[k], float(found.T_client_ms[k]), float(found.T_server_ms[k]),
                     float(found.n_bytes[k]), bool(found.uses_link[k]), int(found.network[k]))


def _served(name: str, network: points.Network, table: HardwareTable, batchnorm: Optional[np.ndarray],
            ) -> ServedNetwork:
    """Every block under its fastest γ on each tier, as step 3 chooses them."""
    valid = build_gamma_mask(surviving_branches(network.alpha))
    gamma = {tier: tuple(map(int, fastest_gammas(table.T_ms[tier], valid)[0])) for tier in TIERS}
    return ServedNetwork(name, network.alpha, gamma, batchnorm, network.channels)


# --- a fleet's plan -------------------------------------------------------------------------------------------

def entries_of_plan(server: str, settings: Settings) -> Dict[str, Entry]:
    """The clients that the plan in RESULTS_DIR gives to this server ('': its only one). Raises `UserError`."""
    table, plan = _table(settings), plan_file.load(settings)
    names = [entry.name for entry in plan.servers]
    if server not in names and (server or len(names) > 1):
        raise UserError(f"--plan {server!r}: the plan's servers are {', '.join(names[:20])}")
    number = names.index(server) if server else 0
    networks = _Networks(table, settings)
    found: Dict[str, Entry] = {}
    for client in plan.clients:
        if client.server == number:
            point, group = plan.points[client.point], plan.groups[client.group]
            at_server = [plan.points[k] for k in group.points[plan.servers[number].group]]
            same = [one for one in at_server if (one.domain, one.network) == (point.domain, point.network)]
            found[client.name] = Entry(client.name, networks.served(point), _planned(point),
                                       tuple(map(_planned, same)), client.fps, group.link.bandwidth_mbps,
                                       group.link.rtt_ms)
    if not found:
        raise UserError(f'the plan gives no client to the server {names[number]}')
    return found


def _planned(point: PlannedPoint) -> Choice:
    return Choice(point.split, point.wire, point.T_client_ms, point.T_server_ms, point.n_bytes, point.uses_link)


class _Networks:
    """The networks that a plan names, read from the domains' results."""

    def __init__(self, table: HardwareTable, settings: Settings) -> None:
        self._table, self._settings = table, settings
        self._found: Dict[Tuple[Optional[int], str], ServedNetwork] = {}

    def served(self, point: PlannedPoint) -> ServedNetwork:
        """The network of a point; points of the same one share it."""
        key = point.domain, point.network
        if key not in self._found:
            name = point.network if point.domain is None else f'domain_{point.domain}/{point.network}'
            self._found[key] = _served(name, *self._read(*key))
        found = self._found[key]
        valid = build_gamma_mask(surviving_branches(found.alpha))
        if not all(valid[k, gamma] for k, gamma in enumerate(point.gamma)):  # another search has come after the plan
            raise self._other(*key)
        return found

    def _read(self, domain: Optional[int], network: str) -> Tuple[points.Network, HardwareTable, Optional[np.ndarray]]:
        """The network, the table, and BatchNorm statistics."""
        table = self._table
        if network == points.UNPRUNED:
            return points.unpruned_network(table), table, None
        result = None if domain is None else points.load_result(domain, table, self._settings)
        held = [] if result is None else [one for one in points.networks_of(result, table) if one.name == network]
        if not held:
            raise self._other(domain, network)
        if result.batchnorm is not None and network != 'result':
            raise UserError(f'the plan has clients of domain {domain} run {network!r}, and the result holds BatchNorm '
                            'statistics of its own choice only')
        return held[0], table, result.batchnorm

    @staticmethod
    def _other(domain: Optional[int], network: str) -> UserError:
        return UserError(f'the plan has clients of domain {domain} run {network!r}, which is not what the result holds '
                         'now; plan again with `python plan_fleet.py`')


# --- what both need -------------------------------------------------------------------------------------------

def _table(settings: Settings) -> HardwareTable:
    if settings.HEAD_TIER != 'client':
        raise UserError('a service has its cameras at the clients: HEAD_TIER must be client')
    return lut_manager.load(kinds.path_of('lut', settings), settings)


def class_names(settings: Settings) -> List[str]:
    """What the classes are called, by the partition; [] where that is not known."""
    path = fingerprints.found_at('partition', settings)
    if not os.path.exists(path):
        return []
    return [str(name) for name in documents.read(path, '').get('dataset.class_names', list)]
