"""Frames, connections and wire formats: what goes in comes out, and nothing that arrives can do harm."""
from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import network_utils
from config import UserError
from network_utils import Address, Listener, connect
from wire import codec, connection, formats, frames
from wire.connection import Connection
from wire.frames import FIXED, ConnectionLost, Kind, NetworkError, PeerError, ProtocolError

names = st.from_regex(r'[a-z0-9_.]{1,64}', fullmatch=True)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2 ** 63, 2 ** 63 - 1), st.text(max_size=40),
                    st.floats(allow_nan=False, allow_infinity=False))
fields_of = st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=5)), max_size=6)
shapes = st.lists(st.integers(0, 3), max_size=6).map(tuple)
quiet = lambda text: None  # noqa: E731


def pair(max_payload_bytes=1 << 20):
    """Two connected, trusted ends without heartbeats."""
    a, b = socket.socketpair()
    ends = Connection(a, 'a'), Connection(b, 'b')
    for end in ends:
        end.max_payload_bytes = max_payload_bytes
    return ends


@st.composite
def tensors_of(draw):
    def tensor():
        dtype = draw(st.sampled_from(list(frames.DTYPES.values())))
        shape = draw(shapes)
        raw = np.frombuffer(draw(st.binary(min_size=64, max_size=64)) * (int(np.prod(shape)) * 8 // 64 + 1), np.uint8)
        as_numpy = torch.empty((), dtype=dtype).numpy().dtype
        return torch.from_numpy(raw.view(as_numpy)[:int(np.prod(shape))].copy().reshape(shape))
    return {name: tensor() for name in draw(st.lists(names, max_size=3, unique=True))}


def raw_frame(kind=Kind.REQUEST, fields=None, tensors=None) -> bytes:
    """The bytes of a frame."""
    a, b = socket.socketpair()
    sender = Connection(a, 'a')
    sender.send(kind, fields or {}, tensors or {})
    a.shutdown(socket.SHUT_WR)
    data = b''.join(iter(lambda: b.recv(1 << 16), b''))
    b.close()
    return data


def outcome(data: bytes, max_payload_bytes=1 << 20):
    """What `receive` makes of these bytes followed by the end of the stream."""
    a, b = socket.socketpair()
    receiver = Connection(b, 'peer')
    receiver.max_payload_bytes = max_payload_bytes
    a.sendall(data)  # at most 64 KiB: fits into the socket's buffer
    a.shutdown(socket.SHUT_WR)
    try:
        return receiver.receive()
    except NetworkError as error:
        assert receiver.is_closed and '\n' not in str(error)
        return error
    finally:
        receiver.close()
        a.close()


@given(fields_of, tensors_of())
@settings(max_examples=200, deadline=None)
def test_every_message_arrives_as_it_was_sent(fields, tensors):
    a, b = pair()
    a.send(Kind.FRAME, fields, tensors)
    message = b.receive()
    assert message.kind == Kind.FRAME and message.fields == fields and list(message.tensors) == list(tensors)
    for name, value in tensors.items():
        got = message.tensors[name]
        assert got.dtype == value.dtype and got.shape == value.shape
        assert np.array_equal(got.numpy().view(np.uint8) if got.dim() else got.reshape(1).numpy().view(np.uint8),
                              value.numpy().view(np.uint8) if value.dim() else value.reshape(1).numpy().view(np.uint8))
    a.close(), b.close()


def test_large_and_strided_tensors_arrive_whole():
    a, b = pair(64 << 20)
    big = torch.rand(3, 1_000_003)
    sender = threading.Thread(target=a.send, args=(Kind.FRAME, {}, {'big': big, 'strided': big[:, ::7].t()}))
    sender.start()
    message = b.receive()
    sender.join()
    assert torch.equal(message.tensors['big'], big) and torch.equal(message.tensors['strided'], big[:, ::7].t())


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data):
    assert isinstance(outcome(data), NetworkError)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_frame_with_a_wrong_byte_is_refused(data):
    frame = bytearray(raw_frame(fields={'id': 7, 'op': 'forward'},
                                tensors={'x': torch.arange(300.), 'y': torch.ones(2)}))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    assert isinstance(outcome(bytes(frame)), ProtocolError)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_frame_cut_short_is_a_lost_connection(data):
    frame = raw_frame(fields={'id': 7}, tensors={'x': torch.arange(300.)})
    assert isinstance(outcome(frame[:data.draw(st.integers(0, len(frame) - 1))]), ConnectionLost)


json_like = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
                         lambda inner: st.one_of(st.lists(inner, max_size=4),
                                                 st.dictionaries(st.text(max_size=8), inner)),
                         max_leaves=12)


@given(st.one_of(json_like, st.builds(lambda f, t: {'fields': f, 'tensors': t}, json_like, json_like)),
       st.integers(0, 2 ** 64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_typed_header_is_either_within_limits_or_refused(content, payload_bytes):
    import json
    typed = json.dumps(content).encode()
    fixed = FIXED.pack(b'SPLT', 1, Kind.REQUEST, len(typed), payload_bytes, zlib.crc32(typed))
    result = outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed)
    assert isinstance(result, NetworkError) or (set(content) == {'fields', 'tensors'} and
                                                len(result.tensors) == len(content['tensors']))


@pytest.mark.parametrize('typed', [
    b'[' * 60000, b'{"fields":' * 5000, b'{"fields":{"a":' + b'9' * 60000 + b'},"tensors":[]}',
    b'{"fields":{"a":1e999},"tensors":[]}', b'{"fields":{"a":NaN},"tensors":[]}',
    b'{"fields":{"a":1,"a":2},"tensors":[]}', b'{"fields":{"../a":1},"tensors":[]}', b'\xff\xfe', b'{}',
    b'{"fields":{},"tensors":[["x","float32",[2147483647,2147483647,2147483647,2147483647,2147483647]]]}',
    b'{"fields":{},"tensors":[["x","float32",[0,2147483647,2147483647,2147483647,2147483647]]]}',
    b'{"fields":{},"tensors":[["x","object",[1]]]}', b'{"fields":{},"tensors":[["x","float32",[-1]]]}',
    b'{"fields":{},"tensors":[["x","float32",[1,1,1,1,1,1,1]]]}', b'{"fields":{},"tensors":[["x","float32",[true]]]}',
    b'{"fields":{},"tensors":[["x","uint8",[0]],["x","uint8",[0]]]}',
])
def test_hostile_headers_are_refused_quickly(typed):
    fixed = FIXED.pack(b'SPLT', 1, Kind.REQUEST, len(typed), 0, zlib.crc32(typed))
    start = time.perf_counter()
    assert isinstance(outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed), ProtocolError)
    assert time.perf_counter() - start < 1


def test_a_payload_above_the_limit_claims_no_memory():
    typed = b'{"fields":{},"tensors":[["x","uint8",[1000000000000]]]}'
    fixed = FIXED.pack(b'SPLT', 1, Kind.REQUEST, len(typed), 10 ** 12, zlib.crc32(typed))
    tracemalloc.start()
    assert 'allowed' in str(outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed))
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_fields_are_checked_where_they_are_read():
    message = frames.Message(Kind.REPLY, {'n': 5, 't': 'a\x1b[2J', 'f': True, 'l': [1, None]}, {'z': torch.zeros(2)})
    assert message.integer('n', 0, 5) == 5 and message.text('t') == 'a?[2J' and message.flag('f')
    assert np.isnan(message.numbers('l')[1])
    for wrong in (lambda: message.integer('n', 0, 4), lambda: message.integer('f', 0, 4), lambda: message.text('n'),
                  lambda: message.number('missing'), lambda: message.integers('l', 0, 9), lambda: message.texts('l'),
                  lambda: message.tensor('z', torch.float64), lambda: message.tensor('z', rank=3),
                  lambda: message.flag('n')):
        with pytest.raises(ProtocolError):
            wrong()


# --- finding and trusting each other ----------------------------------------------------------------

def met(server_token: bytes, client_token: bytes):
    """What both ends make of each other: (connection or error, connection or error, what the listener said)."""
    said = []
    listener = Listener(Address('127.0.0.1', 0), server_token, 'server', ('worker',), said.append)
    try:
        client = connect(listener.address, client_token, 'worker', 'server')
    except NetworkError as error:
        client = error
    server = listener.get(timeout_s=2 if isinstance(client, Connection) else 0.2)
    listener.close()
    return client, server, said


@pytest.mark.parametrize('token', [b'', b'secret'])
def test_ends_with_the_same_secret_meet(token):
    client, server, said = met(token, token)
    client.send(Kind.REQUEST, {'id': 1}, {'x': torch.ones(3)})
    assert server.receive().integer('id', 1, 1) == 1 and not said
    client.close()
    with pytest.raises(ConnectionLost, match='closed'):
        server.receive()


@pytest.mark.parametrize('tokens', [(b'a', b''), (b'', b'a'), (b'a', b'b')])
def test_ends_with_different_secrets_part(tokens):
    client, server, said = met(*tokens)
    assert isinstance(client, connection.Refused) and 'SPLIT_AUTH_TOKEN' in str(client) and server is None


def test_the_secret_never_travels_and_a_proof_cannot_be_replayed():
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    seen = bytearray()

    def relay(source, target):
        for data in iter(lambda: source.recv(4096), b''):
            seen.extend(data)
            target.sendall(data)

    for source, target in ((b, c), (c, b)):
        threading.Thread(target=relay, args=(source, target), daemon=True).start()
    client, server = Connection(a, 'client'), Connection(d, 'server')
    greeting = threading.Thread(target=server.handshake, args=('server', ('worker',), b'swordfish', False))
    greeting.start()
    client.handshake('worker', ('server',), b'swordfish', True)
    greeting.join()
    assert b'swordfish' not in seen and b'hmac' in seen
    old = connection.proof(b'swordfish', 'client', '0' * 64, '1' * 64)
    assert old not in (connection.proof(b'swordfish', label, *nonces) for label, nonces in (
        ('server', ('0' * 64, '1' * 64)), ('client', ('1' * 64, '0' * 64)), ('client', ('0' * 64, '2' * 64))))


def test_strangers_get_no_payload_and_no_endless_handshake(monkeypatch):
    monkeypatch.setattr(connection, 'HANDSHAKE_S', 0.3)
    said = []
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), said.append)
    silent = socket.create_connection(listener.address)
    rude = socket.create_connection(listener.address)
    rude.sendall(raw_frame(Kind.HELLO, {'role': 'worker'}, {'x': torch.zeros(1000)}))
    start = time.monotonic()
    for stranger in (silent, rude):
        while stranger.recv(4096):
            pass
    assert time.monotonic() - start < 2 and listener.get(timeout_s=0) is None
    while not said and time.monotonic() - start < 20:  # after the last words to the stranger have had time to arrive
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(said) == 1
    listener.close()


def test_heartbeats_do_not_keep_a_stranger(monkeypatch):
    """Whoever sends nothing but heartbeats is gone at the deadline, and one heartbeat is no greeting."""
    monkeypatch.setattr(connection, 'HANDSHAKE_S', 0.5)
    listener = Listener(Address('127.0.0.1', 0), b'secret', 'server', ('worker',), quiet)
    strangers = [socket.create_connection(listener.address, timeout=5) for _ in range(network_utils.MAX_HANDSHAKES)]
    for stranger in strangers[::2]:
        stranger.sendall(raw_frame(Kind.HEARTBEAT, {}))
    client = network_utils.connect(listener.address, b'secret', 'worker', 'server')  # has the token: comes in at once
    assert listener.get(timeout_s=5) is not None
    client.close()
    for stranger in strangers:
        while stranger.recv(4096):
            pass
    listener.close()


def test_a_trickle_of_bytes_does_not_outlast_the_deadline(monkeypatch):
    monkeypatch.setattr(connection, 'HANDSHAKE_S', 0.5)
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet)
    stranger, sent = socket.create_connection(listener.address, timeout=5), 0
    with contextlib.suppress(OSError):
        while sent < 1000:  # a frame that never ends
            stranger.sendall(b'SPLT' if sent == 0 else b'\x01')
            sent += 1
            time.sleep(0.05)
    assert sent < 100
    listener.close()


def test_peers_that_wait_for_their_turn_take_no_place_of_a_handshake():
    listener = Listener(Address('127.0.0.1', 0), b'secret', 'server', ('worker',), quiet)
    waiting = [network_utils.connect(listener.address, b'secret', 'worker', 'server')
               for _ in range(network_utils.MAX_WAITING)]
    one_more = network_utils.connect(listener.address, b'secret', 'worker', 'server')
    with pytest.raises(PeerError, match='others are waiting'):
        one_more.receive().raise_error()
    assert sum(listener.get(timeout_s=5) is not None for _ in waiting) == len(waiting)
    listener.close()


def test_a_peer_that_only_lives_is_given_up(monkeypatch):
    monkeypatch.setattr(connection, 'HEARTBEAT_S', 0.1)
    client, server, _ = met(b'', b'')
    with pytest.raises(ConnectionLost, match='lives but has not answered for 0.3 s'):
        client.receive(timeout_s=0.3)
    server.close()


@pytest.mark.parametrize('greeting', [{}, {'role': 5}, {'role': 'worker'}, {'role': 'worker', 'nonce': 'x'},
                                      {'role': 'control', 'nonce': 'x', 'secret': False}])
def test_an_incomplete_greeting_is_answered_and_closed_at_once(greeting):
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet)
    with socket.create_connection(listener.address, timeout=5) as stranger:
        stranger.sendall(raw_frame(Kind.HELLO, greeting))
        answer = b''.join(iter(lambda: stranger.recv(4096), b''))
    assert b'protocol' in answer and listener.get(timeout_s=0) is None
    listener.close()


def test_a_peer_of_another_version_is_named():
    frame = bytearray(raw_frame(Kind.HELLO, {'role': 'worker'}))
    frame[4] = 9
    assert 'version 9' in str(outcome(bytes(frame)))


def test_open_addresses_need_a_secret():
    with pytest.raises(UserError, match='SPLIT_AUTH_TOKEN'):
        network_utils.check_address(Address('0.0.0.0', 0), b'', False)
    for accepted in ((Address('0.0.0.0', 0), b'x', False), (Address('0.0.0.0', 0), b'', True),
                     (Address('127.0.0.1', 0), b'', False), (Address('localhost', 0), b'', False)):
        network_utils.check_address(*accepted)


def test_silence_is_noticed_in_the_stated_time(monkeypatch):
    monkeypatch.setattr(connection, 'SILENCE_S', 0.3)
    a, b = pair()
    start = time.monotonic()
    with pytest.raises(ConnectionLost, match='silent for 0.3 s'):
        b.receive()
    assert time.monotonic() - start < 1
    a, b = pair(64 << 20)
    with pytest.raises(ConnectionLost, match='takes no data for 0.3 s'):
        a.send(Kind.FRAME, {}, {'x': torch.zeros(8 << 20)})


def test_heartbeats_keep_a_busy_peer_alive(monkeypatch):
    monkeypatch.setattr(connection, 'SILENCE_S', 0.6)
    monkeypatch.setattr(connection, 'HEARTBEAT_S', 0.2)
    client, server, _ = met(b'', b'')
    threading.Timer(1.5, lambda: server.send(Kind.REPLY, {'id': 1})).start()
    assert client.receive().kind == Kind.REPLY


def test_connecting_retries_with_back_off_and_says_so():
    said, pauses = [], []
    free = socket.create_server(('127.0.0.1', 0))
    address = Address(*free.getsockname())
    free.close()
    with pytest.raises(UserError, match='gave up after 4 attempts'):
        network_utils.connect_with_retries(address, b'', 'worker', 'server', said.append, pauses.append, attempts=4)
    assert pauses == [1, 2, 4] and len(said) == 3 and all(str(address) in line for line in said)


# --- wire formats -----------------------------------------------------------------------------------

maps = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99),
                 st.floats(1e-6, 1e6)).map(
    lambda a: torch.relu(torch.randn(*a[:4], generator=torch.Generator().manual_seed(a[4]))) * a[5])


@given(maps, st.sampled_from(formats.WIRE_FORMATS))
@settings(max_examples=200, deadline=None)
def test_feature_maps_survive_every_format_within_its_error(z, wire):
    tensors = codec.encode(z, wire)
    back = codec.decode(tensors, wire, z.shape)
    error = (back - z).abs().amax(dim=(2, 3))
    span = z.amax(dim=(2, 3)) - z.amin(dim=(2, 3))
    peak = z.amax(dim=(2, 3))
    bound = {'float32': 0 * span, 'float16': peak.clamp(max=65504) / 1024 + (peak - 65504).clamp(0),
             'uint8': span / 255 * 0.51 + 1e-6 * peak}[wire.split('+')[0]]
    assert (error <= bound + 1e-7).all()
    size = formats.wire_bytes(wire, z.numel(), z.shape[0] * z.shape[1])
    assert size is None or size == codec.encoded_bytes(tensors)


@given(maps, st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_feature_maps_are_refused_and_cannot_fill_the_memory(z, data):
    wire = data.draw(st.sampled_from(formats.WIRE_FORMATS))
    tensors = codec.encode(z, wire)
    shape = list(z.shape)
    shape[data.draw(st.integers(0, 3))] += 1
    with pytest.raises(ValueError):
        codec.decode(tensors, wire, shape)
    with pytest.raises(ValueError):
        codec.decode({}, wire, z.shape)


def test_a_compression_bomb_is_refused():
    bomb = torch.from_numpy(np.frombuffer(zlib.compress(bytes(64 << 20)), np.uint8).copy())
    tracemalloc.start()
    with pytest.raises(ValueError):
        codec.decode({'z': bomb}, 'float32+zlib', (1, 4, 8, 8))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
