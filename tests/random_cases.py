"""Random blocks, α, models and tables: the cases that tests do not choose."""
from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import Dict, Iterator, Sequence, Tuple
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
from hypothesis import strategies as st

import lut_manager
from config import Settings
from costs.correction import Correction
from costs.cost_model import HardwareTable, ImageFormat, Link, Roofline
from costs.energy import Power
from gamma_mask_builder import runnable_gammas
from hyper_repvgg import HyperRepVGG, HyperRepVGGBlock
from network.outline import outline_for
from network.shapes import ARCHITECTURES, BlockShape

OBJECTIVES = ('T_eff_ms', 'T_cyc_ms', 'T_lat_ms')  # fields of Times that may be minimised
seeds = st.integers(0, 2 ** 32 - 1)
fleets = st.fixed_dictionaries({  # settings: how many clients share the server, and what
    'CLIENTS': st.sampled_from([1, 1, 2, 3, 8, 40]), 'SERVER_WORKERS': st.sampled_from([1, 1, 2, 5]),
    'LINK_SHARED': st.booleans()})


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of the usual size and BatchNorm statistics far from (0, 1), some scales negative; α is left alone."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, scale: float, offset: float = 0.0) -> None:
        tensor.copy_(offset + scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                normal(part.weight, (2 / part.weight[0].numel()) ** 0.5)
                if part.bias is not None:
                    normal(part.bias, 0.1)
            elif isinstance(part, nn.BatchNorm2d):
                normal(part.weight, 0.4, 0.6)
                normal(part.bias, 0.2)
                normal(part.running_mean, 0.2)
                part.running_var.copy_(0.3 + 2 * torch.rand(part.running_var.shape, generator=generator,
                                                            dtype=torch.float64))
    return module.eval()


@st.composite
def blocks(draw) -> HyperRepVGGBlock:
    """A float64 block of any width, group count, stride, with and without identity and SE."""
    groups = draw(st.sampled_from([1, 2, 4]))
    widths = st.integers(1, 12 // groups).map(lambda n: n * groups)
    width, stride = draw(widths), draw(st.sampled_from([1, 1, 2]))
    in_width = draw(st.one_of(st.just(width), widths))
    shape = BlockShape(in_width, width, 0, stride, groups, in_width == width and stride == 1,
                       draw(st.sampled_from([0, 0, 1, 3])))
    return randomise(HyperRepVGGBlock(shape).double(), draw(seeds))


@st.composite
def surviving_sets(draw, has_identity: bool) -> Tuple[bool, bool, bool]:
    """Which branches survive: at least one, identity only where there is one."""
    sets = [(d, o, i) for d in (True, False) for o in (True, False) for i in (True, False)
            if (d or o or i) and (has_identity or not i)]
    return draw(st.sampled_from(sets))


@st.composite
def branch_scales(draw, n_branches: int) -> torch.Tensor:
    """α [2 or 3] of either sign, 0 where pruned."""
    alive = draw(surviving_sets(n_branches == 3))
    size = st.floats(0.05, 3).flatmap(lambda v: st.sampled_from([v, -v]))
    return torch.tensor([draw(size) if alive[b] else 0.0 for b in range(n_branches)], dtype=torch.float64)


# --- tables -------------------------------------------------------------------------------------------

WIRE_SIZES = {'float32': 4.0, 'uint8': 1.0}


@st.composite
def tables(draw, max_blocks: int = 4) -> HardwareTable:
    """A small table of any numbers: ties, zeros, tiers and links of very different speeds, NaN where impossible."""
    n = draw(st.integers(1, max_blocks))
    has_identity = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    rng = np.random.default_rng(draw(seeds))
    ties = draw(st.booleans())  # whole numbers from a short range, so that many answers are equally good

    def numbers(*size: int) -> np.ndarray:
        return rng.integers(0, 4, size).astype(float) if ties else rng.uniform(0, 10, size)

    runnable = runnable_gammas(2 + has_identity)
    speed = {'client': draw(st.sampled_from([0.2, 1.0, 5.0])), 'server': 1.0}
    block_ms = {tier: np.where(runnable, factor * numbers(n, 14), np.nan) for tier, factor in speed.items()}
    flops = np.where(runnable, 1e6 * (1 + numbers(n, 14)), np.nan)
    n_bytes = np.where(runnable, 1e5 * (1 + numbers(n, 14)), np.nan)
    ends = [{tier: float(factor * numbers(1)[0]) for tier, factor in speed.items()} for _ in range(2)]
    elements = rng.integers(1, 5000, n)
    return HardwareTable(
        model='drawn', num_classes=10, input_shape=(3, 32, 32), batch_size=1, tier_info={'server': {}, 'client': {}},
        block_names=tuple(f'block{k}' for k in range(n)), has_identity=has_identity, T_ms=block_ms, flops=flops,
        bytes_moved=n_bytes, stem=lut_manager.EndCosts(ends[0], 1e6, 1e5),
        classifier=lut_manager.EndCosts(ends[1], 1e5, 1e5), input_bytes=int(rng.integers(1, 5000)),
        block_bytes={wire: np.ceil(size * elements) for wire, size in WIRE_SIZES.items()},
        logits_bytes=int(rng.integers(1, 200)),
        link=Link(draw(st.sampled_from([0.5, 5.0, 1000.0])), draw(st.sampled_from([0.0, 2.0])), False),
        roofline={'client': Roofline(40.0, 5.0), 'server': Roofline(100.0, 20.0)},
        correction=draw(st.sampled_from([{}, {tier: Correction(1.1, -0.2 * speed[tier]) for tier in speed}])),
        codec_ms={wire: {tier: 0.1 * numbers(n, 2) for tier in speed}
                  for wire in draw(st.sampled_from([[], ['uint8'], ['float32', 'uint8']]))},
        image=draw(st.sampled_from([None, ImageFormat('png', None, 700.5, 0.25, 0.5)])),
        power=draw(st.sampled_from([{}, {'client': Power(5.0, 2.0, 3.0, 'profile')},
                                    {tier: Power(4.0, 4.0, 9.0, 'measured') for tier in speed}])))


@st.composite
def objectives(draw, table: HardwareTable) -> str:
    """OBJECTIVE: energy where the table knows watts."""
    return draw(st.sampled_from(['T_eff', *(['energy'] if 'client' in table.power else [])]))


@st.composite
def surviving_arrays(draw, has_identity: Sequence[bool]) -> np.ndarray:
    """Surviving branches of every block, bool [N, 3]."""
    return np.array([draw(surviving_sets(bool(has))) for has in has_identity])


def tier_costs(tier: str, settings: Settings, seed: int, info: Dict[str, object]) -> lut_manager.TierCosts:
    """One tier of the settings' model with random times."""
    n_branches = outline_for(settings).n_branches
    rng = np.random.default_rng(seed)
    block_ms = np.where(runnable_gammas(n_branches), rng.uniform(0.1, 2, (len(n_branches), 14)), np.nan)
    return lut_manager.TierCosts(tier, info, block_ms, 0.1 * block_ms, *rng.uniform(0.1, 1, 2).tolist(),
                                 Roofline(*rng.uniform(5, 100, 2).tolist()))


def whole_table(settings: Settings, seed: int = 0) -> HardwareTable:
    """A complete table of the settings' model with random times."""
    return lut_manager.merge(
        tier_costs('server', settings, seed, {'name': 'a server', 'simulated': False}),
        tier_costs('client', settings, seed + 1, {'name': 'a client', 'simulated': True, 'profile': 'edge-cpu'}),
        settings, image_codec_ms={'png': (0.2, 0.05), 'jpeg': (0.07, 0.1)})


# --- models -------------------------------------------------------------------------------------------

@contextmanager
def thin(name: str, thinner: int = 4) -> Iterator[None]:
    """Within the block the variant `name` is `thinner` times as narrow: same depths, groups and SE, and quick."""
    arch = ARCHITECTURES[name]
    narrow = dataclasses.replace(arch, channels=tuple(width // thinner for width in arch.channels))
    with mock.patch.dict(ARCHITECTURES, {name: narrow}):
        yield


@st.composite
def pruned_models(draw) -> HyperRepVGG:
    """A float64 model of one of the families (plain, grouped, SE, built-in) with random weights, α and pruning."""
    with thin('RepVGG-D2se'), thin('RepVGG-B1g4', 8), thin('RepVGG-A0', 12), thin('RepVGG-Micro'):
        name = draw(st.sampled_from(['RepVGG-Micro', 'RepVGG-A0', 'RepVGG-B1g4', 'RepVGG-D2se']))
        model = randomise(HyperRepVGG(name, draw(st.integers(1, 12))).double(), draw(seeds))
    rng = np.random.default_rng(draw(seeds))
    alpha = np.full((len(model.blocks), 3), np.nan)
    share = draw(st.sampled_from([0.0, 0.3, 0.8]))  # of branches pruned
    for row, block in zip(alpha, model.blocks):
        values = rng.choice([-1, 1], block.n_branches) * rng.uniform(0.5, 1.5, block.n_branches)
        gone = rng.random(block.n_branches) < share
        gone[rng.integers(block.n_branches)] = False  # one stays
        row[:block.n_branches] = np.where(gone, 0.0, values)
    model.set_alpha_array(alpha)
    return model
