"""What the protocol costs: a 2.4 MB tensor over loopback, against a bare socket with the same buffers.

    python -m benchmarks.protocol_overhead
    python -m benchmarks.protocol_overhead --macs       # only what checksums and MACs of Python's library cost
    python -m benchmarks.protocol_overhead --parts      # only what each part of a frame costs

Alternates rounds of all; each sends the tensor there and waits for a byte (a small message) back, between two
processes, as in use: with a checksum (no token), with a MAC (a token), and in TLS (with the `openssl` command, for a
certificate). Beside the rates stands what both ends take of the processor. Bar: 85 % of the bare socket's rate with a
checksum.

Medians of 30 rounds (2-core Intel Xeon virtual machine, idle, one thread each, Python 3.11, PyTorch 2.14): 0.74 of the
bare socket's rate with a checksum (the bar is missed), 0.19 with a MAC, 0.28 in TLS; processor, ms a MB: bare socket
0.41, with a checksum 0.60, with a MAC 1.84, in TLS 1.39.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--macs', action='store_true')
PARSER.add_argument('--parts', action='store_true')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import hashlib
import hmac
import multiprocessing
import os
import queue
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from typing import Callable, Dict, List, Optional, Tuple

import torch

from network_utils import Address, Listener, connect
from wire.certificates import connecting_context, listening_context
from wire.connection import Connection
from wire.frames import FIXED_BYTES, MAX_PAYLOAD_BYTES, Kind, bytes_of, encode_headers, parse_fixed, parse_typed
from wire.integrity import Checksum

TENSOR = torch.rand(1, 192, 56, 56)  # 2.4 MB: RepVGG-B3's stage1 at 224x224
ROUNDS, REPEATS, BAR = 30, 20, 0.85
VALUES, TIMES = (1024, 160_000, 602_112), 200  # of --parts: feature maps' sizes; measurements
TOKEN, NO_TLS = b'both ends know it', cli.TlsFiles()


def bare_receiver(address: Tuple[str, int]) -> None:
    """Receive into one buffer, answer one byte."""
    sock = socket.create_connection(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    n_bytes = 4 * TENSOR.numel()
    view = memoryview(bytearray(n_bytes))
    while True:
        done = 0
        while done < n_bytes:
            count = sock.recv_into(view[done:])
            if not count:
                return
            done += count
        sock.send(b'.')


def protocol_receiver(address: Address, token: bytes, tls: Optional[ssl.SSLContext]) -> None:
    """Receive messages, answer each."""
    cli.keep_freed_memory()  # as every command does
    connection = connect(address, token, 'worker', 'server', tls)
    try:
        while True:
            connection.receive().tensor('z', torch.float32)
            connection.send(Kind.RESULT, {'i': 0})
    except Exception:
        return


def tls_files(folder: str) -> cli.TlsFiles:
    """A certificate of this machine, which it signs itself."""
    cert, key = (os.path.join(folder, name) for name in ('server.pem', 'server.key'))
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=here', '-addext',
                    'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', cert], check=True, capture_output=True)
    return cli.TlsFiles(cert, key, cert)


def connected(context: multiprocessing.context.BaseContext, token: bytes, files: cli.TlsFiles,
              ) -> Tuple[Connection, multiprocessing.process.BaseProcess]:
    """(a connection to a process that answers, the process)."""
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), print,
                        tls=listening_context(files._replace(ca=None)))
    tls = connecting_context(files._replace(cert=None, key=None))
    receiver = context.Process(target=protocol_receiver, args=(listener.address, token, tls), daemon=True)
    receiver.start()
    return listener.get(), receiver


def process_time_of(pid: int) -> float:
    """What a process has used of the processor, s (Linux: its clock's number follows from its own)."""
    return time.clock_gettime((~pid << 3) | 2)


def macs() -> None:
    """What a checksum or a MAC of 1 MB takes of the processor, ms: the fastest of 20."""
    data, key = bytes_of(TENSOR), bytes(32)

    def summed() -> None:
        Checksum().update(data)

    candidates: Dict[str, Callable[[], object]] = {
        'sum of words': summed, 'CRC-32': lambda: zlib.crc32(data),
        **{f'HMAC-{name.upper()}': lambda name=name: hmac.new(key, data, name).digest()
           for name in ('sha1', 'sha256', 'sha512')},
        'BLAKE2b, keyed': lambda: hashlib.blake2b(data, key=key, digest_size=16).digest(),
        'BLAKE2s, keyed': lambda: hashlib.blake2s(data, key=key, digest_size=16).digest(),
        'SHA3-256 of key and data': lambda: hashlib.sha3_256(data).digest()}
    for name, work in candidates.items():
        taken = []
        for _ in range(20):
            start = time.thread_time()
            work()
            taken.append(time.thread_time() - start)
        print(f'{name:25} {1e9 * min(taken) / len(data):6.3f} ms a MB')


def median_us(work: Callable[[], object]) -> float:
    """What some work takes of the processor, in this thread, microseconds: the median of TIMES."""
    taken = []
    for _ in range(TIMES):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return 1e6 * statistics.median(taken)


def parts_of(n_values: int) -> Dict[str, float]:
    """What each part of a frame of so many float32 takes of the processor, microseconds."""
    data, fields = bytes_of(torch.rand(n_values)), {'i': 5, 'c': 0, 'head_s': 0.01, 'latency_s': 0.1}
    specs = [('z', 'float32', (1, 1, 1, n_values))]
    header = encode_headers(Kind.FRAME, fields, specs)
    typed, crc = header[FIXED_BYTES:], parse_fixed(header, MAX_PAYLOAD_BYTES)[3]
    near, far = socket_pair()
    received: List[float] = []

    def receive() -> None:
        buffer = memoryview(bytearray(len(data)))
        received.append(median_us(lambda: (far.recv_into(buffer, 0, socket.MSG_WAITALL), far.send(b'.'))))

    reader = threading.Thread(target=receive)
    reader.start()
    sent = median_us(lambda: (near.sendall(data), near.recv(1)))
    reader.join()
    return {'system calls, who sends': sent, 'system calls, who receives': received[0],
            'headers, made': median_us(lambda: encode_headers(Kind.FRAME, fields, specs)),
            'headers, read': median_us(lambda: parse_typed(typed, crc, len(data))),
            'checksum, each end': median_us(lambda: Checksum().update(data)),
            'MAC, each end': median_us(lambda: hmac.new(TOKEN, data, 'sha256').digest()),
            'memory of the tensor': median_us(lambda: torch.empty(n_values)),
            'handing on to another thread': hand_over_us()}


def parts() -> None:
    """What each part of a frame takes, for several sizes."""
    columns = [parts_of(n_values) for n_values in VALUES]
    print(f'{"microseconds of a core; kB:":30}' + ''.join(f'{4 * n_values / 1000:10.1f}' for n_values in VALUES))
    for name in columns[0]:
        print(f'{name:30}' + ''.join(f'{column[name]:10.1f}' for column in columns))


def hand_over_us() -> float:
    """What a queue to a thread that waits takes of the processor, both threads together, microseconds."""
    inbox: 'queue.Queue[int]' = queue.Queue(1)
    outbox: 'queue.Queue[int]' = queue.Queue(1)

    def echo() -> None:
        for _ in range(TIMES * 5):
            outbox.put(inbox.get())

    thread = threading.Thread(target=echo)
    thread.start()
    start = time.process_time()
    for number in range(TIMES * 5):
        inbox.put(number)
        outbox.get()
    thread.join()
    return 1e6 * (time.process_time() - start) / (TIMES * 10)


def socket_pair() -> Tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def main() -> None:
    """Run and report."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    if args.macs:
        return macs()
    if args.parts:
        return parts()
    context = multiprocessing.get_context('fork')
    plain = socket.create_server(('127.0.0.1', 0))
    receivers = [context.Process(target=bare_receiver, args=(plain.getsockname(),), daemon=True)]
    receivers[0].start()
    sock = plain.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = memoryview(TENSOR.numpy().reshape(-1)).cast('B')

    def bare() -> None:
        sock.sendall(data)
        sock.recv(1)

    def over(token: bytes, files: cli.TlsFiles) -> Callable[[], None]:
        connection, receiver = connected(context, token, files)
        receivers.append(receiver)

        def protocol() -> None:
            connection.send(Kind.FRAME, {'i': 0}, {'z': TENSOR})
            connection.receive()
        return protocol

    ways = {'bare socket': bare, 'with a checksum': over(b'', NO_TLS), 'with a MAC': over(TOKEN, NO_TLS)}
    if shutil.which('openssl'):
        with tempfile.TemporaryDirectory() as folder:
            ways['in TLS'] = over(b'', tls_files(folder))
    rates: Dict[str, List[float]] = {name: [] for name in ways}
    cpu_ms: Dict[str, List[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for (name, send), receiver in zip(ways.items(), receivers):
            start, before = time.perf_counter(), time.process_time() + process_time_of(receiver.pid)
            for _ in range(REPEATS):
                send()
            rates[name].append(REPEATS * len(data) / (time.perf_counter() - start) / 1e9)
            used_s = time.process_time() + process_time_of(receiver.pid) - before
            cpu_ms[name].append(1e9 * used_s / (REPEATS * len(data)))
    medians = {}
    for name, found in rates.items():
        shares = [there / here for here, there in zip(rates['bare socket'], found)]
        print(f'{name:16} {statistics.median(found):.2f} GB/s; share of the bare rate, round by round: median '
              f'{statistics.median(shares):.2f}, from {min(shares):.2f} to {max(shares):.2f} (n={ROUNDS}); processor, '
              f'both ends: {statistics.median(cpu_ms[name]):.2f} ms a MB')
        medians[name] = statistics.median(shares)
    sys.exit(1 if medians['with a checksum'] < BAR else 0)


if __name__ == '__main__':
    main()
