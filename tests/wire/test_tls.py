"""TLS: what it lets through, what it refuses in one line, and that its greeting keeps to the limits of any other."""
from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import torch
from certificates import Authority, needs_openssl, openssl
from wire_ends import raw_frame

import config
import network_utils
from benchmarks.relay import Relay
from cli import TlsFiles
from config import UserError
from network_utils import Address, Listener, connect
from wire import connection as connection_module
from wire.certificates import connecting_context, listening_context
from wire.frames import Kind, NetworkError, PeerError

pytestmark = needs_openssl
quiet = lambda text: None  # noqa: E731


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(an authority, its server certificate, its client certificate, another authority)."""
    folder = tmp_path_factory.mktemp('certificates')
    ours, other = Authority(folder), Authority(folder, 'other')
    return ours, ours.signed('server'), ours.signed('device', 'DNS:device'), other


def met(server_files, client_files, token=b'', host='127.0.0.1'):
    """What both ends make of each other: (connection or error, connection or None, what the listener said)."""
    said = []
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), said.append,
                        tls=listening_context(server_files))
    try:
        client = connect(Address(host, listener.address.port), token, 'worker', 'server',
                         connecting_context(client_files))
        with contextlib.suppress(PeerError):
            client.send(Kind.REQUEST, {'id': 1})  # an end that asks for certificates looks at them now
            server = listener.get(timeout_s=1.0)
            if server is None:
                client.receive(5.0)
    except NetworkError as error:
        client, server = error, None
        end = time.monotonic() + 5
        while not said and time.monotonic() < end:
            time.sleep(0.01)
    listener.close()
    return client, server, said


@pytest.mark.parametrize('token', [b'', b'secret'])
@pytest.mark.parametrize('asks', [False, True])
@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_messages_of_all_sizes_arrive_in_both_directions_at_once(made, token, asks, version, monkeypatch):
    ours, server_files, device_files, _ = made
    monkeypatch.setattr(connection_module, 'HEARTBEAT_S', 0.02)  # other threads send, too
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), quiet,
                        tls=listening_context(server_files if asks else server_files._replace(ca=None)))
    context = connecting_context(device_files if asks else TlsFiles(ca=ours.cert))
    context.maximum_version = version
    client = connect(listener.address, token, 'worker', 'server', context)
    server = listener.get(timeout_s=5)
    assert client._transport.tls._tls.version() == version.name.replace('_', '.')
    sizes = (0, 1, 7, 16383, 16384, 16385, 3_000_001, 5)
    tensors = [torch.arange(size, dtype=torch.float32) for size in sizes]
    arrived = {id(client): [], id(server): []}

    def send(end):
        for tensor in tensors:
            end.send(Kind.FRAME, {'i': len(tensor)}, {'x': tensor, 'y': tensor[:3].half()})

    def receive(end):
        arrived[id(end)] = [end.receive(20.0) for _ in sizes]

    threads = [threading.Thread(target=work, args=(end,)) for end in (client, server) for work in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for messages in arrived.values():
        assert all(torch.equal(message.tensors['x'], tensor) for message, tensor in zip(messages, tensors))
        assert len(messages) == len(sizes)
    for end in (client, server, listener):
        end.close()


def test_a_frame_that_the_system_does_not_take_at_once_goes_on_later(made):
    ours, server_files, _, _ = made
    client, server, _ = met(server_files._replace(ca=None), TlsFiles(ca=ours.cert))
    big = torch.rand(4_000_000)
    assert not client.post(Kind.FRAME, {'i': 0}, {'x': big})
    assert server.receive().kind == Kind.REQUEST
    assert torch.equal(server.receive().tensors['x'], big)
    client.close()
    with pytest.raises(NetworkError, match='closed'):
        server.receive()


# --- refusals ---------------------------------------------------------------------------------------------

def test_each_end_says_in_one_line_why_it_does_not_trust_the_other(made, tmp_path):
    ours, server_files, device_files, other = made
    plain, trusting = server_files._replace(ca=None), TlsFiles(ca=ours.cert)
    old = ours.signed('old', days=-1) if _takes_negative_days(ours) else None
    foreign = other.signed('foreign')
    self_signed = TlsFiles(other.cert, other.key)
    cases = [
        (self_signed, trusting, 'self.signed certificate.*is not signed by what --tls_ca holds', 'unknown ca'),
        (foreign._replace(ca=None), trusting, 'is not signed by what --tls_ca holds', 'unknown ca'),
        (ours.signed('elsewhere', 'DNS:elsewhere,IP:10.0.0.1')._replace(ca=None), trusting,
         '(?i)ip address mismatch.*--server_ip must be one of the names', 'certificate|unknown'),
        (server_files, trusting, 'asks for a certificate of this one: give --tls_cert and --tls_key',
         'shows no certificate; it needs --tls_cert'),
        (server_files, foreign._replace(ca=ours.cert), 'does not accept this one: unknown ca', 'not accepted'),
        (plain, TlsFiles(), 'this end speaks TLS, the other one does not: start it with --tls_ca',
         'start it with --tls_ca'),
        (TlsFiles(), trusting, 'start it with --tls_cert and --tls_key', 'speaks TLS, this end does not'),
    ]
    if old is not None:
        cases.append((old._replace(ca=None), trusting, 'certificate has expired.*clock', 'expired'))
    for files, client_files, client_says, server_says in cases:
        client, server, said = met(files, client_files)
        assert isinstance(client, NetworkError) and server is None, (client_says, client)
        for text, wanted in ((str(client), client_says), (' '.join(said), server_says)):
            assert re.search(wanted, text), (wanted, text)
            assert '\n' not in text
    named, server, _ = met(plain, trusting, host='localhost')
    assert server is not None
    named.close()


def _takes_negative_days(authority: Authority) -> bool:
    try:
        authority.signed('probe', days=-1)
        return True
    except subprocess.CalledProcessError:
        return False


def test_mistakes_with_files_are_one_line_before_anything_listens(made, tmp_path):
    ours, server_files, device_files, other = made
    locked, nothing, broken = (str(tmp_path / name) for name in ('locked.key', 'nothing.pem', 'broken.pem'))
    openssl('pkey', '-in', server_files.key, '-aes256', '-passout', 'pass:x', '-out', locked)
    open(nothing, 'w').close()
    with open(broken, 'w') as stream:
        stream.write('-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n')
    cert, key, ca = server_files
    missing = str(tmp_path / 'missing.pem')
    for context_of, files, wanted in (
            (listening_context, TlsFiles(missing, key), 'No such file'),
            (listening_context, TlsFiles(cert, missing), 'No such file'),
            (listening_context, TlsFiles(cert, key, missing), 'No such file'),
            (listening_context, TlsFiles(str(tmp_path), key), 'Is a directory'),
            (listening_context, TlsFiles(cert, device_files.key), 'is not the key of'),
            (listening_context, TlsFiles(cert, locked), 'passphrase'),
            (listening_context, TlsFiles(nothing, key), 'holds no certificate'),
            (listening_context, TlsFiles(cert, cert), 'holds no key'),
            (listening_context, TlsFiles(broken, key), 'broken.pem'),
            (listening_context, TlsFiles(cert, key, broken), 'broken.pem'),
            (listening_context, TlsFiles(cert), 'belong together'),
            (listening_context, TlsFiles(ca=ca), 'TLS needs --tls_cert and --tls_key'),
            (connecting_context, TlsFiles(cert, key), 'TLS needs --tls_ca'),
            (connecting_context, TlsFiles(ca=nothing), 'holds no certificate'),
            (connecting_context, TlsFiles(cert, device_files.key, ca), 'is not the key of')):
        with pytest.raises(UserError, match=wanted) as error:
            context_of(files)
        assert '\n' not in str(error.value)
    assert listening_context(TlsFiles()) is None and connecting_context(TlsFiles()) is None


@pytest.mark.parametrize('command', [('client_worker.py', '--tls_ca', 'missing.pem'),
                                     ('client_worker.py', '--source', '-', '--tls_cert', 'a', '--tls_key', 'b'),
                                     ('server_main.py', '--tls_cert', 'missing.pem', '--tls_key', 'b'),
                                     ('serve_split.py', '--tls_cert', 'missing.pem', '--tls_key', 'b')])
def test_a_command_ends_in_one_line_with_status_2(command):
    run = subprocess.run([sys.executable, os.path.join(config.ROOT, command[0]), *command[1:]], capture_output=True,
                         text=True, cwd=config.ROOT, timeout=60)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1 and '--tls_' in run.stderr


def test_an_open_address_needs_no_token_where_clients_need_certificates(made):
    _, server_files, _, _ = made
    network_utils.check_address(Address('0.0.0.0', 0), b'', False, listening_context(server_files))
    with pytest.raises(UserError, match='would let anyone connect'):
        network_utils.check_address(Address('0.0.0.0', 0), b'', False,
                                    listening_context(server_files._replace(ca=None)))


def test_what_is_changed_on_its_way_ends_the_connection(made):
    ours, server_files, _, _ = made
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet,
                        tls=listening_context(server_files._replace(ca=None)))
    relay = Relay(listener.address)
    client = connect(Address('127.0.0.1', relay.port), b'', 'worker', 'server',
                     connecting_context(TlsFiles(ca=ours.cert)))
    server = listener.get(timeout_s=5)
    relay.corrupt_at = server.bytes_received + 1000
    client.send(Kind.FRAME, {'i': 0}, {'x': torch.zeros(50_000)})
    with pytest.raises(NetworkError, match='TLS'):
        server.receive(5.0)
    assert server.is_closed
    for end in (client, relay, listener):
        end.close()


# --- limits -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('first', [b'', b'\x16\x03\x01\x02', b'SPL', b'GET / HTTP/1.1\r\n\r\n', bytes(300)])
def test_a_slow_or_strange_greeting_ends_at_the_deadline_at_the_latest(made, first, monkeypatch):
    monkeypatch.setattr(connection_module, 'HANDSHAKE_S', 0.5)
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet,
                        tls=listening_context(made[1]._replace(ca=None)))
    stranger = socket.create_connection(listener.address, timeout=5)
    start = time.monotonic()
    with contextlib.suppress(OSError):
        stranger.sendall(first)
        for _ in range(100):  # a byte now and then
            stranger.sendall(b'\x01')
            time.sleep(0.05)
    with contextlib.suppress(OSError):
        while stranger.recv(4096):
            pass
    assert time.monotonic() - start < 4 and listener.get(timeout_s=0) is None
    listener.close()


def test_strangers_that_begin_with_tls_and_wait_keep_nobody_out(made):
    ours, server_files, _, _ = made
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet,
                        tls=listening_context(server_files._replace(ca=None)))
    strangers = [socket.create_connection(listener.address) for _ in range(network_utils.MAX_HANDSHAKES)]
    for stranger in strangers[::2]:
        stranger.sendall(b'\x16\x03\x01\x02\x00\x01')
    client = connect(listener.address, b'', 'worker', 'server', connecting_context(TlsFiles(ca=ours.cert)))
    assert listener.get(timeout_s=5) is not None and len(listener._strangers) <= network_utils.MAX_HANDSHAKES
    client.close()
    for stranger in strangers:
        stranger.close()
    listener.close()


def test_before_tls_is_done_nothing_of_the_protocol_is_answered(made):
    """A plain greeting gets one ERROR, and none of what it asks for."""
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), quiet,
                        tls=listening_context(made[1]._replace(ca=None)))
    with socket.create_connection(listener.address, timeout=5) as stranger:
        stranger.sendall(raw_frame(Kind.HELLO, {'role': 'worker', 'nonce': '0' * 64, 'secret': False}))
        answer = b''.join(iter(lambda: stranger.recv(4096), b''))
    assert answer[:4] == b'SPLT' and answer[5] == Kind.ERROR and answer.count(b'SPLT') == 1
    listener.close()
