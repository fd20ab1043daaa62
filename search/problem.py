"""One domain's pruning problem: network, images, table and goal, and what a pruned network is worth."""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

import numpy as np

from config import Settings
from costs.cost_model import HardwareTable
from costs.goal import Goal
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG
from network.alpha import surviving_branches
from search.alpha_training import recalibrated_statistics
from search.cut_channels import ChannelChoice
from search.pruned_times import PrunedTimes
from search.state import CurvePoint, EvaluatedNetwork, SearchState
from throughput_optimizer_limit import check_possible

LEAST_IMPROVEMENT = 1e-6  # of J: less is rounding


@dataclass(frozen=True)
class PruningProblem:
    """What a search is given. `model` keeps its base weights; its α is whatever was set last."""
    model: HyperRepVGG
    train: ImageSet
    val: ImageSet
    unpruned: np.ndarray  # α [N, 3] of the network to prune
    importance: List[Tuple[int, int]]  # (block, branch), least important first
    goal: Goal
    times: PrunedTimes
    settings: Settings
    domain_id: int

    @property
    def table(self) -> HardwareTable:
        """The table that times come from."""
        return self.times.table

    @property
    def channel_choice(self) -> ChannelChoice:
        """Which channels a network sends where a wire format has a share."""
        return ChannelChoice(self.model, self.train, self.settings)

    def J_of(self, network: EvaluatedNetwork) -> float:
        """J of a network at its best γ, λ and wire format."""
        return self.goal.J(self.times.T_eff_ms(surviving_branches(network.alpha), network.formats), network.accuracy)

    def improves(self, network: EvaluatedNetwork, best: EvaluatedNetwork) -> bool:
        """Does it meet the accuracy constraint, and lower J?"""
        return (network.accuracy >= self.goal.min_accuracy and
                self.J_of(network) < self.J_of(best) - LEAST_IMPROVEMENT)

    def start(self) -> SearchState:
        """The state before anything is pruned. Raises `limits.NothingFits` when no pruning can meet the limits."""
        check_possible(self.table, self.settings)
        return SearchState(EvaluatedNetwork(self.unpruned, self.goal.A_ref, self.goal.A_ref), [])

    def accept(self, state: SearchState, network: EvaluatedNetwork) -> None:
        """Make a network the best so far."""
        state.best = network
        if network.is_narrow:
            state.narrow.append(network)  # its α may have been trained for the cut
        times = self.times.solve(network.alpha, network.formats).times
        state.curve.append(CurvePoint(int((network.alpha == 0).sum()), network.accuracy, times.T_eff_ms,
                                      times.throughput_fps))

    def statistics_for(self, alpha: np.ndarray) -> Tuple[np.ndarray, int]:
        """(BatchNorm statistics re-estimated for alpha, forward passes of one block on one image), a function of alpha,
        the training images and the seed alone. Leaves alpha in the model, its statistics as they are."""
        return recalibrated_statistics(self.model, alpha, self.unpruned, self.train, self.domain_id, self.settings)
