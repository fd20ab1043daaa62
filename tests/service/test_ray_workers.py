"""Tails as Ray actors: a killed actor loses no frame; without Ray a user is told what to install."""
from __future__ import annotations

import importlib
import os
import signal
import sys
from dataclasses import replace

import pytest
from client_process import batch
from service_cases import (
    CameraProcess,
    entry_of,
    expected,
    feed,
    random_alpha,
    running,
    settings_in,
    wait_until,
    weights_in,
)

import serve_split
from config import UserError


def test_without_ray_a_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    monkeypatch.delitem(sys.modules, 'service.ray_workers', raising=False)
    with pytest.raises(UserError, match='pip install ray'):
        serve_split.main(['--engine', 'ray'])


def test_a_killed_actor_loses_no_frame(tmp_path, monkeypatch):
    ray = pytest.importorskip('ray', reason='Ray is optional and not installed: pip install ray')
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    ray_workers = importlib.import_module('service.ray_workers')
    on_a_gpu = replace(settings_in(tmp_path), SERVER_DEVICE='cuda:1', SERVER_THREADS=2)
    assert [ray_workers.room_on(node, on_a_gpu) for node in ({'CPU': 16.0, 'GPU': 3.0}, {'CPU': 5.0, 'GPU': 3.0},
                                                             {'CPU': 16.0})] == [3, 2, 0]
    network = weights_in(tmp_path, 4)
    entry = entry_of('one', random_alpha(network, 1), 4, 'uint8+zlib')
    images = batch(1, 40)[0]
    with pytest.raises(UserError, match='has room for [0-9]+ worker.s. of 1 CPU each, not for 10000'):
        ray_workers.joined(settings_in(tmp_path), 10_000)
    try:
        with running(tmp_path, [entry], start_workers=ray_workers.start_actors) as served:
            client = CameraProcess(served.port, tmp_path / 'client', '-', 'one', '--set', 'FALLBACK_AFTER_S=60')
            worker = served.service.dispatcher.workers[0]
            feed(client, images[:20])
            wait_until(lambda: len(client.lines()) >= 5)
            os.kill(worker.carrier.pid, signal.SIGKILL)
            feed(client, images[20:])
            client.process.stdin.close()
            status, lines = client.finish()
            assert status == 0, client.said()
            assert worker.restarts == 1 and served.service.snapshot()['server']['under_way'] == 0
    finally:
        ray.shutdown()
    assert [line['frame'] for line in lines] == list(range(40)) and not any(line['local'] for line in lines)
    assert [line['class'] for line in lines] == expected(network, entry, images)
    assert any('worker 0, a Ray actor, ended' in line and 'frame(s) are asked again' in line for line in served.said)
