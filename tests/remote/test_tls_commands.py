"""TLS between processes, with certificates as docs/real_mode.md says how to make them."""
from __future__ import annotations

import os
import re
import subprocess

import pytest
from certificates import Authority, needs_openssl
from client_process import SETTINGS, Client, free_port, settings_of, stream_case
from service_cases import CameraProcess, entry_of, expected, images_in, random_alpha, running, wait_until, weights_in

import config
from cli import TlsFiles
from network_utils import Address, connect
from remote.client import wait_for_client
from remote.streaming import run_stream
from wire.certificates import connecting_context, listening_context
from wire.frames import NetworkError

pytestmark = needs_openssl


def test_the_commands_of_the_document_make_certificates_that_work(tmp_path):
    with open(os.path.join(config.ROOT, 'docs', 'real_mode.md'), encoding='utf-8') as stream:
        commands = re.findall(r'^server\$ (openssl .*)$', stream.read(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run(['bash', '-c', command], cwd=tmp_path, check=True, capture_output=True)
    device = [command.replace('server', 'device').partition(' -extfile')[0] for command in commands[1:]]
    for command in device:
        subprocess.run(['bash', '-c', command], cwd=tmp_path, check=True, capture_output=True)
    ca, cert, key = (str(tmp_path / name) for name in ('ca.pem', 'server.pem', 'server.key'))
    for names in (('-verify_ip', '192.168.1.10'), ('-verify_hostname', 'server.local')):
        subprocess.run(['openssl', 'verify', '-CAfile', ca, *names, cert], check=True, capture_output=True)
    assert listening_context(TlsFiles(cert, key, ca)) is not None
    assert connecting_context(TlsFiles(str(tmp_path / 'device.pem'), str(tmp_path / 'device.key'), ca)) is not None


def test_a_device_streams_through_tls_as_it_does_without(tmp_path, monkeypatch):
    monkeypatch.setenv('SPLIT_AUTH_TOKEN', 'secret')
    authority = Authority(tmp_path)
    files, device = authority.signed('server'), authority.signed('device', 'DNS:device')
    port = free_port()
    process = Client(port, tmp_path, '--tls_ca', files.ca, '--tls_cert', device.cert, '--tls_key', device.key)
    try:
        with wait_for_client(SETTINGS, '127.0.0.1', port, say=lambda text: None,
                             tls=listening_context(files)) as client:
            model, configuration, images, classes = stream_case(3, 4)
            _, predictions = run_stream(client, model, configuration, images, 40, settings_of('client'))
            assert predictions == [classes[i % len(classes)] for i in range(40)]
            assert client.interruptions == 0
    finally:
        process.kill()


def test_a_service_with_tls_serves_who_speaks_it_and_tells_the_others(tmp_path):
    files = Authority(tmp_path).signed('server')
    network = weights_in(tmp_path, 6)
    entry = entry_of('one', random_alpha(network, 1), 4)
    images = images_in(tmp_path / 'images', 4, 20)
    with running(tmp_path, [entry], tls=listening_context(files._replace(ca=None))) as served:
        plain = CameraProcess(served.port, tmp_path / 'plain', tmp_path / 'images', 'one')
        camera = CameraProcess(served.port, tmp_path / 'camera', tmp_path / 'images', 'one', '--tls_ca', files.ca)
        status, lines = camera.finish()
        assert status == 0 and [line['class'] for line in lines] == expected(network, entry, images)
        assert not any(line['local'] for line in lines)
        wait_until(lambda: 'start it with --tls_ca' in plain.said())
        plain.kill()
        with pytest.raises(NetworkError):
            connect(Address('127.0.0.1', served.port), b'', 'camera', 'service')
