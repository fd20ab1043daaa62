"""Optimising under limits: the brute force over every (γ, λ, wire format) agrees, also when nothing fits."""
from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from oracles import all_choices, naive_client_mj
from random_cases import OBJECTIVES, fleets, objectives, seeds, surviving_arrays, tables, whole_table

import config
import lut_manager
import step2_initial_throughput_opt
from config import Settings, UserError
from costs import knapsack
from costs import limits as limits_module
from costs.cost_model import scenario_of
from costs.limits import MB, Limits, NothingFits
from costs.memory import MemoryTable, UnitMemory, activation_bytes, classifier_memory, memory_table, weight_bytes
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGGBlock, create_hyper_repvgg, deploy
from network.alpha import surviving_branches, unpruned_alpha
from network.gammas import GAMMAS
from network.shapes import IDENTITY, BlockShape, ClassifierShape, architecture, block_shapes
from report import cost_figures
from search.pruned_times import PrunedTimes
from throughput_optimizer import solve_exact
from throughput_optimizer_limit import check_possible, solve_limited, solve_or_nearest, solve_within_limits

CLOSE = 1e-9


@dataclasses.dataclass
class Case:
    """A drawn problem with all its configurations: times, client memory, bytes on the link."""
    table: object
    surviving: np.ndarray
    settings: Settings
    memory: MemoryTable
    objective: str
    choices: list  # (λ, wire, times, memory, bytes)
    limits: Limits

    def worst(self, choice) -> float:
        """By what factor a configuration exceeds its worst limit, written out."""
        _, _, times, memory, n_bytes = choice
        found, limits = [0.0], self.limits
        for limit, need in ((limits.client_ms, times.T_client_ms), (limits.server_ms, times.T_server_ms),
                            (limits.client_memory_bytes, memory), (limits.bytes_per_frame, n_bytes),
                            (limits.latency_ms, times.T_lat_ms + times.wait_ms)):
            if limit is not None:
                found.append(need / limit)
        if limits.min_fps is not None:
            found.append(times.T_cyc_ms * limits.min_fps / 1000)
        if limits.client_mj is not None:
            found.append(self.client_mj(times) / limits.client_mj)
        return max(found)

    def client_mj(self, times) -> float:
        """Energy of a frame on the client."""
        return naive_client_mj(self.table.power['client'], times.T_client_ms, times.T_com_ms, times.T_cyc_ms)

    def best(self, split=None, wire=None) -> float:
        """The best objective of what fits (at one split)."""
        return min((getattr(choice[2], self.objective) for choice in self.choices
                    if self.worst(choice) <= 1 + CLOSE and split in (None, choice[0]) and wire in (None, choice[1])),
                   default=math.inf)

    def solve(self):
        return solve_limited(self.table, self.surviving, self.settings, self.limits, self.memory, self.objective)


def naive_memory(memory: MemoryTable, gamma, split: int, n: int, head_tier: str) -> float:
    """Σ weights + max activations of what the client runs, piece by piece."""
    parts = [memory.stem] if (split > 0) == (head_tier == 'client') else []
    parts += [UnitMemory(memory.weights[k, gamma[k]], memory.activations[k, gamma[k]]) for k in range(n)
              if (k < split) == (head_tier == 'client')]
    parts += [memory.classifier] if (split == n) == (head_tier == 'client') else []
    return sum(part.weights for part in parts) + max((part.activations for part in parts), default=0)


@st.composite
def cases(draw) -> Case:
    """Any small table and memory; limits at, above and below what its configurations need, and absent."""
    table = draw(tables())
    surviving = draw(surviving_arrays(table.has_identity))
    n, rng = table.n_blocks, np.random.default_rng(draw(seeds))
    most = draw(st.sampled_from([6, 10000]))  # few sizes: many ties

    def sizes(*shape: int) -> np.ndarray:
        return rng.integers(1, most, shape).astype(float)

    memory = MemoryTable(sizes(n, 14), sizes(n, 14), UnitMemory(*sizes(2)), UnitMemory(*sizes(2)))
    low = draw(st.integers(0, n))
    settings = Settings(HEAD_TIER=draw(st.sampled_from(['client', 'server'])), LAMBDA_MIN=low,
                        RESULT_AT=draw(st.sampled_from(['client', 'server'])),
                        LAMBDA_MAX=draw(st.integers(low, n)), OMEGA=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
                        WIRE_FORMATS=draw(st.sampled_from([('float32',), tuple(table.block_bytes)])),
                        OBJECTIVE=draw(objectives(table)), **draw(fleets))
    splits = range(low, settings.LAMBDA_MAX + 1)
    choices = []
    for gamma, split, wire, times in all_choices(table, surviving, splits, settings.WIRE_FORMATS,
                                                 scenario_of(settings, table)):
        image_bytes = table.input_bytes if table.image is None else table.image.n_bytes
        logits_bytes = 0 if settings.RESULT_AT == settings.HEAD_TIER else table.logits_bytes
        n_bytes = (image_bytes if split == 0 else logits_bytes if split == n else table.block_bytes[wire][split - 1])
        choices.append((split, wire, times, naive_memory(memory, gamma, split, n, settings.HEAD_TIER), n_bytes))

    def limit(need) -> object:
        if draw(st.booleans()):
            return None
        value = need(choices[rng.integers(len(choices))]) * draw(st.sampled_from([0.7, 0.97, 1, 1, 1.1, 2]))
        return max(float(value), 1e-3)

    limits = Limits(limit(lambda c: c[2].T_client_ms), limit(lambda c: c[2].T_server_ms), limit(lambda c: c[3]),
                    limit(lambda c: c[4]), limit(lambda c: c[2].T_lat_ms + c[2].wait_ms),
                    limit(lambda c: 1000 / max(c[2].T_cyc_ms, 1e-3)))
    case = Case(table, surviving, settings, memory, draw(st.sampled_from(OBJECTIVES)), choices, limits)
    if 'client' in table.power:
        case.limits = dataclasses.replace(limits, client_mj=limit(lambda c: case.client_mj(c[2])))
    return case


@checked(max_examples=250)
@given(case=cases())
def test_answers_equal_brute_force_with_a_true_certificate(case):
    expected = case.best()
    try:
        found = case.solve()
    except NothingFits as error:
        assert expected == math.inf
        least = min(map(case.worst, case.choices))
        assert error.proven and error.nearest.worst == pytest.approx(least, rel=CLOSE)
        assert error.nearest.worst == max(error.nearest.factors.values()) > 1
        return
    best = found.best
    assert best.fits and getattr(best.solution.times, case.objective) == pytest.approx(expected, rel=CLOSE, abs=CLOSE)
    assert found.proven
    assert {(line.split, line.wire) for line in found.bounds} == {choice[:2] for choice in case.choices}
    for line in found.bounds:
        assert line.bound_ms <= case.best(line.split, line.wire) * (1 + CLOSE)
    assert any(best.solution.split == split and best.solution.wire == wire and
               np.allclose(best.solution.times.T_client_ms, times.T_client_ms, rtol=CLOSE) and
               best.weight_bytes + best.activation_bytes == memory and best.n_bytes == n_bytes
               for split, wire, times, memory, n_bytes in case.choices)


@checked(max_examples=50)
@given(case=cases())
def test_limits_that_do_not_bind_change_nothing(case):
    loose = Limits(*[1e12] * 5, min_fps=1e-9)
    found = solve_limited(case.table, case.surviving, case.settings, loose, case.memory, case.objective).best.solution
    free = solve_exact(case.table, case.surviving, case.settings, objective=case.objective)
    assert (found.split, found.wire) == (free.split, free.wire)
    times, expected = (dataclasses.astuple(one.times) for one in (found, free))
    assert times == pytest.approx(expected, rel=CLOSE)  # arrays of other lengths round otherwise


@checked(max_examples=50)
@given(data=st.data())
def test_knapsack_equals_enumeration_on_more_options_than_γ_has(data):
    rng = np.random.default_rng(data.draw(seeds))
    n, width, most = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)), data.draw(st.sampled_from([4, 1000]))
    time_ms, weights, activations = rng.integers(0, most, (3, n, width)).astype(float)
    options = knapsack.sensible_options(time_ms, weights, activations, np.ones((n, width), dtype=bool))
    grid = np.stack(np.meshgrid(*[range(width)] * n), -1).reshape(-1, n)
    rows = np.arange(n)
    spent, needed = time_ms[rows, grid].sum(1), weights[rows, grid].sum(1) + activations[rows, grid].max(1)
    budget = float(rng.integers(needed.min() - 1, needed.max() + 2))
    found = knapsack.fastest_within(options, budget)
    assert found.time_ms == min(spent[needed <= budget], default=math.inf)
    assert found.bound_ms == pytest.approx(found.time_ms, rel=1e-11)


def test_a_cut_search_says_that_its_answer_is_not_proven(monkeypatch):
    rng = np.random.default_rng(0)
    n = 16
    weights = rng.integers(1, 10 ** 6, (n, 4)).astype(float)
    options = knapsack.sensible_options(2e6 - weights + rng.integers(0, 10, (n, 4)), weights, np.ones((n, 4)),
                                               np.ones((n, 4), dtype=bool))
    budget = 0.5 * weights.max(1).sum()
    exact = knapsack.fastest_within(options, budget)
    monkeypatch.setattr(knapsack, 'MAX_STATES', 2)
    cut = knapsack.fastest_within(options, budget)
    assert exact.bound_ms == exact.time_ms
    assert cut.bound_ms <= exact.time_ms <= cut.time_ms and cut.bound_ms < cut.time_ms


# --- bytes: computed against held ---------------------------------------------------------------------

def peak_of_tensors(make_input, run) -> int:
    """Bytes of all tensors alive at the worst moment of run(make_input()), by watching every operator's output."""
    dispatch = pytest.importorskip('torch.utils._python_dispatch')
    if not hasattr(dispatch, 'TorchDispatchMode'):
        pytest.skip('this PyTorch cannot watch its operators')

    class Alive(dispatch.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.storages, self.now, self.peak = {}, 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and id(tensor) not in self.storages:
                    self.add(tensor)
            return result

        def add(self, tensor) -> None:
            key, n_bytes = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
            self.now += 0 if key in self.storages.values() else n_bytes
            self.peak = max(self.peak, self.now)
            self.storages[id(tensor)] = key
            weakref.finalize(tensor, self.drop, id(tensor), n_bytes)

        def drop(self, name: int, n_bytes: int) -> None:
            key = self.storages.pop(name)
            self.now -= 0 if key in self.storages.values() else n_bytes

    with torch.inference_mode(), Alive() as alive:
        run(make_input())
    return alive.peak


def held_bytes(module) -> int:
    """Bytes of a module's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.buffers(), *module.parameters()])


@checked(max_examples=12)
@given(data=st.data())
def test_bytes_from_shapes_are_those_of_the_tensors_that_a_block_holds(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    width, stride = groups * data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 2]))
    in_width = data.draw(st.sampled_from([width, groups]))
    shape = BlockShape(in_width, width, data.draw(st.integers(1, 9)), stride, groups,
                       in_width == width and stride == 1, data.draw(st.sampled_from([0, 1])))
    block = HyperRepVGGBlock(shape).eval()
    for gamma in GAMMAS:
        if IDENTITY in gamma.branches and not shape.has_identity:
            continue
        alpha = torch.tensor([float(b in gamma.branches) for b in range(block.n_branches)])
        plan = build_plan(block, alpha, gamma.id)
        assert weight_bytes(shape, gamma.id) == held_bytes(plan)
        peak = peak_of_tensors(lambda: torch.rand(1, in_width, shape.in_size, shape.in_size), plan)
        assert activation_bytes(shape, gamma.id, side_by_side=False) == peak
        assert activation_bytes(shape, gamma.id, side_by_side=True) >= peak


@pytest.mark.parametrize('name', ['RepVGG-Micro', 'RepVGG-B1g4', 'RepVGG-D2se'])
def test_bytes_of_a_whole_network(name):
    stem, shapes = block_shapes(architecture(name), 32)
    memory = memory_table(shapes, stem, ClassifierShape(shapes[-1].out_channels, 10, shapes[-1].out_size),
                          side_by_side=False)
    if name == 'RepVGG-Micro':
        network = deploy(create_hyper_repvgg(None, name, 10))
        gamma = [13 if shape.has_identity else 4 for shape in shapes]
        assert sum(memory.weights[range(len(shapes)), gamma]) == sum(map(held_bytes, network.blocks))
        assert memory.stem.weights == held_bytes(network.stem)
        assert memory.classifier.weights == held_bytes(network.classifier)
        image = peak_of_tensors(lambda: torch.rand(1, 3, 32, 32), network.stem)
        assert memory.stem.activations == image
        size = shapes[-1].out_size
        assert memory.classifier.activations == peak_of_tensors(
            lambda: torch.rand(1, shapes[-1].out_channels, size, size), network.classify)
    assert (np.isnan(memory.weights) == np.isnan(memory.activations)).all()
    assert memory.classifier == classifier_memory(shapes[-1].out_channels, 10, shapes[-1].out_size)


# --- settings, step 2, step 3 ----------------------------------------------------------------------------

def test_settings_take_limits_and_objectives():
    settings = config.load(('MAX_CLIENT_MEMORY_MB=1.5', 'MIN_FPS=30', 'OBJECTIVE=throughput'), environ={})
    limits = limits_module.limits_of(settings)
    assert limits == Limits(client_memory_bytes=1.5 * 2 ** 20, min_fps=30) and limits.any and settings.OMEGA == 0
    assert not limits_module.limits_of(config.load(('MIN_FPS=none',), environ={})).any
    for wrong in ('MAX_CLIENT_MS=0', 'MAX_LATENCY_MS=fast', 'MIN_FPS=inf', 'OBJECTIVE=speed'):
        with pytest.raises(UserError):
            config.load((wrong,), environ={})
    with pytest.raises(UserError, match='OMEGA'):
        config.load(('OBJECTIVE=latency', 'OMEGA=0.5'), environ={})


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """A results folder with the table of the built-in model, and what its best split needs."""
    folder = str(tmp_path_factory.mktemp('results'))
    settings = Settings(RESULTS_DIR=folder)
    table = whole_table(settings)
    lut_manager.save(table, settings)
    surviving = surviving_branches(unpruned_alpha(table.n_branches))
    return folder, table, surviving


def test_step_2_writes_the_limited_optimum(results, capsys):
    folder, table, surviving = results
    overrides = [f'RESULTS_DIR={folder}', 'THROUGHPUT_OPTIM_STEPS=2']
    step2_initial_throughput_opt.main(['--set', *overrides])
    with open(os.path.join(folder, 'initial_throughput_config.json')) as stream:
        free = json.load(stream)
    assert 'limited' not in free
    limit = 0.9 * free['exact']['T_client_ms']
    step2_initial_throughput_opt.main(['--set', *overrides, '--max_client_ms', str(limit), '--max_client_memory_mb',
                                       '8', '--lambda_min', '0'])
    with open(os.path.join(folder, 'initial_throughput_config.json')) as stream:
        document = json.load(stream)
    limited = document['limited']
    expected = solve_limited(table, surviving, Settings(LAMBDA_MIN=0), Limits(limit, client_memory_bytes=8 * MB))
    assert limited['lambda'] == expected.best.solution.split and limited['T_client_ms'] <= limit * (1 + CLOSE)
    assert limited['T_eff_ms'] == pytest.approx(expected.best.solution.times.T_eff_ms)
    assert limited['certificate']['proven'] and limited['limits'] == {'MAX_CLIENT_MS': limit,
                                                                      'MAX_CLIENT_MEMORY_MB': 8}
    assert document['metadata']['config']['MAX_CLIENT_MS'] == limit
    assert 'limited' in capsys.readouterr().out


def test_step_2_says_in_one_line_what_does_not_fit(results):
    folder = results[0]
    run = subprocess.run([sys.executable, 'step2_initial_throughput_opt.py', '--min_fps', '1e6', '--set',
                          f'RESULTS_DIR={folder}', 'THROUGHPUT_OPTIM_STEPS=1'], cwd=config.ROOT, stderr=subprocess.PIPE,
                         stdout=subprocess.PIPE, universal_newlines=True)
    assert run.returncode == 2 and run.stderr.count('\n') == 1
    assert 'MIN_FPS=1e+06 asks for' in run.stderr and 'λ = ' in run.stderr and run.stdout == ''


def test_limits_that_only_a_pruned_network_meets_are_no_error_where_pruning_follows(results, tmp_path, capsys):
    _, table, surviving = results
    light = surviving.copy()
    light[:, 0] = False  # without any 3x3
    lightest = solve_limited(table, light, Settings(), Limits(client_ms=1e9)).best
    enough_mb = 1.5 * (lightest.weight_bytes + lightest.activation_bytes) / MB
    overrides = [f'RESULTS_DIR={tmp_path}', 'THROUGHPUT_OPTIM_STEPS=1', f'LAMBDA_MIN={table.n_blocks - 1}',
                 f'MAX_CLIENT_MEMORY_MB={enough_mb}']
    settings = config.load(tuple(overrides), {})
    lut_manager.save(table, settings)
    path = os.path.join(str(tmp_path), 'initial_throughput_config.json')
    with pytest.raises(NothingFits):
        step2_initial_throughput_opt.main(['--set', *overrides])
    assert not os.path.exists(path)
    step2_initial_throughput_opt.main(['--pruning_follows', '--set', *overrides])
    with open(path) as stream:
        limited = json.load(stream)['limited']
    nearest, excess = solve_or_nearest(table, surviving, settings)
    assert not limited['fits'] and limited['T_eff_ms'] == nearest.times.T_eff_ms and limited['certificate'] is None
    assert limited['used']['MAX_CLIENT_MEMORY_MB'] == pytest.approx(1 + excess) and 'memory' in limited['exceeded'][0]
    assert limited['exceeded'][0] in capsys.readouterr().out
    assert cost_figures.load_splits(table, settings).split == solve_exact(table, surviving, settings).split
    step2_initial_throughput_opt.main(['--pruning_follows', '--if_changed', '--set', *overrides])
    assert 'is up to date' in capsys.readouterr().err
    with pytest.raises(NothingFits):  # the file is current, but alone it is no answer
        step2_initial_throughput_opt.main(['--if_changed', '--set', *overrides])
    with pytest.raises(NothingFits, match='whatever is pruned'):
        step2_initial_throughput_opt.main(['--pruning_follows', '--set', *overrides, 'MAX_CLIENT_MEMORY_MB=1e-4'])


def test_a_joint_search_can_prune_until_the_limits_are_met(results):
    _, table, surviving = results
    unlimited = Settings()
    free = solve_exact(table, surviving, unlimited)
    light = surviving.copy()
    light[:, 0] = False  # without any 3x3
    lightest = solve_limited(table, light, unlimited, Limits(client_ms=1e9)).best
    enough = 1.5 * (lightest.weight_bytes + lightest.activation_bytes)
    settings = dataclasses.replace(unlimited, MAX_CLIENT_MEMORY_MB=enough / MB, LAMBDA_MIN=table.n_blocks - 1)

    def T_eff_ms(branches: np.ndarray, settings: Settings) -> float:
        return PrunedTimes(table, free.times.T_eff_ms, settings).T_eff_ms(branches)

    nearest, excess = solve_or_nearest(table, surviving, settings)
    assert excess > 0
    assert T_eff_ms(surviving, unlimited) == free.times.T_eff_ms
    assert T_eff_ms(surviving, settings) == nearest.times.T_eff_ms + settings.KAPPA * excess * free.times.T_eff_ms
    assert T_eff_ms(light, settings) == solve_within_limits(table, light, settings).times.T_eff_ms
    check_possible(table, settings)
    with pytest.raises(NothingFits):
        PrunedTimes(table, free.times.T_eff_ms, settings).solve_within_limits(unpruned_alpha(table.n_branches))
    with pytest.raises(NothingFits, match='whatever is pruned'):
        check_possible(table, dataclasses.replace(settings, MAX_CLIENT_MEMORY_MB=1e-4))
