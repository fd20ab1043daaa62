"""Recovery: a short training of α, and only α, that wins back accuracy after pruning; and the accuracy after it."""
from __future__ import annotations

from dataclasses import replace
from typing import List

import numpy as np

from network import batchnorm
from search import alpha_training
from search.acquisition import RecoveryGain
from search.int8_loss import uses_int8
from search.problem import PruningProblem
from search.state import EvaluatedNetwork, SearchState, Work
from search.wire_loss import WireLoss
from wire.formats import is_lossless

VALIDATIONS = 4  # of a training, evenly spaced: each takes as long as five steps, and the best network counts
PATIENCE = 2  # validations without a better network after which a training ends: one alone may be worse by chance


class Recovery:
    """Trains the α of pruned networks of one problem and measures them; `work` is what that took."""

    def __init__(self, problem: PruningProblem) -> None:
        self.problem, self.work = problem, Work()

    def gain(self, state: SearchState) -> RecoveryGain:
        """What recoveries win back, learnt from those so far."""
        gain = RecoveryGain(self.problem.goal)
        for mask, network in state.recovered.items():
            gain.learn(state.measured[mask].accuracy, network.lossless_accuracy)
        return gain

    def measure(self, alpha: np.ndarray) -> EvaluatedNetwork:
        """The network with this α [N, 3] on all validation images; the model keeps the α."""
        problem = self.problem
        problem.model.set_alpha_array(alpha)
        accuracy = alpha_training.accuracy(problem.model, problem.val, problem.settings)
        self.work.block_evaluations += len(alpha) * len(problem.val)
        return EvaluatedNetwork(alpha, accuracy, accuracy)

    def train(self, alpha: np.ndarray, seed: int, before: EvaluatedNetwork) -> EvaluatedNetwork:
        """The most accurate of `before` and of the networks that are met while α [N, 3] trains from here for at most
        RECOVERY_STEPS steps. Ends when PATIENCE validations in a row were no better."""
        settings, results = self.problem.settings, [before]
        every = -(-settings.RECOVERY_STEPS // VALIDATIONS)
        images = min(settings.RECOVERY_BATCH_SIZE, len(self.problem.train))

        def stop(done: int) -> bool:
            self.work.trained_block_images += len(alpha) * images
            if done % every and done < settings.RECOVERY_STEPS:
                return False
            results.append(replace(self.measure(self.problem.model.alpha_array()), recovered=True))
            return len(results) - 1 - best_index(results) >= PATIENCE

        self.problem.model.set_alpha_array(alpha)
        if settings.RECOVERY_STEPS:
            alpha_training.train_alpha(self.problem.model, self.problem.train, settings, settings.RECOVERY_STEPS,
                                       settings.RECOVERY_LR, seed, stop, settings.RECOVERY_BATCH_SIZE)
        best = results[best_index(results)]
        if settings.RECALIBRATE_BN and best is not before:
            best = max(best, self.recalibrated(best.alpha), key=lambda network: network.accuracy)
        return best

    def recalibrated(self, alpha: np.ndarray) -> EvaluatedNetwork:
        """The network with re-estimated BatchNorm statistics; the model's own are put back."""
        statistics, work = self.problem.statistics_for(alpha)
        self.work.block_evaluations += work
        with batchnorm.using(self.problem.model, statistics):
            return replace(self.measure(alpha), recovered=True, recalibrated=True)

    def on_the_wire(self, network: EvaluatedNetwork) -> EvaluatedNetwork:
        """The network with the wire formats that give the lowest J, each with the accuracy that it leaves. Formats
        without loss cost nothing to rate."""
        problem = self.problem
        if all(is_lossless(wire) for wire in problem.settings.WIRE_FORMATS) and not uses_int8(problem.settings):
            return network
        statistics, work = problem.statistics_for(network.alpha) if network.recalibrated else (None, 0)
        self.work.block_evaluations += work
        measured = WireLoss(problem.model, problem.val, problem.settings, lambda alpha: statistics,
                            problem.channel_choice)
        options = []
        for formats in problem.times.formats:
            solution = problem.times.solve(network.alpha, formats)
            accuracy = measured.accuracy(network.alpha, solution.split, solution.wire, network.lossless_accuracy,
                                         network.recalibrated)
            options.append(replace(network, accuracy=accuracy, formats=formats))
        self.work.block_evaluations += measured.block_evaluations
        return min(options, key=problem.J_of)


def best_index(networks: List[EvaluatedNetwork]) -> int:
    """Which is the most accurate; of equal ones the first."""
    return int(np.argmax([network.accuracy for network in networks]))
