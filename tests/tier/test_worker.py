"""The client's loop: every request gets an answer, and what the operator asks has the consequence that it names."""
from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from client_process import random_model

import config
import network_utils
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from tier import worker as worker_module
from tier.part import cut_shape, pack_unit, units_of
from tier.tasks import Tasks
from tier.worker import Worker
from wire import codec, connection, frames
from wire.blobs import BlobStore
from wire.connection import Connection
from wire.frames import Kind, NetworkError, PeerError


@pytest.fixture
def ends(tmp_path):
    """(worker, its connection, the server's)."""
    a, b = (Connection(sock, name) for sock, name in zip(socket.socketpair(), ('server', 'client')))
    a.max_payload_bytes = b.max_payload_bytes = 1 << 20
    return Worker(Tasks(torch.device('cpu'), 1, BlobStore(str(tmp_path), 1 << 20))), a, b


def asked(ends, op, fields=None, tensors=None):
    """The client's answer to one request."""
    worker, client_end, server_end = ends
    server_end.send(Kind.REQUEST, {'id': 1, 'op': op, **(fields or {})}, tensors)
    worker.answer(client_end, client_end.receive())
    return server_end.receive()


def test_a_reply_larger_than_a_message_is_answered_with_the_reason(ends, monkeypatch):
    monkeypatch.setattr(frames, 'MAX_PAYLOAD_BYTES', 1000)
    answer = asked(ends, 'echo', {'reply_bytes': 2000}, {'data': torch.zeros(1, dtype=torch.uint8)})
    assert answer.kind == Kind.ERROR and 'payload of 2000 bytes, the limit is 1000' in answer.text('text')
    assert asked(ends, 'facts').kind == Kind.REPLY  # and the client lives on


def test_a_device_holds_the_parts_of_a_row_and_they_share_equal_units(ends):
    model = random_model(1)
    tasks, n = ends[0].tasks, len(model.blocks)
    tasks.store.max_bytes = 1 << 30
    hashes = [tasks.store.add(pack_unit(unit)) for unit in units_of(model)]

    def part(place, scale):
        alpha = torch.from_numpy(model.alpha_array() * scale)
        gamma = [fused_gamma(tuple(row)) for row in surviving_branches(alpha.numpy())]
        return asked(ends, 'part', {
            'model': model.model_name, 'classes': model.num_classes, 'input_size': 32, 'first': 0, 'last': n + 2,
            'dtype': 'float32', 'mean': [0.5] * 3, 'std': [0.5] * 3, 'hashes': hashes, 'folded': True, 'gamma': gamma,
            'place': place}, {'alpha': alpha}).kind

    assert [part(place, scale) for place, scale in ((0, 1.0), (1, 2.0), (2, 3.0))] == [Kind.REPLY] * 3
    scales = [[block[0] for block in one.spec.alpha] for one in tasks.parts]
    np.testing.assert_allclose(np.array(scales[1:]), np.outer([2, 3], scales[0]))
    assert all(a is b is c for a, b, c in zip(*(one.units for one in tasks.parts)))
    assert part(4, 1.0) == Kind.ERROR and len(tasks.parts) == 3  # there is none at place 3
    assert part(1, 5.0) == Kind.REPLY and [one.spec.alpha[0][0] for one in tasks.parts] == pytest.approx(
        [scales[0][0], 5 * scales[0][0]])
    assert part(0, 1.0) == Kind.REPLY and len(tasks.parts) == 1


def test_a_cancel_between_two_requests_of_a_job_refuses_the_next_one_and_no_other(ends):
    worker, client_end, _ = ends
    worker.tasks.connection = client_end
    assert 'the server ends its job' in worker.consequence('cancel')
    answer = asked(ends, 'facts')
    with pytest.raises(PeerError, match='cancelled by the operator'):
        answer.raise_error()
    assert asked(ends, 'facts').kind == Kind.REPLY


def test_a_cancel_without_a_server_cancels_nothing(ends):
    worker, client_end, _ = ends
    assert 'nothing to cancel' in worker.consequence('cancel')
    assert asked(ends, 'facts').kind == Kind.REPLY


@pytest.mark.parametrize('kind', [Kind.REPLY, Kind.FRAME, Kind.GOODBYE, Kind.HELLO])
def test_the_control_port_takes_requests_and_nothing_else(ends, kind):
    worker, client_end, operator_end = ends
    operator_end.send(kind, {'id': 1, 'op': 'shutdown'})
    worker.control(client_end)
    with pytest.raises(PeerError, match='expected a request'):
        operator_end.receive().raise_error()
    assert not worker.stopping.is_set() and client_end.is_closed


def test_operators_that_stay_take_few_threads_and_nobody_else_is_kept_waiting(ends, monkeypatch):
    worker, _, _ = ends
    monkeypatch.setattr(worker_module, 'OPERATOR_S', 0.5)
    monkeypatch.setattr(connection, 'HEARTBEAT_S', 0.2)
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    worker.listen_for_control(port, b'')
    before, operators = threading.active_count(), []
    for _ in range(40):
        with contextlib.suppress(NetworkError):
            operators.append(network_utils.connect(network_utils.Address('127.0.0.1', port), b'', 'control', 'worker'))
    own = sum(not operator.is_closed for operator in operators)  # a heartbeat for each at this end
    assert threading.active_count() - before - own <= 2 * (worker_module.MAX_OPERATORS + network_utils.MAX_WAITING) + 4
    for _ in range(20):
        with contextlib.suppress(config.UserError):  # refused while all places are taken
            assert network_utils.ask_client(port, 'status').startswith('connecting')
            break
        time.sleep(0.2)
    else:
        raise AssertionError('no operator is answered any more')
    for operator in operators:
        operator.close()


def test_a_small_message_cannot_ask_for_more_memory_than_a_large_one_holds(ends):
    """Half a megabyte of zeros, compressed, that claims the shape of two gigabytes."""
    packed = codec.encode(torch.zeros(1, 1, 16, 16), 'float32+zlib')
    shape = [1, 2048, 512, 512]
    with pytest.raises(ValueError, match='larger than 256 MiB'):
        codec.decode(packed, 'float32+zlib', shape)


def test_an_older_python_gets_one_line(tmp_path):
    """client_worker.py must be readable by a Python that the rest of the code is not written for."""
    script = ("import sys; sys.version_info = (3, 6, 9, 'final', 0); sys.path.insert(0, '.'); "
              "compile(open('client_worker.py', encoding='utf-8').read(), 'client_worker.py', 'exec'); "
              "import client_worker")
    done = subprocess.run([sys.executable, '-c', script], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'needs Python 3.8 or newer' in done.stderr
    with open('client_worker.py', encoding='utf-8') as stream:
        assert 'annotations' not in stream.read()  # `from __future__ import annotations` is a SyntaxError before 3.7


def test_a_part_sends_the_channels_that_it_is_told_to_and_refuses_others(ends):
    model, tasks = random_model(2), ends[0].tasks
    tasks.store.max_bytes = 1 << 30
    hashes = [tasks.store.add(pack_unit(unit)) for unit in units_of(model)]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)

    def part(first, last, sent, fill):
        alpha = model.alpha_array()[max(first - 1, 0):last - 1]
        gamma = [fused_gamma(tuple(row)) for row in surviving_branches(alpha)]
        return asked(ends, 'part', {
            'model': model.model_name, 'classes': model.num_classes, 'input_size': 32, 'first': first, 'last': last,
            'dtype': 'float32', 'mean': [0.5] * 3, 'std': [0.5] * 3, 'hashes': hashes[first:last], 'folded': True,
            'gamma': gamma, 'place': 0}, {'alpha': torch.from_numpy(alpha), 'sent': torch.tensor(sent),
                                          'fill': torch.tensor(fill)})

    assert part(0, 4, [0], [0.0]).kind == Kind.ERROR  # the cut has more channels than one
    n_channels = channels_into(model, 4)
    for sent in ([1, 0], [0, 0], [n_channels], [-1]):
        assert part(0, 4, sent, [0.0] * n_channels).kind == Kind.ERROR
    assert part(0, 4, [1, 3], [0.0] * n_channels).kind == Kind.REPLY
    with torch.no_grad():
        z = tasks.current_part()(images)
        assert z.shape[1] == 2
        assert part(4, len(hashes), [1, 3], [0.0] * n_channels).kind == Kind.REPLY
        assert tasks.current_part()(z).shape == (2, model.num_classes)


@pytest.mark.parametrize('damage', [lambda peaks: peaks[1:], lambda peaks: -peaks, lambda peaks: peaks / 0,
                                    lambda peaks: peaks.float(), lambda peaks: None])
def test_a_part_in_int8_needs_a_peak_of_every_map(ends, damage):
    pytest.importorskip('onnxruntime')
    model, tasks = random_model(2), ends[0].tasks
    tasks.store.max_bytes = 1 << 30
    hashes = [tasks.store.add(pack_unit(unit)) for unit in units_of(model)[:4]]
    alpha = model.alpha_array()[:3]

    def part(peaks):
        return asked(ends, 'part', {
            'model': model.model_name, 'classes': model.num_classes, 'input_size': 32, 'first': 0, 'last': 4,
            'dtype': 'float32', 'mean': [0.5] * 3, 'std': [0.5] * 3, 'hashes': hashes, 'folded': True, 'place': 0,
            'gamma': [fused_gamma(tuple(row)) for row in surviving_branches(alpha)], 'engine': 'onnxruntime-int8'},
            {'alpha': torch.from_numpy(alpha), **({} if peaks is None else {'peaks': peaks})}).kind

    peaks = torch.ones(len(model.blocks) + 1, dtype=torch.float64)
    assert part(damage(peaks)) == Kind.ERROR and part(peaks) == Kind.REPLY
    with torch.no_grad():
        assert tasks.current_part()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[0] == 1


def channels_into(model, unit: int) -> int:
    """Channels of what flows into this unit."""
    return cut_shape(model.model_name, model.num_classes, 32, unit)[0]
