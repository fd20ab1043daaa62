"""Design section 7: choose α, γ and λ of one domain jointly, by pruning progressively.

A candidate is a smaller set of surviving branches for one block. Its time is exact and nearly free (γ and λ are
re-solved); its accuracy costs forward passes. So each round
  1. lists every candidate that saves time, and branches whose α has all but vanished;
  2. looks at a shortlist (by time saved and by importance) without recovery, from cached activations: a candidate
     changes nothing before its block;
  3. takes them by time saved per accuracy lost, gives each a short recovery of α and judges it on all validation
     images;
  4. accepts the first one that lowers J within the constraint, undoes the others.
Where fusing is free, dropping 1x1 or identity beside a dense branch saves nothing and is never a candidate for its
time; blocks without their 3x3 are what saves.
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch

import alpha_training
from config import Settings
from cost_model import HardwareTable, goal, other_tier
from evaluation import ImageSet, batches, normalise
from gamma_configurator import build_plan, fused_gamma
from gamma_mask_builder import build_gamma_mask
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy, surviving_branches
from repvgg import BRANCHES
from throughput_optimizer import Solution, fastest_gammas
from throughput_optimizer_limit import check_possible, solve_or_nearest, solve_within_limits

Keep = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
# A look so far below the constraint that no recovery is likely to make up for it is not judged (fractions of 1): at
# first a fixed margin, after some judgements one and a half times the best recovery seen in this search.
HOPELESS, HOPELESS_AFTER, RECOVERY_FACTOR, LEAST_RECOVERY = 0.10, 6, 1.5, 0.01


@dataclass(frozen=True)
class Candidate:
    """Block `block` would keep only `keep`."""
    block: int
    keep: Keep
    T_eff_ms: float

    @property
    def key(self) -> Tuple[int, Keep]:
        """Identifies the change, whatever else is pruned."""
        return self.block, self.keep


@dataclass(frozen=True)
class CurvePoint:
    """One accepted change."""
    n_pruned: int
    accuracy: float  # validation
    T_eff_ms: float
    throughput_fps: float


@dataclass
class SearchState:
    """Everything a search needs to go on from here."""
    alpha: np.ndarray  # [N, 3]
    accuracy: float  # validation, of alpha
    curve: List[CurvePoint]
    rejected: Set[Tuple[int, Keep]] = field(default_factory=set)  # judged and undone; not judged again
    rounds: int = 0
    polished: bool = False
    finished: bool = False
    judged: int = 0
    best_recovery: float = 0.0  # most accuracy that a recovery won over its look
    block_evaluations: int = 0  # forward passes of one block on one validation image


class PrefixActivations:
    """The inputs of blocks for all validation images, cached for as many blocks as fit into `max_bytes`, the last
    ones first: they are the smallest and save the most."""

    def __init__(self, network: DeployedNetwork, data: ImageSet, settings: Settings) -> None:
        self.settings, self.data = settings, data
        self.cached: Dict[int, torch.Tensor] = {}
        parts: Dict[int, List[torch.Tensor]] = {}
        allowed: Optional[Set[int]] = None
        for part in batches(len(data), settings.BATCH_SIZE):
            x = network.stem(normalise(data.images[part], settings.NORM_MEAN, settings.NORM_STD))
            inputs = []
            for block in network.blocks:
                inputs.append(x)
                x = block(x)
            if allowed is None:
                allowed = self._fitting([len(data) / len(x) * z.numel() * z.element_size() for z in inputs])
            for k in allowed:
                parts.setdefault(k, []).append(inputs[k])
        self.cached = {k: torch.cat(tensors) for k, tensors in parts.items()}

    def _fitting(self, n_bytes: Sequence[float]) -> Set[int]:
        left, allowed = self.settings.ACTIVATION_CACHE_MB * 2.0 ** 20, set()
        for k in reversed(range(len(n_bytes))):
            left -= n_bytes[k]
            if left < 0:
                break
            allowed.add(k)
        return allowed

    def batches_before(self, block: int):
        """(first block still to run, its input [B, ...], labels [B]) of each batch, for evaluating from `block` on.
        First block -1: the input is normalised images."""
        start = max((k for k in self.cached if k <= block), default=-1)
        for part in batches(len(self.data), self.settings.BATCH_SIZE):
            x = (self.cached[start][part] if start >= 0 else
                 normalise(self.data.images[part], self.settings.NORM_MEAN, self.settings.NORM_STD))
            yield start, x, self.data.labels[part]


class JointSearch:
    """The search of one domain. `run` calls `save(state)` after every round, so that it can be resumed."""

    def __init__(self, model: HyperRepVGG, table: HardwareTable, train: ImageSet, val: ImageSet, settings: Settings,
                 domain_id: int, reference: float, T_eff_ref_ms: float, importance: Sequence[Tuple[int, int]]) -> None:
        self.model, self.table, self.settings = model, table, settings
        self.train, self.val, self.domain_id = train, val, domain_id
        self.reference, self.T_eff_ref_ms = reference, T_eff_ref_ms  # A_ref; best T_eff without pruning
        self.importance = list(importance)  # (block, branch), least important first

    # --- what a state is worth ---

    def solve(self, alpha: np.ndarray) -> Solution:
        """Optimal γ and λ for what survives in alpha; while nothing is within the limits, the nearest."""
        return solve_or_nearest(self.table, surviving_branches(alpha), self.settings)[0]

    def final(self, alpha: np.ndarray) -> Solution:
        """The same for the end of a search. Raises `limits.NothingFits` when nothing is within the limits."""
        return solve_within_limits(self.table, surviving_branches(alpha), self.settings)

    def T_eff_ms(self, surviving: np.ndarray) -> float:
        """T_eff at the best γ and λ of these branches. While nothing is within the limits, T_eff of the nearest plus
        κ·T_eff_ref for what it exceeds its worst limit by, so that J prices that as it prices lost accuracy."""
        solution, excess = solve_or_nearest(self.table, surviving, self.settings)
        return solution.times.T_eff_ms + self.settings.KAPPA * excess * self.T_eff_ref_ms

    def J(self, T_eff_ms: float, accuracy: float) -> float:
        """The goal-programming objective."""
        return goal(T_eff_ms, self.T_eff_ref_ms, accuracy, self.reference, self.settings.EPSILON,
                    self.settings.KAPPA, self.settings.MU)[0]

    def start(self, alpha: np.ndarray, accuracy: float) -> SearchState:
        """The state before anything is pruned. Raises `limits.NothingFits` when no pruning can meet the limits."""
        check_possible(self.table, self.settings)
        times = self.solve(alpha).times
        return SearchState(alpha, accuracy, [CurvePoint(0, accuracy, times.T_eff_ms, times.throughput_fps)])

    # --- candidates ---

    def candidates(self, state: SearchState) -> List[Candidate]:
        """Changes not yet rejected, most time saved first: those that save MIN_SAVING, and single branches whose |α|
        is below PRUNING_THRESHOLD. Of one block's changes only those that save MIN_SAVING more than another that
        keeps all their branches and more."""
        surviving = surviving_branches(state.alpha)
        least_ms = self.settings.MIN_SAVING * self.T_eff_ref_ms
        now = self.T_eff_ms(surviving)
        found = []
        for block, row in enumerate(surviving):
            T_eff_ms = {tuple(row): now}
            for keep in reversed(smaller_sets(tuple(row))):  # larger sets first
                changed = surviving.copy()
                changed[block] = keep
                T_eff_ms[keep] = self.T_eff_ms(changed)
            for keep, value in T_eff_ms.items():
                worthwhile = all(value <= other - least_ms for larger, other in T_eff_ms.items()
                                 if larger != keep and all(a or not b for a, b in zip(larger, keep)))
                dropped = row & ~np.array(keep)
                vanished = dropped.sum() == 1 and (abs(state.alpha[block][dropped][0]) <
                                                   self.settings.PRUNING_THRESHOLD)
                if dropped.any() and (worthwhile or vanished) and (block, keep) not in state.rejected:
                    found.append(Candidate(block, keep, value))
        return sorted(found, key=lambda c: (c.T_eff_ms, c.block, c.keep))

    def shortlist(self, candidates: List[Candidate]) -> List[Candidate]:
        """At most LOOKS_PER_ROUND of them, taken in turn from the ranking by time and the ranking by importance."""
        rank = {pair: position for position, pair in enumerate(self.importance)}
        last = len(rank)

        def importance(candidate: Candidate) -> float:
            dropped = [b for b, kept in enumerate(candidate.keep) if not kept]
            return max(rank.get((candidate.block, b), last) for b in dropped)

        by_importance = sorted(candidates, key=importance)
        chosen: Dict[Tuple[int, Keep], Candidate] = {}
        for pair in zip(candidates, by_importance):
            for candidate in pair:
                if len(chosen) < self.settings.LOOKS_PER_ROUND:
                    chosen[candidate.key] = candidate
        return list(chosen.values())

    # --- looking and judging ---

    def look(self, state: SearchState, shortlist: List[Candidate]) -> List[Tuple[float, Candidate]]:
        """Validation accuracy of every candidate without recovery."""
        self.model.set_alpha_array(state.alpha)
        network = deploy(self.model)
        looked = []
        with torch.inference_mode():
            prefix = PrefixActivations(network, self.val, self.settings)
            state.block_evaluations += len(network.blocks) * len(self.val)
            for candidate in shortlist:
                block = self.model.blocks[candidate.block]
                alpha = torch.as_tensor(np.where(candidate.keep, state.alpha[candidate.block], 0)[:block.n_branches],
                                        dtype=block.alpha.dtype)
                plans = list(network.blocks)
                plans[candidate.block] = build_plan(block, alpha, fused_gamma(candidate.keep))
                correct = 0
                for first, x, labels in prefix.batches_before(candidate.block):
                    x = network.stem(x) if first < 0 else x
                    for plan in plans[max(first, 0):]:
                        x = plan(x)
                    correct += int((network.classify(x).argmax(1) == labels).sum())
                    state.block_evaluations += (len(plans) - max(first, 0)) * len(labels)
                looked.append((correct / len(self.val), candidate))
        return looked

    def judge(self, state: SearchState, candidate: Candidate) -> Tuple[float, np.ndarray]:
        """Validation accuracy and α after a short recovery; the α without it where that is no worse."""
        alpha = state.alpha.copy()
        alpha[candidate.block] = np.where(np.isnan(alpha[candidate.block]), np.nan,
                                          np.where(candidate.keep, alpha[candidate.block], 0.0))
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, state.rounds, candidate.block,
                                      *map(int, candidate.keep))
        return self.recovered(state, alpha, self.settings.RECOVERY_STEPS, seed, self.l1_weights(alpha))

    def recovered(self, state: SearchState, alpha: np.ndarray, steps: int, seed: int, l1: Optional[np.ndarray],
                  ) -> Tuple[float, np.ndarray]:
        """Train α from here; (validation accuracy, α) of the better of before and after."""
        self.model.set_alpha_array(alpha)
        results = [(self.validate(state), alpha)]
        if steps:
            alpha_training.train_alpha(self.model, self.train, self.settings, steps, self.settings.RECOVERY_LR, seed,
                                       l1)
            trained = self.model.alpha_array()
            results.append((self.validate(state), trained))
        return max(results, key=lambda result: result[0])

    def validate(self, state: SearchState) -> float:
        """Accuracy of the model as it stands on all validation images."""
        state.block_evaluations += len(self.model.blocks) * len(self.val)
        return alpha_training.accuracy(self.model, self.val, self.settings)

    def l1_weights(self, alpha: np.ndarray) -> np.ndarray:
        """L1_WEIGHT times the time that each branch costs on its tier, as a share of T_eff_ref: [N, 3]."""
        solution = self.solve(alpha)
        cost = branch_cost_ms(self.table, surviving_branches(alpha), solution.split, self.settings.HEAD_TIER)
        return self.settings.L1_WEIGHT * cost / self.T_eff_ref_ms

    # --- the search ---

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Rounds until no candidate lowers J or MAX_PRUNING_ROUNDS changes have been accepted."""
        while not state.finished:
            if len(state.curve) > self.settings.MAX_PRUNING_ROUNDS or not self.round(state):
                state.finished = not self.polish(state)
            state.rounds += 1
            save(state)
        return state

    def round(self, state: SearchState) -> bool:
        """Try to accept one change; False when nothing worth judging is left."""
        shortlist = self.shortlist(self.candidates(state))
        if not shortlist:
            return False
        now = self.T_eff_ms(surviving_branches(state.alpha))
        floor = 1 / len(self.val)  # one image: below that a loss is not seen

        def gain(accuracy: float, candidate: Candidate) -> float:
            return (now - candidate.T_eff_ms) / self.T_eff_ref_ms / max(state.accuracy - accuracy, floor)

        bound = self.reference - self.settings.EPSILON
        looked = sorted(self.look(state, shortlist), key=lambda item: -gain(*item))
        lowest = bound - recoverable(state)
        state.rejected |= {candidate.key for accuracy, candidate in looked if accuracy < lowest}
        worthy = [item for item in looked if item[0] >= lowest]
        for look, candidate in worthy[:self.settings.CANDIDATES_PER_ROUND]:
            accuracy, alpha = self.judge(state, candidate)
            state.judged += 1
            state.best_recovery = max(state.best_recovery, accuracy - look)
            if accuracy >= bound and self.J(candidate.T_eff_ms, accuracy) < self.J(now, state.accuracy):
                self.accept(state, accuracy, alpha)
                break
            state.rejected.add(candidate.key)
        return True

    def accept(self, state: SearchState, accuracy: float, alpha: np.ndarray) -> None:
        """Make a judged change the new state."""
        state.alpha, state.accuracy = alpha, accuracy
        times = self.solve(alpha).times
        n_pruned = int((alpha == 0).sum())
        state.curve.append(CurvePoint(n_pruned, accuracy, times.T_eff_ms, times.throughput_fps))

    def polish(self, state: SearchState) -> bool:
        """Once, when nothing more can be pruned: a longer recovery without L1. True when the accuracy that it won
        makes another try at rejected candidates worthwhile."""
        if state.polished:
            return False
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, state.rounds)
        accuracy, alpha = self.recovered(state, state.alpha, 3 * self.settings.RECOVERY_STEPS, seed, None)
        won = accuracy > state.accuracy
        state.alpha, state.accuracy, state.polished = alpha, accuracy, True
        if won:
            state.curve[-1] = CurvePoint(state.curve[-1].n_pruned, accuracy, state.curve[-1].T_eff_ms,
                                         state.curve[-1].throughput_fps)
            state.rejected.clear()
        return won


def recoverable(state: SearchState) -> float:
    """How much accuracy a recovery may win back, judging by those seen."""
    if state.judged < HOPELESS_AFTER:
        return HOPELESS
    return max(LEAST_RECOVERY, RECOVERY_FACTOR * state.best_recovery)


def smaller_sets(surviving: Keep) -> List[Keep]:
    """All non-empty proper subsets of a block's surviving branches."""
    alive = [b for b, survives in enumerate(surviving) if survives]
    return [tuple(b in chosen for b in range(len(BRANCHES)))
            for size in range(1, len(alive)) for chosen in itertools.combinations(alive, size)]


def branch_cost_ms(table: HardwareTable, surviving: np.ndarray, split: int, head_tier: str) -> np.ndarray:
    """What each surviving branch costs on the tier that its block runs on: the block's fastest time with it less the
    fastest without it, [N, 3]; 0 where it is the last branch or costs nothing, NaN where there is no branch."""
    cost = np.where(np.isnan(table.flops[:, [0, 1, 2]]), np.nan, 0.0)  # γ 0, 1, 2 run one branch each, in this order
    for block, row in enumerate(surviving):
        block_ms = table.T_ms[head_tier if block < split else other_tier(head_tier)][block]
        for branch in np.flatnonzero(row):
            without = np.array([survives and b != branch for b, survives in enumerate(row)])
            if without.any():
                cost[block, branch] = max(0.0, fastest_ms(block_ms, row) - fastest_ms(block_ms, without))
    return cost


def fastest_ms(block_ms: np.ndarray, keep: np.ndarray) -> float:
    """Time of one block ([14] ms) under the fastest γ that runs exactly these branches (bool [3])."""
    return float(fastest_gammas(block_ms[None], build_gamma_mask(keep[None]))[1][0])
