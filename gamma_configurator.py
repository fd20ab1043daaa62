"""The 14 γ configurations: how a block's surviving branches are executed, and the plans that do it.

A γ is a list of paths; branches in one path are fused into one operator, paths are summed and may
run side by side on CUDA streams. γ never changes what a block computes, only how.
"""
from __future__ import annotations

from typing import List, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F

from network.folding import FoldedBranch, fold_branch, fuse_branches, scale_branch
from network.gammas import gamma_by_id
from network.graph_network import AsItIs
from network.shapes import BRANCHES, BlockShape
from repvgg import RepVGGBlock


class FoldedPath(nn.Module):
    """A convolution with bias, or a per-channel affine: BatchNorm and α are folded in."""

    def __init__(self, folded: FoldedBranch, shape: BlockShape) -> None:
        super().__init__()
        self.stride, self.groups = shape.stride, shape.groups
        self.is_affine = folded.kernel is None
        if self.is_affine:
            self.register_buffer('scale', folded.scale.detach().clone()[:, None, None])  # (C, 1, 1)
            self.register_buffer('bias', folded.bias.detach().clone()[:, None, None])
        else:
            self.padding = folded.kernel.shape[-1] // 2
            self.register_buffer('kernel', folded.kernel.detach().clone())
            self.register_buffer('bias', folded.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_affine:
            return torch.addcmul(self.bias, x, self.scale)
        return F.conv2d(x, self.kernel, self.bias, self.stride, self.padding, 1, self.groups)


class UnfoldedPath(nn.Module):
    """One branch as it was trained: convolution (none for identity), then BatchNorm; α scales the BatchNorm."""

    def __init__(self, branch: nn.Module, alpha: torch.Tensor, shape: BlockShape) -> None:
        super().__init__()
        self.stride, self.groups = shape.stride, shape.groups
        is_identity = isinstance(branch, nn.BatchNorm2d)
        bn = branch if is_identity else branch.bn
        self.register_buffer('kernel', None if is_identity else branch.conv.weight.detach().clone())
        self.eps = bn.eps
        self.register_buffer('mean', bn.running_mean.detach().clone())
        self.register_buffer('var', bn.running_var.detach().clone())
        self.register_buffer('weight', (alpha * bn.weight).detach().clone())
        self.register_buffer('bias', (alpha * bn.bias).detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel is not None:
            x = F.conv2d(x, self.kernel, None, self.stride, self.kernel.shape[-1] // 2, 1, self.groups)
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


class BlockPlan(nn.Module):
    """A block ready to run under one γ: x [B, C_in, h, w] -> [B, C_out, h', w']. Holds copies of what it needs."""

    def __init__(self, paths: List[nn.Module], se: nn.Module) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.se = se
        self._streams: Optional[List['torch.cuda.Stream']] = None  # made on the first CUDA call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.paths) > 1 and x.is_cuda:
            outputs = self._side_by_side(x)
        else:
            outputs = [path(x) for path in self.paths]
        y = outputs[0]
        for other in outputs[1:]:
            y = y.add_(other)
        return F.relu_(self.se(y))

    def _side_by_side(self, x: torch.Tensor) -> List[torch.Tensor]:
        """The first path on the current stream, each other one on a stream of its own."""
        main = torch.cuda.current_stream(x.device)
        if self._streams is None or self._streams[0].device != x.device:
            self._streams = [torch.cuda.Stream(x.device) for _ in self.paths[1:]]
        ready = main.record_event()  # x is complete from here on
        outputs: List[torch.Tensor] = []
        for stream, path in zip(self._streams, self.paths[1:]):
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                outputs.append(path(x))
            x.record_stream(stream)  # the allocator must not reuse x before this stream has read it
        first = self.paths[0](x)
        for stream, output in zip(self._streams, outputs):
            main.wait_stream(stream)
            output.record_stream(main)
        return [first, *outputs]


def build_plan(block: Union[RepVGGBlock, AsItIs], alpha: torch.Tensor, gamma: int) -> nn.Module:
    """The plan that runs `block` under γ with branch scales `alpha` [1 to 3] (0 = pruned).

    Raises `ValueError` when γ is not valid for the surviving branches.
    """
    spec = gamma_by_id(gamma)
    surviving = frozenset(i for i, value in enumerate(alpha.tolist()) if value != 0)
    if spec.branches != surviving:
        raise ValueError(f'γ {gamma} ({spec.name}) runs {sorted(BRANCHES[b] for b in spec.branches)}, but the block '
                         f'keeps {sorted(BRANCHES[b] for b in surviving)}')
    if isinstance(block, AsItIs):
        return block
    modules = block.branches()
    paths: List[nn.Module] = []
    with torch.no_grad():
        for path in spec.paths:
            if not spec.folded:
                paths.append(UnfoldedPath(modules[path[0]], alpha[path[0]], block.shape))
                continue
            scaled = [scale_branch(fold_branch(modules[b]), alpha[b]) for b in path]
            paths.append(FoldedPath(fuse_branches(scaled, block.shape.groups), block.shape))
    return BlockPlan(paths, block.se)

