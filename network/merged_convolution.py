"""A block as one convolution whose gradients of α are exact, and cost less than running its branches one by one.

All weights are frozen, so z = Σ_b α_b·z_b, the sum before SE and ReLU, is one convolution with Σ_b α_b·K_b, and the
gradient of the input is one transposed convolution. With G = ∂L/∂z the gradient of α_b is ⟨G, z_b⟩. Identity and 1x1
cost little; the dearest branch costs nothing, since Σ_b α_b·⟨G, z_b⟩ = ⟨G, z⟩ is known. Where ReLU follows directly,
⟨G, z⟩ = ⟨G, ReLU(z)⟩: G is 0 wherever they differ, so only the block's input and output are kept.
"""
from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from network.folding import FoldedBranch
from network.shapes import BlockShape

LEAST_SHARE = 0.1  # of the largest |α|: dividing by less would magnify rounding errors


class BlockFunction(torch.autograd.Function):
    """x [B, C_in, h, w], α [2 or 3] -> Σ_b α_b·branch_b(x), after ReLU if `relu`; branches with α = 0 are pruned and
    get no gradient."""

    @staticmethod
    def forward(ctx: 'torch.autograd.function.FunctionCtx', x: torch.Tensor, alpha: torch.Tensor,
                branches: Sequence[FoldedBranch], shape: BlockShape, relu: bool) -> torch.Tensor:
        scales = alpha.tolist()
        kernel, bias = merged(branches, scales, shape.groups)
        y = convolve(x, FoldedBranch(kernel, None, bias) if kernel is not None else
                     FoldedBranch(None, scales[2] * branches[2].scale, bias), shape)
        y = F.relu_(y) if relu else y
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, y, alpha, kernel)
            ctx.branches, ctx.shape, ctx.relu = branches, shape, relu
        return y

    @staticmethod
    def backward(ctx: 'torch.autograd.function.FunctionCtx', grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        x, y, alpha, kernel = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)  # what ReLU's own backward calls
        x_grad = alpha_grad = None
        if ctx.needs_input_grad[0]:
            if kernel is None:
                x_grad = grad * (alpha[2] * ctx.branches[2].scale)[:, None, None]
            else:
                x_grad = conv2d_input(x.shape, kernel, grad, ctx.shape.stride, kernel.shape[-1] // 2, 1,
                                      ctx.shape.groups)
        if ctx.needs_input_grad[1]:
            alpha_grad = gradient_of_alpha(x, y, grad, alpha, ctx.branches, ctx.shape)
        return x_grad, alpha_grad, None, None, None


def merged(branches: Sequence[FoldedBranch], scales: Sequence[float], groups: int,
           ) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
    """(Σ α·kernel, as small as the surviving branches allow, None for identity alone; Σ α·bias)."""
    kernel: Optional[torch.Tensor] = None
    bias: Any = 0
    for (weight, scale, shift), factor in zip(branches, scales):  # the largest kernel comes first
        if factor == 0:
            continue
        bias = bias + factor * shift
        if weight is None:
            if kernel is not None:
                rows, middle = torch.arange(scale.numel(), device=scale.device), kernel.shape[-1] // 2
                kernel[rows, rows % kernel.shape[1], middle, middle] += factor * scale
        elif kernel is None:
            kernel = factor * weight
        else:
            middle = kernel.shape[-1] // 2
            kernel[:, :, middle, middle] += factor * weight[:, :, 0, 0]
    return kernel, bias


def convolve(x: torch.Tensor, branch: FoldedBranch, shape: BlockShape) -> torch.Tensor:
    """A folded branch of a block of this shape, run."""
    if branch.kernel is None:
        return torch.addcmul(branch.bias[:, None, None], x, branch.scale[:, None, None])
    return F.conv2d(x, branch.kernel, branch.bias, shape.stride, branch.kernel.shape[-1] // 2, 1, shape.groups)


def gradient_of_alpha(x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor, alpha: torch.Tensor,
                      branches: Sequence[FoldedBranch], shape: BlockShape) -> torch.Tensor:
    """⟨grad, branch_b(x)⟩ of every surviving branch, [2 or 3]; y is Σ α_b·branch_b(x) wherever grad is not 0."""
    scales = alpha.tolist()
    alive = [b for b, value in enumerate(scales) if value != 0]
    least = LEAST_SHARE * max(abs(value) for value in scales)
    dearest = next(b for b in alive if abs(scales[b]) >= least)
    found: Dict[int, torch.Tensor] = {}
    rest = inner(grad, y)
    for b in alive:
        if b == dearest:
            continue
        branch = branches[b]
        if branch.kernel is None:
            found[b] = (grad * x).sum(dim=(0, 2, 3)).dot(branch.scale) + grad.sum(dim=(0, 2, 3)).dot(branch.bias)
        else:
            found[b] = inner(grad, convolve(x, branch, shape))
        rest = rest - scales[b] * found[b]
    found[dearest] = rest / scales[dearest]
    return torch.stack([found.get(b, alpha.new_zeros(())) for b in range(len(scales))])


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """⟨a, b⟩."""
    return a.reshape(-1).dot(b.reshape(-1))


def pays(x: torch.Tensor, shape: BlockShape) -> bool:
    """Is merging the kernels cheaper than running the branches? Yes, where there are more outputs than kernel elements
    (measured: 1.6 times faster on RepVGG-Micro at 32x32, slower in RepVGG-A0's last blocks at 64x64)."""
    positions = x.shape[0] * (x.shape[2] // shape.stride) * (x.shape[3] // shape.stride)
    return positions >= 9 * shape.in_channels // shape.groups
