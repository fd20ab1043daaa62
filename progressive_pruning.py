"""Design section 7: choose α, γ and λ of one domain jointly, by pruning progressively.

A candidate is a set of surviving branches for every block. Its time is exact and nearly free (γ and λ are re-solved);
its accuracy costs forward passes. So the search
  1. gives α one recovery for all: a training on networks that lack branches at random, from which all start;
  2. looks at single changes: blocks that drop what saves time, and branches whose α has all but vanished, picked in
     turn from the ranking by time saved and the ranking by importance. A look is the validation accuracy under that
     shared α, from cached activations and the hardest images first (hardest_first.py);
  3. learns from all looks, image by image, what dropping branches does, one by one and in pairs
     (accuracy_surrogate.py), and looks at the candidate with the highest expected improvement of J, until that is
     small or LOOKS are spent;
  4. gives the look whose own recovery promises most a short one, with L1 pressure by the time that each branch costs on
     its tier: accepted if it lowers J within the constraint on all validation images, otherwise undone;
  5. when no look promises enough, polishes the best network's α, tries its neighbours under that α, and gives a longer
     recovery to what has just missed.
Where fusing is free, dropping 1x1 or identity beside a dense branch saves nothing and is no candidate for its time;
blocks without their 3x3 are what saves. benchmarks/search_quality.py holds the search against enumeration.
"""
from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np

from costs.limits import limits_of
from network.alpha import kept, surviving_branches
from network.shapes import BRANCHES
from search import alpha_training
from search.candidates import branch_cost_ms, keep_options, neighbours, unlimited_T_eff_ms
from search.hardest_first import Look
from search.prefix_activations import Choice, Keep, PruningEvaluator, choice_of
from search.pruning_search import Judgement, PruningSearch, SearchState
from search.surrogate import AccuracySurrogate, counts_from, expected_improvement, scale_of

ENUMERATED = 5000  # up to so many choices the surrogate rates them all; beyond, the neighbours of good ones
NEIGHBOURS_OF = 12  # so many good ones
LEAST_IMPROVEMENT = 1e-6  # of J
WORTH_A_LOOK = 3e-4  # of J: expected improvement below which the second half of LOOKS is not spent
MOST_DROPPED = 0.6  # of the blocks lose something while the shared α is trained
SHARED_LR = 0.4  # times RECOVERY_LR: its learning rate, smaller since every step has another network
FURTHER_LOOKS = 12  # changes of the polished network that are looked at before it is final
FURTHER = 2  # and of these, judged at most
WORTH_A_RECOVERY = 1e-3  # of J: expected improvement below which a look is not recovered
WORTH_IT_BEFORE_LOOKS = 4e-3  # the same while there are looks left, which are cheaper
PRIOR_SHARE = 0.2  # of lost accuracy that a recovery is assumed to win back; counts like ε of lost accuracy seen
LARGEST_SHARE = 0.75  # that is ever expected
RECOVERY_SD = 0.2  # of ε: how much recoveries differ, standard deviation
LONGER_WINS = 0.1  # of ε: what a longer recovery is expected to win after a short one
WORTH_A_LONGER_RECOVERY = 2e-3  # of J: expected improvement below which a judged network has none


class JointSearch(PruningSearch):
    """The joint search of one domain."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._evaluator: Optional[PruningEvaluator] = None
        self._options: Optional[List[List[Keep]]] = None
        self._relative: Dict[Choice, float] = {}  # T_eff / T_eff_ref of choices seen

    # --- candidates and their times ---

    def options(self) -> List[List[Keep]]:
        """What each block may keep."""
        if self._options is None:
            self._options = keep_options(self.table, self.unpruned, self.T_eff_ref_ms, self.settings)
        return self._options

    def relative_T_eff(self, choices: Iterable[Choice]) -> np.ndarray:
        """T_eff / T_eff_ref of choices, [m], at their best γ and λ, within the limits if any are set."""
        choices = list(choices)
        new = list(dict.fromkeys(choice for choice in choices if choice not in self._relative))
        if new and limits_of(self.settings).any:
            values = [self.T_eff_ms(np.array(choice)) for choice in new]
        else:
            values = unlimited_T_eff_ms(self.table, new, self.settings) if new else []
        self._relative.update((choice, value / self.T_eff_ref_ms) for choice, value in zip(new, values))
        return np.array([self._relative[choice] for choice in choices])

    # --- looks ---

    def share_alpha(self, state: SearchState) -> None:
        """One recovery for all: SHARED_STEPS steps, each on a network that lacks what it may lack in a random part of
        its blocks, up to MOST_DROPPED of them; then the mean α of the second half of the steps, since the last one
        alone depends on what its networks lacked (Polyak and Juditsky, 1992)."""
        if not self.first_looks() or not self.settings.SHARED_STEPS:
            return
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id)
        rng = np.random.default_rng(seed)

        def kept_at(step: int) -> np.ndarray:
            share = rng.uniform(0, MOST_DROPPED)
            return np.array([keeps[rng.integers(1, len(keeps))] if len(keeps) > 1 and rng.random() < share else keeps[0]
                             for keeps in self.options()])

        found: List[np.ndarray] = []

        def note(done: int) -> bool:
            found.append(self.model.alpha_array())
            return False

        self.model.set_alpha_array(self.unpruned)
        self.train_alpha(state, self.settings.SHARED_STEPS, SHARED_LR * self.settings.RECOVERY_LR, seed, note,
                         kept_at=kept_at)
        state.shared_alpha = np.mean(found[len(found) // 2:], axis=0)

    def evaluator(self, state: SearchState) -> PruningEvaluator:
        """Runs prunings under the shared α; what they have in common is run once."""
        if self._evaluator is None:
            self._evaluator = PruningEvaluator(self.model, state.shared_alpha, self.val, self.settings)
        return self._evaluator

    def look_at_all_branches(self, state: SearchState) -> Look:
        """By the evaluator that others share first blocks with."""
        return self.counted(state, self.evaluator(state), choice_of(self.unpruned))

    def look(self, state: SearchState, choices: Iterable[Choice], whole: bool = False) -> None:
        """Measure these choices under the shared α; unless all images are wanted (`whole`), left where what is needed
        is out of reach, or where the rest will hardly show an error."""
        for choice in choices:
            found = self.look_at(state, choice, 0.0 if whole else float(self.needed_accuracy(state, [choice])[0]),
                                 1.0 if whole else self.settings.QUIET_SHARE)
            state.looks[choice] = found
            state.lowest_margins = np.minimum(state.lowest_margins, found.margins)

    def look_at(self, state: SearchState, choice: Choice, needed: float, quiet_share: float) -> Look:
        """One look, of use from the accuracy `needed` on."""
        expected = self.surrogate(state).expected_margins(self.dropped([choice])[0])
        return self.counted(state, self.evaluator(state), choice, expected, needed, quiet_share)

    @staticmethod
    def counted(state: SearchState, evaluator: PruningEvaluator, *look: Any) -> Look:
        """`evaluator.look(*look)` with its block evaluations counted."""
        before = evaluator.block_evaluations
        found = evaluator.look(*look)
        state.block_evaluations += evaluator.block_evaluations - before
        return found

    def needed_accuracy(self, state: SearchState, choices: List[Choice]) -> np.ndarray:
        """What looks at these choices must reach to be worth a recovery, [m]: the accuracy from which a recovery as
        good as those so far is accepted, less a margin for one that is better."""
        share, accepted = self.share_recovered(state), self.accepted_from(state, choices)
        return (accepted - share * self.reference) / (1 - share) - RECOVERY_SD * scale_of(self.settings.EPSILON)

    def accepted_from(self, state: SearchState, choices: List[Choice]) -> np.ndarray:
        """The accuracies from which on these choices meet the bound and lower J, [m]."""
        return counts_from(self.relative_T_eff(choices), self.bound, self.settings.MU, self.J_of(state))

    def first_looks(self) -> List[Choice]:
        """Single changes, at most half of LOOKS, in turn from the ranking by time and the ranking by importance."""
        whole = choice_of(self.unpruned)
        singles = [(block, (*whole[:block], keep, *whole[block + 1:]))
                   for block, keeps in enumerate(self.options()) for keep in keeps if keep != whole[block]]
        rank = {pair: position for position, pair in enumerate(self.importance)}

        def importance(item: Tuple[int, Choice]) -> int:
            block, choice = item
            return max(rank.get((block, b), len(rank)) for b in range(len(BRANCHES))
                       if whole[block][b] and not choice[block][b])

        by_time = [item for _, item in sorted(zip(self.relative_T_eff([c for _, c in singles]), singles))]
        by_importance = sorted(singles, key=importance)
        in_turn = dict.fromkeys(choice for pair in zip(by_time, by_importance) for _, choice in pair)
        return list(in_turn)[:max(1, self.settings.LOOKS // 2)]

    def proposals(self, state: SearchState) -> List[Choice]:
        """Choices that the surrogate should rate: all of them, or those one or two changes away from good ones."""
        options = self.options()
        if np.prod([float(len(keeps)) for keeps in options]) <= ENUMERATED:
            pool = itertools.product(*options)
        else:
            good = sorted(state.looks, key=lambda choice: self.estimated_J(state, choice))[:NEIGHBOURS_OF]
            pool = (near for choice in good for near in neighbours(choice, options))
        return [choice for choice in dict.fromkeys(pool) if choice not in state.looks]

    def most_promising(self, state: SearchState) -> Optional[Choice]:
        """The choice with the highest expected improvement. None when none promises enough: anything until half
        of LOOKS are spent, as a surrogate of few looks may be too sure; then what a look is worth."""
        pool = self.proposals(state)
        if not pool:
            return None
        accuracy, sd = self.once_recovered(state, *self.predicted(state, pool))
        promise = self.promise(state, pool, accuracy, sd, 0.5 / len(self.val))
        best = int(np.argmax(promise))
        enough = WORTH_A_LOOK if len(state.looks) >= self.settings.LOOKS // 2 else 0.0
        return pool[best] if promise[best] > enough else None

    def promise(self, state: SearchState, pool: List[Choice], accuracy: np.ndarray, sd: np.ndarray,
                slack: float = 0.0) -> np.ndarray:
        """Expected improvement of J by choices with these accuracies, [m], each normal with the standard deviation
        `sd` [m]; `slack`: how far below the bound one counts."""
        return expected_improvement(accuracy, sd, self.relative_T_eff(pool), self.bound - slack, self.settings.MU,
                                    self.J_of(state))

    def predicted(self, state: SearchState, pool: List[Choice]) -> Tuple[np.ndarray, np.ndarray]:
        """What looks at these choices would give, [m], and its standard deviation [m]."""
        return self.surrogate(state).predict(self.dropped(pool))

    def surrogate(self, state: SearchState) -> AccuracySurrogate:
        """What all looks so far have taught."""
        found = list(state.looks.values())
        return AccuracySurrogate(self.dropped(list(state.looks)), np.stack([look.margins for look in found]),
                                 np.array([look.accuracy for look in found]),
                                 np.array([look.enough for look in found]), self.settings.EPSILON)

    def dropped(self, choices: List[Choice]) -> np.ndarray:
        """Which branches of the unpruned network they lack, bool [m, 3 N]."""
        return (np.array(choice_of(self.unpruned)) & ~np.array(choices)).reshape(len(choices), -1)

    # --- recovery and judgement ---

    def share_recovered(self, state: SearchState) -> float:
        """The share of what looks lost that recoveries have won back so far; before the first, PRIOR_SHARE."""
        lost = scale_of(self.settings.EPSILON)
        won = PRIOR_SHARE * lost
        for choice, judgement in state.judged.items():
            if choice in state.looks:
                lost += max(0.0, self.reference - state.looks[choice].accuracy)
                won += judgement.lossless_accuracy - state.looks[choice].accuracy
        return min(max(won / lost, 0.0), LARGEST_SHARE)

    def once_recovered(self, state: SearchState, looked: np.ndarray, sd: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(accuracy, standard deviation) to expect of networks with these looks [m] after a recovery."""
        share = self.share_recovered(state)
        return (looked + share * np.maximum(0, self.reference - looked),
                np.hypot((1 - share) * sd, RECOVERY_SD * scale_of(self.settings.EPSILON)))

    def estimated_J(self, state: SearchState, choice: Choice) -> float:
        """J that a look promises once recovered."""
        look = state.looks[choice]
        accuracy, _ = self.once_recovered(state, np.array([look.accuracy]), np.array([look.sd]))
        return self.J(float(self.relative_T_eff([choice])[0]) * self.T_eff_ref_ms, float(accuracy[0]))

    def best_look(self, state: SearchState, enough: float) -> Optional[Choice]:
        """The look not judged yet whose recovery is expected to lower J most, of those that have what a look needs;
        None when none promises an improvement of `enough`."""
        pool = [choice for choice in state.looks if choice not in state.judged]
        pool = [choice for choice, needed in zip(pool, self.needed_accuracy(state, pool))
                if state.looks[choice].accuracy >= needed]
        if not pool:
            return None
        looks = [state.looks[choice] for choice in pool]
        accuracy, sd = self.once_recovered(state, np.array([look.accuracy for look in looks]),
                                           np.array([look.sd for look in looks]))
        promise = self.promise(state, pool, accuracy, sd)
        best = int(np.argmax(promise))
        return pool[best] if promise[best] > enough else None

    def judge(self, state: SearchState, choice: Choice, looked: Optional[Judgement] = None, whole: bool = False,
              ) -> Judgement:
        """The choice after a short recovery of α, from the best network's α where that has the branch, else from the
        shared one; as it was looked at, where that is more accurate (`looked`: with another α). Given up as soon as
        it cannot be accepted, unless all images are wanted (`whole`)."""
        alpha, accepted_from = kept(choice, self.best_alpha(state)), float(self.accepted_from(state, [choice])[0])
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, *(int(v) for keep in choice for v in keep))
        cost = branch_cost_ms(self.table, surviving_branches(alpha), self.solve(alpha).split, self.settings.HEAD_TIER)
        judgement = self.recovered(state, alpha, self.settings.RECOVERY_STEPS, seed,
                                   self.settings.L1_WEIGHT * cost / self.T_eff_ref_ms,
                                   needed=0.0 if whole else accepted_from)
        if looked is None and choice in state.looks:
            if state.looks[choice].accuracy >= max(judgement.accuracy + 0.5 / len(self.val), accepted_from):
                self.look(state, [choice], whole=True)
            looked = Judgement(state.looks[choice].accuracy, kept(choice, state.shared_alpha),
                               estimated=not state.looks[choice].whole)
        if looked is not None:
            judgement = max(judgement, looked, key=lambda found: found.accuracy)
        return self.on_the_wire(state, judgement)

    def best_alpha(self, state: SearchState) -> np.ndarray:
        """α [N, 3] of the best network once one is pruned, and the shared one for the branches that it lacks."""
        return np.where(state.alpha != 0, state.alpha, state.shared_alpha) if (state.alpha == 0).any() else (
            state.shared_alpha)

    # --- the search ---

    def round(self, state: SearchState) -> bool:
        """One look at what promises most, or the first looks together; then judge what would lower J. When there is
        neither, once the best network is polished, its neighbours; then what has just missed."""
        choices = self.first_looks() if len(state.looks) == 1 else []  # none where nothing saves time
        if not choices and len(state.looks) < self.settings.LOOKS:
            promising = self.most_promising(state)
            choices = [] if promising is None else [promising]
        self.look(state, choices)
        best = self.best_look(state, WORTH_IT_BEFORE_LOOKS if choices else WORTH_A_RECOVERY)
        if best is not None:
            self.try_choice(state, best)
        elif not choices:
            return state.polished and (self.go_further(state) or self.second_chance(state))
        return True

    def try_choice(self, state: SearchState, choice: Choice, looked: Optional[Judgement] = None, whole: bool = False,
                   ) -> bool:
        """Judge a choice; was it accepted?"""
        judgement = self.judge(state, choice, looked, whole)
        state.judged[choice] = judgement
        return self.accept_better(state, judgement)

    def accept_better(self, state: SearchState, judgement: Judgement) -> bool:
        """Accept it if it meets the bound, measured on all images, and lowers J; was it accepted?"""
        accepted = (not judgement.estimated and judgement.accuracy >= self.bound and
                    self.J_of(judgement) < self.J_of(state) - LEAST_IMPROVEMENT)
        if accepted:
            self.accept(state, judgement)
        return accepted

    def go_further(self, state: SearchState) -> bool:
        """What looks cannot tell, since all share an α: changes of one or two blocks of the best network under its own,
        recovered α. FURTHER_LOOKS of them are looked at, and the FURTHER best are judged; False when none is
        accepted."""
        if state.gone_further:
            return False
        state.gone_further = True
        now = choice_of(state.alpha)
        choices, found = self.further_choices(state, now), []
        if not choices:
            return False
        evaluator = PruningEvaluator(self.model, self.best_alpha(state), self.val, self.settings)
        surrogate, quiet_share = self.surrogate(state), self.settings.QUIET_SHARE
        before, *after = (surrogate.expected_margins(dropped) for dropped in self.dropped([now, *choices]))
        margins = self.counted(state, evaluator, now, before, 0.0, quiet_share).margins - before
        for choice, expected, needed in zip(choices, after, self.accepted_from(state, choices)):
            look = self.counted(state, evaluator, choice, expected + margins, needed - self.settings.EPSILON / 2,
                                quiet_share)
            if look.accuracy >= needed and not look.whole:
                look = self.counted(state, evaluator, choice)
            if look.enough:
                judgement = Judgement(look.accuracy, kept(choice, evaluator.alpha), estimated=not look.whole)
                found.append((self.J_of(judgement), choice, judgement))
        found.sort(key=lambda item: item[:2])
        return any(self.try_choice(state, choice, looked) for _, choice, looked in found[:FURTHER])

    def second_chance(self, state: SearchState) -> bool:
        """A longer recovery, as the best network had, for the judged one for which it promises most: an image more may
        be all that it lacks. False when it promises too little for all."""
        best, scale = choice_of(state.alpha), scale_of(self.settings.EPSILON)
        pool = [choice for choice, judgement in state.judged.items() if not judgement.longer and choice != best]
        if not pool:
            return False
        accuracy = np.array([state.judged[choice].lossless_accuracy for choice in pool]) + LONGER_WINS * scale
        promise = self.promise(state, pool, accuracy, np.full(len(pool), RECOVERY_SD * scale))
        if promise.max() <= WORTH_A_LONGER_RECOVERY:
            return False
        choice = pool[int(np.argmax(promise))]
        before, needed = state.judged[choice], float(self.accepted_from(state, [choice])[0])
        state.judged[choice] = self.longer_recovery(state, before, needed) or replace(before, longer=True)
        self.accept_better(state, state.judged[choice])
        return True

    def further_choices(self, state: SearchState, now: Choice) -> List[Choice]:
        """Changes of the best network that promise most, at most FURTHER_LOOKS: other options of one or two blocks, or
        a branch less where that saves nothing, which costs nothing either and may suit the accuracy."""
        options = [list(dict.fromkeys((row, *keeps, *(tuple(alive and b != less for b, alive in enumerate(row))
                                                      for less in range(len(BRANCHES)) if row[less] and sum(row) > 1))))
                   for row, keeps in zip(now, self.options())]
        pool = [choice for choice in dict.fromkeys(neighbours(now, options)) if choice not in state.judged]
        if not pool:
            return []
        accuracy, sd = self.predicted(state, [now, *pool])
        promise = self.promise(state, pool, state.accuracy + accuracy[1:] - accuracy[0], sd[1:], 0.5 / len(self.val))
        return [pool[index] for index in np.argsort(-promise, kind='stable')[:FURTHER_LOOKS] if promise[index] > 0]
