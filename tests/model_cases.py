"""What the tests of the model share: images, and how far two results are apart."""
from __future__ import annotations

import oracles
import pytest
import torch

PAPER = list(oracles.PAPER_VARIANTS)
has_meta = pytest.mark.skipif(not hasattr(torch, 'compile'), reason='before PyTorch 2 a device is no context')


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def images(n: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
