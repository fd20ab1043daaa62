"""What may be served follows from result files and plans, and is refused in one line where they do not fit."""
from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from fleets import client, made_settings, plan_of, server, table_of
from hypothesis import given
from hypothesis import strategies as st
from made_results import make_result, make_table

import config
from config import UserError
from costs.cost_model import Configuration, scenario_of, times
from fleet import plan_file
from network.alpha import surviving_branches
from search import result_file
from search.pick import PickRule
from service.entries import Choice, Entry, ServedNetwork, class_names, entries_of_plan, entries_of_results, entry_of
from wire.formats import is_lossless


def test_an_entry_begins_with_its_domains_result_and_may_change_to_lossless_formats_only(tmp_path):
    settings = made_settings(tmp_path, 0, 3)
    table = table_of(settings)
    entries = entries_of_results(range(10), settings)
    assert list(entries) == ['domain_0', 'domain_3']
    for domain, entry in zip((0, 3), entries.values()):
        chosen = result_file.load(domain, table, settings).configuration
        np.testing.assert_array_equal(entry.network.alpha, chosen.alpha)
        assert (entry.first.split, entry.first.wire) == (chosen.split, chosen.wire)
        assert entry.first in entry.choices
        assert all(is_lossless(choice.wire) or choice == entry.first for choice in entry.choices)
        assert all(settings.LAMBDA_MIN <= choice.split for choice in entry.choices)
        for choice in entry.choices:
            gamma = entry.network.gamma['client'][:choice.split] + entry.network.gamma['server'][choice.split:]
            predicted = times(table, dataclasses.replace(chosen, gamma=gamma, split=choice.split, wire=choice.wire),
                              scenario_of(settings, table))
            assert choice.T_client_ms == pytest.approx(predicted.T_client_ms)
            assert choice.T_server_ms == pytest.approx(predicted.T_server_ms)


@given(st.integers(0, 40), st.sampled_from([None, 0.9]), st.integers(0, 2))
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_client_may_change_to_networks_that_lose_at_most_epsilon_only(seed, confidence, n_passed):
    settings = dataclasses.replace(config.load((), {}), CLIENTS=1)
    table = make_table(settings)
    rng, result = np.random.default_rng(seed), make_result(table, settings, seed % 10)
    accuracy = result.accuracy
    of = {point.configuration.alpha.tobytes(): float(rng.uniform(0.85, 0.95)) for point in result.frontier['T_eff']}
    frontier = {name: [dataclasses.replace(point, accuracy=of.get(point.configuration.alpha.tobytes(), 0.9))
                       for point in found] for name, found in result.frontier.items()}
    result = dataclasses.replace(result, frontier=frontier, epsilon=float(rng.uniform(0, 0.05)), pick=PickRule(
        'constraint', confidence=confidence, n_tested=2, n_passed=n_passed))
    entry = entry_of('domain_0', result, table, settings, any_network=True)
    assert entry.networks[0] is entry.network and entry.network.name == 'domain_0'
    allowed = set()
    for objective, found in frontier.items():
        for point in found:
            right = point.accuracy >= accuracy.val_reference - result.epsilon if confidence is None else (
                n_passed and objective == 'tests' and point.n_pruned <= len(result.pruned))
            if right and (point.configuration.alpha == 0).any():  # the unpruned one saves nothing
                allowed.add(point.configuration.alpha.tobytes())
    others = {network.alpha.tobytes() for network in entry.others}
    assert others <= allowed
    assert {choice.network for choice in entry.choices} == set(range(len(entry.networks)))
    assert entry_of('domain_0', result, table, settings).others == ()
    for choice in entry.choices:
        network = entry.networks[choice.network]
        predicted = times(table, Configuration(
            network.alpha, network.gamma['client'][:choice.split] + network.gamma['server'][choice.split:],
            choice.split, choice.wire), scenario_of(settings, table))
        assert choice.T_client_ms == pytest.approx(predicted.T_client_ms)
    assert {choice.network for choice in entry.within({'domain_0'}).choices} == {0}


def test_a_plans_clients_are_entries_of_their_server(tmp_path):
    settings = made_settings(tmp_path, 0)
    plan = plan_of([client('gate', 3, domain=0), client('hall', 2, mbps=20.0)], [server('rack', 2)], settings)
    plan_file.save(plan, settings, {})
    found = {}
    for number, name in enumerate(('rack-1', 'rack-2')):
        for entry in entries_of_plan(name, settings).values():
            planned = next(one for one in plan.clients if one.name == entry.name)
            point = plan.points[planned.point]
            assert planned.server == number and entry.promised_fps == pytest.approx(planned.fps)
            assert (entry.first.split, entry.first.wire) == (point.split, point.wire)
            assert entry.first.T_server_ms == pytest.approx(point.T_server_ms)
            assert surviving_branches(entry.network.alpha).all(axis=1).any() or point.network != 'unpruned'
            found[entry.name] = entry
    alone = [one.name for one in plan.clients if one.server is None]
    assert sorted([*found, *alone]) == ['gate-1', 'gate-2', 'gate-3', 'hall-1', 'hall-2']


def test_clients_of_a_plan_that_run_the_same_network_share_it(tmp_path):
    settings = made_settings(tmp_path, 0)
    plan_file.save(plan_of([client('gate', 4, domain=0)], [server()], settings), settings, {})
    entries = entries_of_plan('', settings)
    assert len({id(entry.network) for entry in entries.values()}) == len({
        entry.network.name for entry in entries.values()})


def test_what_cannot_be_served_is_one_line(tmp_path):
    settings = made_settings(tmp_path)
    with pytest.raises(UserError, match='domain_2_joint.json: no such file'):
        entries_of_results([2, 5], settings)
    with pytest.raises(UserError, match='HEAD_TIER must be client'):
        entries_of_results([2], dataclasses.replace(settings, HEAD_TIER='server'))
    with pytest.raises(UserError, match='fleet_plan.json: no such file'):
        entries_of_plan('rack', settings)
    settings = made_settings(tmp_path, 0)
    plan_file.save(plan_of([client('gate', 2, domain=0)], [server('rack', 2)], settings), settings, {})
    with pytest.raises(UserError, match="--plan 'desk': the plan's servers are rack-1, rack-2"):
        entries_of_plan('desk', settings)


def test_a_plan_that_its_results_do_not_fit_any_more_is_refused(tmp_path):
    settings = made_settings(tmp_path, 0)
    plan = plan_of([client('gate', 2, domain=0)], [server('rack')], settings)
    for changed in ({'network': 'frontier.T_eff[99]'}, {'domain': 5, 'network': 'result'}, {'network': 'result'}):
        points = tuple(dataclasses.replace(point, **{**changed, 'gamma': (3,) * table_of(settings).n_blocks})
                       for point in plan.points)
        plan_file.save(dataclasses.replace(plan, points=points), settings, {})
        with pytest.raises(UserError, match='plan again with'):
            entries_of_plan('rack', settings)


def test_classes_are_called_as_the_partition_says(tmp_path):
    assert class_names(made_settings(tmp_path)) == [str(digit) for digit in range(10)]


def test_a_client_gets_only_choices_whose_compression_it_has():
    choices = [Choice(1, wire, 1.0, 1.0, 1.0) for wire in ('uint8', 'uint8+zlib', 'uint8+zstd')]
    network = ServedNetwork('one', np.ones((3, 3)), {})
    entry = Entry('one', network, choices[0], tuple(choices))
    assert entry.for_compressions(['zlib', 'zstd']) == entry
    assert entry.for_compressions(['zlib']).choices == tuple(choices[:2])
    with pytest.raises(UserError, match='needs the package zstandard on the device'):
        dataclasses.replace(entry, first=choices[2]).for_compressions(['zlib'])
