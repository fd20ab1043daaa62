"""Who runs what at which server, as a linear or an integer programme; HiGHS, through SciPy, solves it.

An option is a point for a group of equal clients at a kind of server. y clients take it, at rates between `low` and
`high` frames a second each; x frames a second are what they get above `low`, all together.

    for every group:   Σ y = its clients
    for every kind:    Σ server_ms · (low · y + x) <= capacity_ms · servers     and likewise its link
    for every option:  0 <= x <= (high - low) · y

Whole numbers for y, with every server a kind of its own, give the exact answer. Real numbers, with equal servers taken
together, give a bound that no answer can beat, quickly.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np

from config import UserError

try:
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp
except ImportError:  # optional: one kind of server with links of their own needs none of it
    milp = None

TIME_LIMIT_S = 2.0  # of one integer programme; what it has by then counts, with its bound


@dataclass(frozen=True)
class Options:
    """Options of all groups, arrays [O]."""
    group: np.ndarray
    server_kind: np.ndarray
    point: np.ndarray
    server_ms: np.ndarray  # of a frame
    mbit: np.ndarray
    low: np.ndarray  # frames a second
    high: np.ndarray
    value: np.ndarray  # of a client that takes it, beside what it gets above `low`


@dataclass(frozen=True)
class Solved:
    """What a programme gives. `clients` and `extra_fps` are y and x, [O]."""
    clients: np.ndarray
    extra_fps: np.ndarray
    servers: np.ndarray  # [S]: how many of a kind are used (real or whole)
    use: float  # of the capacities, where that is minimised: above 1 is too much
    value: float
    bound: float  # of the value, or of the use


def need_scipy() -> None:
    """Raise `UserError` where SciPy is missing."""
    if milp is None:
        raise UserError('planning this fleet needs SciPy, which is not installed here; get it with '
                        '`pip install -r requirements-fleet.txt`')


def solve(options: Options, clients: np.ndarray, servers: np.ndarray, capacity_ms: np.ndarray, link_mbps: np.ndarray,
          minimise: str, whole: bool) -> Optional[Solved]:
    """The best y and x; None where nothing is within the capacities. `clients`: [G], of every group; `servers`,
    `capacity_ms`, `link_mbps`: [S].

    `minimise`: 'use' (the largest share of any server's or link's capacity that is used), 'servers' (how many are
    used), or 'value' (its negative: the most values of clients and frames a second above `low`)."""
    need_scipy()
    n, n_kinds = len(options.group), len(servers)
    flexible = np.flatnonzero(options.high > options.low)
    rate, span = options.high[flexible], (options.high - options.low)[flexible]
    first_extra, first_kind = n, n + len(flexible)
    use = first_kind + n_kinds  # columns: all options, flexible ones, servers used of each kind, use of capacity
    columns = use + 1
    rows = _Rows(columns)
    # A flexible option has a second column: x, or, where clients may be divided, those that get `high`, while the first
    # one is those that get `low`. That says the same with a row less for each option.
    extra, per_extra = (np.zeros(0, dtype=int), 1.0) if whole else (np.arange(len(flexible)), rate)
    rows.add(np.concatenate([options.group, options.group[flexible[extra]]]),
             np.concatenate([np.arange(n), first_extra + extra]), np.ones(n + len(extra)), clients, clients)
    for per_frame, limit in ((options.server_ms, capacity_ms), (options.mbit, link_mbps)):
        kinds = np.flatnonzero(np.isfinite(limit))
        row_of = np.full(n_kinds, -1)
        row_of[kinds] = np.arange(len(kinds))
        row = row_of[options.server_kind]
        share = per_frame / limit[options.server_kind]  # of a server's capacity
        of, more = np.flatnonzero(row >= 0), np.flatnonzero(row[flexible] >= 0)
        last = np.full(len(kinds), use) if minimise == 'use' else first_kind + kinds
        amount = servers[kinds] if minimise == 'use' else np.ones(len(kinds))
        rows.add(np.concatenate([row[of], row[flexible[more]], np.arange(len(kinds))]),
                 np.concatenate([of, first_extra + more, last]),
                 np.concatenate([share[of] * options.low[of], (share[flexible] * per_extra)[more], -amount]),
                 np.full(len(kinds), -np.inf), np.zeros(len(kinds)))
    if whole:
        k = np.arange(len(flexible))
        rows.add(np.concatenate([k, k]), np.concatenate([first_extra + k, flexible]),
                 np.concatenate([np.ones(len(k)), -span]), np.full(len(k), -np.inf), np.zeros(len(k)))
    cost = np.zeros(columns)
    if minimise == 'use':
        cost[use] = 1
    elif minimise == 'servers':
        cost[first_kind:use] = 1
    else:
        cost[:n], cost[first_extra:first_kind] = -options.value, -1 if whole else -(options.value[flexible] + span)
    low, high = np.zeros(columns), np.full(columns, np.inf)
    high[:n] = clients[options.group]
    low[first_kind:use], high[first_kind:use] = (0 if minimise == 'servers' else servers), servers
    constraint = rows.constraint()
    if whole:
        integral = np.zeros(columns)
        integral[:n] = integral[first_kind:use] = 1
        found = milp(cost, constraints=constraint, bounds=Bounds(low, high), integrality=integral,
                     options={'mip_rel_gap': 0.0, 'time_limit': TIME_LIMIT_S})
    else:  # the interior-point method: of thousands of groups ten times as fast as the simplex method
        equal = np.isfinite(constraint.lb)
        found = linprog(cost, constraint.A[~equal], constraint.ub[~equal], constraint.A[equal], constraint.ub[equal],
                        np.stack([low, high], axis=1), method='highs-ipm')
    if found.x is None:
        return None
    y, extra_fps, second = found.x[:n], np.zeros(n), found.x[first_extra:first_kind]
    if whole:
        y, extra_fps[flexible] = np.round(y), second
    else:
        y = y + np.bincount(flexible, second, n)
        extra_fps[flexible] = second * span
    bound = found.mip_dual_bound if whole and found.mip_dual_bound is not None else found.fun
    sign = -1 if minimise == 'value' else 1
    return Solved(y, extra_fps, found.x[first_kind:use], float(found.x[use]), sign * found.fun, sign * float(bound))


class _Rows:
    """Constraints, put together block by block."""

    def __init__(self, columns: int) -> None:
        self.columns, self.height = columns, 0
        self._parts: List[Tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._low: List[np.ndarray] = []
        self._high: List[np.ndarray] = []

    def add(self, row: np.ndarray, column: np.ndarray, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """A block: entries by row (from 0) and column, and the rows' bounds."""
        self._parts.append((row + self.height, column, value))
        self._low.append(low)
        self._high.append(high)
        self.height += len(low)

    def constraint(self) -> LinearConstraint:
        """All of them."""
        row, column, value = (np.concatenate(part) for part in zip(*self._parts))
        matrix = sparse.csr_matrix((value, (row, column)), shape=(self.height, self.columns))
        return LinearConstraint(matrix, np.concatenate(self._low), np.concatenate(self._high))
