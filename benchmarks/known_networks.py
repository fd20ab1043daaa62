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
from costs.cost_model import HardwareTable, goal
from domains.image_sets import ImageSet
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import kept
from network.gammas import fused_gamma
from network.inputs import normalise
from search import domain_search, hardest_first
from search.frontier import hypervolume, lowest_explored
from search.frontier_search import SLOWEST, FrontierSearch
from search.importance_pruning import ImportanceSearch
from search.prefix_activations import Choice, Keep, PruningEvaluator, choice_of
from search.pruning_search import Judgement, SearchState
from throughput_optimizer import solve_exact


def enumerate_margins(model: HyperRepVGG, alpha: np.ndarray, options: List[List[Keep]],
                      data: ImageSet, settings: config.Settings) -> Dict[Choice, np.ndarray]:
    """Margins [n] of every combination of options on all images, depth first: a prefix of blocks is run once for all
    that share it."""
    model.set_alpha_array(alpha)
    stem, n = deploy(model).stem, len(options)
    plans = []
    for block, row, choices in zip(model.blocks, alpha, options):
        values = [torch.as_tensor(np.where(keep, row, 0)[:block.n_branches], dtype=block.alpha.dtype)
                  for keep in choices]
        plans.append([build_plan(block, value, fused_gamma(keep)) for value, keep in zip(values, choices)])
    found: Dict[Choice, np.ndarray] = {}
    total = int(np.prod([len(choices) for choices in options]))
    with torch.inference_mode(), tqdm(total=total, desc='enumerating', unit='network') as bar:
        def descend(depth: int, x: torch.Tensor, chosen: Choice) -> None:
            if depth == n:
                found[chosen] = hardest_first.margins_of(model.classify(x), data.labels)
                bar.update()
                return
            for plan, keep in zip(plans[depth], options[depth]):
                descend(depth + 1, plan(x), (*chosen, keep))

        descend(0, stem(normalise(data.images, settings.NORM_MEAN, settings.NORM_STD)), ())
    return found


class OnDemand(Dict[Choice, np.ndarray]):
    """Margins that are measured when they are first asked for."""

    def __init__(self, evaluator: PruningEvaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.bar = tqdm(desc='measuring', unit='network')

    def __missing__(self, choice: Choice) -> np.ndarray:
        self[choice] = self.evaluator.look(choice).margins
        self.bar.update()
        return self[choice]


class Outcome(NamedTuple):
    """What a search has found."""
    J: float
    hypervolume: float  # of all networks that it evaluated
    networks: int


class Evaluator:
    """J of choices; counts the distinct networks that were asked for. The first is the unpruned one, which every
    method knows."""

    def __init__(self, margins: Dict[Choice, np.ndarray], table: HardwareTable, unpruned: Choice,
                 settings: config.Settings) -> None:
        self.margins, self.table, self.settings = margins, table, settings
        self.reference = self.accuracy(unpruned)
        self.T_eff_ref_ms = domain_search.solve_unpruned(table, settings).times.T_eff_ms
        self.asked: Dict[Choice, float] = {}  # J
        self.points: List[Tuple[float, float]] = []  # (accuracy, T_eff / T_eff_ref) of what was asked for
        self.J(unpruned)

    def accuracy(self, choice: Choice) -> float:
        """On all images."""
        return float((self.margins[choice] > 0).mean())

    def J(self, choice: Choice) -> float:
        """The objective of a choice, remembered."""
        if choice not in self.asked:
            T_eff_ms = solve_exact(self.table, np.array(choice), self.settings).times.T_eff_ms
            accuracy = self.accuracy(choice)
            self.points.append((accuracy, T_eff_ms / self.T_eff_ref_ms))
            self.asked[choice] = goal(T_eff_ms, self.T_eff_ref_ms, accuracy, self.reference,
                                      self.settings.EPSILON, self.settings.KAPPA, self.settings.MU)[0]
        return self.asked[choice]

    def outcome(self, J: Optional[float] = None) -> Outcome:
        """What a search has found: this J, or the lowest of all."""
        accuracy, relative = np.array(self.points).T
        area = hypervolume(accuracy, relative, lowest_explored(self.reference, self.settings.EPSILON), SLOWEST)
        return Outcome(min(self.asked.values()) if J is None else J, area, len(self.asked))


class TabledEvaluator:
    """Looks at known margins as step 3 looks at networks: at no more images than it needs to see."""

    def __init__(self, known: Evaluator, batch_size: int) -> None:
        self.known, self.batch_size = known, batch_size
        self.block_evaluations = 0

    def look(self, choice: Choice, expected: Optional[np.ndarray] = None, needed: float = 0.0,
             quiet_share: float = 1.0) -> hardest_first.Look:
        """Read, and counted."""
        self.known.J(choice)
        margins = self.known.margins[choice]
        return hardest_first.look(lambda index: margins[index.numpy()],
                                  np.zeros(len(margins)) if expected is None else expected, self.batch_size, needed,
                                  quiet_share)


class Tabled:
    """Mixed into a search of ours: its looks and judgements read the known margins, α does not recover."""
    known: Evaluator
    given: List[List[Keep]]

    def options(self) -> List[List[Keep]]:
        """What every method may choose from."""
        return self.given

    def share_alpha(self, state: SearchState) -> None:
        """All see the unpruned network's α."""

    def evaluator(self, state: SearchState) -> TabledEvaluator:
        """Of the known margins."""
        return TabledEvaluator(self.known, self.settings.BATCH_SIZE)

    def look_at_all_branches(self, state: SearchState) -> hardest_first.Look:
        """Known."""
        return self.evaluator(state).look(choice_of(self.unpruned))

    def judged_as_looked(self, choice: Choice) -> Judgement:
        """On all images, counted."""
        self.known.J(choice)
        return Judgement(self.known.accuracy(choice), kept(choice, self.unpruned))

    def longer_recovery(self, state: SearchState, judgement: Judgement, needed: float = 0.0) -> Optional[Judgement]:
        """Nothing to recover."""
        return None


class TabledStep3(Tabled, FrontierSearch):
    """Step 3's search. What recoveries won elsewhere is not to be expected here."""

    def share_recovered(self, state: SearchState) -> float:
        """Nothing."""
        return 0.0

    def once_recovered(self, state: SearchState, looked: np.ndarray, sd: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """A look is what it is."""
        return looked, np.maximum(sd, 1e-9)

    def judge(self, state: SearchState, choice: Choice, looked: Optional[Judgement] = None, whole: bool = False,
              ) -> Judgement:
        """Without recovery."""
        return self.judged_as_looked(choice)

    def go_further(self, state: SearchState) -> bool:
        """Looks have told all: without recovery there is no other α."""
        return False


class TabledSequential(Tabled, ImportanceSearch):
    """The sequential search."""

    def judge(self, state: SearchState, block: int, keep: Keep) -> Judgement:
        """Without recovery; what is not among the options is never accepted."""
        choice = choice_of(state.alpha)
        if keep not in self.given[block]:
            return Judgement(0.0, state.alpha)
        return self.judged_as_looked((*choice[:block], keep, *choice[block + 1:]))
