"""What the protocol costs: a 2.4 MB tensor over loopback, against a bare socket with the same buffers.

    python -m benchmarks.protocol_overhead
    python -m benchmarks.protocol_overhead --macs       # only what checksums and MACs of Python's library cost

Alternates rounds of all; each sends the tensor there and waits for a byte (a small message) back, between two
processes, as in use: with a checksum (no token) and with a MAC (a token). Bar: 85 % of the bare socket's rate without a
token.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--macs', action='store_true')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import hashlib
import hmac
import multiprocessing
import socket
import statistics
import time
import zlib
from typing import Callable, Dict, List, Tuple

import torch

from network_utils import Address, Listener, connect
from wire.connection import Connection
from wire.frames import Kind, bytes_of
from wire.integrity import Checksum

TENSOR = torch.rand(1, 192, 56, 56)  # 2.4 MB: RepVGG-B3's stage1 at 224x224
ROUNDS, REPEATS = 30, 20
TOKEN = b'both ends know it'


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


def protocol_receiver(address: Address, token: bytes) -> None:
    """Receive messages, answer each."""
    cli.keep_freed_memory()  # as every command does
    connection = connect(address, token, 'worker', 'server')
    try:
        while True:
            connection.receive().tensor('z', torch.float32)
            connection.send(Kind.RESULT, {'i': 0})
    except Exception:
        return


def connected(context: multiprocessing.context.BaseContext, token: bytes) -> Connection:
    """A connection to a process that answers."""
    listener = Listener(Address('127.0.0.1', 0), token, 'server', ('worker',), print)
    context.Process(target=protocol_receiver, args=(listener.address, token), daemon=True).start()
    return listener.get()


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


def main() -> None:
    """Run and report."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    if args.macs:
        return macs()
    context = multiprocessing.get_context('fork')
    plain = socket.create_server(('127.0.0.1', 0))
    context.Process(target=bare_receiver, args=(plain.getsockname(),), daemon=True).start()
    sock = plain.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = memoryview(TENSOR.numpy().reshape(-1)).cast('B')

    def bare() -> None:
        sock.sendall(data)
        sock.recv(1)

    def over(connection: Connection) -> Callable[[], None]:
        def protocol() -> None:
            connection.send(Kind.FRAME, {'i': 0}, {'z': TENSOR})
            connection.receive()
        return protocol

    ways = {'bare socket': bare, 'with a checksum': over(connected(context, b'')),
            'with a MAC': over(connected(context, TOKEN))}
    rates: Dict[str, List[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, send in ways.items():
            start = time.perf_counter()
            for _ in range(REPEATS):
                send()
            rates[name].append(REPEATS * len(data) / (time.perf_counter() - start) / 1e9)
    bare_rates = rates.pop('bare socket')
    print(f'bare socket      {statistics.median(bare_rates):.2f} GB/s')
    for name, found in rates.items():
        shares = [there / here for here, there in zip(bare_rates, found)]
        print(f'{name:16} {statistics.median(found):.2f} GB/s; share of the bare rate, round by round: median '
              f'{statistics.median(shares):.2f}, from {min(shares):.2f} to {max(shares):.2f} (n={ROUNDS})')


if __name__ == '__main__':
    main()
