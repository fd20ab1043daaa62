"""int8: the numbers that the engine `onnxruntime-int8` computes with, and the same computed in PyTorch.

A kernel is int8 with a scale for each output channel, a feature map uint8 with one scale: a unit's output lies between
0 (it ends with ReLU) and its peak, the largest value that training images of the domain give. Every block is fused, as
rounded branches could not be. The classifier stays in float: it takes little time and loses most (docs/deployment.md),
and so does the affine of a block that keeps its identity alone.
"""
from __future__ import annotations

import copy
from typing import List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from gamma_configurator import FoldedPath
from hyper_repvgg import DeployedNetwork

LEVELS, LARGEST_WEIGHT = 255, 127
LEAST_PEAK = 1e-6  # of a map that is 0 everywhere
LARGEST_BIAS = 2.0 ** 30  # in units of the sums that it is added to, which are int32


class Grid(NamedTuple):
    """The values scale · (q - zero_point), q = 0..255, that a uint8 tensor can hold."""
    scale: float
    zero_point: int = 0

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """x with every number replaced by the nearest of them; half to even, as ONNX rounds."""
        q = ((x / self.scale).round() + self.zero_point).clamp(0, LEVELS)
        return (q - self.zero_point) * self.scale


def grid_between(low: float, high: float) -> Grid:
    """The grid from low <= 0 to high, which holds 0; where low is below 0, that takes a level."""
    scale = (max(high, LEAST_PEAK) - low) / (LEVELS if low == 0 else LEVELS - 1)
    return Grid(scale, round(-low / scale))


def grids_of(peaks: Sequence[float], mean: Sequence[float], std: Sequence[float]) -> List[Grid]:
    """What goes into each unit before the classifier, and out of the last block: [N + 2] of peaks [N + 1]. Images are
    normalised by mean and std."""
    low = min(0.0, *(-m / s for m, s in zip(mean, std)))
    high = max((1 - m) / s for m, s in zip(mean, std))
    return [grid_between(low, high), *(grid_between(0.0, peak) for peak in peaks)]


class IntKernel(NamedTuple):
    """A folded convolution in whole numbers."""
    kernel: torch.Tensor  # int8 [C_out, C_in / groups, k, k], in units of `scale`
    scale: torch.Tensor  # float32 [C_out]
    bias: torch.Tensor  # int32 [C_out], in units of `scale` times that of the input


def int_kernel(path: FoldedPath, x: Grid) -> IntKernel:
    """A path that reads a map on the grid x."""
    kernel, bias = path.kernel.detach().double(), path.bias.detach().double()
    scale = torch.max(kernel.abs().amax(dim=(1, 2, 3)) / LARGEST_WEIGHT, bias.abs() / (x.scale * LARGEST_BIAS))
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny).float().double()
    return IntKernel((kernel / scale[:, None, None, None]).round().to(torch.int8), scale.float(),
                     (bias / (scale * x.scale)).round().to(torch.int32))


def is_rounded(unit: nn.Module) -> bool:
    """Does it run in int8? Every fused stem and block."""
    return not isinstance(unit, nn.Linear)


class RoundedUnit(nn.Module):
    """A fused stem or block as it runs in int8: a map on the grid x -> one on the grid y."""

    def __init__(self, unit: nn.Module, x: Grid, y: Grid) -> None:
        super().__init__()
        self.unit, self.x, self.y = copy.deepcopy(unit), x, y
        path = self.unit.paths[0]
        if not path.is_affine:
            whole = int_kernel(path, x)
            path.kernel.copy_(whole.kernel.to(path.kernel) * whole.scale.to(path.kernel)[:, None, None, None])
            path.bias.copy_(whole.bias.to(path.bias) * (whole.scale.to(path.bias) * x.scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x may be off its grid where it comes from another tier."""
        path, x = self.unit.paths[0], self.x.nearest(x)
        return self.y.nearest(F.relu_(self.unit.se(path(x))))


def rounded(network: DeployedNetwork, units: Tuple[int, int], grids: Sequence[Grid]) -> DeployedNetwork:
    """The network, every block fused, with the units [first, last) as they run in int8 (0: the stem, N + 1: the
    classifier)."""
    every = [network.stem, *network.blocks]
    for index in range(units[0], min(units[1], len(every))):
        every[index] = RoundedUnit(every[index], grids[index], grids[index + 1])
    return DeployedNetwork(every[0], every[1:], network.classifier).eval()


def peaks_of(network: DeployedNetwork, x: torch.Tensor) -> List[float]:
    """The largest value behind the stem and behind each block, [N + 1], for normalised images [B, 3, S, S]."""
    found = []
    for unit in (network.stem, *network.blocks):
        x = unit(x)
        found.append(float(x.max()))
    return found
