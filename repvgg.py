"""RepVGG (Ding et al., 2021, arXiv:2101.03697): its variants, its training-time block, and folding.

Parameter names are those of the authors' checkpoints (`stage1.0.rbr_dense.conv.weight`, ...).
A variant is one line of `ARCHITECTURES`.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F

from config import UserError
from se_block import SE_REDUCTION, SEBlock

BRANCHES = ('dense', '1x1', 'identity')  # the order of every array over branches
DENSE, ONE, IDENTITY = range(3)


@dataclass(frozen=True)
class Architecture:
    """Depths, widths and strides of one variant; `grouped` is the group count of every second block."""
    depths: Tuple[int, int, int, int]
    channels: Tuple[int, int, int, int, int]  # stem, stage1..stage4
    strides: Tuple[int, int, int, int, int] = (2, 2, 2, 2, 2)  # stem, first block of stage1..stage4
    grouped: int = 1
    use_se: bool = False


def _paper(depths: Tuple[int, int, int, int], a: float, b: float, grouped: int = 1, use_se: bool = False,
           ) -> Architecture:
    """A variant by the paper's width multipliers: a for stages 0..3 (stem at most 64), b for stage 4."""
    return Architecture(depths, (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b)),
                        grouped=grouped, use_se=use_se)


_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)
ARCHITECTURES: Dict[str, Architecture] = {
    'RepVGG-A0': _paper(_A, 0.75, 2.5), 'RepVGG-A1': _paper(_A, 1, 2.5), 'RepVGG-A2': _paper(_A, 1.5, 2.75),
    'RepVGG-B0': _paper(_B, 1, 2.5),
    'RepVGG-B1': _paper(_B, 2, 4), 'RepVGG-B1g2': _paper(_B, 2, 4, 2), 'RepVGG-B1g4': _paper(_B, 2, 4, 4),
    'RepVGG-B2': _paper(_B, 2.5, 5), 'RepVGG-B2g2': _paper(_B, 2.5, 5, 2), 'RepVGG-B2g4': _paper(_B, 2.5, 5, 4),
    'RepVGG-B3': _paper(_B, 3, 5), 'RepVGG-B3g2': _paper(_B, 3, 5, 2), 'RepVGG-B3g4': _paper(_B, 3, 5, 4),
    'RepVGG-D2se': _paper((8, 14, 24, 1), 2.5, 5, use_se=True),
    # The built-in example: 11 blocks and 0.5 M parameters for 32x32 images.
    'RepVGG-Micro': Architecture((3, 4, 3, 1), (32, 32, 64, 96, 128), strides=(2, 1, 2, 2, 1)),
}


def architecture(name: str) -> Architecture:
    """The variant of this name; `UserError` names the known ones (case and 'RepVGG-' may be left out)."""
    known = {key.lower(): key for key in ARCHITECTURES}
    key = name.lower().replace('_', '-')
    key = key if key in known else 'repvgg-' + key
    if key not in known:
        raise UserError(f'unknown MODEL_NAME {name!r}: choose one of {", ".join(ARCHITECTURES)}')
    return ARCHITECTURES[known[key]]


class BlockShape(NamedTuple):
    """What the cost of a block depends on, for one image."""
    in_channels: int
    out_channels: int
    in_size: int  # pixels, height = width
    stride: int
    groups: int
    has_identity: bool
    se_channels: int  # squeezed width; 0: no SE

    @property
    def out_size(self) -> int:
        """Height = width of the output, pixels (3x3 with padding 1 and 1x1 agree)."""
        return (self.in_size - 1) // self.stride + 1


def block_shapes(arch: Architecture, input_size: int) -> Tuple[BlockShape, List[BlockShape]]:
    """Shapes of the stem and of the N blocks for square images of `input_size` pixels."""
    stem = BlockShape(3, arch.channels[0], input_size, arch.strides[0], 1,
                      arch.channels[0] == 3 and arch.strides[0] == 1,
                      arch.channels[0] // SE_REDUCTION if arch.use_se else 0)
    shapes: List[BlockShape] = []
    previous, size, layer = arch.channels[0], stem.out_size, 1
    for stage, depth in enumerate(arch.depths, start=1):
        for index in range(depth):
            stride = arch.strides[stage] if index == 0 else 1
            width = arch.channels[stage]
            groups = arch.grouped if layer % 2 == 0 and layer <= 26 else 1  # the authors' override list: 2, 4 .. 26
            shapes.append(BlockShape(previous, width, size, stride, groups, previous == width and stride == 1,
                                     width // SE_REDUCTION if arch.use_se else 0))
            previous, size, layer = width, shapes[-1].out_size, layer + 1
    return stem, shapes


def block_names(arch: Architecture) -> List[str]:
    """['stage1.0', ..., 'stage4.0'], in order of execution."""
    return [f'stage{stage}.{index}' for stage, depth in enumerate(arch.depths, start=1) for index in range(depth)]


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
    rows = torch.arange(channels)
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
