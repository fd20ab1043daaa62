"""Somebody between a camera and its service: nothing he does reaches a network, and only that camera is cut off."""
from __future__ import annotations

import pytest
from client_process import batch
from man_in_the_middle import MANIPULATIONS, TOKEN, Between
from service_cases import entry_of, random_alpha, running, wait_until, weights_in
from test_hostile import SPLIT, connected, frame_of, joined, reason_of

from network_utils import Address, connect
from wire.frames import FIXED, Kind, NetworkError

FRAMES, MEDDLED = 5, 2


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    """(a service with a token, a folder, another session's frames of a stream)."""
    folder = tmp_path_factory.mktemp('service')
    network = weights_in(folder, 6)
    with running(folder, [entry_of('one', random_alpha(network, 1), SPLIT)], token=TOKEN) as served:
        joined(served, folder, connected(served, TOKEN))[0].close()  # the next one is sent no weights
        between = Between(('127.0.0.1', served.port))
        connection, part = joined(served, folder, connect(Address(*between.address), TOKEN, 'camera', 'service'))
        for i, image in enumerate(batch(1, FRAMES)[0]):
            connection.send(Kind.FRAME, *frame_of(part, image, i))
            connection.receive(20.0)
        before = next(i for i, frame in enumerate(between.passed[True]) if FIXED.unpack_from(frame)[2] == Kind.FRAME)
        elsewhere = tuple(between.passed[True])
        connection.close()
        between.close()
        yield served, folder, before, elsewhere


@pytest.mark.parametrize('name', MANIPULATIONS)
def test_a_frame_that_somebody_meddled_with_is_computed_by_nobody(service, name, monkeypatch):
    served, folder, before, elsewhere = service
    meddle, keeps_frame = MANIPULATIONS[name]
    submitted, submit = [], served.service.dispatcher.submit
    monkeypatch.setattr(served.service.dispatcher, 'submit', lambda client, message, number: (
        submitted.append((client.connection.peer, message.integer('i', 0, 99))), submit(client, message, number)))
    honest, other_part = joined(served, folder, connected(served, TOKEN))
    between = Between(('127.0.0.1', served.port), True, before + MEDDLED, lambda seen: meddle(seen, 0.5), elsewhere)
    victim, part = joined(served, folder, connect(Address(*between.address), TOKEN, 'camera', 'service'))
    peer = next(client.connection.peer for client in served.service.clients
                if client.connection.peer != '%s:%s' % honest._sock.getsockname())
    images = batch(1, FRAMES)[0]
    for i, image in enumerate(images):
        try:
            victim.send(Kind.FRAME, *frame_of(part, image, i))
        except NetworkError:
            break
    wait_until(lambda: len(served.service.clients) == 1)
    assert [i for who, i in submitted if who == peer] == list(range(MEDDLED + keeps_frame))
    for i, image in enumerate(images):
        honest.send(Kind.FRAME, *frame_of(other_part, image, i))
        assert honest.receive(20.0).integer('i', i, i) == i
    assert reason_of(victim)
    honest.close()
    between.close()
    wait_until(lambda: not served.service.clients)
