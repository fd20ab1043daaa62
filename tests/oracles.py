"""The specification written down plainly, for tests to hold the fast code against: the table of γ, a block and the
times, each without a look at how the modules do it."""
from __future__ import annotations

import itertools
import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

from costs.cost_model import Scenario

BRANCH_NAMES = ('dense', '1x1', 'identity')

# id: (name, what is fused into one operator, one entry a stream)
GAMMA_TABLE: Dict[int, Tuple[str, Tuple[Tuple[str, ...], ...]]] = {
    0: ('SOLO_K3', (('dense',),)),
    1: ('SOLO_K1', (('1x1',),)),
    2: ('SOLO_ID', (('identity',),)),
    3: ('PARA_3_1', (('dense',), ('1x1',))),
    4: ('FUSED_3_1', (('dense', '1x1'),)),
    5: ('PARA_3_I', (('dense',), ('identity',))),
    6: ('FUSED_3_I', (('dense', 'identity'),)),
    7: ('PARA_1_I', (('1x1',), ('identity',))),
    8: ('FUSED_1_I', (('1x1', 'identity'),)),
    9: ('PARA_ALL', (('dense',), ('1x1',), ('identity',))),
    10: ('PART_31_I', (('dense', '1x1'), ('identity',))),
    11: ('PART_3I_1', (('dense', 'identity'), ('1x1',))),
    12: ('PART_1I_3', (('1x1', 'identity'), ('dense',))),
    13: ('FUSED_ALL', (('dense', '1x1', 'identity'),)),
}


def valid_gammas(surviving: Sequence[bool]) -> List[int]:
    """γ whose branches are exactly the surviving ones (flags in the order of BRANCH_NAMES)."""
    alive = {name for name, survives in zip(BRANCH_NAMES, surviving) if survives}
    return [gamma for gamma, (_, paths) in GAMMA_TABLE.items() if set(itertools.chain(*paths)) == alive]


# --- a block, in numpy, float64 ----------------------------------------------------------

def array(tensor) -> np.ndarray:
    """A tensor's values as float64."""
    return tensor.detach().cpu().numpy().astype(np.float64)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """x [B, C, h, w], kernel [out, C/groups, k, k], zero padding k // 2 -> [B, out, h', w'], tap by tap."""
    size = kernel.shape[-1]
    margin = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    height, width = ((side + 2 * margin - size) // stride + 1 for side in x.shape[2:])
    n_in, n_out = kernel.shape[1], kernel.shape[0] // groups
    y = np.zeros((x.shape[0], kernel.shape[0], height, width))
    for group, row, column in itertools.product(range(groups), range(size), range(size)):
        seen = padded[:, group * n_in:(group + 1) * n_in, row:row + stride * height:stride,
                      column:column + stride * width:stride]
        out = slice(group * n_out, (group + 1) * n_out)
        y[:, out] += np.einsum('bchw,oc->bohw', seen, kernel[out, :, row, column])
    return y


def batch_norm(x: np.ndarray, bn) -> np.ndarray:
    """BatchNorm in evaluation mode."""
    mean, var, weight, bias = (array(values)[:, None, None]
                               for values in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / np.sqrt(var + bn.eps) * weight + bias


def squeeze_and_excite(y: np.ndarray, se) -> np.ndarray:
    """y scaled by sigmoid(up(relu(down(mean(y)))))."""
    mean = y.mean(axis=(2, 3))
    down = np.maximum(mean @ array(se.down.weight)[:, :, 0, 0].T + array(se.down.bias), 0)
    up = down @ array(se.up.weight)[:, :, 0, 0].T + array(se.up.bias)
    return y / (1 + np.exp(-up))[:, :, None, None]


def block_before_relu(block, alpha: Sequence[float], x: np.ndarray) -> np.ndarray:
    """SE(α_dense·BN(conv3x3(x)) + α_1x1·BN(conv1x1(x)) + α_identity·BN(x))."""
    stride, groups = block.shape.stride, block.shape.groups
    branches = [batch_norm(convolve(x, array(conv_bn.conv.weight), stride, groups), conv_bn.bn)
                for conv_bn in (block.rbr_dense, block.rbr_1x1)]
    if block.rbr_identity is not None:
        branches.append(batch_norm(x, block.rbr_identity))
    y = sum(scale * branch for scale, branch in zip(alpha, branches))
    return squeeze_and_excite(y, block.se) if hasattr(block.se, 'down') else y


# --- the network of the paper, with the names of the authors' checkpoints ----------------------------------

class PaperSE(nn.Module):
    """Squeeze-and-excitation over the whole feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 16, 1)
        self.up = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))) * x


class PaperBlock(nn.Module):
    """Three parallel ways from input to output, summed; the third exists where input and output have one shape."""

    def __init__(self, n_in: int, n_out: int, stride: int, groups: int, use_se: bool) -> None:
        super().__init__()
        for name, size in (('rbr_dense', 3), ('rbr_1x1', 1)):
            way = nn.Sequential()
            way.add_module('conv', nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False))
            way.add_module('bn', nn.BatchNorm2d(n_out))
            setattr(self, name, way)
        if n_in == n_out and stride == 1:
            self.rbr_identity = nn.BatchNorm2d(n_in)
        if use_se:
            self.se = PaperSE(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if hasattr(self, 'rbr_identity'):
            y = y + self.rbr_identity(x)
        return torch.relu(self.se(y) if hasattr(self, 'se') else y)


# depths of stages 1 to 4, width multipliers of stages 1 to 4, groups of every second layer up to the 26th, SE
PAPER_VARIANTS = {
    'RepVGG-A0': ((2, 4, 14, 1), (0.75, 0.75, 0.75, 2.5), 1, False),
    'RepVGG-A1': ((2, 4, 14, 1), (1, 1, 1, 2.5), 1, False),
    'RepVGG-A2': ((2, 4, 14, 1), (1.5, 1.5, 1.5, 2.75), 1, False),
    'RepVGG-B0': ((4, 6, 16, 1), (1, 1, 1, 2.5), 1, False),
    'RepVGG-B1': ((4, 6, 16, 1), (2, 2, 2, 4), 1, False),
    'RepVGG-B1g2': ((4, 6, 16, 1), (2, 2, 2, 4), 2, False),
    'RepVGG-B1g4': ((4, 6, 16, 1), (2, 2, 2, 4), 4, False),
    'RepVGG-B2': ((4, 6, 16, 1), (2.5, 2.5, 2.5, 5), 1, False),
    'RepVGG-B2g2': ((4, 6, 16, 1), (2.5, 2.5, 2.5, 5), 2, False),
    'RepVGG-B2g4': ((4, 6, 16, 1), (2.5, 2.5, 2.5, 5), 4, False),
    'RepVGG-B3': ((4, 6, 16, 1), (3, 3, 3, 5), 1, False),
    'RepVGG-B3g2': ((4, 6, 16, 1), (3, 3, 3, 5), 2, False),
    'RepVGG-B3g4': ((4, 6, 16, 1), (3, 3, 3, 5), 4, False),
    'RepVGG-D2se': ((8, 14, 24, 1), (2.5, 2.5, 2.5, 5), 1, True),
}


class PaperRepVGG(nn.Module):
    """A variant of the paper in its training form; `thinner` divides all widths, for tests that have to be quick."""

    def __init__(self, name: str, num_classes: int = 1000, thinner: int = 1) -> None:
        super().__init__()
        depths, (a, b, c, d), groups, use_se = PAPER_VARIANTS[name]
        widths = [int(base * multiplier) // thinner for base, multiplier in ((64, a), (128, b), (256, c), (512, d))]
        width = min(64, int(64 * a)) // thinner
        self.stage0 = PaperBlock(3, width, 2, 1, use_se)
        layer = 1
        for stage in range(4):
            blocks = []
            for index in range(depths[stage]):
                grouped = groups if layer in range(2, 27, 2) else 1
                blocks.append(PaperBlock(width, widths[stage], 2 if index == 0 else 1, grouped, use_se))
                width, layer = widths[stage], layer + 1
            setattr(self, f'stage{stage + 1}', nn.Sequential(*blocks))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stage0(x)))))
        return self.linear(self.gap(x).flatten(1))


# --- times, one configuration at a time ------------------------------------------------------

class NaiveTimes(NamedTuple):
    """The times of one configuration, ms."""
    T_client_ms: float
    T_server_ms: float
    T_com_ms: float
    T_lat_ms: float
    T_cyc_ms: float
    T_eff_ms: float
    wait_ms: float


def naive_wait_ms(service_ms: float, period_ms: float, clients: int) -> float:
    """The mean wait of N·D/D/1: s/2 · Σ_k (N-1)!/(N-1-k)! · (s/T)^k."""
    if service_ms == 0:
        return 0.0
    return service_ms / 2 * sum(math.perm(clients - 1, k) * (service_ms / period_ms) ** k for k in range(1, clients))


def naive_times(table, gamma: Sequence[int], split: int, wire: str, scenario: Scenario) -> NaiveTimes:
    """Walk through the network piece by piece, putting each on its tier (sections 2 and 5); the image is where the head
    is, and where the answer is needed there, too, nothing crosses the link."""
    n = len(table.block_names)
    head_tier, omega = scenario.head_tier, scenario.omega
    tail_tier = 'server' if head_tier == 'client' else 'client'
    spent = {'client': 0.0, 'server': 0.0}
    spent[tail_tier if split == 0 else head_tier] += table.stem.T_ms[tail_tier if split == 0 else head_tier]
    for k in range(n):
        tier = head_tier if k < split else tail_tier
        spent[tier] += float(table.T_ms[tier][k][gamma[k]])
    classifier_tier = head_tier if split == n else tail_tier
    spent[classifier_tier] += table.classifier.T_ms[classifier_tier]
    if split in (0, n) and table.correction:  # a whole network: the offset is in the stem and in the classifier
        spent[classifier_tier] -= table.correction[classifier_tier].offset_ms
    if 1 <= split <= n - 1 and wire in table.codec_ms:  # the output of the last head block is encoded and decoded
        spent[head_tier] += float(table.codec_ms[wire][head_tier][split - 1][0])
        spent[tail_tier] += float(table.codec_ms[wire][tail_tier][split - 1][1])
    rtt_ms = table.link.rtt_ms
    if split == 0 and table.image is not None:
        n_bytes = table.image.n_bytes
        spent[head_tier] += table.image.encode_ms
        spent[tail_tier] += table.image.decode_ms
    elif split == 0:
        n_bytes = table.input_bytes
    elif split == n and scenario.result_at == head_tier:
        n_bytes, rtt_ms = 0, 0.0
    elif split == n:
        n_bytes = table.logits_bytes
    else:
        n_bytes = float(table.block_bytes[wire][split - 1])
    com = 8 * n_bytes / (table.link.bandwidth_mbps * 1000)
    latency = spent['client'] + com + spent['server'] + rtt_ms
    # what is shared is busy with a frame of every client before it sees the next one of this client
    busy = {'client': spent['client'], 'link': com, 'server': sum([spent['server']] * scenario.clients)}
    busy['server'] /= scenario.server_workers
    if scenario.link_shared:
        busy['link'] = sum([com] * scenario.clients)
    cycle = max(busy.values())
    wait = naive_wait_ms(spent['server'] / scenario.server_workers, cycle, scenario.clients)
    if scenario.link_shared:
        wait = max(wait, naive_wait_ms(com, cycle, scenario.clients))
    effective = omega * latency + (1 - omega) * cycle
    if scenario.energy_of is not None:
        effective = naive_client_mj(scenario.energy_of, spent['client'], com, cycle) / scenario.energy_of.active_w
    return NaiveTimes(spent['client'], spent['server'], com, latency, cycle, effective, wait)


def naive_client_mj(power, client_ms: float, com_ms: float, cycle_ms: float) -> float:
    """P_active·T_client + P_send·T_com + P_idle·(1000/f - T_client - T_com)."""
    return power.active_w * client_ms + power.send_w * com_ms + power.idle_w * (cycle_ms - client_ms - com_ms)


def all_choices(table, surviving: np.ndarray, splits: Sequence[int], wires: Sequence[str], scenario: Scenario):
    """Every (γ, λ, wire format) with its times: the brute force that the exact method is held against."""
    per_block = [valid_gammas(row) for row in surviving]
    for gamma in itertools.product(*per_block):
        for split in splits:
            for wire in wires:
                yield gamma, split, wire, naive_times(table, gamma, split, wire, scenario)


def naive_roofline_loss_ms(flops: float, n_bytes: float, peak_gflops: float, bandwidth_gbs: float, scale: float,
                           rho: float) -> float:
    """λ_I·(relu(I* - I) + ρ·(F/P + B/W)), seconds turned into ms."""
    knee, intensity = peak_gflops / bandwidth_gbs, flops / n_bytes
    seconds = flops / (peak_gflops * 1e9) + n_bytes / (bandwidth_gbs * 1e9)
    return scale * (max(0.0, knee - intensity) + rho * seconds * 1000)
