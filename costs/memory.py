"""Memory of what a tier runs: bytes of folded weights, and of the tensors alive at the worst moment, from shapes.

Counted: the weights of the plans that run (BlockPlan, folded stem, classifier) and, for one image in float32, the
input of the unit at work plus everything that it holds at once. Not counted: what the libraries take for themselves
(Python, CUDA context, cuDNN and oneDNN workspaces), the camera's frame, buffers of the link.
`tests/test_throughput_optimizer_limit.py` holds both against what PyTorch allocates; `benchmarks/memory_check.py` does
so for whole networks and on CUDA.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence, Tuple

import numpy as np

from config import Settings
from costs.cost_model import HardwareTable
from costs.work import FLOAT_BYTES, out_elements
from network.gammas import GAMMAS, N_GAMMA, fused_gamma, runnable_ids
from network.outline import Shape, outline_of
from network.shapes import DENSE, IDENTITY, ClassifierShape, GraphShape


@dataclass(frozen=True)
class UnitMemory:
    """Bytes of one unit: its weights, and its peak of activations (its input included)."""
    weights: float
    activations: float


@dataclass(frozen=True)
class MemoryTable:
    """Bytes of every unit of a model, float32, one image; NaN where a block cannot run a γ."""
    weights: np.ndarray  # [N, 14]
    activations: np.ndarray  # [N, 14]
    stem: UnitMemory
    classifier: UnitMemory


def weight_bytes(shape: Shape, gamma: int) -> float:
    """Bytes of a plan's weights: kernels and biases where folded, kernels and four BatchNorm vectors where not."""
    if isinstance(shape, GraphShape):
        return shape.weight_bytes
    spec, count = GAMMAS[gamma], 0
    for path in spec.paths:
        if path == (IDENTITY,):
            count += (2 if spec.folded else 4) * shape.out_channels
        else:
            size = 3 if DENSE in path else 1
            count += shape.in_channels // shape.groups * size ** 2 * shape.out_channels
            count += (1 if spec.folded else 4) * shape.out_channels
    if shape.se_channels:
        count += 2 * shape.out_channels * shape.se_channels + shape.out_channels + shape.se_channels
    return FLOAT_BYTES * count


def activation_bytes(shape: Shape, gamma: int, side_by_side: bool) -> float:
    """Peak bytes of the tensors alive while a block runs, its input included.

    A path makes one output; unfolded with a convolution two, as BatchNorm reads one and writes another. One after
    another (CPU) a path's second tensor is gone before the next starts; `side_by_side` (CUDA streams, each with a
    memory pool of its own) the paths' peaks add up. Sums and ReLU work in place; SE writes one more output.
    """
    if isinstance(shape, GraphShape):
        return shape.activation_bytes
    spec, elements = GAMMAS[gamma], out_elements(shape)
    peaks = [1 if spec.folded or path == (IDENTITY,) else 2 for path in spec.paths]  # in outputs
    outputs = sum(peaks) if side_by_side else max(done + peak for done, peak in enumerate(peaks))
    peak = outputs * elements
    if shape.se_channels:  # all path outputs are still there, beside SE's output and two vectors
        peak = max(peak, (spec.n_streams + 1) * elements + 2 * shape.out_channels)
    return FLOAT_BYTES * (shape.in_channels * shape.in_size ** 2 + peak)


def classifier_memory(channels: int, num_classes: int, feature_size: int) -> UnitMemory:
    """Global average pool of [channels, feature_size, feature_size] and a linear layer."""
    return UnitMemory(FLOAT_BYTES * (channels * num_classes + num_classes),
                      FLOAT_BYTES * (channels * feature_size ** 2 + channels + num_classes))


def memory_table(shapes: Sequence[Shape], stem: Shape, classifier: ClassifierShape, side_by_side: bool) -> MemoryTable:
    """The bytes of all units."""
    weights, activations = np.full((2, len(shapes), N_GAMMA), np.nan)
    for k, shape in enumerate(shapes):
        for gamma in runnable_ids(shape.n_branches):
            weights[k, gamma] = weight_bytes(shape, gamma)
            activations[k, gamma] = activation_bytes(shape, gamma, side_by_side)
    folded = fused_gamma((True,) * stem.n_branches)
    return MemoryTable(weights, activations,
                       UnitMemory(weight_bytes(stem, folded), activation_bytes(stem, folded, side_by_side)),
                       classifier_memory(*classifier))


def client_memory(table: HardwareTable, settings: Settings) -> MemoryTable:
    """Memory on the client of this table: paths run one after another on a CPU, side by side on anything else."""
    return _of_model(settings.MODEL_NAME, settings.INPUT_SIZE, settings.NUM_CLASSES,
                     table.tier_info['client'].get('device') != 'cpu')


@lru_cache(maxsize=4)
def _of_model(model_name: str, input_size: int, num_classes: int, side_by_side: bool) -> MemoryTable:
    outline = outline_of(model_name, num_classes, input_size)
    return memory_table(outline.blocks, outline.stem, outline.classifier, side_by_side)


def client_ends(split: int, n_blocks: int, head_tier: str) -> Tuple[range, bool, bool]:
    """What the client runs at this split: its blocks, whether the stem, whether the classifier."""
    if head_tier == 'client':
        return range(split), split > 0, split == n_blocks
    return range(split, n_blocks), split == 0, split < n_blocks
