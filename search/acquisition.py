"""Which network is worth measuring, or recovering, next: the one that is expected to lower J most once recovered."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable, Sequence, Tuple

import numpy as np
import torch

from costs.goal import Goal
from network.alpha import PruningMask

PRIOR_SHARE = 0.2  # of lost accuracy that a recovery is assumed to win back before one was seen (benchmarks.recovery
#                    measured 0.15 to 0.25); counts like one recovery of a network that lost ε
LARGEST_SHARE = 0.75  # that is ever expected: a few lucky recoveries must not make every network look recoverable
RECOVERY_SD = 0.2  # of ε: how much recoveries differ, standard deviation (benchmarks.recovery)
LEAST_SD = 1e-9  # of an accuracy: an expectation has to divide by it


def cumulative(z: np.ndarray) -> np.ndarray:
    """Φ(z) of the standard normal distribution: the probability of a value of at most z; of the type of z."""
    return torch.special.ndtr(torch.as_tensor(z)).numpy()


def density(z: np.ndarray) -> np.ndarray:
    """φ(z) of the standard normal distribution."""
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def expected_improvement(accuracy: np.ndarray, sd: np.ndarray, relative_T_eff: np.ndarray, goal: Goal, best_J: float,
                         slack: float = 0.0) -> np.ndarray:
    """E[max(0, best_J - J)] of networks that only count when they meet the accuracy constraint, [m].

    J = T - μ·A with T = relative_T_eff [m], exact, and A normal around `accuracy` [m] with standard deviation `sd` [m].
    Let a be the accuracy from which on a network counts and lowers J (`slack` below the constraint still counts), and
    z = (a - accuracy) / sd. The integral is (best_J - T + μ·accuracy)·(1 - Φ(z)) + μ·sd·φ(z): Mockus, 1975, cut off at
    the constraint.
    """
    lowered = replace(goal, epsilon=goal.epsilon + slack)
    z = (lowered.accuracy_to_beat(best_J, relative_T_eff) - accuracy) / sd
    return np.maximum(0, (best_J - relative_T_eff + goal.mu * accuracy) * cumulative(-z) + goal.mu * sd * density(z))


class RecoveryGain:
    """What a recovery is expected to win back, learnt from those so far."""

    def __init__(self, goal: Goal, prior_share: float = PRIOR_SHARE, sd: float = RECOVERY_SD) -> None:
        """`prior_share` of lost accuracy is assumed to be won back before any was seen; `sd`: of recoveries, in ε."""
        self.goal, self._sd = goal, sd * goal.accuracy_scale
        self._lost = goal.accuracy_scale
        self._won = prior_share * self._lost

    def learn(self, before: float, after: float) -> None:
        """A network of this accuracy came to that by its recovery, and by a better α to start from if there was one."""
        self._lost += max(0.0, self.goal.A_ref - before)
        self._won += after - before

    @property
    def share(self) -> float:
        """The share of lost accuracy that a recovery wins back."""
        return min(max(self._won / self._lost, 0.0), LARGEST_SHARE)

    def after(self, accuracy: np.ndarray, sd: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(accuracy, standard deviation) [m] to expect after a recovery, from those before it."""
        return (accuracy + self.share * np.maximum(0, self.goal.A_ref - accuracy),
                np.maximum(np.hypot((1 - self.share) * sd, self._sd), LEAST_SD))


class Acquisition:
    """Rates masks by the improvement of J to expect of them once they are recovered."""

    def __init__(self, goal: Goal, relative_T_eff: Callable[[Sequence[PruningMask]], np.ndarray],
                 slack: float) -> None:
        """`slack`: a predicted accuracy so far below the constraint still counts; half an image."""
        self.goal, self.relative_T_eff, self.slack = goal, relative_T_eff, slack

    def improvements(self, masks: Sequence[PruningMask], accuracy: np.ndarray, sd: np.ndarray, gain: RecoveryGain,
                     best_J: float) -> np.ndarray:
        """Expected improvement [m] of masks whose accuracy without recovery is normal around `accuracy` [m] with `sd`
        [m]; sd 0: it was measured."""
        recovered, recovered_sd = gain.after(accuracy, sd)
        return expected_improvement(recovered, recovered_sd, self.relative_T_eff(masks), self.goal, best_J,
                                    self.slack)
