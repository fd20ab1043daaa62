"""Recovery: a short training of α, and only α, that wins back accuracy after pruning, or where not all channels of a
cut are sent; and the accuracy after it."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable, List, Union

import numpy as np

from hyper_repvgg import HyperRepVGG
from network import batchnorm
from network.alpha import mask_of
from search import alpha_training
from search.acquisition import RecoveryGain
from search.cut_channels import WithoutChannels
from search.int8_loss import uses_int8
from search.problem import PruningProblem
from search.state import EvaluatedNetwork, SearchState, Work
from search.wire_loss import WireLoss
from wire.formats import format_at, is_lossless, share_of

VALIDATIONS = 4  # of a training, evenly spaced: each takes as long as five steps, and the best network counts
PATIENCE = 2  # validations without a better network after which a training ends: one alone may be worse by chance
WON_BACK = 0.5  # of what missing channels cost, by a recovery at the cut: about what benchmarks.channel_recovery finds


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
        best = self._best_met(self.problem.model, alpha, seed, before, self.measure)
        if self.problem.settings.RECALIBRATE_BN and best is not before:
            best = max(best, self.recalibrated(best.alpha), key=lambda network: network.accuracy)
        return best

    def train_at_cut(self, network: EvaluatedNetwork, split: int, wire: str, measured: WireLoss) -> EvaluatedNetwork:
        """`train` of a network that sends some of its channels at `split`, as `wire`, with the others missing in the
        forward pass. Every validation is what `measured` says of that α, with the channels that are chosen for it."""
        problem = self.problem

        def measure(alpha: np.ndarray) -> EvaluatedNetwork:
            lossless = self.measure(alpha).accuracy
            return replace(network, alpha=alpha, accuracy=measured.accuracy(alpha, split, wire, lossless),
                           lossless_accuracy=lossless)

        seed = alpha_training.seed_of(problem.settings.SEED, problem.domain_id, split,
                                      *(int(kept) for row in mask_of(network.alpha) for kept in row))
        model = WithoutChannels(problem.model, split, measured.channels(network.alpha, split, wire))
        return self._best_met(model, network.alpha, seed, network, measure)

    def _best_met(self, model: Union[HyperRepVGG, WithoutChannels], alpha: np.ndarray, seed: int,
                  before: EvaluatedNetwork, measure: Callable[[np.ndarray], EvaluatedNetwork]) -> EvaluatedNetwork:
        """The most accurate of `before` and of what `measure` says of networks on the way of a training of `model`."""
        settings, results = self.problem.settings, [before]
        every = -(-settings.RECOVERY_STEPS // VALIDATIONS)
        images = min(settings.RECOVERY_BATCH_SIZE, len(self.problem.train))

        def stop(done: int) -> bool:
            self.work.trained_block_images += len(alpha) * images
            if done % every and done < settings.RECOVERY_STEPS:
                return False
            results.append(replace(measure(self.problem.model.alpha_array()), recovered=True))
            return len(results) - 1 - best_index(results) >= PATIENCE

        self.problem.model.set_alpha_array(alpha)
        if settings.RECOVERY_STEPS:
            alpha_training.train_alpha(model, self.problem.train, settings, settings.RECOVERY_STEPS,
                                       settings.RECOVERY_LR, seed, stop, settings.RECOVERY_BATCH_SIZE)
        return results[best_index(results)]

    def recalibrated(self, alpha: np.ndarray) -> EvaluatedNetwork:
        """The network with re-estimated BatchNorm statistics; the model's own are put back."""
        statistics, work = self.problem.statistics_for(alpha)
        self.work.block_evaluations += work
        with batchnorm.using(self.problem.model, statistics):
            return replace(self.measure(alpha), recovered=True, recalibrated=True)

    def on_the_wire(self, network: EvaluatedNetwork, J_to_beat: float = math.inf) -> EvaluatedNetwork:
        """The network with the wire formats that give the lowest J, each with the accuracy that it leaves. Formats
        without loss cost nothing to rate. Of those that do not send all channels, the one that promises most is tried
        with a recovery at its cut, where that may lower J, and below `J_to_beat`."""
        problem = self.problem
        if all(is_lossless(wire) for wire in problem.settings.WIRE_FORMATS) and not uses_int8(problem.settings):
            return network
        statistics, work = problem.statistics_for(network.alpha) if network.recalibrated else (None, 0)
        self.work.block_evaluations += work
        measured = WireLoss(problem.model, problem.val, problem.settings, lambda alpha: statistics,
                            problem.channel_choice)
        options, narrow = [], []
        for formats in problem.times.formats:
            at = problem.times.solve(network.alpha, formats)
            accuracy = measured.accuracy(network.alpha, at.split, at.wire, network.lossless_accuracy,
                                         network.recalibrated)
            options.append(replace(network, accuracy=accuracy, formats=formats))
            if share_of(format_at(at.split, len(network.alpha), at.wire)) < 1 and not network.recalibrated:
                narrow.append((options[-1], at))
        best = min(options, key=problem.J_of)
        if narrow:
            promising, at = min(narrow, key=lambda option: problem.J_of(won_back(option[0])))
            if problem.J_of(won_back(promising)) < min(problem.J_of(best), J_to_beat):
                best = min(best, self.train_at_cut(promising, at.split, at.wire, measured), key=problem.J_of)
        self.work.block_evaluations += measured.block_evaluations
        return best


def won_back(network: EvaluatedNetwork) -> EvaluatedNetwork:
    """What a network that does not send all channels may be after a recovery at its cut."""
    return replace(network, accuracy=network.accuracy + WON_BACK * (network.lossless_accuracy - network.accuracy))


def best_index(networks: List[EvaluatedNetwork]) -> int:
    """Which is the most accurate; of equal ones the first."""
    return int(np.argmax([network.accuracy for network in networks]))
