"""A cheap model of what pruning does to every validation image, learnt from the networks that were measured so far.

Accuracy is a count of images, and a coarse one: it says little about a network that is right by a hair on ten images
more. So the model predicts margins (evaluator.margins_of), image by image. A margin's change is a Gaussian process over
sets of dropped branches (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.2): each
dropped branch adds something, each pair of them something more, and all branches have something in common. All images
share the kernel, so one small matrix serves them all. The accuracy follows from the margins and their uncertainty, and
its own uncertainty from how far the model is off on the measured networks when each is left out (section 5.4.2).
"""
from __future__ import annotations

import itertools
import math
from typing import Tuple

import numpy as np

from search.acquisition import cumulative
from search.evaluator import accuracy_of

# Variances of a margin's change, in units of what one dropped branch does; of noise and of pairs the measured networks
# choose the most likely (section 5.4.1).
COMMON_VARIANCE = 0.3  # what dropped branches have in common; not measured against other values
NOISE_VARIANCES = (0.03, 0.1, 0.3)
ACCURACY_SD = 0.6  # of ε: how uncertain a predicted accuracy is where the margins' variance is 1, before any was seen
PRIOR_COUNT = 40  # of measured networks that this belief counts for: those left out are easier than what is asked for
MODELLED_IMAGES = 1000  # at most, evenly spaced: they stand for all


class Surrogate:
    """Margins and accuracy of pruned networks, fitted to measured ones."""
    pair_variances: Tuple[float, ...] = (0.15, 0.5)  # of what a pair of dropped branches adds

    def __init__(self, dropped: np.ndarray, margins: np.ndarray, accuracy_scale: float) -> None:
        """`dropped`: bool [n, F], which branches each measured network lacks, none in the first; `margins`: [n,
        images]; `accuracy_scale`: the loss of accuracy that ACCURACY_SD is a part of (Goal.accuracy_scale)."""
        images = np.linspace(0, margins.shape[1] - 1, min(margins.shape[1], MODELLED_IMAGES)).astype(int)
        self.dropped, self.margins = dropped.astype(np.float32), margins[:, images].astype(np.float32)
        change = self.margins - self.margins[0]
        gram = (change @ change.T).astype(float)  # (n, n): all that the likelihood needs of the images
        highest = -math.inf
        for pair, noise in itertools.product(self.pair_variances, NOISE_VARIANCES):
            inverse = np.linalg.inv(self._kernel(self.dropped, self.dropped, pair) + noise * np.eye(len(dropped)))
            variance = max((inverse * gram).sum() / change.size, 1e-12)  # the most likely one of this kernel
            # twice the logarithm of the likelihood over the number of images, but for a constant; the first network's
            # change is 0 by definition, and counting it makes little difference
            likelihood = np.linalg.slogdet(inverse)[1] - len(dropped) * math.log(variance)
            if likelihood > highest:
                highest, self.inverse, self.variance, self.pair, self.noise = likelihood, inverse, variance, pair, noise
        self.weights = (self.inverse @ change).astype(np.float32)  # (n, images)
        self.accuracy_variance = self._accuracy_variance(accuracy_scale)

    def _kernel(self, a: np.ndarray, b: np.ndarray, pair: float) -> np.ndarray:
        return self._covariance((a @ b.T).astype(float), np.outer(a.sum(axis=1), b.sum(axis=1)), pair)

    @staticmethod
    def _covariance(shared: np.ndarray, product: np.ndarray, pair: float) -> np.ndarray:
        """Of networks that lack so many of the same branches, hence shared·(shared-1)/2 of the same pairs; `product` of
        how many each lacks."""
        return shared + pair * shared * (shared - 1) / 2 + COMMON_VARIANCE * product

    def _accuracy_variance(self, accuracy_scale: float) -> float:
        """Squared error of a predicted accuracy over the variance of its margins: a prior belief, and how far each
        measured network is off when the others predict it."""
        alone = 1 / np.diag(self.inverse)
        margins = self.margins - alone[:, None].astype(np.float32) * self.weights
        measured = np.array([accuracy_of(row) for row in self.margins])
        squared = ((measured - self._accuracy(margins, alone)) ** 2 / alone)[1:]
        return (PRIOR_COUNT * (ACCURACY_SD * accuracy_scale) ** 2 + squared.sum()) / (PRIOR_COUNT + len(squared))

    def _accuracy(self, margins: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Expected accuracies [m] for margins [m, images] of these variances [m]."""
        sd = np.sqrt(self.variance * variance).astype(np.float32)
        return 1 - cumulative(-margins / sd[:, None]).sum(axis=1) / self.margins.shape[1]

    def predict(self, dropped: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """bool [m, F] -> (expected accuracy [m], its standard deviation [m])."""
        dropped = dropped.astype(np.float32)
        cross, count = self._kernel(dropped, self.dropped, self.pair), dropped.sum(axis=1).astype(float)
        known = np.einsum('ij,jk,ik->i', cross, self.inverse, cross, optimize=True)
        variance = np.maximum(self._covariance(count, count ** 2, self.pair) - known, 0) + self.noise
        margins = self.margins[0] + cross.astype(np.float32) @ self.weights
        return self._accuracy(margins, variance), np.sqrt(self.accuracy_variance * variance)
