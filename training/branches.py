"""A training-time RepVGG with some of its branches: forward passes, random sets of branches, BatchNorm statistics."""
from __future__ import annotations

from typing import Iterable, List, Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from network.folding import FoldedBranch, fold_branch, fuse_branches
from network.shapes import DENSE, ONE, BlockShape
from repvgg import RepVGG

Keep = Sequence[Sequence[bool]]  # one flag a branch of every block, in the order of BRANCHES


def forward_with(network: RepVGG, x: torch.Tensor, keep: Keep) -> torch.Tensor:
    """Logits [B, classes] of the network with only these branches; every branch as it stands."""
    x = network.stage0(x)
    for block, flags in zip(network.blocks, keep):
        x = F.relu(block.se(sum(branch(x) for branch, kept in zip(block.branches(), flags) if kept)))
    return network.classify(x)


def forward_frozen(network: RepVGG, x: torch.Tensor, keeps: Sequence[Keep]) -> List[torch.Tensor]:
    """Logits for each of several sets of branches under frozen BatchNorm statistics: every block is folded into one
    convolution, through which all weights still learn (half the time of running the branches one by one)."""
    stem = [fold_branch(branch) for branch in network.stage0.branches()]
    first = F.relu(network.stage0.se(_convolve(x, stem, network.stage0.shape)))
    outputs = [first] * len(keeps)
    for number, block in enumerate(network.blocks):
        folded = [fold_branch(branch) for branch in block.branches()]
        for index, keep in enumerate(keeps):
            kept = [branch for branch, flag in zip(folded, keep[number]) if flag]
            outputs[index] = F.relu(block.se(_convolve(outputs[index], kept, block.shape)))
    return [network.classify(output) for output in outputs]


def _convolve(x: torch.Tensor, folded: List[FoldedBranch], shape: BlockShape) -> torch.Tensor:
    kernel, scale, bias = fuse_branches(folded, shape.groups)
    if kernel is None:
        return torch.addcmul(bias[:, None, None], x, scale[:, None, None])
    return F.conv2d(x, kernel, bias, shape.stride, kernel.shape[-1] // 2, 1, shape.groups)


def random_branches(network: RepVGG, drop_dense: float, drop_other: float, rng: np.random.Generator) -> Keep:
    """A random set of branches: 3x3 go with a probability that is drawn from 0 .. `drop_dense`, others with
    `drop_other`; every block keeps at least its 1x1."""
    drop = np.full(3, drop_other)
    drop[DENSE] = rng.uniform(0, drop_dense)
    keep = []
    for block in network.blocks:
        flags = (rng.random(block.n_branches) >= drop[:block.n_branches]).tolist()
        flags[ONE] = flags[ONE] or not any(flags)
        keep.append(flags)
    return keep


def every_branch(network: RepVGG) -> Keep:
    """All branches of all blocks."""
    return [[True] * block.n_branches for block in network.blocks]


def estimate_statistics(network: RepVGG, batches: Iterable[torch.Tensor]) -> None:
    """Set every BatchNorm's mean and variance to their average over batches of images through the whole network, and
    leave the network in evaluation mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()
