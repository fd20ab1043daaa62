"""What a client may run: networks, splits and wire formats, and what each takes of client, link and server.

Every network of a domain's frontiers, at every split and wire format, with the fastest γ on both tiers; what another
point beats in all respects is left out. A point does not depend on the link: its transfer time follows from its bytes.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

import lut_manager
from config import INT8, Settings, UserError
from costs.cost_model import Configuration, HardwareTable, Roofline, round_trip_ms, scenario_of, sent_bytes
from costs.device_profiles import KernelProfile, load_profile
from lut_manager import TierCosts
from network.alpha import surviving_branches, unpruned_alpha
from network.channels import CutChannels
from pipeline import documents, kinds
from search import result_file
from search.int8_loss import uses_int8
from search.result import JointResult
from throughput_optimizer import gamma_for_split, times_with_fastest
from wire.formats import is_lossless, without_compression

UNPRUNED = 'unpruned'


@dataclass(frozen=True)
class Network:
    """A network that a client may run."""
    name: str  # 'unpruned', or where it stands in the domain's result: 'frontier.T_eff[2]'
    alpha: np.ndarray  # [N, 3]
    accuracy: Optional[float]  # validation, fraction of 1; None: not known
    confirmed: bool  # is its loss tested on calibration images?
    lossy_at: Optional[Tuple[int, str]] = None  # its accuracy holds at this split with this lossy wire format only
    channels: Optional[CutChannels] = None  # that are sent there; None: all

    def allows(self, split: int, n_blocks: int, wire: str) -> bool:
        """Is its accuracy known at this split with this wire format?"""
        if self.lossy_at is None:
            return is_lossless(wire) or split in (0, n_blocks)
        return (split, without_compression(wire)) == self.lossy_at


@dataclass(frozen=True)
class Points:
    """Operating points of one kind of client at one kind of server: arrays [P]."""
    table: HardwareTable
    networks: Tuple[Network, ...]
    network: np.ndarray  # int: of `networks`
    split: np.ndarray  # int, λ
    wire: Tuple[str, ...]
    T_client_ms: np.ndarray
    T_server_ms: np.ndarray
    n_bytes: np.ndarray  # across the link
    uses_link: np.ndarray  # bool
    accuracy: np.ndarray  # NaN: not known

    def gamma(self, index: int, settings: Settings) -> Tuple[int, ...]:
        """Each block's γ."""
        alive = surviving_branches(self.networks[self.network[index]].alpha)
        return gamma_for_split(self.table, alive, int(self.split[index]), settings.HEAD_TIER)


def points_of(table: HardwareTable, networks: Sequence[Network], settings: Settings) -> Points:
    """All points that no other beats. Raises `UserError` where a tier runs in int8: what that loses is known at the
    split of a result alone."""
    if uses_int8(settings):
        raise UserError(f'the engine {INT8}: what it loses is measured at the split that step 3 chose, and a service '
                        'or a plan changes splits: measure again with CLIENT_ENGINE and SERVER_ENGINE of onnxruntime')
    rows: List[Tuple[int, int, str, float, float, float, bool, float]] = []
    uses_link = round_trip_ms(replace(table, link=replace(table.link, rtt_ms=1.0)), scenario_of(settings, table)) > 0
    for number, network in enumerate(networks):
        for wire in settings.WIRE_FORMATS:
            if wire not in table.block_bytes:
                raise UserError(f'wire format {wire} has no sizes without a measured table: leave it out of '
                                'WIRE_FORMATS')
            times = times_with_fastest(table, surviving_branches(network.alpha), wire, settings)
            n_bytes = sent_bytes(table, wire, scenario_of(settings, table))
            rows += [(number, split, wire, times.T_client_ms[split], times.T_server_ms[split], n_bytes[split],
                      uses_link[split], np.nan if network.accuracy is None else network.accuracy)
                     for split in splits_of(table.n_blocks, settings) if network.allows(split, table.n_blocks, wire)]
    kept = not_dominated(np.array([(row[3], row[4], row[5], -np.nan_to_num(row[7])) for row in rows]))
    number, split, wire, client, server, n_bytes, link, accuracy = zip(*(rows[index] for index in kept))
    return Points(table, tuple(networks), np.array(number), np.array(split), wire, np.array(client), np.array(server),
                  np.array(n_bytes), np.array(link), np.array(accuracy))


def splits_of(n_blocks: int, settings: Settings) -> range:
    """From LAMBDA_MIN to LAMBDA_MAX; without LAMBDA_MAX the client alone (λ = N) is among them: no image leaves it."""
    return range(settings.LAMBDA_MIN, (n_blocks if settings.LAMBDA_MAX is None else settings.LAMBDA_MAX) + 1)


def not_dominated(costs: np.ndarray) -> List[int]:
    """Rows of [P, C] that no other row is at most equal to in all columns and below in one; of equal rows the first."""
    kept: List[int] = []
    for index in np.lexsort(costs.T[::-1]):  # stable; a row that beats another stands before it
        if not kept or not (costs[kept] <= costs[index]).all(axis=1).any():
            kept.append(int(index))
    return sorted(kept)


# --- the networks of a domain -----------------------------------------------------------------------

def unpruned_network(table: HardwareTable, accuracy: Optional[float] = None) -> Network:
    """The network with all its branches."""
    return Network(UNPRUNED, unpruned_alpha(table.n_branches), accuracy, True)


def lossy_at(choice: Configuration) -> Optional[Tuple[int, str]]:
    """Where alone the accuracy of a configuration holds: None where its feature map arrives as it left."""
    lossy = not is_lossless(choice.wire) and 0 < choice.split < len(choice.alpha)
    return (choice.split, without_compression(choice.wire)) if lossy else None


def networks_of(result: JointResult, table: HardwareTable) -> List[Network]:
    """The unpruned network, the result's own choice, and every network of its frontiers."""
    found = [unpruned_network(table, result.accuracy.val_reference)]
    picked = result.configuration
    entries = [('result', picked, result.accuracy.val_final)]
    entries += [(f'frontier.{objective}[{index}]', point.configuration, point.accuracy)
                for objective, points in result.frontier.items() for index, point in enumerate(points)]
    seen = set()
    for name, choice, accuracy in entries:
        key = choice.alpha.tobytes(), lossy_at(choice)
        if key not in seen and (choice.alpha == 0).any():
            seen.add(key)
            confirmed = result.pick is not None and bool(result.pick.n_passed) and np.array_equal(
                choice.alpha, picked.alpha, equal_nan=True)
            found.append(Network(name, choice.alpha, accuracy, confirmed, key[1], choice.channels))
    return found


def load_result(domain: int, table: HardwareTable, settings: Settings) -> Optional[JointResult]:
    """Step 3's result for a domain; None where it has not been run. `UserError` when it is of other settings."""
    if not os.path.exists(kinds.path_of('joint', settings, domain)):
        return None
    return result_file.load(domain, table, settings)


# --- the tables -------------------------------------------------------------------------------------

class Tables:
    """The table of every pair of a kind of client and a kind of server, made from what a fleet's file names."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tiers: Dict[Tuple[str, str], TierCosts] = {}
        self._pairs: Dict[Tuple[str, str], HardwareTable] = {}

    def pair(self, client: str, server: str) -> HardwareTable:
        """The table of these two (`ClientGroup.tier`, `ServerGroup.tier`). Where neither is named it is the complete
        table in RESULTS_DIR, with the wire formats as they were measured."""
        if (client, server) not in self._pairs:
            if not client and not server:
                found = lut_manager.load(kinds.path_of('lut', self.settings), self.settings)
            else:
                costs = self._tier('client', client), self._tier('server', server)
                found = lut_manager.merge(costs[1], costs[0], self.settings)
            self._pairs[client, server] = found
        return self._pairs[client, server]

    def _tier(self, tier: str, named: str) -> TierCosts:
        if (tier, named) not in self._tiers:
            how, _, what = named.partition(' ')
            self._tiers[tier, named] = (profile_costs(what, self.settings) if how == 'profile' else
                                        lut_manager.load_tier(tier, self.settings, what or None))
        return self._tiers[tier, named]


def profile_costs(name: str, settings: Settings) -> TierCosts:
    """A client by its device profile: a kernel model is computed; what is timed on this machine must have been timed by
    step 1, in RESULTS_DIR."""
    profile = load_profile(name)
    if isinstance(profile, KernelProfile):
        return lut_manager.simulate_client(replace(settings, DEVICE_PROFILE=name),
                                           Roofline(profile.peak_gflops, profile.bandwidth_gbs))
    path = kinds.path_of('lut_client', settings)
    if os.path.exists(path):
        made_for = documents.read(path, '').content['metadata'].get('client')
        if isinstance(made_for, dict) and made_for.get('profile') == profile.name:
            return lut_manager.load_tier('client', settings, path)
    command = f"python step1_measure_lut.py --mode client --device_profile {name}"
    raise UserError(f'profile {name} is timed on this machine and {path} is not of it: make it with `{command}`, or '
                    'name a file as table')
