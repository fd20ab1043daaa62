"""The engine onnxruntime: what its profile says of blocks, where it is measured and run, and where it is refused."""
from __future__ import annotations

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
from client_process import SETTINGS, N, random_model, settings_of, stream_case
from hypothesis import given
from hypothesis import strategies as st
from made_results import make_table
from network.outline import outline_for
from table_files import measured_client, run_step1

import config
import lut_manager
from config import UserError
from costs.checks import check_settings
from costs.cost_model import Roofline
from gamma_mask_builder import runnable_gammas
from remote.session import _ClientMachine
from remote.streaming import run_stream
from split_trainer import predict
from tier import block_timing, onnx_timing
from tier.block_timing import ThisMachine, branch_counts, time_network
from tier.part import check_engine

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
EVERYWHERE = {'CLIENT_ENGINE': 'onnxruntime', 'SERVER_ENGINE': 'onnxruntime'}


# --- measuring ----------------------------------------------------------------------------------------------

@given(st.lists(st.lists(st.tuples(st.integers(-1, 3), st.integers(4, 900)), max_size=8), min_size=1, max_size=5),
       st.integers(0, 3))
def test_a_profile_is_added_up_by_unit_without_what_the_profiler_takes(tmp_path_factory, runs, own_us):
    """Operators without a unit's name (-1) count for the unit before them, the profiler's own time for none."""
    events, wanted = [{'cat': 'Session', 'name': 'session_initialization', 'dur': 7}], np.zeros((len(runs), 4))
    for row, run in zip(wanted, runs):
        before = 0
        for unit, us in run:
            before = before if unit < 0 else unit
            row[before] += (us - own_us) / 1000
            name = 'ReorderOutput' if unit < 0 else f'fused unit{unit}/Conv_3_nchwc'
            events.append({'cat': 'Node', 'name': f'{name}_kernel_time', 'dur': us, 'args': {'op_name': 'Conv'}})
        events.append({'cat': 'Node', 'name': 'unit3/Flatten_9_kernel_time', 'dur': own_us,
                       'args': {'op_name': 'Flatten'}})
        events.append({'cat': 'Session', 'name': 'model_run', 'dur': 5000})
    path = tmp_path_factory.mktemp('profile') / 'profile.json'
    path.write_text(json.dumps(events))
    np.testing.assert_allclose(onnx_timing.by_unit_ms(str(path), 4), np.maximum(wanted, onnx_timing.LEAST_MS))


@pytest.mark.parametrize('engine', ['onnxruntime', 'onnxruntime-int8'])
def test_every_cell_that_a_block_can_run_gets_a_time_and_parts_too(engine):
    model = random_model(0)
    machine = ThisMachine(model, torch.rand(1, 3, 32, 32), 1, engine)
    timing = time_network(machine, branch_counts(model), lut_manager.same_work(SETTINGS), 1)
    runnable = runnable_gammas(branch_counts(model))
    assert (np.isfinite(timing.block_ms) == runnable).all() and np.nanmin(timing.block_ms) > 0
    assert len(timing.parts) == 12 and all(part.ms > 0 for part in timing.parts)


def test_a_process_that_is_held_up_before_its_warm_up_is_timed_all_the_same():
    network = block_timing.assign(random_model(1), [0] * N)
    with torch.inference_mode():
        found = onnx_timing.timed_passes(network, torch.rand(1, 3, 32, 32), 1, None, 3, -1, 'onnxruntime')
    assert found.shape == (3, N + 2) and (found > 0).all()


def test_a_table_says_which_engine_it_is_of_and_another_one_is_refused(tmp_path, monkeypatch):
    settings = config.load((f'RESULTS_DIR={tmp_path}', 'SERVER_ENGINE=onnxruntime', 'LUT_ROUNDS=1',
                            'CLIENT_ENGINE=onnxruntime'), {})
    seen = []
    monkeypatch.setattr(lut_manager, 'ThisMachine', lambda *arguments: seen.append(arguments[3]) or arguments)
    monkeypatch.setattr(lut_manager, 'time_network', lambda *arguments: block_timing.NetworkTiming(
        np.where(runnable_gammas(outline_for(settings).n_branches), 1.0, np.nan),
        np.where(runnable_gammas(outline_for(settings).n_branches), 0.0, np.nan), 1.0, 1.0, 3))
    costs = lut_manager.measure_tier('server', settings, Roofline(1.0, 1.0))
    assert costs.info['engine'] == 'onnxruntime' and seen == ['onnxruntime']
    with pytest.raises(UserError, match='DEVICE_PROFILE=jetson-tx2 describes a device that runs PyTorch'):
        lut_manager.simulate_client(dataclasses.replace(settings, DEVICE_PROFILE='jetson-tx2'), Roofline(1.0, 1.0))


@pytest.mark.parametrize('tier', ['client', 'server'])
def test_a_table_in_int8_is_for_int8_alone_even_where_it_is_named(tmp_path, tier):
    """Accuracy would be that of float otherwise."""
    settings = config.load((f'RESULTS_DIR={tmp_path}',), {})
    table = make_table(settings)
    table.tier_info[tier]['engine'] = 'onnxruntime-int8'
    named = os.path.join(tmp_path, 'named.json')
    os.rename(lut_manager.save(table, settings), named)
    fits = dataclasses.replace(settings, **{f'{tier.upper()}_ENGINE': 'onnxruntime-int8'})
    assert lut_manager.load(named, fits).tier_info[tier]['engine'] == 'onnxruntime-int8'
    for other in (settings, dataclasses.replace(settings, **EVERYWHERE)):
        with pytest.raises(UserError, match=f'its {tier} was timed in onnxruntime-int8, and {tier.upper()}_ENGINE is'):
            lut_manager.load(named, other)
    with pytest.raises(UserError, match='was timed in torch, and CLIENT_ENGINE is onnxruntime-int8'):
        table.tier_info['client'].pop('engine', None)
        os.rename(lut_manager.save(table, settings), named)
        lut_manager.load(named, dataclasses.replace(fits, CLIENT_ENGINE='onnxruntime-int8'))


def test_a_measured_client_of_another_engine_is_refused(made, tmp_path):
    measured_client(tmp_path)
    with pytest.raises(UserError, match=r'on my board with CLIENT_ENGINE=torch \(now onnxruntime\)'):
        run_step1('merge', tmp_path, 'CLIENT_ENGINE=onnxruntime')
    assert made == []


def test_a_missing_package_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setattr('costs.checks.find_spec', lambda name: None)
    for name in EVERYWHERE:
        with pytest.raises(UserError, match=f'{name}=onnxruntime needs onnx and onnxruntime here: pip install'):
            check_settings(config.load((f'{name}=onnxruntime',), {}))
    check_settings(config.load(('CLIENT_ENGINE=onnxruntime', 'DEVICE_PROFILE='), {}))  # the device needs them


@pytest.mark.parametrize('name', EVERYWHERE)
def test_a_network_that_int8_would_slow_down_is_refused_before_any_work(name):
    overrides = 'MODEL_NAME=RepVGG-D2se', 'WEIGHT_PATH_SERVER='
    check_settings(config.load((*overrides, f'{name}=onnxruntime'), {}))
    with pytest.raises(UserError, match=f'would be slower than float; set {name}=onnxruntime$'):
        check_settings(config.load((*overrides, f'{name}=onnxruntime-int8'), {}))


# --- running ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('head_tier, split', [('client', 5), ('server', 4), ('client', 0), ('client', N)])
def test_a_stream_in_onnxruntime_gives_the_classes_of_the_network(served, head_tier, split):
    model, configuration, images, classes = stream_case(3, split)
    settings = dataclasses.replace(settings_of(head_tier), **EVERYWHERE)
    _, predictions = run_stream(served[0], model, configuration, images, 24, settings)
    assert predictions == [classes[i % len(classes)] for i in range(24)]
    found = predict(model, configuration.gamma, split, served[0], images, settings)
    assert found.tolist() == classes


def test_a_client_is_timed_in_the_engine_that_is_asked_for(served):
    settings = dataclasses.replace(SETTINGS, **EVERYWHERE)
    ms = _ClientMachine(served[0], settings).visits([[4 if count == 2 else 13 for count in
                                                      branch_counts(random_model(0))]], lambda done: None)
    assert ms.shape == (1, block_timing.PASSES, N + 2) and (ms > 0).all()


def test_a_client_without_the_package_says_so_in_one_line(monkeypatch):
    """Asked when a part is set up or timed, on the client in `tier/tasks.py`."""
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match='onnxruntime here: pip install'):
        check_engine('onnxruntime', torch.device('cpu'))
