"""Folding: BatchNorm into its convolution, and several branches into one."""
from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


def bn_scale_bias(bn: nn.BatchNorm2d) -> Tuple[torch.Tensor, torch.Tensor]:
    """Evaluation-mode BatchNorm as y = scale·x + bias, each [C]."""
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return scale, bn.bias - bn.running_mean * scale


class FoldedBranch(NamedTuple):
    """One branch in evaluation mode: a kernel (None for identity: a per-channel scale) and a bias."""
    kernel: Optional[torch.Tensor]  # [out, in/groups, k, k]
    scale: Optional[torch.Tensor]  # [out], identity only
    bias: torch.Tensor  # [out]


def fold_branch(branch: nn.Module) -> FoldedBranch:
    """Fold BatchNorm into its branch; differentiates through nothing that trains here (base weights are frozen)."""
    if isinstance(branch, nn.BatchNorm2d):
        scale, bias = bn_scale_bias(branch)
        return FoldedBranch(None, scale, bias)
    scale, bias = bn_scale_bias(branch.bn)
    return FoldedBranch(branch.conv.weight * scale[:, None, None, None], None, bias)


def identity_kernel(scale: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """The kernel [C, C/groups, size, size] of x -> scale·x: input i of a group feeds output i of that group."""
    channels = scale.numel()
    kernel = scale.new_zeros(channels, channels // groups, size, size)
    rows = torch.arange(channels, device=scale.device)
    kernel[rows, rows % (channels // groups), size // 2, size // 2] = scale
    return kernel


def fuse_branches(branches: List[FoldedBranch], groups: int) -> FoldedBranch:
    """Sum folded branches into one: 3x3 if any is 3x3, else 1x1, else a per-channel affine."""
    bias = sum(b.bias for b in branches)
    sizes = [b.kernel.shape[-1] for b in branches if b.kernel is not None]
    if not sizes:
        return FoldedBranch(None, sum(b.scale for b in branches), bias)
    size = max(sizes)
    kernel = 0
    for branch in branches:
        if branch.kernel is None:
            kernel = kernel + identity_kernel(branch.scale, groups, size)
        else:
            margin = (size - branch.kernel.shape[-1]) // 2
            kernel = kernel + F.pad(branch.kernel, [margin] * 4)
    return FoldedBranch(kernel, None, bias)


def scale_branch(branch: FoldedBranch, alpha: torch.Tensor) -> FoldedBranch:
    """α·branch."""
    return FoldedBranch(None if branch.kernel is None else alpha * branch.kernel,
                        None if branch.scale is None else alpha * branch.scale, alpha * branch.bias)
