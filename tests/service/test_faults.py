"""Workers, clients and servers that are killed: every frame of a file source is answered once, in order."""
from __future__ import annotations

import os
import signal
import time

import pytest
from client_process import batch, free_port
from hypothesis import given
from hypothesis import strategies as st
from service_cases import (
    CameraProcess,
    entry_of,
    expected,
    feed,
    random_alpha,
    running,
    serve_forever,
    wait_until,
    weights_in,
)

from benchmarks.relay import Relay
from tier.feed import POLL_S, Silence


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """(its folder, a random network)."""
    folder = tmp_path_factory.mktemp('weights')
    return folder, weights_in(folder, 4)


def assert_all_answered(client: CameraProcess, classes) -> None:
    """Every frame has one line, in order, with its class."""
    client.process.stdin.close()
    status, lines = client.finish()
    assert status == 0, client.said()
    assert [line['frame'] for line in lines] == list(range(len(classes)))
    assert [line['class'] for line in lines] == classes


def test_a_killed_worker_loses_no_frame_and_a_killed_client_frees_its_share(model, tmp_path):
    folder, network = model
    entry = entry_of('one', random_alpha(network, 1), 4, fps=10.0, server_ms=40.0)  # two of them fill a worker
    images = batch(1, 60)[0]
    classes = expected(network, entry, images)
    with running(folder, [entry]) as served:
        first, second = (CameraProcess(served.port, tmp_path / name, '-', 'one') for name in ('first', 'second'))
        for client in (first, second):
            feed(client, images[:20])
        wait_until(lambda: all(len(client.lines()) >= 5 for client in (first, second)))
        third = CameraProcess(served.port, tmp_path / 'third', '-', 'one', '--fps', '300')
        os.kill(served.service.dispatcher.workers[0].carrier.pid, signal.SIGKILL)
        for client in (first, second):
            feed(client, images[20:40])
        wait_until(lambda: all(len(client.lines()) == 40 for client in (first, second)))
        assert served.service.dispatcher.workers[0].restarts == 1
        assert third.finish() == (2, []) and 'the server refuses: 300 frames a second need' in third.said()
        second.kill()
        feed(first, images[40:])
        wait_until(lambda: len(served.service.clients) == 1)
        assert_all_answered(first, classes)
        wait_until(lambda: not served.service.clients)
        assert served.service.snapshot()['server']['under_way'] == 0
    assert any('was killed by signal 9' in line for line in served.said)


def test_a_server_that_lives_and_is_slow_is_waited_for(model, tmp_path):
    folder, network = model
    entry = entry_of('one', random_alpha(network, 1), 4)
    images = batch(3, 40)[0]
    with running(folder, [entry], FALLBACK_AFTER_S=0.5) as served:
        client = CameraProcess(served.port, tmp_path / 'client', '-', 'one', '--set', 'FALLBACK_AFTER_S=0.5')
        feed(client, images[:20])
        wait_until(lambda: len(client.lines()) == 20)
        worker = served.service.dispatcher.workers[0].carrier.pid
        os.kill(worker, signal.SIGSTOP)  # as one that has much to do
        feed(client, images[20:])
        time.sleep(2.0)
        assert len(client.lines()) == 20
        os.kill(worker, signal.SIGCONT)
        assert_all_answered(client, expected(network, entry, images))
    assert not any(line['local'] for line in client.lines())


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=40))
def test_silence_is_what_this_device_was_there_to_notice(looks):
    silence, clock_s, n_bytes = Silence(), 100.0, 10
    silence, since_s, counted_s = silence.at(clock_s, n_bytes), clock_s, 0.0
    for gap_s, something in looks:
        clock_s, n_bytes = clock_s + gap_s, n_bytes + something
        silence = silence.at(clock_s, n_bytes)
        since_s, counted_s = (clock_s, 0.0) if something else (since_s, counted_s + min(gap_s, 2 * POLL_S))
        assert silence.silent_s == pytest.approx(counted_s) and silence.silent_s <= clock_s - since_s + 1e-9


def test_a_client_goes_on_alone_while_the_server_is_away_and_returns_to_it(model, tmp_path):
    folder, network = model
    entry, port = entry_of('one', random_alpha(network, 2), 4), free_port()
    images = batch(2, 100)[0]
    server, relay = serve_forever(folder, [entry], port), Relay(('127.0.0.1', port))
    client = CameraProcess(relay.port, tmp_path / 'client', '-', 'one')
    feed(client, images[:20])
    wait_until(lambda: len(client.lines()) == 20)
    server.kill()
    server.join()
    feed(client, images[20:40])
    wait_until(lambda: len(client.lines()) == 40)
    assert [line['local'] for line in client.lines()] == [False] * 20 + [True] * 20
    server = serve_forever(folder, [entry], port)
    try:
        wait_until(lambda: client.said().count('served: one') == 2)
        feed(client, images[40:60])
        wait_until(lambda: len(client.lines()) == 60)
        assert not client.lines()[-1]['local']
        relay.is_cut = True  # nothing arrives, and nothing says so
        feed(client, images[60:80])
        wait_until(lambda: len(client.lines()) == 80)
        assert client.lines()[-1]['local'] and 'nothing heard for' in client.said()
        relay.is_cut = False
        wait_until(lambda: client.said().count('served: one') == 3)
        feed(client, images[80:])
        assert_all_answered(client, expected(network, entry, images))
        assert not client.lines()[-1]['local']
    finally:
        server.terminate()
        server.join()
        relay.close()
