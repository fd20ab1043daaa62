"""Networks whose margins are known on all validation images: J of each, and searches of ours that look them up.

What a search does without recovery is then a matter of seconds, and can be held against all other methods that see the
same networks (search_quality.py).
"""
from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from tqdm import tqdm

import config
from costs.cost_model import HardwareTable
from costs.goal import Goal
from domains.image_sets import ImageSet
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import BlockMask, PruningMask, mask_of
from network.gammas import fused_gamma
from network.inputs import normalise
from search import domain_search
from search.acquisition import RecoveryGain
from search.evaluator import Evaluator, accuracy_of, margins_of
from search.frontier import non_dominated
from search.pick import lowest_explored
from search.state import EvaluatedNetwork, SearchState, Work
from throughput_optimizer import solve_exact

SLOWEST = 1.0  # T_eff / T_eff_ref: what is slower than the unpruned network adds nothing to a frontier


def enumerate_margins(model: HyperRepVGG, alpha: np.ndarray, options: List[List[BlockMask]],
                      data: ImageSet, settings: config.Settings) -> Dict[PruningMask, np.ndarray]:
    """Margins [n] of every combination of options on all images, depth first: a prefix of blocks is run once for all
    that share it."""
    model.set_alpha_array(alpha)
    stem, n = deploy(model).stem, len(options)
    plans = []
    for block, row, choices in zip(model.blocks, alpha, options):
        values = [torch.as_tensor(np.where(keep, row, 0)[:block.n_branches], dtype=block.alpha.dtype)
                  for keep in choices]
        plans.append([build_plan(block, value, fused_gamma(keep)) for value, keep in zip(values, choices)])
    found: Dict[PruningMask, np.ndarray] = {}
    total = int(np.prod([len(choices) for choices in options]))
    with torch.inference_mode(), tqdm(total=total, desc='enumerating', unit='network', disable=None) as bar:
        def descend(depth: int, x: torch.Tensor, chosen: PruningMask) -> None:
            if depth == n:
                found[chosen] = margins_of(model.classify(x), data.labels)
                bar.update()
                return
            for plan, keep in zip(plans[depth], options[depth]):
                descend(depth + 1, plan(x), (*chosen, keep))

        descend(0, stem(normalise(data.images, settings.NORM_MEAN, settings.NORM_STD)), ())
    return found


class OnDemand(Dict[PruningMask, np.ndarray]):
    """Margins that are measured when they are first asked for."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.bar = tqdm(desc='measuring', unit='network', disable=None)

    def __missing__(self, mask: PruningMask) -> np.ndarray:
        self[mask] = self.evaluator.margins(mask)
        self.bar.update()
        return self[mask]


class Outcome(NamedTuple):
    """What a search has found."""
    J: float
    hypervolume: float  # of all networks that it evaluated
    networks: int


class KnownNetworks:
    """J of masks; counts the distinct networks that were asked for. The first is the unpruned one, which every method
    knows."""

    def __init__(self, margins: Dict[PruningMask, np.ndarray], table: HardwareTable, unpruned: PruningMask,
                 settings: config.Settings) -> None:
        self.margins, self.table, self.settings = margins, table, settings
        self.goal = Goal(domain_search.solve_unpruned(table, settings).times.T_eff_ms,
                         accuracy_of(margins[unpruned]), settings.EPSILON, settings.KAPPA, settings.MU)
        self.asked: Dict[PruningMask, float] = {}  # J
        self.points: List[Tuple[float, float]] = []  # (accuracy, T_eff / T_eff_ref) of what was asked for
        self.J(unpruned)

    def J(self, mask: PruningMask) -> float:
        """The objective of a mask, remembered."""
        if mask not in self.asked:
            T_eff_ms = solve_exact(self.table, np.array(mask), self.settings).times.T_eff_ms
            accuracy = accuracy_of(self.margins[mask])
            self.points.append((accuracy, T_eff_ms / self.goal.T_eff_ref_ms))
            self.asked[mask] = self.goal.J(T_eff_ms, accuracy)
        return self.asked[mask]

    def outcome(self, J: Optional[float] = None) -> Outcome:
        """What a search has found: this J, or the lowest of all."""
        accuracy, relative = np.array(self.points).T
        area = hypervolume(accuracy, relative, lowest_explored(self.goal), SLOWEST)
        return Outcome(min(self.asked.values()) if J is None else J, area, len(self.asked))


class KnownEvaluator:
    """In the place of search.evaluator.Evaluator: reads known margins and counts them."""
    block_evaluations = 0

    def __init__(self, known: KnownNetworks) -> None:
        self.known = known

    def use(self, alpha: np.ndarray) -> None:
        """All networks have the unpruned one's α."""

    def margins(self, mask: PruningMask) -> np.ndarray:
        """Read, and counted."""
        self.known.J(mask)
        return self.known.margins[mask]


class NoRecovery:
    """In the place of search.recovery.Recovery: α stays as it is, and the network is as accurate as it is known to be;
    what is not among the known ones is useless."""

    def __init__(self, known: KnownNetworks) -> None:
        self.known, self.work = known, Work()

    def gain(self, state: SearchState) -> RecoveryGain:
        """Nothing is won back."""
        return RecoveryGain(self.known.goal, prior_share=0.0, sd=0.0)

    def measure(self, alpha: np.ndarray) -> EvaluatedNetwork:
        """Read, and counted."""
        mask, accuracy = mask_of(alpha), 0.0
        if isinstance(self.known.margins, OnDemand) or mask in self.known.margins:
            self.known.J(mask)
            accuracy = accuracy_of(self.known.margins[mask])
        return EvaluatedNetwork(alpha, accuracy, accuracy)

    def train(self, alpha: np.ndarray, seed: int, before: EvaluatedNetwork) -> EvaluatedNetwork:
        """As it is."""
        return before

    def on_the_wire(self, network: EvaluatedNetwork, J_to_beat: float = 0) -> EvaluatedNetwork:
        """As it is."""
        return network


# --- how good a frontier is ---------------------------------------------------------------------------

def staircase(accuracy: np.ndarray, ms: np.ndarray, lowest_accuracy: float, slowest_ms: float,
             ) -> Tuple[np.ndarray, np.ndarray]:
    """The best accuracy that can be had within a time, as a staircase from 0 to `slowest_ms`: (where its steps begin
    [s], their heights [s]); `lowest_accuracy` where nothing is fast enough."""
    best = [i for i in non_dominated(accuracy, ms) if ms[i] < slowest_ms and accuracy[i] > lowest_accuracy]
    return np.array([0.0, *(ms[i] for i in best)]), np.array([lowest_accuracy, *(accuracy[i] for i in best)])


def hypervolume(accuracy: np.ndarray, ms: np.ndarray, lowest_accuracy: float, slowest_ms: float) -> float:
    """Area between the staircase of these points and the corner (lowest_accuracy, slowest_ms): more is better
    (Zitzler and Thiele, 1998)."""
    starts, heights = staircase(np.asarray(accuracy), np.asarray(ms), lowest_accuracy, slowest_ms)
    return float(((heights - lowest_accuracy) * np.diff(np.append(starts, slowest_ms))).sum())
