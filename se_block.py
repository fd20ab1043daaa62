"""Squeeze-and-excitation, as RepVGG-D2se uses it (Hu et al., 2018, arXiv:1709.01507)."""
from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class SEBlock(nn.Module):
    """x [B, C, H, W] -> x scaled per image and channel by sigmoid(up(relu(down(mean(x)))))."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, squeezed, kernel_size=1, bias=True)
        self.up = nn.Conv2d(squeezed, channels, kernel_size=1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = F.adaptive_avg_pool2d(x, 1)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(squeezed))))
