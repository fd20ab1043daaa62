"""What goes wrong in real mode, and how a client process on this machine is told what to do."""
from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time

import pytest
import torch
from client_process import SETTINGS, Client, N, free_port, random_model, settings_of, stream_case

import config
import network_utils
from benchmarks.relay import Relay
from remote.client import RemoteClient, wait_for_client
from remote.link import fit_line, measure_link
from remote.streaming import run_stream
from split_trainer import predict
from tier import block_timing
from wire import connection


@pytest.fixture
def over_a_relay(tmp_path, monkeypatch):
    """A client behind a relay: (RemoteClient, Client, Relay, what the server said). Silence is noticed after 3 s."""
    monkeypatch.setattr(connection, 'SILENCE_S', 3.0)
    port, said = free_port(), []
    listener = network_utils.Listener(network_utils.Address('127.0.0.1', port), b'', 'server', ('worker',),
                                      said.append)
    relay = Relay(('127.0.0.1', port))
    process = Client(relay.port, tmp_path)
    client = RemoteClient(listener, said.append, return_s=60)
    client.facts()
    yield client, process, relay, said
    client.close('done')
    relay.close()
    process.kill()


def test_a_slow_link_is_measured_a_damaged_byte_noticed_and_a_cut_cable_survived(over_a_relay):
    client, process, relay, said = over_a_relay
    relay.mbps = 50
    link = measure_link(client)
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
    assert client.facts()['threads'] >= 1
    assert 'client lost: ' in said[-3] + said[-2] and time.monotonic() - start < 30


def test_timing_rounds_and_training_go_on_behind_the_last_finished_one(served, tmp_path, monkeypatch):
    from remote import session as real_mode
    client, process, _ = served
    settings = dataclasses.replace(SETTINGS, LUT_ROUNDS=3, RESULTS_DIR=str(tmp_path))
    session, asked = real_mode.Session(client, settings), []
    original = client.ask

    visits = list(block_timing.latin_visits(block_timing.branch_counts(random_model(0)), 3))
    monkeypatch.setattr(block_timing, 'disturbed_cells', lambda *arguments: [])

    def ask(connection, op, fields=None, tensors=None, *rest, **options):
        if op == 'time_visits':
            asked.append(visits.index(tensors['gamma'].tolist()[0]) // 14)
            if len(asked) == 2:
                process.kill()
                process.start()
        return original(connection, op, fields, tensors, *rest, **options)

    monkeypatch.setattr(client, 'ask', ask)
    assert session.time_client(client.facts()).n_samples >= 9 and asked in ([0, 1, 1, 2], [0, 1, 2])
    rounds = real_mode._RoundsFile(settings, {'name': 'this client', 'threads': 1, 'temperature_c': 40.0})
    rounds.write([block_timing.Round([[0] * N], [[[1.0] * (N + 2)]], [])])
    assert len(rounds.read()) == 1
    for changed, known in (({'temperature_c': 60.0}, 1), ({'threads': 2}, 0), ({'cpu_max_mhz': 900.0}, 0)):
        facts = {'name': 'this client', 'threads': 1, 'temperature_c': 40.0, **changed}
        assert len(real_mode._RoundsFile(settings, facts).read()) == known, changed


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


# --- the control port ---------------------------------------------------------------------------------------

def test_a_busy_client_tells_its_state_cancels_and_shuts_down(tmp_path):
    port = free_port()
    process = Client(port, tmp_path)
    client = wait_for_client(SETTINGS, '127.0.0.1', port, say=lambda text: None, return_s=60)
    assert network_utils.ask_client(process.control_port, 'status').startswith('idle')
    failures = []

    def work() -> None:
        try:
            client.request('time_visits', lambda reply: reply, {'model': 'RepVGG-A0', 'classes': 10, 'input_size': 224},
                           {'gamma': torch.zeros(14, 21, dtype=torch.int64)})
        except config.UserError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not network_utils.ask_client(process.control_port, 'status').startswith('working time_visits'):
        pass
    assert 'the server ends its job' in network_utils.ask_client(process.control_port, 'cancel')
    thread.join(30)
    assert failures == ['the client could not do it: cancelled by the operator']
    assert client.facts()['threads'] >= 1

    for head_tier in ('client', 'server'):  # a stream ends, too, and is not started again
        model, configuration, images, _ = stream_case(3, 4)
        cancelled = []

        def on_frame(i: int, latency_s: float, cancelled=cancelled) -> None:
            if i == 40:
                cancelled.append(network_utils.ask_client(process.control_port, 'cancel'))

        with pytest.raises(config.UserError, match='cancelled by the operator'):
            run_stream(client, model, configuration, images, 100_000, settings_of(head_tier), on_frame)
        assert 'working stream' in cancelled[0] and client.interruptions == 0

    def predict_all() -> None:
        predict(model, configuration.gamma, 4, client, images, SETTINGS)

    predict_all()  # a job of short requests: the next one is refused
    network_utils.ask_client(process.control_port, 'cancel')
    with pytest.raises(config.UserError, match='cancelled by the operator'):
        predict_all()
    predict_all()
    network_utils.ask_client(process.control_port, 'shutdown')
    assert process.process.wait(20) == 0
    client.close('done')


def test_a_client_with_a_damaged_cache_is_sent_what_it_lacks(served):
    """Every blob of an earlier run is damaged, or was whole when its process was killed."""
    client, process, _ = served
    model, configuration, images, classes = stream_case(12, 4)
    assert predict(model, configuration.gamma, 4, client, images, SETTINGS).tolist() == classes
    folder = os.path.dirname(process.log.name)
    names = [name for name in os.listdir(folder) if len(name) == 64]
    for index, name in enumerate(names):
        path = os.path.join(folder, name)
        with open(path, 'r+b') as stream:
            stream.write(b'damaged' if index % 2 else stream.read(0))
        if index % 3 == 0:
            os.replace(path, f'{path}.part')
    process.kill()
    process.start()
    client.connection.close()
    assert names and predict(model, configuration.gamma, 4, client, images, SETTINGS).tolist() == classes


def test_a_robust_line_ignores_disturbed_points():
    x = [0, 1, 2, 3, 4, 5]
    assert fit_line(x, [2 * v + 1 for v in x[:-1]] + [1000]) == pytest.approx((2, 1), rel=0.35)
    with pytest.raises(ValueError):
        fit_line([1, 1], [0, 1])
