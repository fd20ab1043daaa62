"""Real mode against a client process on this machine: the same results through the wire as alone."""
from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from client_process import SETTINGS, N, batch, random_model, settings_of, stream_case

import config
from config import UserError
from domains.image_sets import ImageSet
from hyper_repvgg import deploy
from network.alpha import surviving_branches
from network.gammas import fused_gamma, unfused_gamma
from network.inputs import normalise
from remote.split_network import SplitNetwork
from remote.streaming import run_stream
from split_trainer import predict
from tier.part import cut_shape, pack_unit, units_of
from wire.blobs import hash_of


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('split', range(N + 1))
def test_gradients_through_every_split_are_those_of_the_whole_network(served, split, head_tier):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = random_model(split, dtype)
        images, labels = batch(split)
        x = normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD).to(dtype)
        whole = torch.autograd.grad(F.cross_entropy(model(x), labels), model.alphas())
        network = SplitNetwork(model, served[0], split, settings_of(head_tier))
        parted = torch.autograd.grad(F.cross_entropy(network(x), labels), model.alphas(), allow_unused=True)
        scale = max(float(g.abs().max()) for g in whole)
        for expected, got in zip(whole, parted):
            assert float((expected - got).abs().max()) <= tolerance * scale


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_training_through_the_split_gives_the_same_alpha(served, head_tier, dtype, tolerance, monkeypatch):
    from search import alpha_training
    monkeypatch.setattr(alpha_training, 'normalise', lambda *arguments: normalise(*arguments).to(dtype))
    data = ImageSet(*batch(5, 24))
    alphas = []
    for split in (None, 4):
        model = random_model(3, dtype)
        network = model if split is None else SplitNetwork(model, served[0], split, settings_of(head_tier))
        alpha_training.train_alpha(network, data, SETTINGS, 4, 0.02, seed=1)
        alphas.append(model.alpha_array())
    assert np.nanmax(np.abs(alphas[0] - alphas[1])) <= tolerance * np.nanmax(np.abs(alphas[0]))
    assert (np.nan_to_num(alphas[0]) == 0).tolist() == (np.nan_to_num(alphas[1]) == 0).tolist()
    assert np.nanmax(np.abs(alphas[0] - random_model(3).alpha_array())) > 0.01


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('split', [0, 1, 6, 10, 11])
def test_predictions_through_the_split_are_identical(served, split, head_tier):
    model = random_model(20 + split)
    images, _ = batch(split, 20)
    choose = fused_gamma if split % 2 else unfused_gamma
    gamma = [choose(tuple(row)) for row in surviving_branches(model.alpha_array())]
    network = deploy(model, gamma)
    with torch.inference_mode():
        whole = network(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax(dim=1)
    for wire in ('float32', 'float32+zlib'):
        assert torch.equal(predict(model, gamma, split, served[0], images, settings_of(head_tier), wire), whole)
    for wire in ('float16', 'uint8', 'uint8+zlib'):
        assert len(predict(model, gamma, split, served[0], images, settings_of(head_tier), wire)) == 20


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('wire', ['float32@0.5', 'float16@0.3+zlib', 'uint4@0.25'])
def test_predictions_where_not_all_channels_are_sent_are_those_of_pseudo_mode(served, wire, head_tier):
    model, configuration, images, classes = stream_case(8, 7, wire)
    found = predict(model, configuration.gamma, 7, served[0], images, settings_of(head_tier), wire,
                    configuration.channels)
    assert found.tolist() == classes


def test_reestimated_batchnorm_statistics_reach_the_client_and_give_the_same_predictions(served):
    model = random_model(31)
    images, _ = batch(31, 16)
    gamma = [unfused_gamma(tuple(row)) for row in surviving_branches(model.alpha_array())]
    settings = settings_of('client')
    before = predict(model, gamma, 7, served[0], images, settings)
    network = SplitNetwork(model, served[0], 7, settings)
    x = normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    network(x)  # the client has the old weights
    hashes = [hash_of(pack_unit(unit)) for unit in units_of(model)]
    statistics = model.batchnorm()
    network.set_batchnorm(statistics * np.random.default_rng(0).uniform(0.2, 3, statistics.shape).astype(np.float32))
    changed = [old != hash_of(pack_unit(unit)) for old, unit in zip(hashes, units_of(model))]
    assert all(changed[:-1]) and not changed[-1]  # every unit but the classifier
    with torch.no_grad():
        whole = deploy(model)(x)
        assert float((network(x) - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    after = predict(model, gamma, 7, served[0], images, settings)
    assert torch.equal(after, whole.argmax(dim=1)) and not torch.equal(after, before)


# --- streams ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('head_tier, split, wire', [
    ('client', 0, 'float32'), ('client', 5, 'float32'), ('client', 11, 'float32'), ('server', 0, 'float32'),
    ('server', 5, 'float32+zlib'), ('server', 11, 'float32'), ('client', 5, 'float32+zlib'),
    ('client', 5, 'float32@0.5'), ('server', 5, 'float32@0.25+zlib')])
def test_streams_give_every_frame_its_result_in_order(served, head_tier, split, wire):
    model, configuration, images, classes = stream_case(split, split, wire)
    told = []
    figures, predictions = run_stream(served[0], model, configuration, images, 40, settings_of(head_tier),
                                      lambda i, latency_s: told.append(1000 * latency_s))
    known = [ms for ms in told if ms == ms]  # with the head on the client a frame tells of an earlier one
    assert len(told) == 40 and len(known) >= 38 and figures['latency_p50_ms'] <= max(known)
    assert predictions == [classes[i % 16] for i in range(40)]
    assert figures['n_frames'] == 26 and figures['interruptions'] == 0
    assert figures['throughput_fps'] > 0 and figures['latency_p50_ms'] <= figures['latency_p99_ms']
    sent = {0: 3 * 32 * 32, 11: 4 * 10}.get(split)
    if wire == 'float32@0.5':
        sent = 4 * math.prod(cut_shape('RepVGG-Micro', 10, 32, split + 1)) / 2
    assert sent is None or figures['bytes_per_frame'] == sent


def test_a_client_killed_during_a_stream_costs_nothing_but_time(served):
    client, process, said = served
    model, configuration, images, classes = stream_case(7, 6)
    killed = []

    def kill_at(i: int, latency_s: float) -> None:
        if i == 25 and not killed:
            killed.append(i)
            process.kill()
            process.start()

    figures, predictions = run_stream(client, model, configuration, images, 60, SETTINGS, kill_at)
    assert predictions == [classes[i % 16] for i in range(60)]
    assert figures['interruptions'] == 1 and any('client lost' in line for line in said)


@pytest.mark.parametrize('at', [59, 52])
def test_a_break_near_the_end_of_a_stream_leaves_its_figures(served, at):
    client, process, _ = served
    model, configuration, images, classes = stream_case(7, 6)
    broken = []

    def break_at(i: int, latency_s: float) -> None:
        if i == at and not broken:
            broken.append(i)
            client.connection.close()

    figures, predictions = run_stream(client, model, configuration, images, 60, SETTINGS, break_at)
    assert predictions == [classes[i % 16] for i in range(60)]
    assert figures['interruptions'] == 1 and figures['throughput_fps'] > 0 and figures['n_frames'] >= 2


def test_a_batch_that_no_message_can_hold_is_refused_before_any_work(served, monkeypatch):
    client, _, _ = served
    model, configuration, images, classes = stream_case(5, 3)
    small = 3 << 20
    monkeypatch.setattr('remote.client.MAX_PAYLOAD_BYTES', small)
    assert predict(model, configuration.gamma, 3, client, images, dataclasses.replace(SETTINGS, BATCH_SIZE=64)
                   ).tolist() == classes  # evaluation takes smaller batches by itself
    network = SplitNetwork(model, client, 3, SETTINGS)
    most = network._remote.largest_batch
    with pytest.raises(UserError, match=f'at most {most} do: lower BATCH_SIZE'):
        network(torch.zeros(most + 1, 3, 32, 32))
    assert network(torch.zeros(most, 3, 32, 32)).shape == (most, 10)


# --- the whole of step 3 -------------------------------------------------------------------------------------

def test_step_3_in_real_mode_finds_what_it_finds_alone_and_measures_it(served, tmp_path, monkeypatch):
    import code1_train_and_record_weights
    import code2_calculate_flops_importance
    import create_noniid_partition
    import step_3_joint
    from pipeline import kinds
    from remote import session
    from search import recovery, stopping
    from steps import joint
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.join(config.ROOT, 'data'), tmp_path / 'data')
    overrides = ['NUM_DOMAINS=1', 'IMAGES_PER_SUBSET=100', 'ALPHA_EPOCHS=1', 'LUT_ROUNDS=1', 'MAX_EVALUATIONS=4',
                 'RECOVERY_STEPS=2', 'DEVICE_PROFILE=', 'TORCH_THREADS=1', 'PARTITION_FILE=partition.json',
                 'WIRE_FORMATS=uint4,uint8+zlib', 'WIRE_CHANNELS=0.5', 'CONFIDENCE=none', 'BANDWIDTH_MBPS=100']
    for script in (create_noniid_partition, code1_train_and_record_weights, code2_calculate_flops_importance):
        script.main(['--set', *overrides])
    settings = config.load(tuple(overrides), {})

    def result():
        with open(kinds.path_of('joint', settings, 0), encoding='utf-8') as stream:
            return json.load(stream)

    for name in ('WORTH_RECOVERING', 'WORTH_RECOVERING_EARLY'):
        monkeypatch.setattr(stopping, name, -1.0)  # whatever this machine's times are, something is trained
    train, trained = recovery.Recovery.train, []

    def noted(self, *arguments):
        trained.append(self.problem.model)
        return train(self, *arguments)

    monkeypatch.setattr(recovery.Recovery, 'train', noted)
    joint.joint_through_client(0, session.Session(served[0], settings), settings)
    real = result()
    assert trained and all(isinstance(model, SplitNetwork) for model in trained)
    step_3_joint.main(['--domain_id', '0', '--mode', 'pseudo', '--set', *overrides])
    alone = result()
    measured = real['measured']
    assert real['mode'] == 'real' and alone['measured'] is None
    for name in set(alone) - {'mode', 'measured', 'wall_s', 'metadata'}:
        assert real[name] == alone[name], name
    assert measured['stream_agrees_with_evaluation'] == 1 and measured['throughput_fps'] > 0
    assert measured['wire'] == real['wire'] and abs(measured['accuracy'] - real['accuracy']['final']) <= 0.03
    with open(kinds.path_of('lut', settings), encoding='utf-8') as stream:
        table = json.load(stream)
    assert table['bandwidth']['measured'] and not table['metadata']['client']['simulated']
    assert set(table['codec_ms']) == {'float32', 'uint4@0.5', 'uint8@0.5+zlib'}
    assert real['channels']
