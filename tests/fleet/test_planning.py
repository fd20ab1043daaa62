"""Plans follow from the tables by the cost model, and what nobody can satisfy is named."""
from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from fleets import client, made_settings, plan_of, server, table_of

import lut_manager
from config import UserError
from costs.cost_model import TIERS, Configuration, Link, scenario_of, times
from fleet import plan_file, points
from fleet.fleet_file import Fleet
from fleet.plan import DEVICE, LINK, SERVER
from fleet.planning import model_of
from network.alpha import surviving_branches, unpruned_alpha
from pipeline import kinds
from search import result_file
from throughput_optimizer import fastest_gammas, gamma_for_split, solve_exact, split_times
from gamma_mask_builder import build_gamma_mask


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    """RESULTS_DIR with a table and the result of domain 0."""
    return made_settings(tmp_path_factory.mktemp('results'), 0)


def refused(*args) -> str:
    with pytest.raises(UserError) as caught:
        plan_of(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


# --- points ----------------------------------------

def test_points_are_all_splits_that_no_other_beats_with_the_times_of_the_cost_model(settings):
    table = table_of(settings)
    found = points.points_of(table, [points.unpruned_network(table, 0.9)], settings)
    alive = surviving_branches(unpruned_alpha(table.n_branches))
    costs = []
    for split in range(1, table.n_blocks + 1):
        gamma = gamma_for_split(table, alive, split, 'client')
        choice = Configuration(unpruned_alpha(table.n_branches), gamma, split)
        at = times(table, choice, scenario_of(settings, table))
        n_bytes = 0.0 if split == table.n_blocks else float(table.cut_bytes('float32')[split])
        costs.append((at.T_client_ms, at.T_server_ms, n_bytes))
        if split in found.split:
            index = found.split.tolist().index(split)
            assert costs[-1] == pytest.approx((found.T_client_ms[index], found.T_server_ms[index],
                                               found.n_bytes[index]))
            assert found.gamma(index, settings) == choice.gamma
            assert found.uses_link[index] == (split < table.n_blocks)
    beaten = {k + 1 for k, one in enumerate(costs) for other in costs
              if other != one and all(b <= a for a, b in zip(one, other))}
    assert set(found.split) == set(range(1, table.n_blocks + 1)) - beaten


def test_networks_are_those_of_the_frontiers_and_accurate_enough(settings):
    table = table_of(settings)
    result = result_file.load(0, table, settings)
    networks = points.networks_of(result, table)
    assert networks[0].name == 'unpruned' and networks[0].accuracy == result.accuracy.val_reference
    pruned = {point.configuration.alpha.tobytes() for found in result.frontier.values() for point in found
              if point.n_pruned} | {result.configuration.alpha.tobytes()}
    assert {network.alpha.tobytes() for network in networks[1:]} == pruned
    strict = dataclasses.replace(settings, EPSILON=0.002)  # the pruned ones lose 0.004 and more
    lowest = []
    for chosen in (settings, strict):
        plan = plan_of([client(domain=0, min_accuracy=result.accuracy.val_reference - chosen.EPSILON)], [server()],
                       settings)
        lowest.append(min(point.accuracy for point in plan.points))
        assert lowest[-1] >= result.accuracy.val_reference - chosen.EPSILON - 1e-9
    assert lowest[0] < lowest[1]


def test_the_accuracy_of_a_lossy_format_is_only_known_where_it_was_measured():
    exact = points.Network('a', np.ones((3, 3)), 0.9, True)
    lossy = dataclasses.replace(exact, lossy_at=(2, 'uint8'))
    assert [exact.allows(split, 3, 'uint8') for split in range(4)] == [True, False, False, True]  # nothing is encoded
    assert all(exact.allows(split, 3, 'float32+zlib') for split in range(4))
    assert [lossy.allows(split, 3, 'uint8+zlib') for split in range(4)] == [False, False, True, False]
    assert not lossy.allows(2, 3, 'float32')


# --- one server, equal clients: the case of CLIENTS=K ----------------------------------------

@pytest.mark.parametrize('number, workers, max_load', [(1, 1, 1.0), (8, 1, 1.0), (12, 3, 1.0), (8, 1, 0.8)])
def test_equal_clients_get_what_the_cost_model_of_k_clients_says(settings, number, workers, max_load):
    """With MAX_LOAD = 1: 1000 / T_cyc of the best split; the client alone is one of the splits."""
    chosen = dataclasses.replace(settings, MAX_LOAD=max_load)
    plan = plan_of([client(count=number)], [server(workers=workers)], chosen)
    of_k = dataclasses.replace(settings, CLIENTS=number, SERVER_WORKERS=workers)
    table = table_of(settings)
    best = solve_exact(table, surviving_branches(unpruned_alpha(table.n_branches)), of_k,
                       range(1, table.n_blocks + 1), 'T_cyc_ms')
    assert plan.value == pytest.approx(max_load * best.times.throughput_fps, rel=1e-6) and plan.proven
    assert [one.fps for one in plan.clients] == [pytest.approx(plan.value)] * number
    assert plan.servers[0].load <= max_load * (1 + 1e-6)
    assert {one.limited_by for one in plan.clients} <= {SERVER, DEVICE, LINK}


def test_max_min_on_one_server_needs_no_scipy(settings, monkeypatch):
    clients = [client('a', 3), client('b', 2, mbps=20)]
    expected = plan_of(clients, [server()], settings).value
    monkeypatch.setattr('fleet.programme.milp', None)
    assert plan_of(clients, [server()], settings).value == pytest.approx(expected)
    assert 'pip install -r requirements-fleet.txt' in refused(clients, [server(mbps=100)], settings)


def test_mixed_clients_on_one_server_against_brute_force(settings):
    table = table_of(settings)
    clients = [client('a', mbps=100), client('b', mbps=8), client('c', mbps=30, max_fps=20.0)]
    plan = plan_of(clients, [server()], settings)
    valid = build_gamma_mask(surviving_branches(unpruned_alpha(table.n_branches)))
    block_ms = {tier: fastest_gammas(table.T_ms[tier], valid)[1] for tier in TIERS}
    options = []
    for one in clients:
        linked = lut_manager.with_link(table, Link(one.bandwidth_mbps, one.rtt_ms, False))
        at = split_times(linked, block_ms, 'float32', scenario_of(settings, table))
        options.append([(max(at.T_client_ms[k], at.T_com_ms[k]) / settings.MAX_LOAD, at.T_server_ms[k])
                        for k in range(1, table.n_blocks + 1)])
    best = 0.0
    for chosen in itertools.product(*options):
        if 20 * chosen[2][0] > 1000:
            continue
        free_ms = 1000 * settings.MAX_LOAD - 20 * chosen[2][1]  # the third one's source delivers 20
        own = 1000 / max(chosen[0][0], chosen[1][0])
        best = max(best, min(own, free_ms / max(chosen[0][1] + chosen[1][1], 1e-12)))
    assert plan.value > 20 and plan.value == pytest.approx(best, rel=1e-6)


# --- what nobody can satisfy ----------------------------------------

def test_what_a_client_cannot_get_is_named_with_its_limit_and_by_how_much(settings):
    best = plan_of([client()], [server()], settings).value
    text = refused([client(), client('hall', mbps=1e5, fps=9 * best)], [server(workers=99)], settings)
    assert 'client hall: asks for' in text and 'its device sustains' in text and '% too much' in text
    text = refused([client('hall', mbps=0.001, fps=best / 2)], [server()],
                   dataclasses.replace(settings, LAMBDA_MAX=3))
    assert 'link of 0.001 Mbit/s sustains' in text
    text = refused([client('hall', mbps=1000, fps=best)], [server(mbps=0.01)],
                   dataclasses.replace(settings, LAMBDA_MAX=3))
    assert 'client hall: no server can carry it' in text and '% of what one rack gives' in text
    text = refused([client(), client('hall', 500, mbps=1000, fps=0.8 * best)], [server()], settings)
    assert 'times what the servers give' in text and '500 x hall' in text


def test_what_an_objective_needs_is_said(settings):
    assert 'client gate: fewest_servers needs the frame rate' in refused([client()], [server()], settings,
                                                                         'fewest_servers')
    assert 'max_accuracy needs a domain with a result' in refused([client(fps=1)], [server()], settings, 'max_accuracy')
    assert 'min_accuracy 0.99' in refused([client(domain=0, min_accuracy=0.99)], [server()], settings)
    assert 'HEAD_TIER' in refused([client()], [server()], dataclasses.replace(settings, HEAD_TIER='server'))
    assert "no device profile 'nano'" in refused([client(tier='profile nano')], [server()], settings)
    assert 'edge-cpu is timed on this machine' in refused([client(tier='profile edge-cpu')], [server()], settings)
    assert 'no such file' in refused([client(tier='table none.json')], [server()], settings)


# --- the file ----------------------------------------

@pytest.mark.parametrize('objective', ['max_min', 'max_total', 'fewest_servers', 'max_accuracy'])
def test_a_plan_is_read_back_as_it_was_written(settings, objective):
    clients = [client('a', 3, fps=20, domain=0), client('b', fps=10, max_fps=30.0, domain=0)]
    plan = plan_of(clients, [server(count=2, mbps=400.0), server('desk')], settings, objective)
    path = plan_file.save(plan, settings, {'fleet.json': 'abc'})
    assert path == kinds.path_of('fleet_plan', settings) and plan_file.load(settings) == plan
    other = dataclasses.replace(settings, MAX_LOAD=0.5, FLEET_OBJECTIVE='max_total', LINK_TRACE='x')
    assert plan_file.load(other) == plan  # it says itself what it was planned for
    with pytest.raises(UserError, match='was made with .*make it again'):
        plan_file.load(dataclasses.replace(settings, EPSILON=0.5))


def test_points_and_rates_do_not_depend_on_the_order_of_groups(settings):
    clients = [client('a', 2), client('b', 3, mbps=20), client('c', mbps=5)]
    fleet = Fleet('fleet', tuple(clients), (server(),))
    assert model_of(fleet, settings).problem.shape[0] == 3
    values = {round(plan_of(list(order), [server()], settings).value, 9) for order in itertools.permutations(clients)}
    assert len(values) == 1
