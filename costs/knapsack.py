"""The fastest γ of several blocks whose memory together stays within a budget: exactly, with a lower bound.

Memory is the sum of the blocks' weights plus the largest of their activation peaks. For a given bound A on the
activations this is the multiple-choice knapsack problem (one option a block, sum of weights limited), which is
NP-hard but small here. Three parts:

* Lagrangian bound (`relax`): with a price μ on weights every block chooses on its own; the best μ is found by the
  chord method, exactly, in a few passes. Any μ gives a lower bound on the time.
* Dynamic programme (`search`): partial choices in Pareto order of (weights, time). A partial choice goes when another
  has no more of both, or when its Lagrangian bound is no better than the best complete choice.
* Bisection over A (`fastest_within`): a range of A is bounded from below by the options of its largest A with the
  budget of its smallest; best range first, until nothing is below the best choice found.

Ties and pruning are decided to a relative 1e-12 of the time.
"""
from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Tuple

import numpy as np

ROUNDING = 1e-12  # relative: sums in another order differ by this little
MAX_STATES = 1 << 20  # partial choices kept; beyond, the worst are dropped and the bound says so


@dataclass(frozen=True)
class Options:
    """Each block's sensible γ, [n, K]: none is beaten by another of its block in time, weights and activations.
    Sorted by time within a block; rows are filled up with time, weights and activations of infinity."""
    time_ms: np.ndarray
    weights: np.ndarray  # bytes
    activations: np.ndarray  # bytes
    gamma: np.ndarray  # ids

    def of(self, blocks: range) -> 'Options':
        """Those of a range of blocks."""
        part = slice(blocks.start, blocks.stop)
        return Options(self.time_ms[part], self.weights[part], self.activations[part], self.gamma[part])


class Choice(NamedTuple):
    """One option a block ([n] indices into K; None: nothing fits) and no choice is faster than `bound_ms`."""
    time_ms: float
    picks: Optional[np.ndarray]
    bound_ms: float


class Relaxed(NamedTuple):
    """The Lagrangian bound: Σ min(t + μ·w) - μ·budget, and a choice within the budget."""
    bound_ms: float
    price: float  # μ, ms per byte
    picks: np.ndarray


def sensible_options(time_ms: np.ndarray, weights: np.ndarray, activations: np.ndarray, valid: np.ndarray) -> Options:
    """From [N, 14] arrays and the mask of valid γ."""
    rows: List[List[Tuple[float, float, float, int]]] = []
    for k in range(len(time_ms)):
        row: List[Tuple[float, float, float, int]] = []
        for option in sorted((time_ms[k, g], weights[k, g], activations[k, g], g) for g in np.flatnonzero(valid[k])):
            if not any(other[1] <= option[1] and other[2] <= option[2] for other in row):  # none faster is as small
                row.append(option)
        rows.append(row)
    width = max((len(row) for row in rows), default=1)
    filled = np.full((4, len(rows), width), np.inf)
    for k, row in enumerate(rows):
        filled[:, k, :len(row)] = np.array(row).T
    gamma = np.where(np.isinf(filled[3]), 0, filled[3]).astype(int)
    return Options(filled[0], filled[1], filled[2], gamma)


def _picked(values: np.ndarray, picks: np.ndarray) -> np.ndarray:
    return values[np.arange(len(picks)), picks]


def relax(time_ms: np.ndarray, weights: np.ndarray, budget: float) -> Optional[Relaxed]:
    """The best Lagrangian bound for Σ weights <= budget; None when the lightest options exceed it."""
    heavy = time_ms.argmin(axis=1)
    if _picked(weights, heavy).sum() <= budget:
        return Relaxed(float(_picked(time_ms, heavy).sum()), 0.0, heavy)
    lightest = weights == weights.min(axis=1, keepdims=True)
    light = np.where(lightest, time_ms, np.inf).argmin(axis=1)
    ends = [(float(_picked(weights, picks).sum()), float(_picked(time_ms, picks).sum())) for picks in (light, heavy)]
    if ends[0][0] > budget:
        return None
    while True:  # the chord between a choice within the budget and one beyond it, until nothing lies below
        (w_light, t_light), (w_heavy, t_heavy) = ends
        price = max(0.0, (t_light - t_heavy) / (w_heavy - w_light))
        priced = time_ms + price * np.where(np.isinf(weights), 0.0, weights)
        picks = priced.argmin(axis=1)
        value, chord = float(_picked(priced, picks).sum()), t_light + price * w_light
        at = float(_picked(weights, picks).sum()), float(_picked(time_ms, picks).sum())
        if value >= chord * (1 - ROUNDING) or at in ends:
            return Relaxed(value - price * budget, price, light)
        if at[0] <= budget:
            ends[0], light = at, picks
        else:
            ends[1] = at


def improve(time_ms: np.ndarray, weights: np.ndarray, budget: float, picks: np.ndarray) -> np.ndarray:
    """A choice within the budget, made faster one block at a time while something fits."""
    picks = picks.copy()
    left = budget - _picked(weights, picks).sum()
    while True:
        saved = np.where(weights - _picked(weights, picks)[:, None] <= left,
                         _picked(time_ms, picks)[:, None] - time_ms, 0.0)
        block, option = np.unravel_index(saved.argmax(), saved.shape)
        if saved[block, option] <= ROUNDING * time_ms[block, option]:
            return picks
        left -= weights[block, option] - weights[block, picks[block]]
        picks[block] = option


def search(time_ms: np.ndarray, weights: np.ndarray, budget: float, relaxed: Relaxed, best_ms: float) -> Choice:
    """The fastest choice below `best_ms` with Σ weights <= budget; picks None when there is none."""
    price = relaxed.price
    priced = np.where(np.isinf(time_ms), np.inf, time_ms + price * np.where(np.isinf(weights), 0.0, weights))
    least = priced.argmin(axis=1)
    reduced = priced - _picked(priced, least)[:, None]  # what an option adds to the bound
    useful = reduced < (best_ms - relaxed.bound_ms) + ROUNDING * best_ms
    useful[np.arange(len(least)), least] = True
    open_blocks = np.flatnonzero(useful.sum(axis=1) > 1)
    second = np.where(useful & (reduced > 0), reduced, np.inf).min(axis=1)
    open_blocks = open_blocks[np.argsort(-second[open_blocks], kind='stable')]  # most decisive first: few states

    def from_end(values: np.ndarray) -> np.ndarray:
        """Sums over the open blocks that are still to come: [n_open + 1]."""
        return np.append(np.cumsum(values[open_blocks][::-1])[::-1], 0.0)

    to_come_priced = from_end(_picked(priced, least))
    to_come_ms, to_come_bytes = from_end(_picked(time_ms, least)), from_end(_picked(weights, least))
    to_come_least = from_end(np.where(useful, weights, np.inf).min(axis=1))
    closed = np.ones(len(least), dtype=bool)
    closed[open_blocks] = False
    w = np.array([_picked(weights, least)[closed].sum()])
    t = np.array([_picked(time_ms, least)[closed].sum()])
    trail: List[Tuple[np.ndarray, np.ndarray]] = []
    found, dropped = None, math.inf
    for layer in range(len(open_blocks) + 1):
        complete = np.where(w + to_come_bytes[layer] <= budget, t + to_come_ms[layer], np.inf)
        if len(complete) and complete.min() < best_ms * (1 - ROUNDING):
            best_ms = float(complete.min())
            found = _followed(trail, open_blocks, least, int(complete.argmin()))
        if layer == len(open_blocks):
            break
        options = np.flatnonzero(useful[open_blocks[layer]])
        w_next = (w[:, None] + weights[open_blocks[layer], options]).ravel()
        t_next = (t[:, None] + time_ms[open_blocks[layer], options]).ravel()
        bound = t_next + price * (w_next - budget) + to_come_priced[layer + 1]
        alive = np.flatnonzero((bound < best_ms * (1 - ROUNDING)) & (w_next + to_come_least[layer + 1] <= budget))
        if len(alive) > MAX_STATES:
            alive = alive[np.argsort(bound[alive], kind='stable')]
            dropped = min(dropped, float(bound[alive[MAX_STATES]]))
            alive = alive[:MAX_STATES]
        alive = alive[np.lexsort((t_next[alive], w_next[alive]))]
        fastest = np.minimum.accumulate(t_next[alive])
        alive = alive[np.append(True, fastest[1:] < fastest[:-1])[:len(alive)]]
        w, t = w_next[alive], t_next[alive]
        trail.append((alive // len(options), options[alive % len(options)]))
    return Choice(best_ms if found is not None else math.inf, found, min(best_ms, dropped))


def _followed(trail: List[Tuple[np.ndarray, np.ndarray]], open_blocks: np.ndarray, least: np.ndarray, state: int,
              ) -> np.ndarray:
    """The choice behind a state: back along the trail, the least priced option where no block was decided yet."""
    picks = least.copy()
    for block, (parents, options) in reversed(list(zip(open_blocks, trail))):
        picks[block] = options[state]
        state = int(parents[state])
    return picks


def fastest_within(options: Options, budget: float, least_activations: float = 0.0, below_ms: float = math.inf,
                   ) -> Choice:
    """The fastest choice with Σ weights + max(activations, least_activations) <= budget bytes and a time below
    `below_ms`; picks None when there is none."""
    time_ms, weights, activations = options.time_ms, options.weights, options.activations
    if not len(time_ms):
        fits = least_activations <= budget and 0.0 < below_ms
        return Choice(0.0, np.zeros(0, dtype=int), 0.0) if fits else Choice(math.inf, None, below_ms)
    lowest = max(least_activations, float(activations.min(axis=1).max()))
    seen = activations[np.isfinite(activations) & (activations > lowest) & (activations <= budget)]
    levels = np.append(lowest, np.unique(seen))

    def allowed(level: int) -> Tuple[np.ndarray, np.ndarray]:
        """Time and weights of the options whose activations stay within a level."""
        within = activations <= levels[level]
        return np.where(within, time_ms, np.inf), np.where(within, weights, np.inf)

    def bounded(first: int, last: int) -> Tuple[float, int, int, Optional[Relaxed]]:
        """Bound of all choices whose largest activations lie in this range of levels."""
        relaxed = relax(*allowed(last), budget - levels[first])
        return math.inf if relaxed is None else relaxed.bound_ms, first, last, relaxed

    best, dropped = Choice(below_ms, None, below_ms), math.inf
    ranges = [bounded(0, len(levels) - 1)]
    while ranges and ranges[0][0] < best.time_ms * (1 - ROUNDING):
        _, first, last, relaxed = heapq.heappop(ranges)
        if first < last:
            middle = (first + last) // 2
            for part in ((first, middle), (middle + 1, last)):
                heapq.heappush(ranges, bounded(*part))
        picks = relaxed.picks
        if first == last:
            picks = improve(*allowed(last), budget - levels[last], picks)
        spent = float(_picked(time_ms, picks).sum())
        needed = _picked(weights, picks).sum() + max(lowest, float(_picked(activations, picks).max()))
        if needed <= budget and spent < best.time_ms * (1 - ROUNDING):
            best = Choice(spent, picks, spent)
        if first == last and relaxed.bound_ms < best.time_ms * (1 - ROUNDING):
            found = search(*allowed(last), budget - levels[last], relaxed, best.time_ms)
            best = found if found.picks is not None else best
            dropped = min(dropped, found.bound_ms)
    return Choice(best.time_ms if best.picks is not None else math.inf, best.picks, min(best.time_ms, dropped))
