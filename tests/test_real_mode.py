"""Real mode against a client process on this machine."""
from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import client_control
import config
import link_measurement
import connection
import network_utils
import split_server
from blob_store import BlobStore
from cost_model import Configuration
from gamma_configurator import fused_gamma, unfused_gamma
from hyper_repvgg import create_hyper_repvgg, deploy, surviving_branches
from evaluation import ImageSet, normalise
from network_part import hash_of, pack_unit, units_of
from relay import Relay
from split_server import wait_for_client
from split_trainer import SplitNetwork, predict
from stream_session import run_stream

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTINGS = config.load(('WEIGHT_PATH_SERVER=', 'BATCH_SIZE=8', 'DEVICE_PROFILE='), {})
N = 11


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Client:
    """A client process."""

    def __init__(self, port: int, folder, *arguments: str) -> None:
        python = os.environ.get('CLIENT_PYTHON', sys.executable)  # to test a client of another Python and PyTorch
        self.port, self.control_port = port, free_port()
        self.command = [python, os.path.join(REPOSITORY, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                        str(port), '--control_port', str(self.control_port), '--cache_dir', str(folder), *arguments]
        self.log = open(os.path.join(folder, 'log'), 'ab+')
        self.process = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=self.log, stdout=self.log, cwd=REPOSITORY,
                                        env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        with open(self.log.name, encoding='utf-8') as stream:
            return stream.read()


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """(RemoteClient, Client process, what the server said)."""
    torch.set_num_threads(1)
    port, said = free_port(), []
    process = Client(port, tmp_path_factory.mktemp('client'))
    client = wait_for_client(SETTINGS, '127.0.0.1', port, say=said.append, return_s=60)
    yield client, process, said
    client.close('done')
    process.kill()


def random_model(seed: int, dtype=torch.float32):
    """Random weights, random α, some branches pruned; every block keeps one."""
    torch.manual_seed(seed)
    model = create_hyper_repvgg(None, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.1)
    rng = np.random.default_rng(seed)
    alpha = model.alpha_array() * rng.uniform(0.5, 1.5, (N, 3))
    for row in alpha:
        present = np.flatnonzero(~np.isnan(row))
        row[rng.permutation(present)[:rng.integers(0, len(present))]] = 0
    model.set_alpha_array(alpha)
    return model.to(dtype)


def batch(seed: int, count: int = 4):
    """uint8 images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.randint(0, 10, (count,), generator=generator))


def settings_of(head_tier: str):
    return dataclasses.replace(SETTINGS, HEAD_TIER=head_tier)


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
    import alpha_training
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

def stream_case(seed: int, split: int, wire: str = 'float32'):
    """(model, configuration, images, the classes that a stream must give)."""
    model = random_model(seed)
    alpha = model.alpha_array()
    gamma = tuple(fused_gamma(tuple(row)) for row in surviving_branches(alpha))
    images, _ = batch(seed, 16)
    network = deploy(model, gamma)
    with torch.inference_mode():
        classes = [int(network(normalise(image[None], SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax())
                   for image in images]
    return model, Configuration(alpha, gamma, split, wire), images, classes


@pytest.mark.parametrize('head_tier, split, wire', [
    ('client', 0, 'float32'), ('client', 5, 'float32'), ('client', 11, 'float32'), ('server', 0, 'float32'),
    ('server', 5, 'float32+zlib'), ('server', 11, 'float32'), ('client', 5, 'float32+zlib')])
def test_streams_give_every_frame_its_result_in_order(served, head_tier, split, wire):
    model, configuration, images, classes = stream_case(split, split, wire)
    figures, predictions = run_stream(served[0], model, configuration, images, 40, settings_of(head_tier))
    assert predictions == [classes[i % 16] for i in range(40)]
    assert figures['n_frames'] == 26 and figures['interruptions'] == 0
    assert figures['throughput_fps'] > 0 and figures['latency_p50_ms'] <= figures['latency_p99_ms']
    sent = {0: 3 * 32 * 32, 11: 4 * 10}.get(split)
    assert sent is None or figures['bytes_per_frame'] == sent


def test_a_client_killed_during_a_stream_costs_nothing_but_time(served):
    client, process, said = served
    model, configuration, images, classes = stream_case(7, 6)
    killed = []

    def kill_at(i: int) -> None:
        if i == 25 and not killed:
            killed.append(i)
            process.kill()
            process.start()

    figures, predictions = run_stream(client, model, configuration, images, 60, SETTINGS, kill_at)
    assert predictions == [classes[i % 16] for i in range(60)]
    assert figures['interruptions'] == 1 and any('client lost' in line for line in said)


# --- faults -------------------------------------------------------------------------------------------

@pytest.fixture
def over_a_relay(tmp_path, monkeypatch):
    """A client behind a relay: (RemoteClient, Client, Relay, what the server said). Silence is noticed after 3 s."""
    monkeypatch.setattr(connection, 'SILENCE_S', 3.0)
    port, said = free_port(), []
    listener = network_utils.Listener(network_utils.Address('127.0.0.1', port), b'', 'server', ('worker',),
                                      said.append)
    relay = Relay(('127.0.0.1', port))
    process = Client(relay.port, tmp_path)
    client = split_server.RemoteClient(listener, said.append, return_s=60)
    client.facts()
    yield client, process, relay, said
    client.close('done')
    relay.close()
    process.kill()


def test_a_slow_link_is_measured_a_damaged_byte_noticed_and_a_cut_cable_survived(over_a_relay):
    client, process, relay, said = over_a_relay
    relay.mbps = 50
    link = link_measurement.measure_link(client)
    assert link.up_mbps == pytest.approx(50, rel=0.15) and link.down_mbps == pytest.approx(50, rel=0.15)
    relay.mbps = 0
    model, configuration, images, classes = stream_case(9, 4)
    relay.corrupt_at = client.connection.bytes_received + 5000  # somewhere in the first feature maps
    predicted = predict(model, configuration.gamma, 4, client, images.repeat(4, 1, 1, 1), SETTINGS)
    assert predicted.tolist() == 4 * classes
    assert sum('damaged frame' in line for line in said) == 1

    timer = threading.Timer(6.0, lambda: setattr(relay, 'is_cut', False))
    relay.is_cut = True
    timer.start()
    start = time.monotonic()
    assert client.facts()['threads'] >= 1
    assert any('silent for 3 s' in line for line in said) and time.monotonic() - start < 30


def test_a_stopped_client_is_noticed_and_its_work_repeated(over_a_relay):
    client, process, _, said = over_a_relay
    process.process.send_signal(signal.SIGSTOP)
    threading.Timer(5.0, lambda: process.process.send_signal(signal.SIGCONT)).start()
    start = time.monotonic()
    assert client.request('echo', {'reply_bytes': 10}, {'data': torch.zeros(1, dtype=torch.uint8)}).tensors
    assert 'client lost: ' in said[-3] + said[-2] and time.monotonic() - start < 30


def test_timing_rounds_and_training_go_on_behind_the_last_finished_one(served, tmp_path, monkeypatch):
    import real_mode
    client, process, _ = served
    settings = dataclasses.replace(SETTINGS, LUT_ROUNDS=3, RESULTS_DIR=str(tmp_path))
    session, asked = real_mode.Session(client, settings), []
    original = client.ask

    def ask(connection, op, fields=None, *rest):
        if op == 'time_round':
            asked.append(fields['round'])
            if len(asked) == 2:
                process.kill()
                process.start()
        return original(connection, op, fields, *rest)

    monkeypatch.setattr(client, 'ask', ask)
    assert session.time_client(client.facts()).n_samples >= 9 and asked in ([0, 1, 1, 2], [0, 1, 2])
    rounds = real_mode._RoundsFile(settings, 'this client')
    rounds.write([([[0] * N], [[[1.0] * (N + 2)]])])
    assert len(rounds.read()) == 1 and real_mode._RoundsFile(settings, 'another').read() == []


def test_the_server_may_restart_and_the_client_comes_back(tmp_path):
    port = free_port()
    first = None
    process = Client(port, tmp_path)
    for _ in range(2):
        client = wait_for_client(SETTINGS, '127.0.0.1', port, say=lambda text: None, return_s=60)
        assert first in (None, client.facts()['name'])
        first = client.facts()['name']
        client.connection.close()  # as a killed server's system would
        client.listener.close()
    assert 'connection lost' in process.said() and process.said().count('connected to') == 2
    process.kill()


def test_a_server_of_another_version_ends_the_client_with_one_line(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as server:
        process = Client(server.getsockname()[1], tmp_path)
        peer = server.accept()[0]
        peer.sendall(b'SPLT' + bytes([9]) + bytes(40))
        assert process.process.wait(20) == 2
        peer.close()
    assert [line for line in process.said().splitlines() if 'error' in line] == [
        'client_worker.py: error: the peer speaks protocol version 9, this end 1: use the same release of this '
        'project on both']


# --- the control port, the cache ---------------------------------------------------------------------------

def test_a_busy_client_tells_its_state_cancels_and_shuts_down(tmp_path):
    port = free_port()
    process = Client(port, tmp_path)
    client = wait_for_client(SETTINGS, '127.0.0.1', port, say=lambda text: None, return_s=60)
    assert client_control.ask(process.control_port, 'status').startswith('idle')
    failures = []

    def work() -> None:
        try:
            client.request('time_round', {'model': 'RepVGG-A0', 'classes': 10, 'input_size': 224, 'round': 0,
                                          'rounds': 1})
        except config.UserError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not client_control.ask(process.control_port, 'status').startswith('working time_round'):
        pass
    client_control.ask(process.control_port, 'cancel')
    thread.join(30)
    assert failures == ['the client could not do it: cancelled by the operator']
    assert client.facts()['threads'] >= 1
    client_control.ask(process.control_port, 'shutdown')
    assert process.process.wait(20) == 0
    client.close('done')


def test_a_blob_is_continued_where_it_broke_off_and_refused_when_it_is_another(tmp_path):
    data = np.arange(1000, dtype=np.uint8)
    digest = hash_of(data)
    store = BlobStore(str(tmp_path), 10000)
    assert store.append(digest, 1000, 0, data[:400]) == 400
    store = BlobStore(str(tmp_path), 10000)
    assert store.present_bytes(digest) == 400 and not store.has(digest)
    for offset, piece in ((0, data[:10]), (500, data[500:]), (400, data)):
        with pytest.raises(ValueError):
            store.append(digest, 1000, offset, piece)
    assert store.append(digest, 1000, 400, data[400:]) == 1000
    assert np.array_equal(store.read(digest), data)
    with pytest.raises(ValueError, match='hash'):
        store.append('0' * 64, 1000, 0, data)
    for bad in ('../x', 'A' * 64, digest + '/'):
        with pytest.raises(ValueError):
            store.present_bytes(bad)
    with open(os.path.join(str(tmp_path), digest), 'r+b') as stream:
        stream.write(b'x')
    with pytest.raises(KeyError):
        store.read(digest)


def test_the_cache_makes_room(tmp_path):
    store = BlobStore(str(tmp_path), 2500)
    digests = [store.add(np.full(1000, value, dtype=np.uint8)) for value in range(3)]
    assert [store.has(digest) for digest in digests] == [False, True, True]


def test_a_robust_line_ignores_disturbed_points():
    x = [0, 1, 2, 3, 4, 5]
    assert link_measurement.fit_line(x, [2 * v + 1 for v in x[:-1]] + [1000]) == pytest.approx((2, 1), rel=0.35)
    with pytest.raises(ValueError):
        link_measurement.fit_line([1, 1], [0, 1])


# --- the whole of step 3 -------------------------------------------------------------------------------------

def test_step_3_in_real_mode_finds_what_it_finds_alone_and_measures_it(served, tmp_path, monkeypatch):
    import code1_train_and_record_weights
    import code2_calculate_flops_importance
    import create_noniid_partition
    import json_files
    import real_mode
    import step_3_joint
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.join(REPOSITORY, 'data'), tmp_path / 'data')
    overrides = ['NUM_DOMAINS=1', 'IMAGES_PER_SPLIT=100', 'ALPHA_EPOCHS=1', 'LUT_ROUNDS=1', 'MAX_PRUNING_ROUNDS=2',
                 'RECOVERY_STEPS=3', 'DEVICE_PROFILE=', 'TORCH_THREADS=1', 'PARTITION_FILE=partition.json',
                 'WIRE_FORMATS=float32,uint8', 'BANDWIDTH_MBPS=100']
    for script in (create_noniid_partition, code1_train_and_record_weights, code2_calculate_flops_importance):
        script.main(['--set', *overrides])
    settings = config.load(tuple(overrides), {})

    def result():
        with open(json_files.path_of('joint', settings, 0), encoding='utf-8') as stream:
            return json.load(stream)

    step_3_joint.optimise_real(0, real_mode.Session(served[0], settings), settings)
    real = result()
    step_3_joint.main(['--domain_id', '0', '--mode', 'pseudo', '--set', *overrides])
    alone = result()
    measured = real['measured']
    assert real['mode'] == 'real' and alone['measured'] is None
    for name in set(alone) - {'mode', 'measured', 'wall_s', 'metadata'}:
        assert real[name] == alone[name], name
    assert measured['stream_agrees_with_evaluation'] == 1 and measured['throughput_fps'] > 0
    assert measured['wire'] == real['wire'] and abs(measured['accuracy'] - real['accuracy']['final']) <= 0.03
    with open(json_files.path_of('lut', settings), encoding='utf-8') as stream:
        table = json.load(stream)
    assert table['bandwidth']['measured'] and not table['metadata']['client']['simulated']
    assert set(table['codec_ms']) == {'float32', 'uint8'}
