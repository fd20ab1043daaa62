"""What a configuration may need, what it needs, and how to say so in one line or in JSON."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Union

from config import Settings, UserError
from costs.cost_model import HardwareTable, Solution, SplitTimes, Times, Value
from costs.energy import Power

TOLERANCE = 1e-9  # relative; a limit counts as met this close to it, since sums of times are rounded
MB = 2.0 ** 20  # bytes


@dataclass(frozen=True)
class Limits:
    """What a configuration may need; None: no limit."""
    client_ms: Optional[float] = None
    server_ms: Optional[float] = None
    client_memory_bytes: Optional[float] = None
    bytes_per_frame: Optional[float] = None
    latency_ms: Optional[float] = None
    min_fps: Optional[float] = None
    client_mj: Optional[float] = None

    @property
    def any(self) -> bool:
        """Is there a limit at all?"""
        return any(value is not None for value in vars(self).values())

    def factors(self, times: Union[Times, SplitTimes], n_bytes: Value, memory: Value, power: Mapping[str, Power],
                ) -> Dict[str, Value]:
        """Need over limit, by the name of the limit that is set: up to 1 is within. MIN_FPS limits the slowest stage
        to 1000 / MIN_FPS ms. `power`: watts by tier. Floats, or arrays over splits."""
        pairs = {'client_ms': times.T_client_ms, 'server_ms': times.T_server_ms, 'client_memory_bytes': memory,
                 'bytes_per_frame': n_bytes, 'latency_ms': times.loaded_latency_ms}
        found = {name: value / getattr(self, name) for name, value in pairs.items() if getattr(self, name) is not None}
        if self.min_fps is not None:
            found['min_fps'] = times.T_cyc_ms / (1000 / self.min_fps)
        if self.client_mj is not None:
            energy = power['client'].client_mj(times.T_client_ms, times.T_com_ms, times.T_cyc_ms)
            found['client_mj'] = energy / self.client_mj
        return found


def limits_of(settings: Settings) -> Limits:
    """The settings' limits."""
    megabytes = settings.MAX_CLIENT_MEMORY_MB
    return Limits(settings.MAX_CLIENT_MS, settings.MAX_SERVER_MS, None if megabytes is None else megabytes * MB,
                  settings.MAX_BYTES_PER_FRAME, settings.MAX_LATENCY_MS, settings.MIN_FPS, settings.MAX_CLIENT_MJ)


@dataclass(frozen=True)
class Candidate:
    """A configuration with what it needs."""
    solution: Solution
    n_bytes: float  # on the link
    weight_bytes: float  # on the client
    activation_bytes: float
    factors: Dict[str, float]  # need over limit

    @property
    def worst(self) -> float:
        """The largest factor; 0 without limits."""
        return max(self.factors.values(), default=0.0)

    @property
    def fits(self) -> bool:
        """Within every limit."""
        return self.worst <= 1 + TOLERANCE


class SplitBound(NamedTuple):
    """One line of the certificate: nothing that fits at this split is below `bound_ms` (infinite: nothing fits)."""
    split: int
    wire: str
    bound_ms: float


@dataclass(frozen=True)
class LimitedSolution:
    """The optimum within the limits, and why there is no better one."""
    best: Candidate
    objective: str  # a field of Times
    bounds: List[SplitBound]  # one for every allowed λ and wire format

    @property
    def bound_ms(self) -> float:
        """No configuration within the limits has an objective below this."""
        return min(line.bound_ms for line in self.bounds)

    @property
    def proven(self) -> bool:
        """Does the bound reach the objective? Always, unless `knapsack.MAX_STATES` was reached."""
        return self.bound_ms >= getattr(self.best.solution.times, self.objective) * (1 - TOLERANCE)


class NothingFits(UserError):
    """No configuration is within the limits; `nearest` exceeds its worst limit by the smallest factor of all."""

    def __init__(self, what: str, nearest: Candidate, limits: Limits, proven: bool) -> None:
        self.nearest, self.proven = nearest, proven
        said = 'nearest' if proven else 'nearest found'
        solution = nearest.solution
        super().__init__(f'{what}; the {said} (λ = {solution.split}, {solution.wire}) has '
                         f'{", ".join(violations(nearest, limits))}')


_WORDS = {  # limit: (setting, what it limits, unit, bytes or other base units in it)
    'client_ms': ('MAX_CLIENT_MS', 'client time', 'ms', 1.0),
    'server_ms': ('MAX_SERVER_MS', 'server time', 'ms', 1.0),
    'client_memory_bytes': ('MAX_CLIENT_MEMORY_MB', 'client memory', 'MB', MB),
    'bytes_per_frame': ('MAX_BYTES_PER_FRAME', 'link load', 'bytes', 1.0),
    'latency_ms': ('MAX_LATENCY_MS', 'latency', 'ms', 1.0),
    'min_fps': ('MIN_FPS', 'frame rate', 'fps', 1.0),
    'client_mj': ('MAX_CLIENT_MJ', 'client energy', 'mJ', 1.0),
}


def violations(candidate: Candidate, limits: Limits) -> List[str]:
    """What a configuration exceeds, worst first: 'client time 12 ms (MAX_CLIENT_MS=10 exceeded by 20 %)'."""
    lines = []
    for name, factor in sorted(candidate.factors.items(), key=lambda item: -item[1]):
        if factor > 1 + TOLERANCE:
            setting, what, unit, base = _WORDS[name]
            limit = getattr(limits, name) / base
            value = limit / factor if name == 'min_fps' else limit * factor
            verb = 'asks for' if name == 'min_fps' else 'exceeded by'
            more = ' more' if name == 'min_fps' else ''
            percent = f'{100 * (factor - 1):.1f}' if factor > 1.001 else f'{100 * (factor - 1):.2g}'
            lines.append(f'{what} {value:.6g} {unit} ({setting}={limit:.6g} {verb} {percent} %{more})')
    return lines


def limited_to_json(found: LimitedSolution, limits: Limits, table: HardwareTable) -> Dict[str, Any]:
    """The field `limited` of step 2's file."""
    return {**_candidate_to_json(found.best, limits, table), 'exceeded': [], 'certificate': {
        'objective': found.objective, 'bound_ms': found.bound_ms, 'proven': found.proven,
        'per_split': [{'lambda': line.split, 'wire': line.wire,
                       'bound_ms': None if math.isinf(line.bound_ms) else line.bound_ms} for line in found.bounds]}}


def nearest_to_json(error: NothingFits, limits: Limits, table: HardwareTable) -> Dict[str, Any]:
    """The field `limited` where nothing unpruned fits: the nearest configuration, and what it exceeds."""
    return {**_candidate_to_json(error.nearest, limits, table), 'exceeded': violations(error.nearest, limits),
            'certificate': None}


def _candidate_to_json(candidate: Candidate, limits: Limits, table: HardwareTable) -> Dict[str, Any]:
    return {
        'fits': candidate.fits,
        'limits': {_WORDS[name][0]: value / _WORDS[name][3] for name, value in vars(limits).items()
                   if value is not None},
        'used': {_WORDS[name][0]: factor for name, factor in candidate.factors.items()},
        'wire': candidate.solution.wire, 'lambda': candidate.solution.split,
        'gamma': dict(zip(table.block_names, candidate.solution.gamma)), **candidate.solution.times.as_dict(),
        'bytes_per_frame': int(candidate.n_bytes), 'client_weight_bytes': int(candidate.weight_bytes),
        'client_activation_bytes': int(candidate.activation_bytes)}
