"""RepVGG (Ding et al., 2021, arXiv:2101.03697): its training-time block, and the whole network.

Parameter names are those of the authors' checkpoints (`stage1.0.rbr_dense.conv.weight`, ...).
A variant is one line of `ARCHITECTURES` in network/shapes.py.
"""
from __future__ import annotations

from typing import List, Optional, Type

import torch
import torch.nn as nn
import torch.nn.functional as F

from network.shapes import BlockShape, architecture, block_names, block_shapes
from se_block import SEBlock


class ConvBN(nn.Module):
    """Convolution without bias, then BatchNorm: one branch of a block."""

    def __init__(self, shape: BlockShape, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape.in_channels, shape.out_channels, kernel_size, shape.stride,
                              padding=kernel_size // 2, groups=shape.groups, bias=False)
        self.bn = nn.BatchNorm2d(shape.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class RepVGGBlock(nn.Module):
    """ReLU(SE(BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x))); the identity branch only where shapes allow it."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.rbr_dense = ConvBN(shape, 3)
        self.rbr_1x1 = ConvBN(shape, 1)
        self.rbr_identity: Optional[nn.BatchNorm2d] = nn.BatchNorm2d(shape.out_channels) if shape.has_identity else None
        self.se: nn.Module = SEBlock(shape.out_channels, shape.se_channels) if shape.se_channels else nn.Identity()

    @property
    def n_branches(self) -> int:
        """3, or 2 without identity; branches are always in the order of BRANCHES."""
        return 2 if self.rbr_identity is None else 3

    def branches(self) -> List[nn.Module]:
        """The branch modules, in the order of BRANCHES."""
        found = [self.rbr_dense, self.rbr_1x1]
        return found if self.rbr_identity is None else [*found, self.rbr_identity]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.se(sum(branch(x) for branch in self.branches())))


class RepVGG(nn.Module):
    """Images [B, 3, S, S] -> logits [B, num_classes]."""

    def __init__(self, model_name: str, num_classes: int = 1000, block: Type[RepVGGBlock] = RepVGGBlock) -> None:
        super().__init__()
        self.model_name, self.num_classes = model_name, num_classes
        self.arch = architecture(model_name)
        stem, shapes = block_shapes(self.arch, input_size=224)  # modules do not depend on the input size
        self.stage0 = RepVGGBlock(stem)
        start = 0
        for stage, depth in enumerate(self.arch.depths, start=1):
            self.add_module(f'stage{stage}', nn.Sequential(*(block(s) for s in shapes[start:start + depth])))
            start += depth
        self.linear = nn.Linear(self.arch.channels[4], num_classes)

    @property
    def blocks(self) -> List[RepVGGBlock]:
        """The N blocks of stage1..stage4, in order of execution."""
        return [block for stage in range(1, 5) for block in getattr(self, f'stage{stage}')]

    @property
    def block_names(self) -> List[str]:
        """Names of `blocks`."""
        return block_names(self.arch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage0(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map [B, C, h, w] -> logits [B, num_classes]: global average pool, linear."""
        return self.linear(x.mean(dim=(2, 3)))
