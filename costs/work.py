"""FLOP and bytes of branches, blocks under a γ, stem and classifier, for one image; 2 FLOP a multiply-add."""
from __future__ import annotations

import math
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

from network.gammas import GAMMAS, N_GAMMA, runnable_ids
from network.outline import Shape
from network.shapes import DENSE, IDENTITY, BlockShape, GraphShape

BN_FLOPS = 4  # an element: subtract mean, times 1/std, times weight, add bias
AFFINE_FLOPS = 2  # a folded BatchNorm on its own: times scale, add bias
FLOAT_BYTES = 4


class Work(NamedTuple):
    """FLOP done and bytes moved (inputs + weights + outputs)."""
    flops: float
    n_bytes: float


def out_elements(shape: Shape) -> int:
    """Elements of a block's output for one image."""
    return math.prod(shape.out_shape)


def conv_flops(shape: BlockShape, kernel_size: int) -> int:
    """FLOP of one convolution of this block, without bias."""
    return 2 * shape.in_channels // shape.groups * kernel_size ** 2 * out_elements(shape)


def branch_flops(shape: Shape) -> List[float]:
    """FLOP of each branch as trained (convolution + BatchNorm), in the order of BRANCHES; NaN where there is none."""
    if isinstance(shape, GraphShape):
        return [shape.flops, float('nan'), float('nan')]
    bn = BN_FLOPS * out_elements(shape)
    return [conv_flops(shape, 3) + bn, conv_flops(shape, 1) + bn, float(bn) if shape.has_identity else float('nan')]


def block_work(shape: Shape, gamma: int) -> Work:
    """Work of a block under one γ: each path reads the input and its weights and writes an output; sums of paths
    and SE are counted, ReLU (0 FLOP, in place) is not."""
    if isinstance(shape, GraphShape):
        return Work(shape.flops, shape.moved_bytes)
    spec = GAMMAS[gamma]
    elements, in_elements = out_elements(shape), shape.in_channels * shape.in_size ** 2
    flops = float(elements * (spec.n_streams - 1))
    n_bytes = 0.0
    for path in spec.paths:
        size = 3 if DENSE in path else 1
        if path == (IDENTITY,):
            flops += elements * (AFFINE_FLOPS if spec.folded else BN_FLOPS)
            weights = 2 * shape.out_channels
        else:
            flops += conv_flops(shape, size) + (elements if spec.folded else BN_FLOPS * elements)
            weights = shape.in_channels // shape.groups * size ** 2 * shape.out_channels + shape.out_channels
        n_bytes += FLOAT_BYTES * (in_elements + weights + elements)
    if shape.se_channels:
        weights = 2 * shape.out_channels * shape.se_channels
        flops += 2 * elements + 2 * weights
        n_bytes += FLOAT_BYTES * (2 * elements + weights)
    return Work(flops, n_bytes)


def work_table(shapes: Sequence[Shape]) -> Tuple[np.ndarray, np.ndarray]:
    """FLOP and bytes [N, 14] each; NaN where a block lacks a branch that γ needs."""
    flops, n_bytes = np.full((2, len(shapes), N_GAMMA), np.nan)
    for k, shape in enumerate(shapes):
        for gamma in runnable_ids(shape.n_branches):
            flops[k, gamma], n_bytes[k, gamma] = block_work(shape, gamma)
    return flops, n_bytes


def classifier_work(channels: int, num_classes: int, feature_size: int) -> Work:
    """Global average pool of [channels, feature_size, feature_size] and a linear layer."""
    pooled = channels * feature_size ** 2
    weights = channels * num_classes + num_classes
    return Work(pooled + 2.0 * weights, FLOAT_BYTES * (pooled + weights + num_classes))
