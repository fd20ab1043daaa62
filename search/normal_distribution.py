"""The standard normal distribution, of arrays."""
from __future__ import annotations

import math

import numpy as np
import torch


def cumulative(z: np.ndarray) -> np.ndarray:
    """Φ(z): the probability of a value of at most z; of the type of z."""
    return torch.special.ndtr(torch.as_tensor(z)).numpy()


def density(z: np.ndarray) -> np.ndarray:
    """φ(z)."""
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
