"""With a token, nobody between two ends can change, add, repeat, leave out or reorder anything behind the handshake."""
from __future__ import annotations

import hashlib
import hmac
import itertools
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from man_in_the_middle import MANIPULATIONS, TOKEN, Between

from config import UserError
from network_utils import Address, Listener, ask_client, connect
from tier.tasks import Tasks
from tier.worker import Worker
from wire.blobs import BlobStore
from wire.connection import Connection
from wire.frames import Kind, NetworkError
from wire.handshake import Nonces, new_nonce, session_keys
from wire.integrity import Checksum, Trailers

COUNT = 5  # frames in each direction
quiet = lambda text: None  # noqa: E731


@contextmanager
def session(token=TOKEN, roles=('worker', 'server'), **meddling):
    """(who connects, who listens, who stands between them)."""
    listener = Listener(Address('127.0.0.1', 0), token, roles[1], (roles[0],), quiet)
    between = Between(listener.address, **meddling)
    client = connect(Address(*between.address), token, *roles)
    server = listener.get(timeout_s=5)
    try:
        yield client, server, between
    finally:
        between.close()
        for end in (client, server, listener):
            end.close()


def exchange(sender: Connection, receiver: Connection, tensors) -> list:
    """What arrives when `sender` sends all of these, one by one, until the connection ends."""
    def send() -> None:
        try:
            for i, tensor in enumerate(tensors):
                sender.send(Kind.FRAME, {'i': i}, {'x': tensor})
            sender.send(Kind.END)
        except NetworkError:
            pass

    for i in range(COUNT):  # there are frames of the same numbers in the other direction
        receiver.send(Kind.FRAME, {'i': i})
        sender.receive()
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    arrived = []
    try:
        while not arrived or arrived[-1].kind != Kind.END:
            arrived.append(receiver.receive())
    finally:
        thread.join()
        exchange.arrived = arrived  # also when it ended early
    return arrived


def tensors_of(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
            for size in torch.randint(0, 3000, (COUNT,), generator=generator).tolist()]


@pytest.fixture(scope='module')
def elsewhere():
    """What another session's frames look like, in both directions: same token, same contents."""
    with session() as (client, server, between):
        exchange(client, server, tensors_of(0))
        exchange(server, client, tensors_of(0))
        return {there: tuple(frames) for there, frames in between.passed.items()}


@pytest.mark.parametrize('name', MANIPULATIONS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_arrives_is_what_was_sent_up_to_the_manipulation_and_then_the_connection_ends(name, data, elsewhere):
    meddle, keeps_frame = MANIPULATIONS[name]
    towards_target, number = data.draw(st.booleans()), data.draw(st.integers(0, COUNT - 1))
    place = data.draw(st.floats(0, 1, exclude_max=True))
    tensors = tensors_of(data.draw(st.sampled_from((0, 1, 2))))
    with session(towards_target=towards_target, number=number, meddle=lambda seen: meddle(seen, place),
                 elsewhere=elsewhere[towards_target]) as (client, server, _):
        ends = (client, server) if towards_target else (server, client)
        with pytest.raises(NetworkError):
            exchange(*ends, tensors)
        assert ends[1].is_closed
    arrived = exchange.arrived
    assert [message.integer('i', 0, COUNT) for message in arrived] == list(range(number + keeps_frame))
    assert all(torch.equal(message.tensors['x'], tensor) for message, tensor in zip(arrived, tensors))


@pytest.mark.parametrize('towards_target', [True, False])
def test_frames_that_change_places_end_the_connection(towards_target):
    held = []

    def hold(seen):
        held.append(seen.frame)
        return []

    with session(towards_target=towards_target, number=1, meddle=hold) as (client, server, between):
        between._number = 1
        sender, receiver = (client, server) if towards_target else (server, client)
        sender.send(Kind.FRAME, {'i': 0})
        sender.send(Kind.FRAME, {'i': 1})
        while not held:
            time.sleep(0.001)
        between._number, between._meddle = 2, lambda seen: [seen.frame, held[0]]
        sender.send(Kind.FRAME, {'i': 2})
        assert receiver.receive().integer('i', 0, 0) == 0
        with pytest.raises(NetworkError, match='MAC'):
            receiver.receive()


@pytest.mark.parametrize('token', [TOKEN, b''])
def test_without_anybody_between_all_arrives_and_a_frame_has_one_check(token):
    """With a token it is the MAC, without one the checksum of its payload."""
    tensors = tensors_of(3)
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), quiet)
    client = connect(listener.address, token, 'worker', 'server')
    server = listener.get(timeout_s=5)
    before = client.bytes_sent
    arrived = exchange(client, server, tensors)
    assert len(arrived) == COUNT + 1
    assert all(torch.equal(message.tensors['x'], tensor) for message, tensor in zip(arrived, tensors))
    sent = client.bytes_sent - before
    before = client.bytes_sent
    client.send(Kind.END)
    assert client.bytes_sent - before == (24 + 16 if token else 24)
    assert sent > sum(map(len, tensors)) + (COUNT + 1) * (16 if token else 0)
    for end in (client, server, listener):
        end.close()


def test_messages_of_many_threads_are_numbered_in_the_order_in_which_they_leave():
    with session() as (client, server, _):
        threads = [threading.Thread(target=lambda: [client.send(Kind.PROGRESS, {'id': 1}) for _ in range(50)])
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        assert all(server.receive().kind == Kind.PROGRESS for _ in range(200))


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=80))
@settings(max_examples=50, deadline=None)
def test_every_direction_of_every_connection_has_a_key_of_its_own(token, other_token):
    nonces = [Nonces(new_nonce(), new_nonce()) for _ in range(2)]
    roles = (('worker', 'server'), ('control', 'worker'), ('camera', 'service'))
    keys = [session_keys(secret, role, nonce) for secret in {token, other_token or b'?'} for role in roles
            for nonce in (*nonces, Nonces(*reversed(nonces[0])))]
    assert len(set(itertools.chain(*keys))) == 2 * len(keys) and all(len(key) == 32 for key in itertools.chain(*keys))
    assert session_keys(token, ('worker', 'server'), nonces[0]) == tuple(reversed(
        session_keys(token, ('server', 'worker'), nonces[0])))


def test_keys_are_those_of_rfc_5869():
    """Its steps, by hand, for one block."""
    nonces = Nonces('a' * 64, 'b' * 64)
    extracted = hmac.new(('a' * 64 + '|' + 'b' * 64).encode(), TOKEN, hashlib.sha256).digest()
    expanded = hmac.new(extracted, b'2|camera|service' + b'\x01', hashlib.sha256).digest()
    assert session_keys(TOKEN, ('camera', 'service'), nonces).sending == expanded
    trailer = Trailers(expanded).begin(b'header', False)
    assert trailer.packed() == hmac.new(expanded, b'header' + bytes(8), hashlib.sha256).digest()[:16]
    assert isinstance(Trailers().begin(b'header', True), Checksum) and Trailers().begin(b'header', False) is None


# --- the main port: requests reach a device ---------------------------------------------------------------

@pytest.mark.parametrize('name', MANIPULATIONS)
def test_no_request_that_somebody_meddled_with_is_done(name, tmp_path, elsewhere, monkeypatch):
    meddle, keeps_frame = MANIPULATIONS[name]
    tasks, done = Tasks(torch.device('cpu'), 1, BlobStore(str(tmp_path), 1 << 20)), []
    monkeypatch.setattr(tasks, 'run', lambda message: (done.append(message.integer('id', 0, 99)) or {}, {}))
    with session(towards_target=False, number=2, meddle=lambda seen: meddle(seen, 0.5),
                 elsewhere=elsewhere[False]) as (client, server, _):
        serving = threading.Thread(target=lambda: pytest.raises(NetworkError, Worker(tasks).serve, client), daemon=True)
        serving.start()
        for number in range(COUNT):
            try:
                server.send(Kind.REQUEST, {'id': number, 'op': 'echo'}, {'data': torch.zeros(100)})
                if number < 2:
                    server.receive(5.0)
            except NetworkError:
                break
        serving.join(5)
    assert done == list(range(2 + keeps_frame))


# --- the control port -------------------------------------------------------------------------------------

@pytest.mark.parametrize('towards_target', [True, False])
@pytest.mark.parametrize('name', sorted(set(MANIPULATIONS) - {'left out', 'repeated at once',
                                                              'an earlier one behind it'}))
def test_nobody_between_can_speak_for_an_operator_or_for_a_client(name, towards_target, tmp_path, monkeypatch):
    monkeypatch.setenv('SPLIT_AUTH_TOKEN', TOKEN.decode())
    worker = Worker(Tasks(torch.device('cpu'), 1, BlobStore(str(tmp_path), 1 << 20)))
    listener = Listener(Address('127.0.0.1', 0), TOKEN, 'worker', ('control',), quiet)
    threading.Thread(target=lambda: [worker.control(connection) for connection in listener], daemon=True).start()
    with session(roles=('control', 'worker')) as (operator, client, elsewhere):
        operator.send(Kind.REQUEST, {'id': 1, 'op': 'shutdown'})
        client.receive()
        client.send(Kind.REPLY, {'id': 1, 'text': 'done', **worker.state})
        operator.receive()
        frames = tuple(elsewhere.passed[towards_target])
    between = Between(listener.address, towards_target, 0, lambda seen: MANIPULATIONS[name][0](seen, 0.5), frames)
    with pytest.raises(UserError):
        ask_client(between.address[1], 'status')
    assert not worker.stopping.is_set()
    between.close()
    listener.close()
