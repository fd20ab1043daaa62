"""What may be served: one entry for each network that a client can ask for, with everything that it may run of it.

An entry is a domain's result of step 3 ('domain_0'), or a client of a fleet's plan.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

import lut_manager
from config import Settings, UserError
from costs.checks import split_range
from costs.cost_model import TIERS, Configuration, HardwareTable
from gamma_mask_builder import build_gamma_mask
from network.alpha import surviving_branches
from pipeline import documents, fingerprints, kinds
from search import result_file
from throughput_optimizer import fastest_gammas, times_with_fastest


@dataclass(frozen=True)
class Choice:
    """A split and a wire format, and what they cost by the table."""
    split: int  # λ
    wire: str
    T_client_ms: float
    T_server_ms: float
    n_bytes: float  # that cross the link, a frame

    def sustains(self, fps: float, bandwidth_mbps: float) -> bool:
        """Can the device and its link keep this rate?"""
        return fps * self.T_client_ms <= 1000 and fps * 8 * self.n_bytes <= bandwidth_mbps * 1e6


@dataclass(frozen=True)
class Network:
    """A network as it is served. A tier runs its blocks under the γ that they have here, whatever the split, so that a
    changed split needs nothing else. Entries may share one."""
    name: str
    alpha: np.ndarray = field(repr=False)  # [N, 3]
    gamma: Mapping[str, Tuple[int, ...]]  # by tier: [N]
    batchnorm: Optional[np.ndarray] = field(default=None, repr=False)  # re-estimated statistics; None: the model's own


@dataclass(frozen=True)
class Entry:
    """What a client can ask for by name."""
    name: str
    network: Network
    first: Choice  # what a client begins with
    choices: Tuple[Choice, ...] = ()  # what it may change to
    promised_fps: Optional[float] = None  # by the plan; None: the client says
    bandwidth_mbps: float = 100.0  # of the client's link, by the table or the plan


def entry_of(name: str, configuration: Configuration, table: HardwareTable, settings: Settings,
             batchnorm: Optional[np.ndarray] = None) -> Entry:
    """The entry that begins with this configuration. The blocks of a tier run the configuration's γ; those that come to
    it with another split, their fastest one."""
    surviving = surviving_branches(configuration.alpha)
    valid = build_gamma_mask(surviving)
    own = {'client': range(configuration.split), 'server': range(configuration.split, table.n_blocks)}
    gamma = {tier: tuple(int(configuration.gamma[k] if k in own[tier] else fastest)
                         for k, fastest in enumerate(fastest_gammas(table.T_ms[tier], valid)[0])) for tier in TIERS}
    splits = sorted({configuration.split, *split_range(table.n_blocks, settings)})
    wires = [wire for wire in dict.fromkeys((configuration.wire, *settings.WIRE_FORMATS)) if wire in table.block_bytes]
    choices = {}
    for wire in wires:
        times, n_bytes = times_with_fastest(table, surviving, wire, settings), table.cut_bytes(wire)
        for split in splits:
            at = times.at(split)
            choices[split, wire] = Choice(split, wire, at.T_client_ms, at.T_server_ms, float(n_bytes[split]))
    network = Network(name, configuration.alpha, gamma, batchnorm)
    return Entry(name, network, choices[configuration.split, configuration.wire], tuple(choices.values()), None,
                 table.link.bandwidth_mbps)


def entries_of_results(domains: Sequence[int], settings: Settings) -> Dict[str, Entry]:
    """The results of step 3 that are there, of these domains. Raises `UserError` when there is none, and for a file
    that is damaged or was made under other settings."""
    if settings.HEAD_TIER != 'client':
        raise UserError('a service has its cameras at the clients: HEAD_TIER must be client')
    table = lut_manager.load(kinds.path_of('lut', settings), settings)
    found: Dict[str, Entry] = {}
    for domain in domains:
        if os.path.exists(kinds.path_of('joint', settings, domain)):
            result = result_file.load(domain, table, settings)
            name = f'domain_{domain}'
            found[name] = entry_of(name, result.configuration, table, settings, result.batchnorm)
    if not found:
        raise UserError(f"{kinds.path_of('joint', settings, domains[0])}: no such file, nor another domain's result; "
                        f"make one with `{kinds.command_for('joint', settings, domains[0])}`")
    return found


def class_names(settings: Settings) -> List[str]:
    """What the classes are called, by the partition; [] where that is not known."""
    try:
        return [str(name) for name in documents.read(fingerprints.found_at('partition', settings), '').get(
            'dataset.class_names', list)]
    except UserError:
        return []
