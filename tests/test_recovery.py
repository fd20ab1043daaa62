"""What recovery rests on: exact gradients of α from merged blocks."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hyper_repvgg import HyperRepVGGBlock
from repvgg import BlockShape


def random_block(generator: np.random.Generator, dtype: torch.dtype) -> HyperRepVGGBlock:
    """Any shape that a model may have, with random weights and α, some of it pruned, some of it nearly 0."""
    groups, stride = int(generator.choice([1, 2, 4])), int(generator.choice([1, 2]))
    same = bool(generator.random() < 0.7)
    width = 8 * int(generator.integers(1, 3))
    shape = BlockShape(width, width if same else 2 * width, 8, stride, groups, same and stride == 1,
                       width // 2 if generator.random() < 0.3 else 0)
    block = HyperRepVGGBlock(shape)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3), module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias)
    alpha = generator.choice([1.0, -0.7, 1e-3, 0.0], block.n_branches, p=[0.4, 0.2, 0.2, 0.2])
    alpha *= generator.uniform(0.5, 1.5, block.n_branches)
    if not alpha.any():
        alpha[generator.integers(block.n_branches)] = 1.0
    with torch.no_grad():
        block.alpha.copy_(torch.as_tensor(alpha))
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name == 'alpha')
    return block.eval().to(dtype)


def plain(block: HyperRepVGGBlock, x: torch.Tensor) -> torch.Tensor:
    """The block as section 4 writes it: convolution, BatchNorm, α, sum, SE, ReLU."""
    return torch.relu(block.se(sum(a * branch(x) for a, branch in zip(block.alpha, block.branches()) if a != 0)))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@hypothesis_settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_a_block_as_one_convolution_has_the_output_and_gradients_of_its_branches(dtype, tolerance, seed):
    torch.manual_seed(seed)
    block = random_block(np.random.default_rng(seed), dtype)
    few_or_many = 1 if seed % 3 == 0 else 12  # images: both ways of running a block
    x = torch.randn(few_or_many, block.shape.in_channels, 8, 8, dtype=dtype, requires_grad=True)
    towards = torch.randn_like(plain(block, x).detach())
    found, wanted = [], []
    for results, run in ((found, block), (wanted, lambda x: plain(block, x))):
        y = run(x)
        results += [y.detach(), *torch.autograd.grad((y * towards).sum(), (x, block.alpha))]
    for value, right in zip(found, wanted):
        assert float((value - right).abs().max()) <= tolerance * max(1.0, float(right.abs().max()))
    assert (found[2][block.alpha == 0] == 0).all()  # what is pruned stays pruned
