"""The four objectives of a plan, each with a bound that no plan can beat.

max_min: the largest rate that every client gets. max_total: the most frames a second of all together. fewest_servers
and max_accuracy: for given rates, the fewest servers and the highest mean accuracy.

Each is solved twice. With equal servers taken together and parts of clients allowed it is a linear programme, whose
answer no plan can beat; it is rounded to whole clients on single servers. A small fleet is solved exactly, too, as an
integer programme. One kind of server whose clients have links of their own needs neither for max_min: each client
takes, of the points that its device and link sustain, the one that costs the server least.
"""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

from fleet.choices import Choices, at_rates, choices_of
from fleet.problem import NO_SERVER, SOLVER_TOLERANCE, TOLERANCE, Allocation, FleetProblem, Placement, server_load

MAX_WHOLE = 300  # whole numbers of an integer programme; with more of them a linear programme's gap is small
RATE_TOLERANCE = 1e-7  # relative, of max_min
LOWER_RATES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)  # below the bound, relative: the first at which whole
#               clients are found to fit, halfway back to the one before as often as HALVINGS says
HALVINGS = 5


class NothingFits(Exception):
    """The given rates are too much for the servers: by the factor `use` even if clients could be divided (up to 1:
    whole clients do not fit, or it is not known whether they do)."""

    def __init__(self, use: float) -> None:
        super().__init__(use)
        self.use = use


def max_min(problem: FleetProblem) -> Allocation:
    """The largest common rate; a client that must get more gets that, one whose source delivers less gets all of it."""
    bound, divided, _ = _largest_rate(problem, False, 0.0)
    if divided is None:
        raise NothingFits(_use(problem))
    found = _rounded_rate(problem, bound)
    if found and found[0].proven:
        return found[0]
    if _is_small(at_rates(problem, problem.rates_at(bound))):
        best, whole, proven = _largest_rate(problem.single_servers, True, found[0].value if found else 0.0)
        if whole is not None:
            found.append(Allocation(_back(problem, whole), best, best if proven else bound, proven))
    if not found:
        raise NothingFits(_use(problem))
    return _best_of(found)


def _rounded_rate(problem: FleetProblem, bound: float) -> List[Allocation]:
    """An allocation of whole clients at a common rate a little below the bound; none where none is found."""
    found: List[Allocation] = []

    def tried(lower: float) -> bool:
        common_fps = (1 - lower) * bound
        placements = at_rates(problem, problem.rates_at(common_fps)).rounded('use')
        if placements is not None:
            found.append(Allocation(tuple(placements), common_fps, bound, lower == 0))
        return placements is not None

    works = next((index for index, lower in enumerate(LOWER_RATES) if tried(lower)), 0)
    if works:
        fails, fits = LOWER_RATES[works - 1:works + 1]
        for _ in range(HALVINGS):
            middle = (fails + fits) / 2
            fails, fits = (fails, middle) if tried(middle) else (middle, fits)
    return found


def _largest_rate(problem: FleetProblem, whole: bool, start_fps: float,
                  ) -> Tuple[float, Optional[List[Placement]], bool]:
    """The largest common rate, from `start_fps` on, to RATE_TOLERANCE; whole placements at it (an empty list where
    clients are divided); is it proven? No placements where not even `start_fps` is possible."""
    best_own = problem.own_fps.max(axis=(1, 2))
    limited = best_own < problem.max_fps  # by themselves, not by their source
    highest = float(best_own[limited].min()) if limited.any() else float(problem.max_fps.max())
    found: Optional[List[Placement]] = None
    low, high, proven, probe, jumped = 0.0, highest * (1 + RATE_TOLERANCE), True, min(start_fps, highest), False
    while high > low * (1 + RATE_TOLERANCE) and high > highest * 1e-9:
        choices = at_rates(problem, problem.rates_at(probe))
        solved = choices.solve('use', whole)
        fits = solved is not None and solved.use <= 1 + TOLERANCE
        placements, too_small = choices.placed(solved) if fits and whole else ([], [])
        if fits and not too_small:
            found = placements
            scaled = probe / solved.use if solved.use > 0 else math.inf  # rates rise by no more than that factor
            low = max(probe, min(highest, scaled, choices.own_fps(solved))) if probe else 0.0
            jumped = low > probe
        elif found is None:
            break
        else:
            high, jumped = probe, False
            proven &= not whole or solved is not None and solved.bound > 1 - SOLVER_TOLERANCE
        if low >= highest * (1 - TOLERANCE):
            break
        probe = min(highest, low * (1 + RATE_TOLERANCE)) if jumped else (low + min(high, highest)) / 2
    return low, (_at_common_rate(problem, found, low) if found else found), proven


def _at_common_rate(problem: FleetProblem, placements: Sequence[Placement], common_fps: float) -> List[Placement]:
    rates = problem.rates_at(common_fps)
    return [replace(item, fps=float(rates[item.group])) for item in placements]


def max_total(problem: FleetProblem) -> Allocation:
    """The most frames a second of all clients together, each at least what it must get."""
    own_fps = problem.own_fps
    least = problem.min_fps[:, None, None]
    high = np.maximum(least, np.minimum(own_fps, problem.max_fps[:, None, None]))

    def choices(of: FleetProblem) -> Choices:
        own, most = of.own_fps, high if of is problem else np.repeat(high, problem.servers, axis=1)
        allowed = (own >= of.min_fps[:, None, None] * (1 - TOLERANCE)) & (own > 0)
        return choices_of(of, allowed, of.min_fps, most, np.broadcast_to(of.min_fps[:, None, None], of.shape))

    return _best_value(problem, choices, lambda placements: sum(item.count * item.fps for item in placements),
                       lambda placements: _filled(problem, placements, high))


def max_accuracy(problem: FleetProblem) -> Allocation:
    """The highest mean accuracy of the clients at the rates that they must get."""
    n = problem.clients.sum()

    def choices(of: FleetProblem) -> Choices:
        return at_rates(of, of.min_fps, np.nan_to_num(of.accuracy) / n)

    return _best_value(problem, choices, lambda placements: sum(
        item.count * problem.accuracy[item.at] for item in placements) / n)


def _best_value(problem: FleetProblem, choices: Callable[[FleetProblem], Choices],
                value: Callable[[Sequence[Placement]], float],
                finish: Callable[[List[Placement]], List[Placement]] = lambda placements: placements) -> Allocation:
    """The placements of the highest value: the linear programme rounded and, where the fleet is small, exactly."""
    together = choices(problem)
    divided = together.solve('value')
    if divided is None:
        raise NothingFits(_use(problem))
    found: List[Allocation] = []
    placements = together.rounded('value')
    if placements is not None:
        placements = finish(placements)
        found.append(Allocation(tuple(placements), value(placements), divided.bound, False))
    if found and found[0].gap < TOLERANCE:
        return replace(found[0], proven=True)
    if _is_small(together):
        apart = choices(problem.single_servers)
        solved = apart.solve('value', whole=True)
        placements, _ = apart.placed(solved) if solved is not None else ([], [])
        if placements:
            placements = finish(list(_back(problem, placements)))
            bound = min(divided.bound, solved.bound)
            best = value(placements)
            proven = best >= bound * (1 - 1e-6) - 1e-9
            found.append(Allocation(tuple(placements), best, max(best, bound), proven))
    if not found:
        raise NothingFits(_use(problem))
    return _best_of(found)


def fewest_servers(problem: FleetProblem) -> Allocation:
    """The fewest servers that give every client the rate that it must get."""
    together = at_rates(problem, problem.min_fps)
    divided = together.solve('servers')
    if divided is None:
        raise NothingFits(_use(problem))
    bound = math.ceil(divided.bound - 1e-6)
    rounded = _few_rounded(problem, np.ceil(divided.servers - 1e-6).astype(int))
    if rounded is not None and _n_servers(rounded) <= bound:
        return Allocation(tuple(rounded), bound, bound, True)
    found = [] if rounded is None else [Allocation(tuple(rounded), _n_servers(rounded), bound, False)]
    if _is_small(together):
        single = at_rates(problem.single_servers, problem.min_fps)
        solved = single.solve('servers', whole=True)
        placements, _ = single.placed(solved) if solved is not None else ([], [])
        if placements:
            whole = _back(problem, placements)
            best, low = _n_servers(whole), max(bound, math.ceil(solved.bound - 1e-6))
            found.append(Allocation(whole, best, min(best, low), best <= low))
    if not found:
        raise NothingFits(_use(problem))
    return _best_of(found, larger=False)


def _few_rounded(problem: FleetProblem, servers: np.ndarray) -> Optional[List[Placement]]:
    """Whole clients on about so many servers of each kind; one more, of the kind with the most capacity that has one
    left, until they fit."""
    while True:
        placements = at_rates(replace(problem, servers=servers), problem.min_fps).rounded('use')
        if placements is not None:
            return placements
        left = np.where(servers < problem.servers, problem.capacity_ms, -1.0)
        if left.max() < 0:
            return None
        servers = servers + (np.arange(len(servers)) == left.argmax())


def _best_of(found: Sequence[Allocation], larger: bool = True) -> Allocation:
    """The best of several allocations, with the bounds of all of them."""
    best = (max if larger else min)(found, key=lambda allocation: allocation.value)
    proven = any(allocation.proven for allocation in found)
    bound = (min if larger else max)(allocation.bound for allocation in found)
    return replace(best, bound=best.value if proven else bound, proven=proven)


def _n_servers(placements: Sequence[Placement]) -> int:
    return len({(item.server_kind, item.server) for item in placements if item.server != NO_SERVER})


def _filled(problem: FleetProblem, placements: List[Placement], high: np.ndarray) -> List[Placement]:
    """Rates raised as far as what rounding left free allows, where a frame costs its server least first."""
    work_ms, mbps = server_load(problem, placements)
    free_ms, free_mbps = problem.capacity_ms[:, None] - work_ms, problem.link_mbps[:, None] - mbps
    found = list(placements)
    for index in sorted(range(len(found)), key=lambda i: problem.server_ms[found[i].at]):
        item = found[index]
        at, where = item.at, (item.server_kind, item.server)
        extra = item.count * (high[at] - item.fps)  # frames a second
        for free, cost in ((free_ms, problem.server_ms[at]), (free_mbps, problem.mbit[at])):
            if cost > 0:
                extra = min(extra, free[where] / cost)
        if extra > 0:
            free_ms[where] -= extra * problem.server_ms[at]
            free_mbps[where] -= extra * problem.mbit[at]
            found[index] = replace(item, fps=item.fps + extra / item.count)
    return found


def _back(problem: FleetProblem, placements: Sequence[Placement]) -> Tuple[Placement, ...]:
    """Placements on `problem.single_servers` as placements on the problem's own kinds."""
    at = problem.server_at
    return tuple(replace(item, server_kind=at[item.server_kind][0],
                         server=NO_SERVER if item.server == NO_SERVER else at[item.server_kind][1])
                 for item in placements)


def _is_small(choices: Choices) -> bool:
    """Can its integer programme, with every server a kind of its own, be solved in a moment?"""
    return int(choices.problem.servers[choices.options.server_kind].sum()) <= MAX_WHOLE


def _use(problem: FleetProblem) -> float:
    """The share of the servers' capacity that the rates which clients must get take at least."""
    solved = at_rates(problem, problem.min_fps).solve('use')
    return math.inf if solved is None else solved.use


OBJECTIVES = {'max_min': max_min, 'max_total': max_total, 'fewest_servers': fewest_servers,
              'max_accuracy': max_accuracy}
