"""How two ends find and trust each other: who comes in, who does not, and when a peer is given up."""
from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time

import pytest
import torch
from service_cases import wait_until
from wire_ends import outcome, pair, raw_frame

import network_utils
from config import UserError
from network_utils import Address, Listener, connect
from wire import connection
from wire.connection import Connection
from wire.frames import ConnectionLost, Kind, NetworkError, PeerError
from wire.handshake import Nonces, proof

quiet = lambda text: None  # noqa: E731


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
        with contextlib.suppress(OSError):  # an end that is closed while something is on its way
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
    proofs = [proof(b'swordfish', *roles, Nonces(*nonces))
              for nonces in itertools.permutations(('0' * 64, '1' * 64, '2' * 64), 2)
              for roles in (('worker', 'server'), ('server', 'worker'), ('control', 'worker'), ('worker', 'control'))]
    assert len(set(proofs)) == len(proofs)


def test_a_proof_for_the_control_port_opens_no_main_port():
    """Somebody stands where an operator looks for a client, and passes the greetings on to a server with the roles
    changed, and the operator's proof as it is."""
    token, ends = b'swordfish', [Connection(sock, 'end') for _ in range(2) for sock in socket.socketpair()]
    operator, to_operator, server, to_server = ends

    def greet(end, *arguments):
        with contextlib.suppress(NetworkError):
            end.handshake(*arguments)

    for arguments in ((operator, 'control', ('worker',), token, True), (server, 'server', ('worker',), token, False)):
        threading.Thread(target=greet, args=arguments, daemon=True).start()
    to_server.send(Kind.HELLO, {**to_operator.receive().fields, 'role': 'worker'})
    to_operator.send(Kind.HELLO, {**to_server.receive().fields, 'role': 'worker'})
    to_server.send(Kind.PROOF, to_operator.receive().fields)
    assert to_server.receive().kind == Kind.ERROR
    for end in ends:
        end.close()


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
    wait_until(listener._ready.full)  # a client's handshake ends a moment before it has its place there
    one_more = network_utils.connect(listener.address, b'secret', 'worker', 'server')
    with pytest.raises(PeerError, match='others are waiting'):
        one_more.receive(timeout_s=30).raise_error()
    assert sum(listener.get(timeout_s=5) is not None for _ in waiting) == len(waiting)
    listener.close()


def test_a_peer_that_only_lives_is_given_up(monkeypatch):
    monkeypatch.setattr(connection, 'HEARTBEAT_S', 0.1)
    client, server, _ = met(b'', b'')
    with pytest.raises(ConnectionLost, match='lives but has not answered for 0.3 s'):
        client.receive(timeout_s=0.3)
    server.close()


@pytest.mark.parametrize('greeting', [{}, {'role': 5}, {'role': 'worker'}, {'role': 'worker', 'nonce': 'x'},
                                      {'role': 'control', 'nonce': '0' * 64, 'secret': False},
                                      {'role': 'worker', 'nonce': 'x', 'secret': False}])
def test_an_incomplete_greeting_is_answered_and_closed_at_once(greeting):
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet)
    with socket.create_connection(listener.address, timeout=5) as stranger:
        stranger.sendall(raw_frame(Kind.HELLO, greeting))
        answer = b''.join(iter(lambda: stranger.recv(4096), b''))
    assert b'protocol' in answer and listener.get(timeout_s=0) is None
    listener.close()


def test_a_message_that_comes_too_slowly_is_given_up_whoever_sends_it(monkeypatch):
    """A byte now and then keeps nobody waiting: neither a header's nor a payload's, and not who reads one either."""
    monkeypatch.setattr(connection, 'SILENCE_S', 0.3)
    monkeypatch.setattr(connection, 'SLOWEST_BYTES_PER_S', 1000)
    frame = raw_frame(Kind.REPLY, {'id': 1}, {'x': torch.zeros(100)})  # has 0.8 s after its first header
    for at_once in (1, 300):
        a, b = socket.socketpair()
        receiver = Connection(b, 'peer')
        receiver.max_payload_bytes = 1000

        def trickle(sock=a, at_once=at_once):
            with contextlib.suppress(OSError):
                sock.sendall(frame[:at_once])
                for byte in frame[at_once:]:
                    time.sleep(0.1)
                    sock.sendall(bytes([byte]))

        threading.Thread(target=trickle, daemon=True).start()
        with pytest.raises(ConnectionLost, match='sends too slowly'):
            receiver.receive()
        a.close()
    monkeypatch.setattr(connection, 'SLOWEST_BYTES_PER_S', 1e6)
    a, b = socket.socketpair()

    def sip(sock=b):
        with contextlib.suppress(OSError):
            while sock.recv(4096):
                time.sleep(0.05)

    threading.Thread(target=sip, daemon=True).start()
    with pytest.raises(ConnectionLost, match='takes data too slowly'):
        Connection(a, 'peer').send(Kind.FRAME, {}, {'x': torch.zeros(600_000, dtype=torch.uint8)})
    b.close()


@pytest.mark.parametrize('answer', ['refused', 'version', 'protocol', 'damaged'])
def test_what_a_stranger_says_ends_no_client(answer, monkeypatch):
    """Before a proof, an ERROR may come from anybody, and any byte may be damaged: the client tries again."""
    server = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet)
    hello, said = Connection.handshake, []

    def handshake(self, role, peer_roles, token, starts):
        if role == 'server' and not said:
            said.append(1)
            if answer == 'damaged':
                self._sock.recv(10000)
                self._sock.sendall(b'SPLT\x06' + bytes(40))  # a bit of the version's byte is another one
            return self.fail(answer, 'go away')
        return hello(self, role, peer_roles, token, starts)

    monkeypatch.setattr(Connection, 'handshake', handshake)
    lines = []
    client = network_utils.connect_with_retries(server.address, b'', 'worker', 'server', lines.append, lambda s: False)
    assert isinstance(client, Connection) and len(lines) == 1 and 'next attempt in 1 s' in lines[0]
    client.close()
    server.close()


def test_whoever_opens_many_connections_closes_only_his_own(monkeypatch):
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet, max_handshakes=4)
    slow = socket.create_connection(listener.address, source_address=('127.0.0.2', 0))  # the oldest of all
    slow.settimeout(0.2)
    strangers = [socket.create_connection(listener.address) for _ in range(20)]
    for stranger in strangers[:-3]:
        while stranger.recv(4096):
            pass
    with pytest.raises(socket.timeout):
        slow.recv(1)  # still has its place
    assert len(listener._strangers) == 4
    listener.close()


@pytest.mark.parametrize('version', [1, 3, 255])
@pytest.mark.parametrize('token', [b'', b'secret'])
def test_a_peer_of_another_version_is_told_so_and_named(version, token):
    said = []
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), said.append)
    greeting = bytearray(raw_frame(Kind.HELLO, {'role': 'worker', 'nonce': '0' * 64, 'secret': bool(token)}))
    greeting[4] = version
    with socket.create_connection(listener.address, timeout=5) as peer:
        peer.sendall(greeting)
        answer = outcome(b''.join(iter(lambda: peer.recv(4096), b'')))
    with pytest.raises(PeerError, match=f'version {version}, this end 2: use the same release') as refused:
        answer.raise_error()
    assert refused.value.code == 'version' and listener.get(timeout_s=0) is None
    while not said:
        time.sleep(0.01)
    assert f'version {version}' in said[0]
    listener.close()


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


def test_silence_within_a_message_is_noticed_as_soon(monkeypatch):
    """Also when the last byte came right after the receiver had begun to wait for all of them."""
    monkeypatch.setattr(connection, 'SILENCE_S', 1.0)
    a, b = socket.socketpair()
    receiver = Connection(b, 'peer')
    receiver.max_payload_bytes = 1 << 20
    a.sendall(raw_frame(Kind.FRAME, {'i': 0}, {'x': torch.zeros(20_000)})[:40_000])
    start = time.monotonic()
    with pytest.raises(ConnectionLost, match='silent for 1 s'):
        receiver.receive()
    assert 1.0 <= time.monotonic() - start < 1.9
    a.close()


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
    with pytest.raises(UserError, match='gave up after 9 attempts'):
        network_utils.connect_with_retries(address, b'', 'worker', 'server', said.append, pauses.append, attempts=9)
    assert pauses == [1, 2, 4, 5, 5, 5, 5, 5] and all(str(address) in line for line in said)
    assert [line.rpartition('; ')[2] for line in said] == [
        'next attempt in 1 s', 'next attempt in 2 s', 'next attempt in 4 s', 'trying again every 5 s']
