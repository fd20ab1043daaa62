"""The pipeline with a network of torchvision: tables, λ and wire format, a plan, exported files; through a device."""
from __future__ import annotations

import dataclasses
import json
import os
from typing import List, NamedTuple

import numpy as np
import pytest
import torch
from client_process import batch
from service_cases import CameraProcess, images_in, running
from table_files import watch_tiers

import code1_train_and_record_weights as code1
import code2_calculate_flops_importance as code2
import config
import create_noniid_partition
import export_split
import lut_manager
import plan_fleet
import step1_measure_lut as step1
import step2_initial_throughput_opt as step2
import step_3_joint as step3
from config import Settings, UserError
from costs.cost_model import Configuration, HardwareTable, scenario_of, times
from fleet import plan_file
from hyper_repvgg import create_network, deploy
from network.inputs import normalise
from network.outline import outline_for
from remote.session import Session
from remote.streaming import run_stream
from search import result_file
from search.wire_loss import through_wire
from service.entries import entries_of_results
from service.tails import base_model
from split_trainer import predict
from tier.block_timing import PASSES
from wire.formats import is_lossless

pytest.importorskip('torchvision.models')
NETWORK = ('MODEL_NAME=torchvision:squeezenet1_1', 'WEIGHT_PATH_SERVER=', 'INPUT_SIZE=32', 'LUT_ROUNDS=1')


class Run(NamedTuple):
    """A folder of results, and what was said on the way."""
    overrides: List[str]
    said: str

    @property
    def settings(self) -> Settings:
        return config.load(tuple(self.overrides), {})

    @property
    def table(self) -> HardwareTable:
        return lut_manager.load(os.path.join(self.settings.RESULTS_DIR, 'hardware_lut_complete.json'), self.settings)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """All steps, with random times in the place of measured ones."""
    results, before = str(tmp_path_factory.mktemp('results')), os.getcwd()
    os.chdir(config.ROOT)
    overrides = [*NETWORK, f'RESULTS_DIR={results}', 'IMAGES_PER_SUBSET=24', 'WIRE_FORMATS=float32,uint8',
                 'CONFIDENCE=none', 'LAMBDA_MIN=0', 'THROUGHPUT_OPTIM_STEPS=3', 'EPSILON=0.5']
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as other:
        lines: List[str] = []
        watch_tiers(patch)
        other.setattr('cli.say', lines.append)
        for main, arguments in ((create_noniid_partition.main, []), (code1.main, ['--domains', '0']), (code2.main, []),
                                (step1.main, ['--mode', 'merge']), (step2.main, []),
                                (step3.main, ['--domain_id', '0'])):
            main([*arguments, '--set', *overrides])
    yield Run(overrides, '\n'.join(lines))
    os.chdir(before)


def test_step_2_finds_the_best_of_all_cuts(run):
    settings, table = run.settings, run.table
    assert table.n_blocks == outline_for(settings).n_blocks > 20 and set(table.n_branches) == {1}
    with open(os.path.join(settings.RESULTS_DIR, 'initial_throughput_config.json'), encoding='utf-8') as stream:
        found = json.load(stream)
    alpha, scenario = np.ones((table.n_blocks, 3)), scenario_of(settings, table)
    T_eff_ms = {(split, wire): times(table, Configuration(alpha, (0,) * table.n_blocks, split, wire), scenario).T_eff_ms
                for split in range(table.n_blocks) for wire in settings.WIRE_FORMATS}
    assert found['exact']['T_eff_ms'] == pytest.approx(min(T_eff_ms.values()))
    assert T_eff_ms[found['optimal_lambda'], found['wire']] == pytest.approx(min(T_eff_ms.values()))


def test_step_3_says_that_there_is_nothing_to_prune_and_writes_what_the_split_gives(run):
    settings, table = run.settings, run.table
    assert run.said.count('nothing to prune') == 1
    found = result_file.load(0, table, settings)
    assert found.pruned == [] and (found.configuration.alpha[:, 0] == 1).all()
    assert np.isnan(found.configuration.alpha[:, 1:]).all() and set(found.configuration.gamma) == {0}
    scenario = scenario_of(settings, table)
    for split in range(table.n_blocks):
        other = dataclasses.replace(found.configuration, split=split, wire='float32')
        assert times(table, other, scenario).T_eff_ms >= found.times.T_eff_ms - 1e-9
    if is_lossless(found.configuration.wire):
        assert found.accuracy.final == found.accuracy.reference


def test_a_fleet_is_planned(run, tmp_path):
    fleet = tmp_path / 'fleet.json'
    fleet.write_text(json.dumps({'clients': [{'name': 'gate', 'count': 3, 'domain': 0}],
                                 'servers': [{'name': 'rack', 'count': 1, 'workers': 2}]}))
    plan_fleet.main([str(fleet), '--set', *run.overrides])
    plan = plan_file.load(run.settings)
    assert len(plan.clients) == 3 and {len(point.gamma) for point in plan.points} == {run.table.n_blocks}


@pytest.mark.parametrize('form, package', [('torchscript', 'torch'), ('onnx', 'onnxruntime')])
def test_a_result_is_exported_and_checked_against_pytorch(run, form, package, tmp_path, capsys):
    pytest.importorskip(package)
    export_split.main(['--domain_id', '0', '--format', form, '--out', str(tmp_path / 'out'), '--set', *run.overrides])
    assert 'classes as PyTorch' in capsys.readouterr().out and len(os.listdir(tmp_path / 'out')) >= 2


def test_limits_on_memory_are_met(run, capsys):
    settings = run.settings
    step2.main(['--max_client_memory_mb', '1', '--set', *run.overrides])
    with open(os.path.join(settings.RESULTS_DIR, 'initial_throughput_config.json'), encoding='utf-8') as stream:
        found = json.load(stream)['limited']
    shapes = outline_for(settings).blocks[:found['lambda']]
    assert found['client_weight_bytes'] == sum(shape.weight_bytes for shape in shapes)
    assert found['client_weight_bytes'] + found['client_activation_bytes'] <= 2 ** 20


def test_shares_of_channels_are_refused(run):
    with pytest.raises(UserError, match='a share of the channels can only be sent of RepVGG'):
        step2.main(['--set', *run.overrides, 'WIRE_FORMATS=float32,uint8@0.5'])


@pytest.mark.parametrize('name', ['CLIENT_ENGINE', 'SERVER_ENGINE'])
def test_other_engines_are_refused_before_any_work(run, name):
    with pytest.raises(UserError, match=f'the engine onnxruntime runs RepVGG only; set {name}=torch'):
        step2.main(['--set', *run.overrides, f'{name}=onnxruntime'])


def test_a_model_of_kernels_of_repvgg_is_refused(tmp_path):
    with pytest.raises(UserError, match='models the kernels of RepVGG and no others'):
        step1.main(['--mode', 'client', '--device_profile', 'jetson-tx2', '--set', *NETWORK,
                    f'RESULTS_DIR={tmp_path}'])


def test_blocks_are_timed_once_a_round(tmp_path):
    settings = config.load((*NETWORK, f'RESULTS_DIR={tmp_path}', 'LUT_ROUNDS=2'), {})
    costs = lut_manager.measure_tier('server', settings, lut_manager.Roofline(10.0, 10.0))
    assert costs.info['samples_per_entry'] >= 2 * PASSES and np.isfinite(costs.block_ms[:, 0]).all()
    assert np.isnan(costs.block_ms[:, 1:]).all() and (costs.block_ms[:, 0] > 0).all()


def test_a_camera_of_a_service_gets_the_classes_of_the_whole_network(run, tmp_path):
    settings, images = run.settings, images_in(tmp_path / 'images', 3, 12)
    entry = entries_of_results([0], settings)['domain_0']
    with running(tmp_path, [entry], MODEL_NAME=settings.MODEL_NAME, WEIGHT_PATH_SERVER='') as served:
        camera = CameraProcess(served.port, tmp_path / 'camera', tmp_path / 'images', 'domain_0')
        status, lines = camera.finish()
    assert status == 0, camera.said()
    network = through_wire(deploy(base_model(settings)), entry.first.split, entry.first.wire)
    with torch.inference_mode():
        wanted = [int(network(normalise(image[None], settings.NORM_MEAN, settings.NORM_STD)).argmax())
                  for image in images]
    assert [line['class'] for line in lines] == wanted and not any(line['local'] for line in lines)


# --- through a device ------------------------------------------------------------------------------------------

def model_and_images(count: int):
    settings = config.load((*NETWORK, 'BATCH_SIZE=8', 'DEVICE_PROFILE='), {})
    torch.manual_seed(3)
    model = create_network(None, settings.MODEL_NAME, settings.NUM_CLASSES)
    images, _ = batch(3, count)
    with torch.inference_mode():
        whole = deploy(model)(normalise(images, settings.NORM_MEAN, settings.NORM_STD)).argmax(dim=1)
    return settings, model, images, whole


@pytest.mark.parametrize('head_tier', ['client', 'server'])
def test_a_device_with_torchvision_computes_its_part(served, head_tier):
    settings, model, images, whole = model_and_images(8)
    settings, n = dataclasses.replace(settings, HEAD_TIER=head_tier), len(model.blocks)
    for split in (0, 1, n // 2, n - 1, n):
        found = predict(model, [0] * n, split, served[0], images, settings, 'float32')
        assert torch.equal(found, whole), split
    assert len(predict(model, [0] * n, n - 1, served[0], images, settings, 'uint8')) == 8  # a vector is sent


def test_frames_are_streamed_through_a_cut(served):
    settings, model, images, whole = model_and_images(8)
    n = len(model.blocks)
    chosen = Configuration(model.alpha_array(), (0,) * n, n // 2, 'float32')
    figures, classes = run_stream(served[0], model, chosen, images, 12, settings)
    assert classes == (whole.tolist() * 2)[:12] and figures['lambda'] == n // 2


def test_a_device_is_measured(served, tmp_path):
    settings = dataclasses.replace(model_and_images(1)[0], RESULTS_DIR=str(tmp_path), WIRE_FORMATS=('float32', 'uint8'))
    session, n = Session(served[0], settings), outline_for(settings).n_blocks
    timing = session.time_client(served[0].facts())
    assert timing.block_ms.shape == (n, 14) and np.isfinite(timing.block_ms[:, 0]).all()
    wire = session.wire_costs(batch(0, 2)[0])
    assert [wire.block_bytes['float32'][k] for k in range(n)] == [
        4 * np.prod(shape.out_shape) for shape in outline_for(settings).blocks]
    assert (wire.codec_ms['uint8']['client'] > 0).all()
