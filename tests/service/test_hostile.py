"""Clients that lie: their connection ends with a reason, and no other client notices."""
from __future__ import annotations

import socket
import struct

import pytest
import torch
from client_process import SETTINGS, batch
from service_cases import entry_of, expected, random_alpha, running, wait_until, weights_in

from network.inputs import normalise
from network_utils import Address, connect
from tier.worker import Worker, make_tasks
from wire.connection import Connection
from wire.frames import Kind, NetworkError, PeerError

SPLIT, CUT = 4, (1, 64, 8, 8)
JOIN = {'entry': 'one', 'name': '', 'fps': 0, 'live': False, 'silent_s': 1, 'hold_mb': 0}


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    """(a service of one entry, its network, the entry, a folder)."""
    folder = tmp_path_factory.mktemp('service')
    network = weights_in(folder, 6)
    entry = entry_of('one', random_alpha(network, 1), SPLIT)
    with running(folder, [entry]) as served:
        yield served, network, entry, folder


def connected(served, token: bytes = b'') -> Connection:
    return connect(Address('127.0.0.1', served.port), token, 'camera', 'service')


def joined(served, folder, connection=None, **changed):
    """(a connection that is served, the part that it holds)."""
    connection, tasks = connection or connected(served), make_tasks(SETTINGS, str(folder / 'cache'), 1.0)
    tasks.connection, worker = connection, Worker(tasks)
    connection.send(Kind.JOIN, {**JOIN, 'name': 'x', **changed})
    while True:
        message = connection.receive()
        message.raise_error()
        if message.text('op') == 'serve':
            return connection, tasks.current_part()
        worker.answer(connection, message)


def frame_of(part, image, i: int, **changed):
    """The fields and tensors of an honest frame, with some changed."""
    with torch.inference_mode():
        z = part(image[None], last=SPLIT + 1)
    fields = {'i': i, 'c': 0, 'head_s': 0.001, 'latency_s': 0.0}
    return ({**fields, **{name: value for name, value in changed.items() if name in fields}},
            changed.get('tensors', {'z': z}))


def reason_of(connection: Connection) -> str:
    """Why the other end closed."""
    try:
        while True:
            connection.receive(20.0).raise_error()
    except (PeerError, NetworkError) as error:
        return str(error)
    finally:
        connection.close()


@pytest.mark.parametrize('first', [
    (Kind.REQUEST, {'id': 1, 'op': 'facts'}), (Kind.FRAME, {'i': 0, 'c': 0, 'head_s': 0, 'latency_s': 0}),
    (Kind.END, {}), (Kind.JOIN, {}), *((Kind.JOIN, {**JOIN, **changed}) for changed in (
        {'entry': 'two'}, {'entry': 5}, {'fps': -1}, {'fps': 1e300}, {'hold_mb': -1}, {'silent_s': -1},
        {'live': 'yes'}))])
def test_who_does_not_join_as_it_should_is_refused(service, first):
    connection = connected(service[0])
    connection.send(*first)
    assert reason_of(connection)
    wait_until(lambda: not service[0].service.clients)


LIES = {
    'a frame left out': {'i': 1}, 'a frame again': {'i': -1}, 'another configuration': {'c': 1},
    'a time below 0': {'head_s': -1.0}, 'a time that is none': {'latency_s': 'long'},
    'no feature map': {'tensors': {}}, 'another name': {'tensors': {'y': torch.zeros(CUT)}},
    'another shape': {'tensors': {'z': torch.zeros(1, 64, 8, 7)}},
    'another type': {'tensors': {'z': torch.zeros(CUT, dtype=torch.float64)}},
    'too many bytes': {'tensors': {'z': torch.zeros(4, 64, 64, 64)}}}


@pytest.mark.parametrize('lie', LIES)
def test_a_frame_that_lies_ends_its_connection_and_nothing_else(service, lie):
    served, _, _, folder = service
    connection, part = joined(served, folder)
    honest, other_part = joined(served, folder)
    images = batch(1, 4)[0]
    connection.send(Kind.FRAME, *frame_of(part, images[0], 0))
    assert connection.receive(20.0).kind == Kind.RESULT
    changed = dict(LIES[lie])
    fields, tensors = frame_of(part, images[1], changed.pop('i', 0) + 1, **changed)
    connection.send(Kind.FRAME, fields, tensors)
    assert reason_of(connection)
    for i, image in enumerate(images):
        honest.send(Kind.FRAME, *frame_of(other_part, image, i))
    answers = [honest.receive(20.0) for _ in images]
    assert [answer.integers('prediction', 0, 9) for answer in answers] == [
        [label] for label in expected(service[1], service[2], images)]
    honest.close()
    wait_until(lambda: not served.service.clients and not served.service.snapshot()['server']['under_way'])
    assert served.service.snapshot()['server']['restarts'] == 0


def test_values_that_are_no_numbers_are_answered_without_a_probability(service):
    served, _, _, folder = service
    connection, part = joined(served, folder)
    fields, _ = frame_of(part, batch(1, 1)[0][0], 0)
    connection.send(Kind.FRAME, fields, {'z': torch.full(CUT, float('nan'))})
    answer = connection.receive(20.0)
    assert answer.kind == Kind.RESULT and answer.fields['probability'] is None
    connection.close()


def test_a_client_that_does_not_read_its_answers_is_disconnected(service):
    served, _, _, folder = service
    connection, part = joined(served, folder)
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server_end = served.service.clients[0].connection
    server_end._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fields, tensors = frame_of(part, batch(1, 1)[0][0], 0)
    with pytest.raises(NetworkError):
        for i in range(2000):
            connection.send(Kind.FRAME, {**fields, 'i': i}, tensors)
    connection.close()
    wait_until(lambda: not served.service.clients)


def test_a_connection_that_is_reset_frees_its_share(service):
    served, _, _, folder = service
    connection, part = joined(served, folder)
    for i in range(8):
        connection.send(Kind.FRAME, *frame_of(part, batch(1, 1)[0][0], i))
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    connection._sock.close()
    wait_until(lambda: not served.service.clients and not served.service.snapshot()['server']['under_way'])


def test_the_head_is_the_first_blocks_of_what_the_client_was_sent(service):
    served, network, entry, folder = service
    connection, part = joined(served, folder)
    images = batch(3, 2)[0]
    network.set_alpha_array(entry.network.alpha)
    with torch.inference_mode():
        whole = network(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD))
        assert torch.allclose(part(part(images, last=SPLIT + 1), first=SPLIT + 1), whole, atol=1e-4, rtol=1e-4)
    connection.close()
