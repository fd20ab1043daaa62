"""The times of a configuration, the exact method against brute force, and the gradient method's certificate."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_cases import OBJECTIVES, WIRE_SIZES, fleets, objectives, surviving_arrays, tables, whole_table

import throughput_optimizer as optimizer
from config import Settings, UserError
from costs.cost_model import Configuration, Link, Roofline, Scenario, roofline_loss_ms, scenario_of, times
from steps import unpruned
from throughput_optimizer import solve_exact, solve_gradient


@st.composite
def cases(draw, max_blocks: int = 4):
    """A table, what survives of the network, and settings that choose any tier, ω, splits and wire formats."""
    table = draw(tables(max_blocks))
    surviving = draw(surviving_arrays(table.has_identity))
    low = draw(st.integers(0, table.n_blocks))
    chosen = Settings(HEAD_TIER=draw(st.sampled_from(['client', 'server'])), OMEGA=draw(st.floats(0, 1)),
                      RESULT_AT=draw(st.sampled_from(['client', 'server'])), LAMBDA_MIN=low,
                      LAMBDA_MAX=draw(st.integers(low, table.n_blocks)),
                      WIRE_FORMATS=draw(st.sampled_from([('float32',), ('float32', 'uint8'), ('uint8',)])),
                      OBJECTIVE=draw(objectives(table)), **draw(fleets))
    return table, surviving, chosen


def brute_force(table, surviving, chosen: Settings, splits=None):
    """Every choice that these settings allow: (γ, λ, wire format, times)."""
    if splits is None:
        splits = range(chosen.LAMBDA_MIN, chosen.LAMBDA_MAX + 1)
    return oracles.all_choices(table, surviving, splits, chosen.WIRE_FORMATS, scenario_of(chosen, table))


def naive(table, solution, chosen: Settings) -> oracles.NaiveTimes:
    return oracles.naive_times(table, solution.gamma, solution.split, solution.wire, scenario_of(chosen, table))


def assert_same_times(found, expected):
    for name, value in expected._asdict().items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12, abs=1e-12), name


# --- the times of a configuration -----------------------------------------------------------------------

@given(cases(), st.data())
def test_times_are_those_of_a_walk_through_the_network_piece_by_piece(case, data):
    table, surviving, chosen = case
    gamma = tuple(data.draw(st.sampled_from(oracles.valid_gammas(row))) for row in surviving)
    wire = data.draw(st.sampled_from(sorted(WIRE_SIZES)))
    for split in range(table.n_blocks + 1):
        found = times(table, Configuration(np.ones((table.n_blocks, 3)), gamma, split, wire),
                      scenario_of(chosen, table))
        expected = oracles.naive_times(table, gamma, split, wire, scenario_of(chosen, table))
        assert_same_times(found, expected)
        if expected.T_cyc_ms > 0:
            assert set(found.as_dict()) == {*expected._asdict(), 'throughput_fps'}
            assert found.throughput_fps == pytest.approx(1000 / expected.T_cyc_ms)


@given(tables(), st.sampled_from(['client', 'server']))
def test_at_the_ends_one_tier_does_nothing_and_the_stem_and_classifier_run_once(table, head_tier):
    tail_tier = 'server' if head_tier == 'client' else 'client'
    gamma = tuple(13 if has else 4 for has in table.has_identity)
    for split, busy in ((0, tail_tier), (table.n_blocks, head_tier)):
        found = times(table, Configuration(np.ones((table.n_blocks, 3)), gamma, split), Scenario(head_tier, 0.5))
        by_tier = {'client': found.T_client_ms, 'server': found.T_server_ms}
        codec = (0, 0) if split or table.image is None else (table.image.encode_ms, table.image.decode_ms)
        whole = codec[1] + table.stem.T_ms[busy] + table.classifier.T_ms[busy] + sum(
            table.T_ms[busy][k][g] for k, g in enumerate(gamma))
        assert by_tier.pop(busy) == pytest.approx(whole + table.undivided_ms(busy))
        assert list(by_tier.values()) == [codec[0]]
        image_bytes = table.input_bytes if table.image is None else table.image.n_bytes
        sent = image_bytes if split == 0 else table.logits_bytes if head_tier == 'server' else 0
        assert found.T_com_ms == pytest.approx(sent * 8 / (table.link.bandwidth_mbps * 1e3))


def test_a_megabyte_takes_80_ms_at_100_mbits():
    assert Link(100, 2, False).transfer_ms(np.array(1e6)) == pytest.approx(80)


@given(tables())
def test_a_gamma_without_a_time_is_refused(table):
    assume(not table.has_identity.all())
    gamma = [4] * table.n_blocks
    gamma[int(np.argmin(table.has_identity))] = 13
    with pytest.raises(ValueError, match='no time'):
        times(table, Configuration(np.ones((table.n_blocks, 3)), tuple(gamma), 0), Scenario('client', 0.5))


# --- the exact method -------------------------------------------------------------------------------------

@given(cases(), st.sampled_from(OBJECTIVES))
@settings(max_examples=150)
def test_the_exact_method_is_as_good_as_the_best_of_all_choices(case, objective):
    table, surviving, chosen = case
    found = solve_exact(table, surviving, chosen, objective=objective)
    best = min(getattr(choice[3], objective) for choice in brute_force(table, surviving, chosen))
    assert getattr(found.times, objective) == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert_same_times(found.times, naive(table, found, chosen))  # it is what it says
    assert chosen.LAMBDA_MIN <= found.split <= chosen.LAMBDA_MAX and found.wire in chosen.WIRE_FORMATS
    assert all(g in oracles.valid_gammas(row) for g, row in zip(found.gamma, surviving))
    assert all(type(g) is int for g in found.gamma) and type(found.split) is int  # as JSON needs them


@given(cases(max_blocks=3))
def test_for_every_split_the_fastest_gammas_are_the_best_of_all(case):
    table, surviving, chosen = case
    wire = chosen.WIRE_FORMATS[0]
    at_splits = optimizer.times_with_fastest(table, surviving, wire, chosen)
    for split in range(table.n_blocks + 1):
        choices = list(oracles.all_choices(table, surviving, [split], [wire], scenario_of(chosen, table)))
        for objective in OBJECTIVES:
            best = min(getattr(choice[3], objective) for choice in choices)
            assert getattr(at_splits.at(split), objective) == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(cases(), st.data())
def test_only_the_given_splits_are_chosen_from(case, data):
    table, surviving, chosen = case
    splits = data.draw(st.lists(st.integers(0, table.n_blocks), min_size=1, unique=True))
    found = solve_exact(table, surviving, chosen, splits=splits)
    assert found.split in splits
    best = min(choice[3].T_eff_ms for choice in brute_force(table, surviving, chosen, splits))
    assert found.times.T_eff_ms == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(cases())
def test_without_a_largest_split_it_is_the_last_but_one(case):
    table, surviving, chosen = case
    assume(table.n_blocks > 1)
    chosen = dataclasses.replace(chosen, LAMBDA_MIN=1, LAMBDA_MAX=None)
    assert list(optimizer.split_range(table.n_blocks, chosen)) == list(range(1, table.n_blocks))
    assert 1 <= solve_exact(table, surviving, chosen).split <= table.n_blocks - 1


@pytest.mark.parametrize('low, high', [(5, 4), (0, 12), (12, None), (11, None)])
def test_settings_that_leave_no_split_are_one_line(low, high):
    with pytest.raises(UserError, match='leave no split') as caught:
        optimizer.split_range(11, Settings(LAMBDA_MIN=low, LAMBDA_MAX=high))
    assert '\n' not in str(caught.value)


@given(cases())
def test_each_block_gets_the_fastest_gamma_of_what_it_keeps_on_the_tier_that_it_runs_on(case):
    table, surviving, chosen = case
    gamma = optimizer.gamma_for_split(table, surviving, chosen.LAMBDA_MIN, chosen.HEAD_TIER)
    for k, (g, row) in enumerate(zip(gamma, surviving)):
        head = k < chosen.LAMBDA_MIN
        tier = chosen.HEAD_TIER if head else {'client': 'server', 'server': 'client'}[chosen.HEAD_TIER]
        block_ms = table.T_ms[tier][k]
        assert block_ms[g] == min(block_ms[valid] for valid in oracles.valid_gammas(row))


# --- the baselines ------------------------------------------------------------------------------------------

@given(cases())
def test_baselines_are_the_best_that_each_allows(case):
    table, surviving, chosen = case
    found = optimizer.baselines(table, surviving, chosen)
    assert set(found) == {'all_client', 'all_server', 'unfused'}
    for tier in ('client', 'server'):
        baseline = found[f'all_{tier}']
        assert baseline.split == (table.n_blocks if chosen.HEAD_TIER == tier else 0)
        best = min(choice[3].T_eff_ms for choice in brute_force(table, surviving, chosen, [baseline.split]))
        assert baseline.times.T_eff_ms == pytest.approx(best, rel=1e-12, abs=1e-12)
    unfused = found['unfused']
    for g, row in zip(unfused.gamma, surviving):
        assert g in oracles.valid_gammas(row) and len(oracles.GAMMA_TABLE[g][1]) == sum(row)
    best = min(oracles.naive_times(table, unfused.gamma, split, wire, scenario_of(chosen, table)).T_eff_ms
               for wire in chosen.WIRE_FORMATS for split in range(chosen.LAMBDA_MIN, chosen.LAMBDA_MAX + 1))
    assert unfused.times.T_eff_ms == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert_same_times(unfused.times, naive(table, unfused, chosen))


@given(tables())
def test_unfused_means_gamma_9_or_3_where_nothing_is_pruned(table):
    surviving = np.array([[True, True, has] for has in table.has_identity])
    chosen = Settings(LAMBDA_MIN=0, LAMBDA_MAX=table.n_blocks)
    assert optimizer.solve_unfused(table, surviving, chosen).gamma == tuple(
        9 if has else 3 for has in table.has_identity)


# --- the gradient method --------------------------------------------------------------------------------------

@given(cases(), st.sampled_from([0, 1, 25]))
@settings(max_examples=25)
def test_the_gradient_method_is_never_below_the_exact_optimum(case, steps):
    table, surviving, chosen = case
    chosen = dataclasses.replace(chosen, THROUGHPUT_OPTIM_STEPS=steps)
    run, exact = solve_gradient(table, surviving, chosen), solve_exact(table, surviving, chosen)
    assert run.solution.times.T_eff_ms >= exact.times.T_eff_ms * (1 - 1e-12)
    assert_same_times(run.solution.times, naive(table, run.solution, chosen))
    assert chosen.LAMBDA_MIN <= run.solution.split <= chosen.LAMBDA_MAX
    assert all(g in oracles.valid_gammas(row) for g, row in zip(run.solution.gamma, surviving))
    assert run.steps == steps and [step for step, _ in run.history] == {0: [], 1: [0], 25: [0, 10, 20, 24]}[steps]
    assert all(math.isfinite(value) for _, value in run.history)


@given(cases(), st.data())
@settings(max_examples=50)
def test_at_a_hard_choice_the_soft_objective_is_T_eff_plus_the_roofline_loss(case, data):
    table, surviving, chosen = case
    assume(table.n_blocks > 1)
    chosen = dataclasses.replace(chosen, SIGMA=200.0)  # half a block from the cut, sigmoid is 0 or 1
    gamma = [data.draw(st.sampled_from(oracles.valid_gammas(row))) for row in surviving]
    split, wire = data.draw(st.integers(1, table.n_blocks - 1)), chosen.WIRE_FORMATS[0]
    valid = np.array([[g in oracles.valid_gammas(row) for g in range(14)] for row in surviving])
    logits = torch.full((table.n_blocks, 14), -100.0, dtype=torch.float64)
    logits[range(table.n_blocks), gamma] = 100.0
    costs = optimizer.SoftCosts(table, valid, wire, chosen)
    soft = float(costs.enhanced_T_eff_ms(logits, torch.tensor(split - 0.5, dtype=torch.float64)))

    hard = oracles.naive_times(table, gamma, split, wire, scenario_of(chosen, table))
    stage = {'client': hard.T_client_ms, 'server': hard.T_server_ms}
    for tier in stage:
        runs = [k for k in range(table.n_blocks) if (k < split) == (tier == chosen.HEAD_TIER)]
        end = table.stem if tier == chosen.HEAD_TIER else table.classifier
        flops = end.flops + sum(table.flops[k][gamma[k]] for k in runs)
        n_bytes = end.bytes_moved + sum(table.bytes_moved[k][gamma[k]] for k in runs)
        roofline = table.roofline[tier]
        stage[tier] += chosen.ROOFLINE_BETA * oracles.naive_roofline_loss_ms(
            flops, n_bytes, roofline.peak_gflops, roofline.bandwidth_gbs, chosen.ROOFLINE_LAMBDA, chosen.ROOFLINE_RHO)
    latency = stage['client'] + hard.T_com_ms + stage['server'] + table.link.rtt_ms
    cycle = max(stage['client'], stage['server'] * chosen.CLIENTS / chosen.SERVER_WORKERS,
                hard.T_com_ms * (chosen.CLIENTS if chosen.LINK_SHARED else 1))
    expected = chosen.OMEGA * latency + (1 - chosen.OMEGA) * cycle
    if chosen.OBJECTIVE == 'energy':
        power = table.power['client']
        expected = oracles.naive_client_mj(power, stage['client'], hard.T_com_ms, cycle) / power.active_w
    assert soft == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.floats(1e3, 1e15), st.floats(1e3, 1e12), st.floats(0.1, 1e5), st.floats(0.1, 1e4), st.floats(0, 1),
       st.floats(0, 1))
def test_the_roofline_loss_is_the_formula_of_the_specification(flops, n_bytes, peak, bandwidth, scale, rho):
    found = roofline_loss_ms(flops, n_bytes, Roofline(peak, bandwidth), scale, rho, lambda value: max(0.0, value))
    assert found == pytest.approx(oracles.naive_roofline_loss_ms(flops, n_bytes, peak, bandwidth, scale, rho),
                                  rel=1e-9, abs=1e-12)
    assert Roofline(peak, bandwidth).i_knee == pytest.approx(peak / bandwidth)


@given(cases(), st.data())
def test_between_two_cuts_the_transfer_time_is_between_theirs(case, data):
    table, surviving, chosen = case
    valid = np.array([[g in oracles.valid_gammas(row) for g in range(14)] for row in surviving])
    wire = chosen.WIRE_FORMATS[0]
    costs = optimizer.SoftCosts(table, valid, wire, chosen)
    exact = [oracles.naive_times(table, [oracles.valid_gammas(row)[0] for row in surviving], split, wire,
                                 scenario_of(chosen, table)).T_com_ms for split in range(table.n_blocks + 1)]
    for split, (here, there) in enumerate(zip(exact, exact[1:])):
        part = data.draw(st.floats(0, 1))
        found = float(costs.between_cuts(costs.com_ms, torch.tensor(split - 0.5 + part, dtype=torch.float64)))
        assert found == pytest.approx((1 - part) * here + part * there, rel=1e-9, abs=1e-9)


@given(st.data())
@settings(max_examples=25)
def test_rounding_gives_the_head_the_blocks_that_weigh_more_than_half(data):
    """λ is the number of blocks k with sigmoid(σ(λ_soft - k)) above one half, as the published method counts them."""
    chosen = Settings(MODEL_NAME='RepVGG-Micro', THROUGHPUT_OPTIM_STEPS=0)
    table = whole_table(chosen)
    low = data.draw(st.integers(0, table.n_blocks))
    high = data.draw(st.integers(low, table.n_blocks))
    chosen = dataclasses.replace(chosen, LAMBDA_MIN=low, LAMBDA_MAX=high)
    surviving = np.array([[True, True, has] for has in table.has_identity])
    start = ((low - 0.5) + (high - 0.5)) / 2  # no step is taken: the middle of the allowed splits is rounded
    weights = [1 / (1 + math.exp(-chosen.SIGMA * (start - k))) for k in range(table.n_blocks)]
    found = solve_gradient(table, surviving, chosen).solution.split
    assert found == min(max(sum(weight > 0.5 for weight in weights), low), high)


@given(cases())
@settings(max_examples=25)
def test_the_gradient_method_ends_no_higher_than_with_any_one_wire_format(case):
    table, surviving, chosen = case
    chosen = dataclasses.replace(chosen, THROUGHPUT_OPTIM_STEPS=5, WIRE_FORMATS=('float32', 'uint8'))
    alone = [solve_gradient(table, surviving, dataclasses.replace(chosen, WIRE_FORMATS=(wire,))).solution
             for wire in chosen.WIRE_FORMATS]
    found = solve_gradient(table, surviving, chosen).solution
    assert found in alone and found.times.T_eff_ms == min(solution.times.T_eff_ms for solution in alone)


def test_where_one_choice_is_clearly_best_the_gradient_method_finds_it():
    chosen = Settings(MODEL_NAME='RepVGG-Micro')
    table = whole_table(chosen, seed=4)
    surviving = np.array([[True, True, has] for has in table.has_identity])
    rng = np.random.default_rng(4)
    for tier in ('client', 'server'):  # one γ of each block is five times as fast, the same on both tiers
        for k, row in enumerate(surviving):
            valid = oracles.valid_gammas(row)
            table.T_ms[tier][k, valid] = 2.0
            table.T_ms[tier][k, valid[k % len(valid)]] = 0.4 * rng.uniform(0.99, 1.01)
    run, exact = solve_gradient(table, surviving, chosen), solve_exact(table, surviving, chosen)
    assert run.solution.gamma == exact.gamma
    assert run.history[-1][1] < run.history[0][1]
    assert run.solution.times.T_eff_ms <= 1.05 * exact.times.T_eff_ms


def test_the_gradient_method_gives_the_same_answer_twice():
    chosen = Settings(THROUGHPUT_OPTIM_STEPS=40)
    table = whole_table(chosen, seed=9)
    surviving = np.array([[True, True, has] for has in table.has_identity])
    first, second = (solve_gradient(table, surviving, chosen) for _ in range(2))
    assert (first.solution, first.history) == (second.solution, second.history)


# --- step 2's document -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('head_tier', ['client', 'server'])
def test_step_2_reports_the_certificate_every_split_and_the_baselines(head_tier):
    chosen = Settings(HEAD_TIER=head_tier, THROUGHPUT_OPTIM_STEPS=30, LAMBDA_MIN=2, LAMBDA_MAX=7)
    table = whole_table(chosen, seed=11)
    result = unpruned.optimise(table, chosen)
    surviving = np.array([[True, True, has] for has in table.has_identity])
    exact = result['exact']
    assert result['optimality_gap'] == pytest.approx(result['gradient']['T_eff_ms'] / exact['T_eff_ms'] - 1)
    assert result['optimality_gap'] >= -1e-12
    assert (result['optimal_lambda'], result['optimal_gamma']) == (exact['lambda'], exact['gamma'])
    assert result['lambda_range'] == [2, 7] and result['head_tier'] == head_tier
    assert [entry['lambda'] for entry in result['per_split']] == list(range(table.n_blocks + 1))
    assert min(entry['T_eff_ms'] for entry in result['per_split'][2:8]) == pytest.approx(exact['T_eff_ms'])
    for entry in [exact, result['gradient'], *result['baselines'].values()]:
        gamma = [entry['gamma'][name] for name in table.block_names]
        expected = oracles.naive_times(table, gamma, entry['lambda'], 'float32', scenario_of(chosen, table))
        for name, value in expected._asdict().items():
            assert entry[name] == pytest.approx(value)
        assert all(g in oracles.valid_gammas(row) for g, row in zip(gamma, surviving))
    assert [line.split('  ')[0] for line in unpruned.summary(result).splitlines()[1:6]] == [
        'exact', 'gradient', 'all client', 'all server', 'unfused']
    assert 'splitting' in unpruned.summary(result).splitlines()[8]


@pytest.mark.parametrize('fleet', [dict(CLIENTS=8), dict(CLIENTS=8, SERVER_WORKERS=3, HEAD_TIER='server'),
                                   dict(CLIENTS=16, LINK_SHARED=True, BANDWIDTH_MBPS=1000.0)])
def test_step_2_for_a_fleet_is_the_best_of_all_splits_and_serves_every_client_at_its_rate(fleet):
    chosen = Settings(THROUGHPUT_OPTIM_STEPS=30, LAMBDA_MIN=0, LAMBDA_MAX=11, WIRE_FORMATS=('float32', 'uint8'),
                      **fleet)
    table = whole_table(chosen, seed=3)
    result, alone = (unpruned.optimise(table, settings) for settings in
                     (chosen, dataclasses.replace(chosen, CLIENTS=1, SERVER_WORKERS=1, LINK_SHARED=False)))
    surviving = [[True, True, has] for has in table.has_identity]
    least = math.inf
    for split in range(table.n_blocks + 1):  # of every block, the fastest γ where it runs: nothing else can be faster
        tiers = ['client' if (k < split) == (chosen.HEAD_TIER == 'client') else 'server' for k in range(table.n_blocks)]
        gamma = [min(oracles.valid_gammas(row), key=table.T_ms[tier][k].__getitem__)
                 for k, (tier, row) in enumerate(zip(tiers, surviving))]
        least = min([least, *(oracles.naive_times(table, gamma, split, wire, scenario_of(chosen, table)).T_eff_ms
                              for wire in chosen.WIRE_FORMATS)])
    exact = result['exact']
    assert exact['T_eff_ms'] == pytest.approx(least, rel=1e-6)
    busy_ms = chosen.CLIENTS / exact['T_cyc_ms'] * exact['T_server_ms']  # of a worker's ms, in every ms
    assert busy_ms <= chosen.SERVER_WORKERS + 1e-9 and exact['T_client_ms'] <= exact['T_cyc_ms'] + 1e-9
    assert result['fleet_fps'] == pytest.approx(chosen.CLIENTS * exact['throughput_fps'])
    assert exact['throughput_fps'] < alone['exact']['throughput_fps'] and alone['exact']['wait_ms'] == 0
    assert f"{chosen.CLIENTS} clients share the server" in unpruned.summary(result)


# --- where the answer is needed -----------------------------------------------------------------------------

def test_the_client_alone_is_charged_no_link_where_it_needs_the_answer():
    chosen = Settings(RTT_MS=50)
    table = whole_table(chosen)
    surviving = np.array([[True, True, has] for has in table.has_identity])
    alone = optimizer.baselines(table, surviving, chosen)['all_client'].times
    assert alone.T_com_ms == 0 and alone.T_lat_ms == pytest.approx(alone.T_client_ms)
    at_server = dataclasses.replace(chosen, RESULT_AT='server')
    elsewhere = optimizer.baselines(table, surviving, at_server)['all_client'].times
    assert elsewhere.T_lat_ms == pytest.approx(alone.T_client_ms + 8 * 40 / 100e3 + 50)


# --- ties -----------------------------------------------------------------------------------------------------

@given(cases(), st.sampled_from(OBJECTIVES))
@settings(max_examples=150)
def test_of_equally_good_choices_the_one_of_lower_T_eff_then_latency_then_split_is_taken(case, objective):
    table, surviving, chosen = case
    found = solve_exact(table, surviving, chosen, objective=objective)

    def rounded(times) -> tuple:
        return tuple(float(f'{getattr(times, name):.9g}') for name in (objective, 'T_eff_ms', 'T_lat_ms'))

    first = min((*rounded(times), split) for _, split, _, times in brute_force(table, surviving, chosen))
    assert (*rounded(found.times), found.split) == pytest.approx(first, rel=1e-8)
