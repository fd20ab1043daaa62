"""Who is let in, and what share of the workers each client has: pure functions, on top of fleet/decisions.py.

A promise is a frame rate. The promises of all clients together take at most MAX_LOAD of what the workers can do. A
client without a promise gets what is left, an equal share each.
"""
from __future__ import annotations

from typing import Dict, Hashable, Mapping, Optional

from config import Settings
from fleet.decisions import Admission, Conditions, admit
from service.entries import Entry

LEAST_SHARE = 0.01  # of a worker, for a client without a promise


def admitted(entry: Entry, fps: Optional[float], promised: float, workers: int, settings: Settings) -> Admission:
    """Let a client in that wants `fps` (None: what is left) while others have been promised `promised` workers: with
    its entry's first choice or a deeper split that fits, or not at all."""
    if fps is not None:
        link = Conditions(entry.bandwidth_mbps, entry.rtt_ms)
        options = (entry.first, *entry.choices)
        return admit(promised, workers, settings.MAX_LOAD, fps, entry.first, options, link)
    if settings.MAX_LOAD * workers - promised >= LEAST_SHARE:
        return Admission(entry.first)
    return Admission(None, f'all of the {workers} worker(s) is promised to others')


def shares(promised: Mapping[Hashable, float], workers: int) -> Dict[Hashable, float]:
    """Each client's share of the workers, by its promised load; clients of load 0 divide what is left. Two clients that
    always have frames waiting are served in this proportion."""
    open_clients = sum(load == 0 for load in promised.values())
    left = max(0.0, workers - sum(promised.values()))
    return {client: max(LEAST_SHARE, load or left / open_clients) for client, load in promised.items()}
