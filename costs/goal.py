"""Goal programming: one number J to minimise, which weighs time against accuracy and prices a broken constraint."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST_LOSS = 0.005  # of accuracy: with a smaller ε one image more or less would look like signal


@dataclass(frozen=True)
class Goal:
    """Minimise J = T_eff / T_eff_ref + κ·ξ_A - μ·A subject to A >= A_ref - ε - ξ_A and ξ_A >= 0.

    A is validation accuracy as a fraction of 1, ξ_A how far A misses the constraint: at the optimum
    max(0, A_ref - ε - A). (Goal programming: Charnes and Cooper, 1961.)
    """
    T_eff_ref_ms: float  # best T_eff of the unpruned network
    A_ref: float  # accuracy of the unpruned network
    epsilon: float  # ε, allowed loss of accuracy
    kappa: float  # κ, price of missing the constraint
    mu: float  # μ, reward of accuracy

    @property
    def min_accuracy(self) -> float:
        """A_ref - ε."""
        return self.A_ref - self.epsilon

    @property
    def accuracy_scale(self) -> float:
        """The loss of accuracy that expectations are measured in: ε, or the smallest that is not noise."""
        return max(self.epsilon, SMALLEST_LOSS)

    def violation(self, accuracy: float) -> float:
        """ξ_A."""
        return max(0.0, self.min_accuracy - accuracy)

    def J(self, T_eff_ms: float, accuracy: float) -> float:
        """The objective."""
        return T_eff_ms / self.T_eff_ref_ms + self.kappa * self.violation(accuracy) - self.mu * accuracy

    def accuracy_to_beat(self, J: float, relative_T_eff: np.ndarray) -> np.ndarray:
        """The accuracy from which on networks with these T_eff / T_eff_ref [m] meet the constraint and lower J, [m]."""
        lowers_J = (relative_T_eff - J) / self.mu if self.mu > 0 else np.zeros(np.shape(relative_T_eff))
        return np.maximum(self.min_accuracy, lowers_J)
