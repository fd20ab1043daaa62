"""A cheap model of what pruning costs in accuracy, learnt from the networks that were measured so far.

A Gaussian process over sets of dropped branches: each dropped branch costs something, each pair of them something
more, and the rest is noise (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.2, with
the kernel of an additive model with pairwise terms). It predicts the loss of a network that was never run, with its
uncertainty, so that a search can ask for the network whose measurement promises most (Mockus, 1975: expected
improvement).
"""
from __future__ import annotations

import itertools
import math
from typing import Optional

import numpy as np

from normal_distribution import cumulative, density

# Scales of the prior, as shares of ε: what a search decides about is a few ε wide, whatever the model. The measured
# networks choose among multiples of the two standard deviations and of the noise (section 5.4 of the book: the highest
# marginal likelihood).
SINGLE_MEAN, SINGLE_SD = 0.15, 0.5  # of one dropped branch's loss
PAIR_MEAN, PAIR_SD = 0.025, 0.25  # of what a pair loses beyond its two
NOISE_SD = 0.15  # everything that pairs do not explain
SCALES, NOISE_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0), (0.5, 1.0, 2.0)
LARGEST_LOSS = 4  # what is lost beyond counts as this much: collapsed networks must not bend the model where it matters
SMALLEST_EPSILON = 0.005  # below this, one image more or less would look like signal


def scale_of(epsilon: float) -> float:
    """The loss of accuracy (fraction) that expectations are measured in: ε, or the smallest that counts as signal."""
    return max(epsilon, SMALLEST_EPSILON)


class AccuracySurrogate:
    """Accuracy lost by dropping branches, fitted to measured examples."""

    def __init__(self, dropped: np.ndarray, loss: np.ndarray, epsilon: float, noise_sd: Optional[np.ndarray] = None,
                 ) -> None:
        """dropped: bool [n, F], which branches each measured network lacks; loss: [n], accuracy lost (fraction);
        noise_sd: [n], what measuring on a part of the images adds to the noise."""
        self.scale = scale_of(epsilon)
        self.dropped = dropped.astype(float)
        residual = np.minimum(loss, LARGEST_LOSS * self.scale) - self._mean(self.dropped)
        kernel = self._kernel(self.dropped, self.dropped)
        measuring = np.zeros(len(loss)) if noise_sd is None else noise_sd ** 2
        highest = -math.inf
        for factor, noise in itertools.product(SCALES, NOISE_SCALES):
            noise_variance = (noise * NOISE_SD * self.scale) ** 2
            inverse = np.linalg.inv(factor ** 2 * kernel + np.diag(noise_variance + measuring))
            # twice the logarithm of the likelihood, but for a constant
            likelihood = np.linalg.slogdet(inverse)[1] - residual @ inverse @ residual
            if likelihood > highest:
                highest, self.inverse, self.variance, self.noise_variance = (likelihood, inverse, factor ** 2,
                                                                             noise_variance)
        self.weights = self.inverse @ residual

    def _mean(self, dropped: np.ndarray) -> np.ndarray:
        count = dropped.sum(axis=1)
        return self.scale * (SINGLE_MEAN * count + PAIR_MEAN * count * (count - 1) / 2)

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        shared = a @ b.T  # dropped branches that both have in common; their pairs: shared·(shared-1)/2
        return self.scale ** 2 * (SINGLE_SD ** 2 * shared + PAIR_SD ** 2 * shared * (shared - 1) / 2)

    def predict(self, dropped: np.ndarray) -> tuple:
        """bool [m, F] -> (expected loss [m], its standard deviation [m])."""
        dropped = dropped.astype(float)
        cross = self.variance * self._kernel(dropped, self.dropped)
        count = dropped.sum(axis=1)
        prior = self.variance * self.scale ** 2 * (SINGLE_SD ** 2 * count + PAIR_SD ** 2 * count * (count - 1) / 2)
        variance = np.maximum(prior - np.einsum('ij,jk,ik->i', cross, self.inverse, cross), 0)
        return self._mean(dropped) + cross @ self.weights, np.sqrt(variance + self.noise_variance)


def expected_improvement(accuracy: np.ndarray, sd: np.ndarray, relative_T_eff: np.ndarray, bound: float, mu: float,
                         best_J: float) -> np.ndarray:
    """E[max(0, best_J - J)] of networks that only count when they meet `bound`, [m]: J = relative_T_eff - μ·A with the
    accuracy A normal around `accuracy` with `sd` (arrays [m]; relative_T_eff is T_eff / T_eff_ref, exact).

    With a the accuracy from which on a network counts and lowers J, z = (a - accuracy) / sd, the integral is
    (best_J - relative_T_eff + μ·accuracy)·(1 - Φ(z)) + μ·sd·φ(z) (Mockus, 1975, truncated at the bound).
    """
    z = (counts_from(relative_T_eff, bound, mu, best_J) - accuracy) / sd
    return np.maximum(0, (best_J - relative_T_eff + mu * accuracy) * cumulative(-z) + mu * sd * density(z))


def counts_from(relative_T_eff: np.ndarray, bound: float, mu: float, best_J: float) -> np.ndarray:
    """The accuracy from which on networks of these T_eff / T_eff_ref meet `bound` and lower best_J."""
    lowers_J = (relative_T_eff - best_J) / mu if mu > 0 else np.zeros(np.shape(relative_T_eff))
    return np.maximum(bound, lowers_J)
