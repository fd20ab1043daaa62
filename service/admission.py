"""Who is let in: pure functions of promises and choices.

A promise is a frame rate. The promises of all clients together take at most `MAX_LOAD` of what the workers can do. A
client without a promise gets what is left, an equal share each.
"""
from __future__ import annotations

from typing import Dict, Hashable, Mapping, NamedTuple, Optional, Sequence

from service.entries import Choice

MAX_LOAD = 0.95  # of the workers' time that may be promised: what is left takes the unevenness of frames
LEAST_SHARE = 0.01  # of a worker, for a client without a promise


class Admission(NamedTuple):
    """What a client may do: a choice, or None and why not."""
    choice: Optional[Choice]
    reason: str = ''


def load_of(fps: Optional[float], server_ms: float) -> float:
    """Workers that a promised rate keeps busy."""
    return 0.0 if fps is None else fps * server_ms / 1000


def admit(promised_load: float, workers: int, fps: Optional[float], wanted: Choice, choices: Sequence[Choice],
          bandwidth_mbps: float) -> Admission:
    """Let a client in that wants `fps` (None: what is left) when others have been promised `promised_load` workers:
    with the choice that it wants, else with the one of the choices that costs its own device least among those that
    fit and that device and link sustain."""
    left = MAX_LOAD * workers - promised_load
    if fps is None:
        return Admission(wanted) if left >= LEAST_SHARE else Admission(
            None, f'all of the {workers} worker(s) is promised to others')
    for choice in (wanted, *sorted(choices, key=lambda each: each.T_client_ms)):
        if load_of(fps, choice.T_server_ms) <= left and (choice is wanted or choice.sustains(fps, bandwidth_mbps)):
            return Admission(choice)
    return Admission(None, f'{fps:g} frames a second need {load_of(fps, wanted.T_server_ms):.2f} of a worker, '
                           f'{max(0, left):.2f} of {workers} is left, and no split that fits is one that device and '
                           'link sustain')


def shares(promised: Mapping[Hashable, float], workers: int) -> Dict[Hashable, float]:
    """Each client's share of the workers, by its promised load; clients of load 0 divide what is left. Two clients that
    always have frames waiting are served in this proportion."""
    open_clients = sum(load == 0 for load in promised.values())
    left = max(0.0, workers - sum(promised.values()))
    return {client: load or max(LEAST_SHARE, left / open_clients) for client, load in promised.items()}
