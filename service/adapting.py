"""Is another configuration better for a client now? Pure functions of what its last frames took.

Every frame tells what its head, its way over the link and its tail took. From the last few follow the conditions that
the client meets now, and from these and the table what every choice would cost; `fleet.decisions.switch` decides.
"""
from __future__ import annotations

import statistics
from typing import Dict, Optional, Sequence

from fleet.decisions import Conditions, cost_ms, load_of
from service.entries import Choice
from service.figures import Answered

NEWEST_S = 0.25  # frames of so long count: a link that changes is noticed as soon after at any rate of frames,
LEAST_FRAMES = 4  # but for rates of which these, the newest ones, take longer
OLDEST_S = 10.0  # a frame that came before says nothing about now
LARGEST_SLOWDOWN = 1e3
FASTEST_MBPS = 1e5  # a frame that arrives in one piece says only that the link is fast
ENDLESS_FPS = 1e4  # a source that delivers as fast as its frames are taken


def conditions_of(recent: Sequence[Answered], choice: Choice, number: int, now_s: float) -> Optional[Conditions]:
    """What a client meets now, from its answers under configuration `number`, which is this choice; None while there
    are too few. The link's rate is that of a frame's bytes from its first to its last. The round trip is the least time
    that an answer of the last OLDEST_S, under any configuration, cannot be accounted for otherwise: what is above that
    are frames that queue before a link that is too slow for this choice, and would not with another."""
    frames = [one for one in recent if one.number == number and now_s - one.at_s <= OLDEST_S]
    if len(frames) < LEAST_FRAMES:
        return None
    frames = frames[-max(LEAST_FRAMES, sum(now_s - one.at_s <= NEWEST_S for one in frames)):]
    link_mbps = statistics.median(8 * one.n_bytes / max(one.link_ms, 1e-6) / 1000 for one in frames)
    round_trips = [one.latency_ms - one.head_ms - one.link_ms - one.wait_ms - one.tail_ms for one in recent
                   if one.latency_ms is not None and now_s - one.at_s <= OLDEST_S]
    return Conditions(min(FASTEST_MBPS, link_mbps), max(0.0, min(round_trips, default=0.0)),
                      slowdown(statistics.median(one.head_ms for one in frames), choice.T_client_ms),
                      slowdown(statistics.median(one.tail_ms / one.batch for one in frames), choice.T_server_ms))


def slowdown(measured_ms: float, planned_ms: float) -> float:
    """Measured over planned time; 1 where there is nothing to run."""
    if planned_ms <= 0 or measured_ms <= 0:
        return 1.0
    return min(LARGEST_SLOWDOWN, max(1 / LARGEST_SLOWDOWN, measured_ms / planned_ms))


def costs_of(choices: Sequence[Choice], now: Conditions, fps: Optional[float], share: float, free: float, omega: float,
             ) -> Dict[int, float]:
    """T_eff in ms of every choice that may be run, by its number, for a source of `fps` frames a second (None: as many
    as are taken) that has `share` of the workers. `free`: the load that may be promised to it; a promised rate keeps
    within it."""
    found: Dict[int, float] = {}
    for number, choice in enumerate(choices):
        if fps is not None and load_of(fps, choice) > free:
            continue
        work_ms = now.server_slowdown * choice.T_server_ms
        server_fps = 1000 * share / work_ms if work_ms > 0 else ENDLESS_FPS
        found[number] = cost_ms(choice, now, min(fps or ENDLESS_FPS, server_fps), omega)
    return found
