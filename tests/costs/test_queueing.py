"""The wait for other clients' frames, held against a simulation that serves frame by frame."""
from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.cost_model import Scenario, combine, waiting_ms
from costs.queueing import mean_wait_ms

PERIODS = 3  # the first fills an empty server; what is served in the last is counted


def served(arrivals_ms: np.ndarray, service_ms: float, workers: int) -> np.ndarray:
    """When each frame [n] begins to be served, in the order of arrival, by workers that are free at first."""
    free_ms, begins = [0.0] * workers, np.empty(len(arrivals_ms))
    for frame in np.argsort(arrivals_ms, kind='stable'):
        begins[frame] = max(arrivals_ms[frame], heapq.heappop(free_ms))
        heapq.heappush(free_ms, begins[frame] + service_ms)
    return begins


def simulated_wait_ms(stages, period_ms: float, clients: int, draws: int = 2500) -> float:
    """The mean wait of frames that pass stages of (ms, workers) one after another; the clients' phases are random."""
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(draws):
        arrive = np.add.outer(period_ms * np.arange(PERIODS), rng.uniform(0, period_ms, clients)).ravel()
        for service_ms, workers in stages:
            begin = served(arrive, service_ms, workers)
            total += (begin - arrive)[-clients:].mean()
            arrive = begin + service_ms
    return total / draws


@pytest.mark.parametrize('clients, load', [(2, 1.0), (3, 0.7), (8, 1.0), (8, 0.5), (25, 0.9)])
def test_the_wait_for_one_worker_is_that_of_a_simulation(clients, load):
    service_ms = 3.0
    period_ms = clients * service_ms / load
    simulated = simulated_wait_ms([(service_ms, 1)], period_ms, clients)
    assert mean_wait_ms(service_ms, period_ms, clients) == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize('clients, workers', [(8, 2), (24, 4)])
def test_several_workers_make_frames_wait_at_most_as_long_as_one_that_is_as_fast(clients, workers):
    scenario = Scenario('client', 0.5, clients=clients, server_workers=workers)
    _, T_cyc, _ = combine(0.0, 0.0, 6.0, 0.0, scenario)
    simulated = simulated_wait_ms([(6.0, workers)], T_cyc, clients)
    assert simulated <= waiting_ms(0.0, 6.0, T_cyc, scenario) <= 1.5 * simulated


@pytest.mark.parametrize('com_ms, server_ms', [(2.0, 3.0), (3.0, 1.0)])
def test_behind_a_shared_link_frames_wait_for_the_slower_of_link_and_server(com_ms, server_ms):
    scenario = Scenario('client', 0.5, clients=6, link_shared=True)
    _, T_cyc, _ = combine(1.0, com_ms, server_ms, 2.0, scenario)
    simulated = simulated_wait_ms([(com_ms, 1), (server_ms, 1)], T_cyc, 6)
    assert waiting_ms(com_ms, server_ms, T_cyc, scenario) == pytest.approx(simulated, rel=0.05)


def test_many_clients_of_a_small_load_each_are_the_queue_m_d_1():
    assert mean_wait_ms(2.0, 2.0 * 100_000 / 0.6, 100_000) == pytest.approx(0.6 * 2.0 / (2 * (1 - 0.6)), rel=1e-3)


@given(st.floats(0.01, 10), st.integers(1, 60), st.floats(1, 20), st.floats(1, 3))
def test_the_wait_falls_by_less_than_the_period_grows_and_nobody_waits_alone(service_ms, clients, slack, more):
    period_ms = clients * service_ms * slack
    now, later = (mean_wait_ms(service_ms, ms, clients) for ms in (period_ms, period_ms * more))
    assert 0 <= later <= now <= later + period_ms * (more - 1) + 1e-9 and now <= (clients - 1) * service_ms
    assert mean_wait_ms(service_ms, period_ms, 1) == 0 == mean_wait_ms(0.0, 0.0, clients)
