"""What clients may take at given rates, as a programme's options, with clients of equal needs taken together."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from fleet.problem import TOLERANCE, FleetProblem, Placement
from fleet.programme import Options, Solved, solve
from fleet.rounding import packed, whole_clients

MIN_RESERVE, RESERVE_STEP = 0.0025, 1.6  # of a kind's capacity, left free so that rounding has room; times this


@dataclass(frozen=True)
class Choices:
    """The options of classes of clients: groups whose options are the same are one class."""
    problem: FleetProblem
    options: Options  # `group` is the class
    class_of: np.ndarray  # [G]
    clients: np.ndarray  # [C]: how many

    def solve(self, minimise: str, whole: bool = False, reserve: Union[float, np.ndarray] = 0.0) -> Optional[Solved]:
        """`programme.solve`, with this share of the capacities (of each kind, [S]) left free."""
        problem = self.problem
        capacity_ms, link_mbps = (1 - reserve) * problem.capacity_ms, (1 - reserve) * problem.link_mbps
        if minimise == 'use' and len(problem.servers) == 1 and not problem.shared_link and (
                not whole or problem.servers[0] == 1):
            return self._least_work(float(capacity_ms[0] * problem.servers[0]))
        return solve(self.options, self.clients, problem.servers, capacity_ms, link_mbps, minimise, whole)

    def _least_work(self, capacity_ms: float) -> Optional[Solved]:
        """One kind of server, links of their own: each class takes the option that costs the server least."""
        options, n = self.options, len(self.options.group)
        order = np.lexsort((np.arange(n), options.server_ms, options.group))
        taken = order[np.unique(options.group[order], return_index=True)[1]]
        if len(taken) < len(self.clients):
            return None
        count = np.zeros(n)
        count[taken] = self.clients[options.group[taken]]
        work_ms = float((count * options.low * options.server_ms).sum())
        use = work_ms / capacity_ms if capacity_ms else (np.inf if work_ms else 0.0)
        return Solved(count, np.zeros(n), self.problem.servers.astype(float), use, use, use)

    def own_fps(self, solved: Solved) -> float:
        """Up to this common rate the clients' own devices and links sustain the options that were taken."""
        own_fps, lowest = self.problem.own_fps, np.inf
        for option in np.flatnonzero(solved.clients > 1e-6):
            members = np.flatnonzero(self.class_of == self.options.group[option])
            sustained = own_fps[members, self.options.server_kind[option], self.options.point[option]]
            lowest = min(lowest, np.where(sustained < self.problem.max_fps[members], sustained, np.inf).min())
        return lowest

    def placed(self, solved: Solved) -> Tuple[List[Placement], List[int]]:
        """Whole clients on single servers, by group, and the kinds of servers on which the rounded answer does not
        fit."""
        count = whole_clients(solved.clients, self.options.group, self.clients)
        extra = np.divide(solved.extra_fps, solved.clients, out=np.zeros(len(count)), where=solved.clients > 1e-6)
        fps = np.clip(self.options.low + extra, self.options.low, self.options.high)
        problem = self.problem
        found, too_small = packed(self.options, count, fps, problem.servers, problem.capacity_ms, problem.link_mbps)
        return ([], too_small) if too_small else (list(self._by_group(found)), [])

    def rounded(self, minimise: str) -> Optional[List[Placement]]:
        """A divided answer made whole. Where its clients do not fit on the servers of a kind, the programme is solved
        again with more of that kind's capacity left free; None where that leads nowhere."""
        reserve = np.zeros(len(self.problem.servers))
        while reserve.max() < 1:
            solved = self.solve(minimise, reserve=reserve)
            if solved is None or solved.use > 1 + TOLERANCE:
                return None
            placements, too_small = self.placed(solved)
            if not too_small:
                return placements
            reserve[too_small] = np.maximum(MIN_RESERVE, RESERVE_STEP * reserve[too_small])
        return None

    def _by_group(self, placements: Sequence[Placement]) -> Iterator[Placement]:
        """Placements of classes as placements of the groups in them."""
        members: List[List[List[int]]] = [[] for _ in self.clients]  # by class: [group, clients that are left]
        for group, count in enumerate(self.problem.clients):
            members[self.class_of[group]].append([group, int(count)])
        for item in placements:
            left = item.count
            while left:
                group, of_group = members[item.group][-1]
                taken = min(left, of_group)
                yield replace(item, group=group, count=taken)
                left -= taken
                members[item.group][-1][1] -= taken
                if taken == of_group:
                    members[item.group].pop()


def choices_of(problem: FleetProblem, allowed: np.ndarray, low: np.ndarray, high: np.ndarray, value: np.ndarray,
               ) -> Choices:
    """Options where `allowed` (bool [G, S, P]) at rates from `low` [G] to `high` [G, S, P], worth `value` [G, S, P];
    those that another one beats are left out."""
    costs = [np.where(allowed, cost, np.inf) for cost in
             (problem.server_ms, -high, -value, *([problem.mbit] if problem.shared_link else []))]
    beaten = np.zeros(allowed.shape, dtype=bool)
    for p in range(allowed.shape[2]):
        this = slice(p, p + 1)
        no_worse, better = allowed[:, :, this], np.zeros(allowed.shape, dtype=bool)
        for cost in costs:
            no_worse = no_worse & (cost[:, :, this] <= cost)
            better |= cost[:, :, this] < cost
        better[:, :, p + 1:] = True  # of equal ones the first stays
        beaten |= no_worse & better
    kept = allowed & ~beaten
    rows = np.concatenate([low[:, None], *(np.where(kept, part, -1.0).reshape(len(low), -1) for part in
                                           (high, value, problem.server_ms, problem.mbit))], axis=1)
    _, first, class_of = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    class_of = class_of.reshape(-1)
    group, kind, point = np.nonzero(kept[first])
    at = first[group], kind, point
    options = Options(group, kind, point, problem.server_ms[at], problem.mbit[at], low[first[group]], high[at],
                      value[at])
    return Choices(problem, options, class_of, np.bincount(class_of, problem.clients, len(first)).astype(int))


def at_rates(problem: FleetProblem, fps: np.ndarray, value: Optional[np.ndarray] = None) -> Choices:
    """Options at given rates [G]."""
    wide = np.broadcast_to(fps[:, None, None], problem.shape)
    allowed = (problem.own_fps >= wide * (1 - TOLERANCE)) & np.isfinite(problem.own_ms)
    return choices_of(problem, allowed, fps, wide, np.zeros(problem.shape) if value is None else value)
