"""What every pruning search shares: its state, what a state is worth, recovery, acceptance, the loop."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import numpy as np
import torch

from config import Settings
from costs.cost_model import HardwareTable, Solution, goal
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from network.alpha import surviving_branches
from network.inputs import normalise
from search import alpha_training, hardest_first
from search.hardest_first import Look, margins_of
from search.prefix_activations import Choice, Keep, choice_of
from search.wire_loss import WireLoss
from throughput_optimizer_limit import check_possible, solve_or_nearest, solve_within_limits
from wire.formats import by_loss, is_lossless

LONGER = 4  # times RECOVERY_STEPS: the longer recovery, at most
PATIENCE = 2  # validations without a better network after which a recovery ends

Formats = Optional[Tuple[str, ...]]  # wire formats that a network may use; None: all of WIRE_FORMATS


@dataclass(frozen=True)
class CurvePoint:
    """One accepted change."""
    n_pruned: int
    accuracy: float  # validation
    T_eff_ms: float
    throughput_fps: float


@dataclass(frozen=True)
class Judgement:
    """A pruned network after its recovery."""
    accuracy: float  # validation; with the loss of the wire format where `formats` is given
    alpha: np.ndarray  # [N, 3]
    recalibrated: bool = False  # measured with BatchNorm statistics re-estimated for this alpha
    formats: Formats = None  # those for which the accuracy holds, at the split that is best with them
    lossless: Optional[float] = None  # validation accuracy without the loss of a wire format; None: `accuracy` is
    estimated: bool = False  # given up on a part of the images: on all it would not be accurate enough to be accepted
    longer: bool = False  # its α has had the longer recovery

    @property
    def lossless_accuracy(self) -> float:
        """Validation accuracy of the network itself."""
        return self.accuracy if self.lossless is None else self.lossless


@dataclass
class SearchState:
    """Everything a search needs to go on from here."""
    alpha: np.ndarray  # [N, 3], of the best network so far
    accuracy: float  # validation, of alpha
    curve: List[CurvePoint]
    shared_alpha: np.ndarray  # [N, 3], from which every pruned network's α starts
    looks: Dict[Choice, Look] = field(default_factory=dict)  # validation accuracy under shared_alpha
    lowest_margins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float16))  # [n], of all networks so far
    judged: Dict[Choice, Judgement] = field(default_factory=dict)
    rejected: Set[Tuple[int, Keep]] = field(default_factory=set)  # single changes that were undone (sequential search)
    rounds: int = 0
    recalibrated: bool = False  # of alpha, as in Judgement
    polished: bool = False  # has the best network had its longer recovery?
    gone_further: bool = False  # were its neighbours tried under its own α?
    finished: bool = False
    block_evaluations: int = 0  # forward passes of one block on one validation image
    trained_block_images: int = 0  # forward and backward passes of one block on one training image
    formats: Formats = None  # wire formats for which `accuracy` holds
    lossless: Optional[float] = None  # of alpha, as in Judgement
    frontier_steps: int = 0  # looks and recoveries that were spent on the frontier


def recalibrated_statistics(model: HyperRepVGG, alpha: np.ndarray, unpruned: np.ndarray, train: ImageSet,
                            domain_id: int, settings: Settings) -> Tuple[np.ndarray, int]:
    """`batchnorm.recalibrated_for` with the seed of the domain."""
    return batchnorm.recalibrated_for(model, alpha, unpruned, train, settings,
                                      alpha_training.seed_of(settings.SEED, domain_id))


class PruningSearch:
    """The search of one domain; a subclass says what a round tries. `run` calls `save(state)` after every round, so
    that it can be resumed."""

    def __init__(self, model: HyperRepVGG, table: HardwareTable, train: ImageSet, val: ImageSet, settings: Settings,
                 domain_id: int, unpruned: np.ndarray, reference: float, T_eff_ref_ms: float,
                 importance: Sequence[Tuple[int, int]]) -> None:
        self.model, self.table, self.settings = model, table, settings
        self.train, self.val, self.domain_id = train, val, domain_id
        self.unpruned, self.reference = unpruned, reference  # α [N, 3] of the network to prune; A_ref, its accuracy
        self.T_eff_ref_ms = T_eff_ref_ms  # best T_eff without pruning
        self.importance = list(importance)  # (block, branch), least important first
        self.bound = reference - settings.EPSILON
        self.formats = by_loss(settings.WIRE_FORMATS)
        self._settings_with = {formats: replace(settings, WIRE_FORMATS=formats) for formats in self.formats}

    # --- what a state is worth ---

    def settings_with(self, formats: Formats) -> Settings:
        """The settings with some of the wire formats."""
        return self.settings if formats is None else self._settings_with[formats]

    def solve(self, alpha: np.ndarray, formats: Formats = None) -> Solution:
        """Optimal γ, λ and wire format for what survives in alpha; while nothing is within the limits, the nearest."""
        return solve_or_nearest(self.table, surviving_branches(alpha), self.settings_with(formats))[0]

    def final(self, alpha: np.ndarray) -> Solution:
        """The same for the end of a search. Raises `limits.NothingFits` when nothing is within the limits."""
        return solve_within_limits(self.table, surviving_branches(alpha), self.settings)

    def T_eff_ms(self, surviving: np.ndarray, formats: Formats = None) -> float:
        """T_eff at the best γ and λ of these branches. While nothing is within the limits, T_eff of the nearest plus
        κ·T_eff_ref for what it exceeds its worst limit by, so that J prices that as it prices lost accuracy."""
        solution, excess = solve_or_nearest(self.table, surviving, self.settings_with(formats))
        return solution.times.T_eff_ms + self.settings.KAPPA * excess * self.T_eff_ref_ms

    def J(self, T_eff_ms: float, accuracy: float) -> float:
        """The goal-programming objective."""
        return goal(T_eff_ms, self.T_eff_ref_ms, accuracy, self.reference, self.settings.EPSILON,
                    self.settings.KAPPA, self.settings.MU)[0]

    def J_of(self, network: Union[SearchState, Judgement]) -> float:
        """J of a judged network, or of the best so far."""
        return self.J(self.T_eff_ms(surviving_branches(network.alpha), network.formats), network.accuracy)

    def start(self) -> SearchState:
        """The state before anything is pruned. Raises `limits.NothingFits` when no pruning can meet the limits."""
        check_possible(self.table, self.settings)
        state = SearchState(self.unpruned, self.reference, [], self.unpruned)
        self.share_alpha(state)
        state.lowest_margins = np.full(len(self.val), hardest_first.LARGEST_MARGIN, np.float16)
        look = self.look_at_all_branches(state)
        state.looks[choice_of(self.unpruned)], state.lowest_margins = look, look.margins
        self.accept(state, self.on_the_wire(state, Judgement(self.reference, self.unpruned)))
        return state

    # --- judging and accepting ---

    def train_alpha(self, state: SearchState, steps: int, learning_rate: float, seed: int, stop: Callable[[int], bool],
                    l1: Optional[np.ndarray] = None, kept_at: Optional[Callable[[int], np.ndarray]] = None) -> None:
        """`alpha_training.train_alpha` with batches as recoveries have them, from the α that the model has; counted."""
        images = min(self.settings.RECOVERY_BATCH_SIZE, len(self.train))

        def counted(done: int) -> bool:
            state.trained_block_images += len(self.model.blocks) * images
            return stop(done)

        alpha_training.train_alpha(self.model, self.train, self.settings, steps, learning_rate, seed, l1, counted,
                                   self.settings.RECOVERY_BATCH_SIZE, kept_at)

    def recovered(self, state: SearchState, alpha: np.ndarray, steps: int, seed: int, l1: Optional[np.ndarray],
                  before: Optional[Judgement] = None, needed: float = 0.0) -> Judgement:
        """Train α from here; the best of what was known `before` and of the validations after every RECOVERY_STEPS
        steps. Ends early when PATIENCE validations in a row were no better than the best. A validation ends when it is
        known to be below `needed` or no better than the best."""
        self.model.set_alpha_array(alpha)
        results = [] if before is None else [before]

        def better() -> float:
            return max([needed, *(result.accuracy + 0.5 / len(self.val) for result in results)])

        def stop(done: int) -> bool:
            if done % self.settings.RECOVERY_STEPS and done < steps:
                return False
            results.append(self.validated(state, self.model.alpha_array(), better()))
            best = int(np.argmax([result.accuracy for result in results]))
            return len(results) - 1 - best >= PATIENCE

        if steps:
            self.train_alpha(state, steps, self.settings.RECOVERY_LR, seed, stop, l1)
        if not results:
            results.append(self.validated(state, alpha, needed))
        best = max(results, key=lambda result: result.accuracy)
        if self.settings.RECALIBRATE_BN and best is not before:
            best = max(best, self.recalibrated(state, best.alpha, better()), key=lambda result: result.accuracy)
        return best

    def recalibrated(self, state: SearchState, alpha: np.ndarray, needed: float = 0.0) -> Judgement:
        """This network with re-estimated BatchNorm statistics; the model's own are put back."""
        statistics, work = self.statistics_for(alpha)
        state.block_evaluations += work
        with batchnorm.using(self.model, statistics):
            return replace(self.validated(state, alpha, needed), recalibrated=True)

    def statistics_for(self, alpha: np.ndarray) -> Tuple[np.ndarray, int]:
        """(BatchNorm statistics re-estimated for alpha, forward passes of one block on one image), a function of alpha,
        the training images and the seed alone. Leaves alpha in the model, its statistics as they are."""
        return recalibrated_statistics(self.model, alpha, self.unpruned, self.train, self.domain_id, self.settings)

    def share_alpha(self, state: SearchState) -> None:
        """Choose the α from which every pruned network's α starts; here that of the unpruned network."""

    def look_at_all_branches(self, state: SearchState) -> Look:
        """On all validation images, under the shared α."""
        self.model.set_alpha_array(state.shared_alpha)
        return self.validate(state)

    def margins_at(self, network: DeployedNetwork, index: torch.Tensor) -> np.ndarray:
        """A network's margins on these validation images."""
        images = normalise(self.val.images[index], self.settings.NORM_MEAN, self.settings.NORM_STD)
        return margins_of(network(images), self.val.labels[index])

    def validate(self, state: SearchState, needed: float = 0.0) -> Look:
        """Accuracy of the model as it stands, on all validation images unless it is known to be below `needed`."""
        network = deploy(self.model)
        with torch.inference_mode():
            found = hardest_first.look(lambda index: self.margins_at(network, index), state.lowest_margins,
                                       self.settings.BATCH_SIZE, needed)
        state.lowest_margins = np.minimum(state.lowest_margins, found.margins)
        state.block_evaluations += len(self.model.blocks) * found.seen
        return found

    def validated(self, state: SearchState, alpha: np.ndarray, needed: float = 0.0) -> Judgement:
        """The same as a judgement on `alpha`, which the model has."""
        found = self.validate(state, needed)
        return Judgement(found.accuracy, alpha, estimated=not found.whole)

    def on_the_wire(self, state: SearchState, judgement: Judgement) -> Judgement:
        """The network with the wire formats that give the lowest J, each with the accuracy that it leaves. Formats
        without loss cost nothing to judge."""
        if judgement.estimated or all(is_lossless(wire) for wire in self.settings.WIRE_FORMATS):
            return judgement
        statistics, work = self.statistics_for(judgement.alpha) if judgement.recalibrated else (None, 0)
        state.block_evaluations += work
        measured = WireLoss(self.model, self.val, self.settings, lambda alpha: statistics)
        options = []
        for formats in self.formats:
            solution = self.solve(judgement.alpha, formats)
            accuracy = measured.accuracy(judgement.alpha, solution.split, solution.wire, judgement.accuracy,
                                         judgement.recalibrated)
            options.append(replace(judgement, accuracy=accuracy, formats=formats, lossless=judgement.accuracy))
        state.block_evaluations += measured.block_evaluations
        return min(options, key=self.J_of)

    def accept(self, state: SearchState, judgement: Judgement) -> None:
        """Make a judged network the best so far."""
        state.alpha, state.accuracy = judgement.alpha, judgement.accuracy
        state.polished, state.gone_further = judgement.longer, False
        state.formats, state.lossless, state.recalibrated = (judgement.formats, judgement.lossless,
                                                             judgement.recalibrated)
        times = self.solve(state.alpha, state.formats).times
        state.curve.append(CurvePoint(int((state.alpha == 0).sum()), state.accuracy, times.T_eff_ms,
                                      times.throughput_fps))

    # --- the search ---

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Rounds until nothing more is worth trying or MAX_PRUNING_ROUNDS changes have been accepted."""
        while not state.finished:
            if len(state.curve) > self.settings.MAX_PRUNING_ROUNDS or not self.round(state):
                if state.polished:
                    state.finished = not self.widen(state)
                else:
                    self.polish(state)
            state.rounds += 1
            save(state)
        return state

    def round(self, state: SearchState) -> bool:
        """Try something; False when nothing is left that is worth trying."""
        raise TypeError('a subclass says what a round tries')

    def widen(self, state: SearchState) -> bool:
        """After the last round: measure something more for the frontier's sake; False when enough was."""
        return False

    def longer_recovery(self, state: SearchState, judgement: Judgement, needed: float = 0.0) -> Optional[Judgement]:
        """α trained on, without L1; None where that finds nothing more accurate."""
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, state.rounds)
        before = replace(judgement, accuracy=judgement.lossless_accuracy, formats=None, lossless=None)
        steps = LONGER * self.settings.RECOVERY_STEPS
        recovered = self.recovered(state, before.alpha, steps, seed, None, before, needed)
        return None if recovered is before else replace(self.on_the_wire(state, recovered), longer=True)

    def polish(self, state: SearchState) -> None:
        """When nothing more is worth trying, once for each best network: a longer recovery. The accuracy that it wins
        may make another try worthwhile."""
        judgement = self.longer_recovery(state, Judgement(state.accuracy, state.alpha, state.recalibrated,
                                                          state.formats, state.lossless))
        if judgement and (self.J_of(judgement), -judgement.accuracy) < (self.J_of(state), -state.accuracy):
            state.curve.pop()
            self.accept(state, judgement)
            state.judged.pop(choice_of(state.alpha), None)  # to be the latest
            state.judged[choice_of(state.alpha)] = judgement
            state.rejected.clear()
        state.polished = True
