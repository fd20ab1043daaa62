"""The standard normal distribution, of arrays."""
from __future__ import annotations

import math

import numpy as np


def cumulative(z: np.ndarray) -> np.ndarray:
    """Φ(z): the probability of a value of at most z."""
    return 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


def density(z: np.ndarray) -> np.ndarray:
    """φ(z)."""
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
