"""What a service decides while it runs: pure functions of what was promised, what is measured, and the clock.

Sockets, threads and processes only carry it out, so the simulator decides with the very code that serves. Admission: is
a client let in, and with what? Shedding: which frames are dropped? Switching: is another option better for long enough?
Fallback: does a client go on alone, or return to its server? A failed server: who goes where?

No imports but the settings, so that a device may have this file.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Hashable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from config import Settings

Option = Any  # has T_client_ms, T_server_ms, n_bytes and uses_link: a `plan.PlannedPoint`, or a service's choice
TOLERANCE = 1e-9  # relative; rates and times are rounded


@dataclass(frozen=True)
class Conditions:
    """What a client meets now, as measured."""
    bandwidth_mbps: float
    rtt_ms: float = 0.0
    client_slowdown: float = 1.0  # measured over planned time of its device
    server_slowdown: float = 1.0

    def com_ms(self, option: Option) -> float:
        """Time of a frame on the link."""
        return 8 * option.n_bytes / (self.bandwidth_mbps * 1000)

    def sustained_fps(self, option: Option) -> float:
        """The rate that device and link sustain."""
        own_ms = max(self.client_slowdown * option.T_client_ms, self.com_ms(option))
        return 1000 / own_ms if own_ms > 0 else math.inf

    def latency_ms(self, option: Option) -> float:
        """Time of one frame that waits for no other."""
        there = self.com_ms(option) + self.rtt_ms if option.uses_link else 0.0
        return self.client_slowdown * option.T_client_ms + there + self.server_slowdown * option.T_server_ms


# --- admission --------------------------------------------------------------------------------------

class Admission(NamedTuple):
    """What a client may do: an option, or None and why not."""
    option: Optional[Option]
    reason: str = ''


def load_of(fps: float, option: Option) -> float:
    """Workers that a rate keeps busy."""
    return fps * option.T_server_ms / 1000


def admit(promised: float, workers: int, max_load: float, fps: float, wanted: Option, options: Sequence[Option],
          now: Conditions) -> Admission:
    """Let a client in that wants `fps` while others have been promised `promised` workers: with the option that it
    wants, else with a deeper split, of those that fit and that its device and link sustain the one that costs its
    device least. Nobody is let in at the cost of what others were promised."""
    left = max_load * workers - promised
    fitting = [option for option in options if load_of(fps, option) <= left * (1 + TOLERANCE)
               and now.sustained_fps(option) >= fps * (1 - TOLERANCE)]
    if fitting:
        return Admission(min(fitting, key=lambda option: (option != wanted, option.T_client_ms, option.T_server_ms)))
    return Admission(None, f'{fps:g} frames a second need {load_of(fps, wanted):.2f} of a worker, {max(0.0, left):.2f} '
                           f'of {workers} is left, and no split that fits is one that device and link sustain')


# --- shedding ---------------------------------------------------------------------------------------

def shed(waiting: int, most: int, live: bool) -> int:
    """How many of a client's waiting frames are dropped, the oldest first: of a live source those beyond `most`, of a
    file none ever."""
    return max(0, waiting - most) if live else 0


# --- switching --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Switching:
    """What a client remembers between decisions."""
    candidate: Optional[int] = None  # the option that has been better
    since_s: float = 0.0  # for that long
    last_s: float = -math.inf  # its last switch


def cost_ms(option: Option, now: Conditions, fps: float, omega: float) -> float:
    """T_eff of an option under these conditions for a source of `fps` frames a second; frames come no faster."""
    cycle_ms = max(1000 / now.sustained_fps(option), 1000 / fps)
    return omega * now.latency_ms(option) + (1 - omega) * cycle_ms


def switch(state: Switching, clock_s: float, current: int, costs_ms: Mapping[int, float], settings: Settings,
           ) -> Tuple[Switching, Optional[int]]:
    """What to run from the next frame on (None: the same). `costs_ms`: of every option that may be run now, by its
    number. One and the same option must be better by more than SWITCH_GAIN for SWITCH_AFTER_S, and SWITCH_PAUSE_S must
    have passed since the last switch, so a link that oscillates around a threshold causes at most one switch in that
    time. What is then best is taken. Where the current one is not among `costs_ms`, as after the loss of a server, the
    best is taken at once."""
    if not costs_ms:
        return replace(state, candidate=None), None
    best = min(costs_ms, key=lambda number: (costs_ms[number], number))
    if current not in costs_ms:
        return Switching(last_s=clock_s), best
    limit_ms = costs_ms[current] * (1 - settings.SWITCH_GAIN)
    if not costs_ms[best] < limit_ms:
        return replace(state, candidate=None), None
    if state.candidate is None or not costs_ms.get(state.candidate, math.inf) < limit_ms:
        state = replace(state, candidate=best, since_s=clock_s)
    if clock_s - state.since_s < settings.SWITCH_AFTER_S or clock_s - state.last_s < settings.SWITCH_PAUSE_S:
        return state, None
    return Switching(last_s=clock_s), best


# --- fallback and return ----------------------------------------------------------------------------

STAY, GO_ALONE, RETURN = 'stay', 'go alone', 'return'


@dataclass(frozen=True)
class Reach:
    """What a client knows of its server."""
    alone: bool = False
    answered_s: float = 0.0  # when it last answered
    answers_since_s: Optional[float] = None  # while alone: since when it has answered without a break


def reach(state: Reach, clock_s: float, answered_s: float, settings: Settings) -> Tuple[Reach, str]:
    """Go on alone after FALLBACK_AFTER_S without an answer of the server, return when it has answered for
    RETURN_AFTER_S without such a break. `answered_s`: when it last answered anything, a heartbeat too."""
    silent = clock_s - answered_s > settings.FALLBACK_AFTER_S
    if not state.alone:
        return (Reach(True, answered_s), GO_ALONE) if silent else (replace(state, answered_s=answered_s), STAY)
    if silent or answered_s <= state.answered_s and state.answers_since_s is None:
        return Reach(True, max(state.answered_s, answered_s)), STAY
    since_s = answered_s if state.answers_since_s is None else state.answers_since_s
    if clock_s - since_s >= settings.RETURN_AFTER_S:
        return Reach(False, answered_s), RETURN
    return Reach(True, answered_s, since_s), STAY


# --- a server that fails ----------------------------------------------------------------------------

class Server(NamedTuple):
    """What a server can do, and what it has promised."""
    workers: int
    promised: float  # workers


class Moving(NamedTuple):
    """A client that needs a server."""
    client: Hashable
    fps: float
    now: Conditions
    wanted: Option
    options: Mapping[Hashable, Sequence[Option]]  # by server


def rehome(clients: Iterable[Moving], servers: Mapping[Hashable, Server], max_load: float,
           ) -> Dict[Hashable, Optional[Tuple[Hashable, Option]]]:
    """Where the clients of a server that failed go: those that need most of a worker first, each to the server with the
    most left that admits it; None: it goes on alone. What was promised to the others stays."""
    promised = {name: server.promised for name, server in servers.items()}
    found: Dict[Hashable, Optional[Tuple[Hashable, Option]]] = {}
    order: List[Moving] = sorted(clients, key=lambda moving: -load_of(moving.fps, moving.wanted))
    for moving in order:
        found[moving.client] = None
        for name in sorted(servers, key=lambda each: promised[each] / servers[each].workers):
            admission = admit(promised[name], servers[name].workers, max_load, moving.fps, moving.wanted,
                              moving.options.get(name, ()), moving.now)
            if admission.option is not None:
                found[moving.client] = name, admission.option
                promised[name] += load_of(moving.fps, admission.option)
                break
    return found
