"""Real mode: a connected client with the table measured through it, step 3 through it, and a stream without pruning."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, NamedTuple

import cli
from config import Settings
from costs.cost_model import Configuration, HardwareTable, Solution
from domain_dataset import load_domain
from network.alpha import surviving_branches, unpruned_alpha
from remote.session import Session, open_session
from search.answers import choice_of
from search.domain_inputs import base_model
from split_trainer import measure
from steps.joint import joint_through_client
from throughput_optimizer_limit import solve_within_limits
from wire.stream import LEAST_FRAMES


class MeasuredStream(NamedTuple):
    """A stream through both devices beside what the table predicts for it."""
    table: HardwareTable
    chosen: Solution
    measured: Dict[str, Any]


def connected(settings: Settings, flags: cli.ServerFlags) -> Session:
    """A session with the first client that connects."""
    return open_session(settings, flags.listening)


@contextmanager
def measured_client(domain: int, settings: Settings, flags: cli.ServerFlags) -> Iterator[Session]:
    """Wait for a client and measure what is not known yet: both tiers, the link, the formats on images of a domain."""
    with connected(settings, flags) as session:
        session.table(domain, flags.remeasure)
        yield session


def joint(domain: int, settings: Settings, flags: cli.ServerFlags, search_again: bool) -> None:
    """Step 3 of one domain, waiting for a client."""
    with connected(settings, flags) as session:
        joint_through_client(domain, session, settings, flags.remeasure, search_again)


def stream_unpruned(settings: Settings, flags: cli.ServerFlags, n_frames: int) -> MeasuredStream:
    """Wait for a client, measure it, choose γ and λ of the unpruned network within the limits, and stream frames."""
    test = load_domain(settings, 0, 'test')
    model = base_model(settings)
    with connected(settings, flags) as session:
        table = session.table(0, flags.remeasure)
        alpha = unpruned_alpha(table.n_branches)
        chosen = solve_within_limits(table, surviving_branches(alpha), settings)
        channels = choice_of(model, 0, settings).at(alpha, chosen.split, chosen.wire)
        configuration = Configuration(alpha, chosen.gamma, chosen.split, chosen.wire, channels)
        measured = measure(session, model, configuration, table, test, max(n_frames, LEAST_FRAMES))
    return MeasuredStream(table, chosen, measured)
