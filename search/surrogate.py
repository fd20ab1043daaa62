"""A cheap model of what pruning does to every validation image, learnt from the networks that were measured so far.

Accuracy is a count of images, and a coarse one: it says little about a network that is right by a hair on ten images
more. So the model predicts margins, image by image: the logit of the right class less the highest other one, over the
standard deviation of the image's logits, which makes networks of different scale comparable. A margin's change is a
Gaussian process over sets of dropped branches (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
section 2.2): each dropped branch adds something, each pair of them something more, and all branches have something in
common. All images share the kernel, so one small matrix serves them all. The accuracy follows from the margins and
their uncertainty, and its own uncertainty from how far the model is off on the measured networks when each is left out
(section 5.4.2). A search then asks for the network whose measurement promises most (Mockus, 1975: expected
improvement).
"""
from __future__ import annotations

import itertools
import math
from typing import Tuple

import numpy as np

from search.normal_distribution import cumulative, density

# Variances of a margin's change, in units of what one dropped branch does; of pairs and of noise the measured networks
# choose the most likely (section 5.4.1).
COMMON_VARIANCE = 0.3  # what dropped branches have in common
PAIR_VARIANCES, NOISE_VARIANCES = (0.15, 0.5), (0.03, 0.1, 0.3)
ACCURACY_SD = 0.6  # of ε: how uncertain a predicted accuracy is where the margins' variance is 1, to begin with
PRIOR_COUNT = 40  # of measured networks that this belief counts for: those left out are easier than what is asked for
MODELLED_IMAGES = 1000  # at most: those of the smallest margins; the others are right
LARGEST_LOSS = 4  # of ε: what is lost beyond is of no interest
SMALLEST_EPSILON = 0.005  # below this, one image more or less would look like signal


def scale_of(epsilon: float) -> float:
    """The loss of accuracy (fraction) that expectations are measured in: ε, or the smallest that counts as signal."""
    return max(epsilon, SMALLEST_EPSILON)


class AccuracySurrogate:
    """Margins and accuracy of pruned networks, fitted to measured ones."""

    def __init__(self, dropped: np.ndarray, margins: np.ndarray, accuracy: np.ndarray, enough: np.ndarray,
                 epsilon: float) -> None:
        """dropped: bool [n, F], which branches each measured network lacks, none in the first; margins: [n, images];
        accuracy: [n]; enough: bool [n], False where that is a rough estimate."""
        self.dropped, self.margins = dropped.astype(np.float32), margins.astype(np.float32)
        change = self.margins - self.margins[0]
        gram = (change @ change.T).astype(float)  # all that the likelihood needs of the images
        highest = -math.inf
        for pair, noise in itertools.product(PAIR_VARIANCES, NOISE_VARIANCES):
            inverse = np.linalg.inv(self._kernel(self.dropped, self.dropped, pair) + noise * np.eye(len(dropped)))
            variance = max((inverse * gram).sum() / change.size, 1e-12)  # the most likely one of this kernel
            # twice the logarithm of the likelihood over the number of images, but for a constant
            likelihood = np.linalg.slogdet(inverse)[1] - len(dropped) * math.log(variance)
            if likelihood > highest:
                highest, self.inverse, self.variance, self.pair, self.noise = likelihood, inverse, variance, pair, noise
        self.weights = (self.inverse @ change).astype(np.float32)
        self.hardest = np.argsort(self.margins.min(axis=0), kind='stable')[:MODELLED_IMAGES]
        self.accuracy_variance = self._accuracy_variance(accuracy, enough, epsilon)

    def _kernel(self, a: np.ndarray, b: np.ndarray, pair: float) -> np.ndarray:
        return self._covariance((a @ b.T).astype(float), np.outer(a.sum(axis=1), b.sum(axis=1)), pair)

    @staticmethod
    def _covariance(shared: np.ndarray, product: np.ndarray, pair: float) -> np.ndarray:
        """Of networks that lack so many of the same branches, hence shared·(shared-1)/2 of the same pairs; `product` of
        how many each lacks."""
        return shared + pair * shared * (shared - 1) / 2 + COMMON_VARIANCE * product

    def _accuracy_variance(self, accuracy: np.ndarray, enough: np.ndarray, epsilon: float) -> float:
        """Squared error of a predicted accuracy over the variance of its margins: a prior belief, and how far each
        measured network is off when the others predict it."""
        alone = 1 / np.diag(self.inverse)
        margins = self.margins[:, self.hardest] - alone[:, None].astype(np.float32) * self.weights[:, self.hardest]
        squared = ((accuracy - self._accuracy(margins, alone)) ** 2 / alone)[1:][enough[1:]]
        return (PRIOR_COUNT * (ACCURACY_SD * scale_of(epsilon)) ** 2 + squared.sum()) / (PRIOR_COUNT + len(squared))

    def _accuracy(self, margins: np.ndarray, variance: np.ndarray) -> np.ndarray:
        sd = np.sqrt(self.variance * variance).astype(np.float32)
        return 1 - cumulative(-margins / sd[:, None]).sum(axis=1) / self.margins.shape[1]

    def predict(self, dropped: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """bool [m, F] -> (expected accuracy [m], its standard deviation [m])."""
        dropped = dropped.astype(np.float32)
        cross, count = self._kernel(dropped, self.dropped, self.pair), dropped.sum(axis=1).astype(float)
        known = np.einsum('ij,jk,ik->i', cross, self.inverse, cross, optimize=True)
        variance = np.maximum(self._covariance(count, count ** 2, self.pair) - known, 0) + self.noise
        margins = self.margins[0, self.hardest] + cross.astype(np.float32) @ self.weights[:, self.hardest]
        return self._accuracy(margins, variance), np.sqrt(self.accuracy_variance * variance)

    def expected_margins(self, dropped: np.ndarray) -> np.ndarray:
        """bool [F] -> the margin to expect on every image, float32 [images]."""
        cross = self._kernel(dropped[None].astype(np.float32), self.dropped, self.pair)
        return self.margins[0] + cross[0].astype(np.float32) @ self.weights


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
