"""Design section 7: choose α, γ and λ of one domain jointly, by pruning progressively.

A candidate is a set of surviving branches for every block. Its time is exact and nearly free (γ and λ are re-solved);
its accuracy costs forward passes. So the search
  1. looks at single changes first: blocks that drop what saves time, and branches whose α has all but vanished,
     picked in turn from the ranking by time saved and the ranking by importance. A look is the validation accuracy
     without recovery, from cached activations;
  2. learns from all looks what dropping branches costs, one by one and in pairs (accuracy_surrogate.py), and looks at
     the candidate with the highest expected improvement of J, until LOOKS are spent;
  3. gives a look that would lower J a short recovery of α, with L1 pressure by the time that each branch costs on its
     tier, and judges it on all validation images: accepted if it lowers J within the constraint, otherwise undone.
Where fusing is free, dropping 1x1 or identity beside a dense branch saves nothing and is no candidate for its time;
blocks without their 3x3 are what saves. benchmarks/search_quality.py holds the search against enumeration.
"""
from __future__ import annotations

import itertools
from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np

import alpha_training
from accuracy_surrogate import AccuracySurrogate, expected_improvement
from cost_model import TIERS, split_times
from early_stopping import sampling_sd
from hyper_repvgg import surviving_branches
from limits import limits_of
from prefix_activations import Choice, Keep, Look, PruningEvaluator
from pruning_search import Judgement, PruningSearch, SearchState, branch_cost_ms, choice_of, fastest_ms
from repvgg import BRANCHES
from throughput_optimizer import split_range

ENUMERATED = 5000  # up to so many choices the surrogate rates them all; beyond, the neighbours of good ones
NEIGHBOURS_OF = 12  # so many good ones
LEAST_IMPROVEMENT = 1e-6  # of J
WORTH_A_LOOK = 1e-5  # of J: expected improvement below which a longer recovery comes first
FURTHER = 3  # changes of the polished network that are judged at most before it is final
RECENT = 3  # recoveries that tell what the next one wins


class JointSearch(PruningSearch):
    """The joint search of one domain."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._evaluator: Optional[PruningEvaluator] = None
        self._options: Optional[List[List[Keep]]] = None
        self._relative: Dict[Choice, float] = {}  # T_eff / T_eff_ref of choices seen

    # --- candidates and their times ---

    def options(self) -> List[List[Keep]]:
        """What each block may keep: all it has; sets that save MIN_SAVING of T_eff_ref more than any larger set, on the
        tier where they save more; and all but a branch whose |α| is below PRUNING_THRESHOLD."""
        if self._options is None:
            whole, least = choice_of(self.unpruned), self.settings.MIN_SAVING
            self._options = []
            for block, row in enumerate(whole):
                saved = {row: 0.0}
                for keep in smaller_sets(row):
                    dropped = [b for b in range(len(BRANCHES)) if row[b] and not keep[b]]
                    vanished = len(dropped) == 1 and (abs(self.unpruned[block, dropped[0]]) <
                                                      self.settings.PRUNING_THRESHOLD)
                    value = self.most_saved(block, row, keep)
                    if vanished or all(value >= other + least for larger, other in saved.items()
                                       if all(a or not b for a, b in zip(larger, keep))):
                        saved[keep] = value
                self._options.append(list(saved))
        return self._options

    def most_saved(self, block: int, whole: Keep, keep: Keep) -> float:
        """What a block saves by keeping only `keep`, on the tier where that is more, as a share of T_eff_ref."""
        return max(fastest_ms(self.table.T_ms[tier][block], np.array(whole)) -
                   fastest_ms(self.table.T_ms[tier][block], np.array(keep)) for tier in TIERS) / self.T_eff_ref_ms

    def relative_T_eff(self, choices: Iterable[Choice]) -> np.ndarray:
        """T_eff / T_eff_ref of choices, [m], at their best γ and λ, within the limits if any are set."""
        choices = list(choices)
        new = list(dict.fromkeys(choice for choice in choices if choice not in self._relative))
        if new and limits_of(self.settings).any:
            values = [self.T_eff_ms(np.array(choice)) for choice in new]
        else:
            values = self._unlimited_T_eff_ms(new) if new else []
        self._relative.update((choice, value / self.T_eff_ref_ms) for choice, value in zip(new, values))
        return np.array([self._relative[choice] for choice in choices])

    def _unlimited_T_eff_ms(self, choices: List[Choice]) -> np.ndarray:
        """All at once: the fastest time of every block's every option once, then sums over blocks for all choices."""
        settings = self.settings
        keeps = [sorted({choice[k] for choice in choices}) for k in range(len(choices[0]))]
        index = np.array([[keeps[k].index(keep) for k, keep in enumerate(choice)] for choice in choices])  # (m, N)
        block_ms = {}
        for tier in TIERS:
            times = [[fastest_ms(self.table.T_ms[tier][k], np.array(keep)) for keep in options]
                     for k, options in enumerate(keeps)]
            block_ms[tier] = np.stack([np.array(times[k])[index[:, k]] for k in range(len(keeps))], axis=1)
        splits = np.asarray(split_range(self.table.n_blocks, settings))
        return np.min([split_times(self.table, block_ms, wire, settings.HEAD_TIER, settings.OMEGA)
                       .T_eff_ms[:, splits].min(axis=1) for wire in settings.WIRE_FORMATS], axis=0)

    # --- looks ---

    def start(self) -> SearchState:
        """As every search; the one pass that fills the cache of activations is counted here, not after a restart."""
        state = super().start()
        state.block_evaluations += len(self.model.blocks) * len(self.val)
        return state

    def look(self, state: SearchState, choices: Iterable[Choice], whole: bool = False) -> None:
        """Measure these choices without recovery, α as it was before pruning; unless all images are wanted (`whole`),
        given up on a part of them where what is needed is out of reach."""
        for choice in choices:
            look = self.look_accuracy(state, choice, 0.0 if whole else self.needed_accuracy(state, choice))
            state.looks[choice] = look.accuracy
            if look.seen < len(self.val):
                state.partial[choice] = look.seen
            if self._evaluator is not None:
                state.block_evaluations += self._evaluator.block_evaluations
                self._evaluator.block_evaluations = 0

    def look_accuracy(self, state: SearchState, choice: Choice, needed: float) -> Look:
        """One look, of use from the accuracy `needed` on (0: seen on all images); the activations of the unpruned
        network are computed once."""
        if self._evaluator is None:
            seed = alpha_training.seed_of(self.settings.SEED, self.domain_id)
            seen = [(seen, state.partial.get(seen, len(self.val))) for seen in list(state.looks)[1:]]
            self._evaluator = PruningEvaluator(self.model, self.unpruned, self.val, self.settings, seed, seen)
        return self._evaluator.look(choice, needed, self.settings.LOOK_ERROR)

    def needed_accuracy(self, state: SearchState, choice: Choice) -> float:
        """What a look must reach to be worth a recovery: the accuracy that meets the bound and lowers J, less what
        recoveries win, or ε before much is known of that."""
        gain = self.J_of(state) - float(self.relative_T_eff([choice])[0])  # J would be lowered by this with accuracy 0
        lowers_J = -gain / self.settings.MU if self.settings.MU > 0 else 0.0
        return max(self.bound, lowers_J) - max(self.settings.EPSILON, self.expected_recovery(state))

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
        """The choice with the highest expected improvement; None when none promises enough. Once the best network has
        had its longer recovery, looks that are left are spent on whatever promises anything."""
        pool = self.proposals(state)
        if not pool:
            return None
        accuracy, sd = self.predicted(state, pool)
        accuracy += self.expected_recovery(state)
        promise = expected_improvement(accuracy, sd, self.relative_T_eff(pool), self.bound - 0.5 / len(self.val),
                                       self.settings.MU, self.J_of(state))
        best = int(np.argmax(promise))
        return pool[best] if promise[best] > (0 if state.polished else WORTH_A_LOOK) else None

    def predicted(self, state: SearchState, pool: List[Choice]) -> Tuple[np.ndarray, np.ndarray]:
        """What looks at these choices would give, [m], and its standard deviation [m]."""
        whole = np.array(choice_of(self.unpruned)).ravel()
        seen = list(state.looks)
        noise = [sampling_sd(state.looks[c], state.partial[c], len(self.val)) if c in state.partial else 0.0
                 for c in seen]
        surrogate = AccuracySurrogate((whole & ~np.array(seen).reshape(len(seen), -1)),
                                      self.reference - np.array([state.looks[c] for c in seen]), self.settings.EPSILON,
                                      np.array(noise))
        loss, sd = surrogate.predict(whole & ~np.array(pool).reshape(len(pool), -1))
        return self.reference - loss, sd

    # --- recovery and judgement ---

    def expected_recovery(self, state: SearchState) -> float:
        """What a recovery wins over a look, by the last few seen; 0 before the first. It grows, since every recovery
        starts from the α of the best network so far."""
        won = [judgement.accuracy - state.looks[choice] for choice, judgement in state.judged.items()
               if choice in state.looks]
        return float(np.mean(won[-RECENT:])) if won else 0.0

    def estimated_J(self, state: SearchState, choice: Choice, recovery: Optional[float] = None) -> float:
        """J that a look promises once recovered."""
        recovery = self.expected_recovery(state) if recovery is None else recovery
        accuracy = min(state.looks[choice] + recovery, self.reference)
        return self.J(float(self.relative_T_eff([choice])[0]) * self.T_eff_ref_ms, accuracy)

    def best_look(self, state: SearchState) -> Optional[Choice]:
        """The look not judged yet that promises the lowest J, if lower than the best so far."""
        open_looks = [choice for choice in state.looks if choice not in state.judged]
        best = min(open_looks, key=lambda choice: self.estimated_J(state, choice), default=None)
        if best is None or self.estimated_J(state, best) >= self.J_of(state) - LEAST_IMPROVEMENT:
            return None
        return best

    def judge(self, state: SearchState, choice: Choice) -> Judgement:
        """The choice after a short recovery of α, from the best network's α where that has the branch, else from α
        before pruning; as it was looked at, where that is more accurate."""
        alpha = kept(choice, np.where(state.alpha != 0, state.alpha, self.unpruned))
        seed = alpha_training.seed_of(self.settings.SEED, self.domain_id, *(int(v) for keep in choice for v in keep))
        cost = branch_cost_ms(self.table, surviving_branches(alpha), self.solve(alpha).split, self.settings.HEAD_TIER)
        judgement = self.recovered(state, alpha, self.settings.RECOVERY_STEPS, seed,
                                   self.settings.L1_WEIGHT * cost / self.T_eff_ref_ms)
        if choice in state.partial or choice not in state.looks:
            return self.on_the_wire(state, judgement)
        look = Judgement(state.looks[choice], kept(choice, self.unpruned))
        return self.on_the_wire(state, max(judgement, look, key=lambda found: found.accuracy))

    # --- the search ---

    def round(self, state: SearchState) -> bool:
        """One look at what promises most, or the first looks together; then judge what would lower J."""
        if len(state.looks) == 1:
            self.look(state, self.first_looks())
        elif len(state.looks) < self.settings.LOOKS:
            choice = self.most_promising(state)
            if choice is not None:
                self.look(state, [choice])
            elif self.best_look(state) is None:
                return state.polished and self.go_further(state)
        elif self.best_look(state) is None:
            return state.polished and self.go_further(state)
        choice = self.best_look(state)
        if choice is not None:
            self.try_choice(state, choice)
        return True

    def try_choice(self, state: SearchState, choice: Choice) -> bool:
        """Judge a choice; was it accepted?"""
        judgement = self.judge(state, choice)
        state.judged[choice] = judgement
        accepted = (judgement.accuracy >= self.bound and
                    self.J_of(judgement) < self.J_of(state) - LEAST_IMPROVEMENT)
        if accepted:
            self.accept(state, judgement)
        return accepted

    def go_further(self, state: SearchState) -> bool:
        """What looks cannot tell, since their α is that of the unpruned network: single further changes of the best
        network under its own, recovered α. The FURTHER best of them are judged; False when none is accepted."""
        now = choice_of(state.alpha)
        ahead = [(*now[:k], keep, *now[k + 1:]) for k, keeps in enumerate(self.options()) for keep in keeps
                 if keep != now[k] and all(had for kept, had in zip(keep, now[k]) if kept)]
        ahead = [choice for choice in ahead if choice not in state.judged]
        if not ahead:
            return False
        evaluator = PruningEvaluator(self.model, state.alpha, self.val, self.settings,
                                     alpha_training.seed_of(self.settings.SEED, self.domain_id))
        found = []
        for choice in ahead:
            needed = self.needed_accuracy(state, choice)
            look = evaluator.look(choice, needed, self.settings.LOOK_ERROR)
            T_eff_ms = float(self.relative_T_eff([choice])[0]) * self.T_eff_ref_ms
            if look.seen == len(self.val) and look.accuracy >= needed:
                found.append((self.J(T_eff_ms, look.accuracy + self.settings.EPSILON / 2), choice))
        state.block_evaluations += evaluator.block_evaluations + len(self.model.blocks) * len(self.val)
        return any(self.try_choice(state, choice) for _, choice in sorted(found)[:FURTHER])


def kept(choice: Choice, alpha: np.ndarray) -> np.ndarray:
    """α [N, 3] with 0 for what a choice drops."""
    return np.where(np.isnan(alpha), np.nan, np.where(np.array(choice), alpha, 0.0))


def smaller_sets(surviving: Keep) -> List[Keep]:
    """All non-empty proper subsets of a block's surviving branches, larger ones first."""
    alive = [b for b, survives in enumerate(surviving) if survives]
    return [tuple(b in chosen for b in range(len(BRANCHES)))
            for size in range(len(alive) - 1, 0, -1) for chosen in itertools.combinations(alive, size)]


def neighbours(choice: Choice, options: List[List[Keep]]) -> Iterable[Choice]:
    """Choices that differ in one or two blocks."""
    changes = [(k, keep) for k, keeps in enumerate(options) for keep in keeps if keep != choice[k]]
    for first, (k, keep) in enumerate(changes):
        once = (*choice[:k], keep, *choice[k + 1:])
        yield once
        for other, again in changes[first + 1:]:
            if other != k:
                yield (*once[:other], again, *once[other + 1:])
