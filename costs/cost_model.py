"""The table of measured costs, a configuration, and the times that follow from both.

Everything that speaks of time (optimisers, baselines, scripts, pictures, benchmarks) gets it from
`split_times` or from `times`, which is one row of it.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, TypeVar

import numpy as np

from config import Settings, UserError
from costs.correction import Correction
from costs.energy import Power
from costs.queueing import mean_wait_ms
from network.channels import CutChannels
from network.shapes import BRANCHES

TIERS = ('client', 'server')
FLOAT32 = 'float32'
Value = TypeVar('Value')  # a float, an array or a tensor


@dataclass(frozen=True)
class Scenario:
    """Who runs the head, where the answer is needed, what T_eff weighs, and how many share the server. The tier of the
    head has the image."""
    head_tier: str
    omega: float  # T_eff = ω·T_lat + (1-ω)·T_cyc
    result_at: str = 'client'  # the tier that needs the answer
    clients: int = 1  # K equal ones, all with the same configuration
    server_workers: int = 1  # W frames that the server works on at a time
    link_shared: bool = False  # is the bandwidth that of all clients together, or of each one?
    energy_of: Optional[Power] = None  # a client's watts: T_eff is its energy of a frame, as ms of full power

    @property
    def of_one_client(self) -> Scenario:
        """With the server and the link to itself."""
        return replace(self, clients=1, server_workers=1, link_shared=False)


def scenario_of(settings: Settings, table: HardwareTable) -> Scenario:
    """The settings' scenario on this table. Raises `UserError` where the table lacks the watts that they ask for."""
    return Scenario(settings.HEAD_TIER, settings.OMEGA, settings.RESULT_AT, settings.CLIENTS, settings.SERVER_WORKERS,
                    settings.LINK_SHARED,
                    client_power(table, 'OBJECTIVE=energy') if settings.OBJECTIVE == 'energy' else None)


def client_power(table: HardwareTable, asked_by: str) -> Power:
    """The client's watts, which a setting asks for. Raises `UserError` where the table does not know them."""
    if 'client' not in table.power:
        raise UserError(f'{asked_by}: the table has no watts of the client; state them in a device profile '
                        '(docs/device_profiles.md), or measure a device that has a power sensor')
    return table.power['client']


@dataclass(frozen=True)
class Link:
    """The network between the tiers."""
    bandwidth_mbps: float  # Mbit/s
    rtt_ms: float
    measured: bool

    def transfer_ms(self, n_bytes: np.ndarray) -> np.ndarray:
        """T_com of that many bytes, ms."""
        return 8 * n_bytes / (self.bandwidth_mbps * 1000)


@dataclass(frozen=True)
class Roofline:
    """Peaks of one tier, as measured."""
    peak_gflops: float
    bandwidth_gbs: float

    @property
    def i_knee(self) -> float:
        """I* = P / W, FLOP per byte."""
        return self.peak_gflops / self.bandwidth_gbs


@dataclass(frozen=True)
class ImageFormat:
    """How the image travels when the tail tier does everything (λ = 0), measured on images of the data set."""
    name: str  # 'png' or 'jpeg'
    quality: Optional[int]  # of a JPEG
    n_bytes: float  # mean
    encode_ms: float  # on the tier of the head
    decode_ms: float  # on the other one


@dataclass(frozen=True)
class EndCosts:
    """Costs of the stem or of the classifier, for one image."""
    T_ms: Mapping[str, float]  # by tier
    flops: float
    bytes_moved: float


@dataclass(frozen=True)
class HardwareTable:
    """Measured (or simulated) costs of one model on both tiers, per image; NaN where a block cannot run a γ."""
    model: str
    num_classes: int
    input_shape: Tuple[int, int, int]  # (3, S, S)
    batch_size: int
    tier_info: Mapping[str, Dict[str, Any]]  # by tier: name, simulated, ...
    block_names: Tuple[str, ...]
    has_identity: np.ndarray  # bool [N]
    T_ms: Mapping[str, np.ndarray]  # by tier: [N, 14]
    flops: np.ndarray  # [N, 14]
    bytes_moved: np.ndarray  # [N, 14]: inputs + weights + outputs
    stem: EndCosts
    classifier: EndCosts
    input_bytes: int  # the uint8 image
    block_bytes: Mapping[str, np.ndarray]  # by wire format: [N] bytes of each block's output
    logits_bytes: int
    link: Link
    roofline: Mapping[str, Roofline]  # by tier
    codec_ms: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)  # by wire format, then tier: [N, 2]
    #                                     encoding and decoding of each block's output; none: taken as free
    image_codec_ms: Mapping[str, Tuple[float, float]] = field(default_factory=dict)  # 'png', 'jpeg': encoding and
    #                                     decoding an image on the server's machine; none: not measured
    correction: Mapping[str, Correction] = field(default_factory=dict)  # by tier: what was made of measured sums
    image: Optional[ImageFormat] = None  # how the image travels at split 0; None: as it is, uint8
    power: Mapping[str, Power] = field(default_factory=dict)  # by tier, where its watts are known

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.block_names)

    @property
    def n_branches(self) -> np.ndarray:
        """Branches of every block, int [N]: the first so many of BRANCHES, each of which the γ of its number runs
        alone."""
        return np.isfinite(self.flops[:, :len(BRANCHES)]).sum(axis=1)

    def undivided_ms(self, tier: str) -> float:
        """What a whole network on one tier takes beyond stem, blocks and classifier: the correction's offset is in the
        stem, for heads, and in the classifier, for tails, and counts once."""
        return -self.correction[tier].offset_ms if tier in self.correction else 0.0

    def cut_bytes(self, wire: str) -> np.ndarray:
        """Bytes of what is cut at split 0..N: the image, N-1 feature maps, the logits."""
        image = self.input_bytes if self.image is None else self.image.n_bytes
        return np.concatenate([[image], self.block_bytes[wire][:-1], [self.logits_bytes]]).astype(float)

    def cut_codec_ms(self, wire: str, encoder: str, decoder: str) -> Tuple[np.ndarray, np.ndarray]:
        """Encoding on one tier, decoding on the other at split 0..N, [N+1] each; logits go as they are."""
        encode, decode = np.zeros((2, self.n_blocks + 1))
        if self.image is not None:
            encode[0], decode[0] = self.image.encode_ms, self.image.decode_ms
        if wire in self.codec_ms:
            encode[1:-1] = self.codec_ms[wire][encoder][:-1, 0]
            decode[1:-1] = self.codec_ms[wire][decoder][:-1, 1]
        return encode, decode


@dataclass(frozen=True)
class Configuration:
    """What the project chooses: branch scales, execution, split point and what is sent there."""
    alpha: np.ndarray = field(repr=False)  # [N, 3]; 0 = pruned, NaN = there is no such branch
    gamma: Tuple[int, ...]  # [N]
    split: int  # λ
    wire: str = FLOAT32
    channels: Optional[CutChannels] = field(default=None, repr=False)  # that are sent; given where `wire` has a share
    peaks: Optional[Tuple[float, ...]] = field(default=None, repr=False)  # of feature maps [N + 1], where a tier runs
    #                                                                      in int8 (tier/rounding.py)


@dataclass(frozen=True)
class Times:
    """The times of one configuration, ms, per image of one client."""
    T_client_ms: float
    T_server_ms: float
    T_com_ms: float
    T_lat_ms: float  # of a frame that meets no other client's
    T_cyc_ms: float  # from one frame of a client to its next
    T_eff_ms: float
    wait_ms: float = 0.0  # for other clients' frames, at the server or on a shared link; mean, at full rate

    @property
    def throughput_fps(self) -> float:
        """Frames a second of one client's stream, whose stages overlap."""
        return 1000 / self.T_cyc_ms

    @property
    def loaded_latency_ms(self) -> float:
        """T_lat and the wait: the mean latency while all clients send at full rate."""
        return self.T_lat_ms + self.wait_ms

    def rank(self, objective: str = 'T_eff_ms') -> Tuple[float, float, float]:
        """What is lower is better: the objective (a field), of equal ones T_eff, then T_lat. Rounded, so that sums
        that differ by rounding alone are equal."""
        return ranked(getattr(self, objective)), ranked(self.T_eff_ms), ranked(self.T_lat_ms)

    def as_dict(self) -> Dict[str, float]:
        """The fields that a result file has."""
        return {**vars(self), 'throughput_fps': self.throughput_fps}


@dataclass(frozen=True)
class SplitTimes:
    """`Times` for every split 0..N: arrays [N+1] in ms (T_com), or [..., N+1] for several configurations."""
    T_client_ms: np.ndarray
    T_server_ms: np.ndarray
    T_com_ms: np.ndarray
    T_lat_ms: np.ndarray
    T_cyc_ms: np.ndarray
    T_eff_ms: np.ndarray
    wait_ms: np.ndarray

    @property
    def loaded_latency_ms(self) -> np.ndarray:
        """T_lat and the wait."""
        return self.T_lat_ms + self.wait_ms

    def best(self, splits: Sequence[int], objective: str = 'T_eff_ms') -> int:
        """Of these splits the one whose times rank first (`Times.rank`); of equal ones the smallest."""
        values = getattr(self, objective)[np.asarray(splits)]
        lowest = [split for split, ms in zip(splits, values) if ms <= values.min() * (1 + 1e-9)]
        return min(lowest, key=lambda split: (self.at(split).rank(objective), split))

    def at(self, split: int) -> Times:
        """The times of one split."""
        return Times(**{name: float(values[split]) for name, values in vars(self).items()})


def sent_bytes(table: HardwareTable, wire: str, scenario: Scenario) -> np.ndarray:
    """Bytes that cross the link at split 0..N, [N+1]. Nothing does at split N where the tier that has the image needs
    the answer."""
    n_bytes = table.cut_bytes(wire)
    if scenario.result_at == scenario.head_tier:
        n_bytes[-1] = 0
    return n_bytes


def round_trip_ms(table: HardwareTable, scenario: Scenario) -> np.ndarray:
    """What the link adds to T_lat beside the transfer at split 0..N, ms [N+1]; nothing where it is not used."""
    rtt_ms = np.full(table.n_blocks + 1, table.link.rtt_ms)
    if scenario.result_at == scenario.head_tier:
        rtt_ms[-1] = 0
    return rtt_ms


def ranked(ms: float) -> float:
    """A time rounded to what its sum is exact to, for comparisons."""
    return float(f'{ms:.10g}')


def combine(T_client: Value, T_com: Value, T_server: Value, rtt_ms: Value, scenario: Scenario,
            maximum: Callable[[Value, Value], Value] = np.maximum) -> Tuple[Value, Value, Value]:
    """T_lat, T_cyc and T_eff (ms) of three stages; floats, arrays, or tensors with `maximum=torch.maximum`.

    What K clients share is busy with K frames in the time in which each client sends one:
    T_cyc = max(T_client, T_com, K·T_server / W), with K·T_com on a shared link. T_eff knows no wait.
    """
    T_lat = T_client + T_com + T_server + rtt_ms
    link_ms = T_com * (scenario.clients if scenario.link_shared else 1)
    T_cyc = maximum(maximum(T_client, link_ms), T_server * (scenario.clients / scenario.server_workers))
    if scenario.energy_of is not None:
        return T_lat, T_cyc, scenario.energy_of.client_mj(T_client, T_com, T_cyc) / scenario.energy_of.active_w
    return T_lat, T_cyc, scenario.omega * T_lat + (1 - scenario.omega) * T_cyc


def waiting_ms(T_com: np.ndarray, T_server: np.ndarray, T_cyc: np.ndarray, scenario: Scenario) -> np.ndarray:
    """What a frame waits for those of other clients, ms: the mean, when each client sends one every T_cyc and they are
    not in step. Of several workers an upper bound, the wait for one that is W times as fast (Brumelle, Journal of
    Applied Probability, 1971). One behind the other, server and shared link make a frame wait as long as the slower of
    them alone would (constant times: Friedman, Operations Research, 1965)."""
    wait = mean_wait_ms(T_server / scenario.server_workers, T_cyc, scenario.clients)
    if scenario.link_shared:
        wait = np.maximum(wait, mean_wait_ms(T_com, T_cyc, scenario.clients))
    return wait


def split_times(table: HardwareTable, block_ms: Mapping[str, np.ndarray], wire: str, scenario: Scenario) -> SplitTimes:
    """Times at every split when block k takes block_ms[tier][..., k] ms on a tier ([N], or [M, N] for M configurations
    at once), by prefix sums."""
    n, head_tier = table.n_blocks, scenario.head_tier
    tail_tier = other_tier(head_tier)
    head, tail = np.zeros((2, *block_ms[head_tier].shape[:-1], n + 1))
    head[..., 1:] = table.stem.T_ms[head_tier] + np.cumsum(block_ms[head_tier], axis=-1)
    head[..., n] += table.classifier.T_ms[head_tier] + table.undivided_ms(head_tier)
    tail[..., :n] = np.cumsum(block_ms[tail_tier][..., ::-1], axis=-1)[..., ::-1] + table.classifier.T_ms[tail_tier]
    tail[..., 0] += table.stem.T_ms[tail_tier] + table.undivided_ms(tail_tier)
    encode, decode = table.cut_codec_ms(wire, head_tier, tail_tier)
    head, tail = head + encode, tail + decode
    client, server = (head, tail) if head_tier == 'client' else (tail, head)
    com = table.link.transfer_ms(sent_bytes(table, wire, scenario))
    T_lat, T_cyc, T_eff = combine(client, com, server, round_trip_ms(table, scenario), scenario)
    return SplitTimes(client, server, com, T_lat, T_cyc, T_eff, waiting_ms(com, server, T_cyc, scenario))


def times(table: HardwareTable, configuration: Configuration, scenario: Scenario) -> Times:
    """The times of one configuration. Raises `ValueError` when a block cannot run its γ."""
    block_ms = {tier: gathered(table.T_ms[tier], configuration.gamma) for tier in TIERS}
    if any(np.isnan(values).any() for values in block_ms.values()):
        raise ValueError('the table has no time for a γ of this configuration')
    return split_times(table, block_ms, configuration.wire, scenario).at(configuration.split)


def gathered(values: np.ndarray, gamma: Sequence[int]) -> np.ndarray:
    """values[k, γ_k] for every block: [N, 14] -> [N]."""
    return values[np.arange(len(gamma)), np.asarray(gamma)]


def other_tier(tier: str) -> str:
    """The tier that is not this one."""
    return TIERS[1 - TIERS.index(tier)]


def roofline_loss_ms(flops: Value, n_bytes: Value, roofline: Roofline, scale: float, rho: float,
                     relu: Callable[[Value], Value]) -> Value:
    """Intensity-matching loss of a tier that runs `flops` FLOP and moves `n_bytes` bytes:
    scale · (relu(I* - I) + ρ·(F/P + B/W)), with F/P and B/W in ms, like every time here."""
    ideal_ms = flops / (roofline.peak_gflops * 1e6) + n_bytes / (roofline.bandwidth_gbs * 1e6)
    return scale * (relu(roofline.i_knee - flops / n_bytes) + rho * ideal_ms)


@dataclass(frozen=True)
class Solution:
    """A choice of γ and λ (and the wire format) with its times."""
    gamma: Tuple[int, ...]  # [N]
    split: int  # λ
    wire: str
    times: Times
