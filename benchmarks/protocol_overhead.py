"""What the protocol costs: a 2.4 MB tensor over loopback, against a bare socket with the same buffers.

    python -m benchmarks.protocol_overhead

Alternates rounds of both; each sends the tensor there and waits for a byte (a small message) back, between
two processes, as in use. Bar: 80 % of the bare socket's rate.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import multiprocessing
import socket
import statistics
import time
from typing import List, Tuple

import torch

from network_utils import Address, Listener, connect
from wire.connection import Connection
from wire.frames import Kind

TENSOR = torch.rand(1, 192, 56, 56)  # 2.4 MB: RepVGG-B3's stage1 at 224x224
ROUNDS, REPEATS = 30, 20


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


def protocol_receiver(address: Address) -> None:
    """Receive messages, answer each."""
    connection = connect(address, b'', 'worker', 'server')
    try:
        while True:
            connection.receive().tensor('z', torch.float32)
            connection.send(Kind.RESULT, {'i': 0})
    except Exception:
        return


def main() -> None:
    """Run and report."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context('fork')
    plain = socket.create_server(('127.0.0.1', 0))
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), print)
    processes = [context.Process(target=bare_receiver, args=(plain.getsockname(),), daemon=True),
                 context.Process(target=protocol_receiver, args=(listener.address,), daemon=True)]
    for process in processes:
        process.start()
    sock = plain.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection: Connection = listener.get()
    data = memoryview(TENSOR.numpy().reshape(-1)).cast('B')

    def bare() -> None:
        sock.sendall(data)
        sock.recv(1)

    def protocol() -> None:
        connection.send(Kind.FRAME, {'i': 0}, {'z': TENSOR})
        connection.receive()

    rates: List[List[float]] = [[], []]
    for _ in range(ROUNDS):
        for index, send in enumerate((bare, protocol)):
            start = time.perf_counter()
            for _ in range(REPEATS):
                send()
            rates[index].append(REPEATS * len(data) / (time.perf_counter() - start) / 1e9)
    shares = [b / a for a, b in zip(*rates)]
    print(f'bare socket {statistics.median(rates[0]):.2f} GB/s, protocol {statistics.median(rates[1]):.2f} GB/s; share '
          f'of the bare rate, round by round: median {statistics.median(shares):.2f}, from {min(shares):.2f} to '
          f'{max(shares):.2f} (n={ROUNDS})')


if __name__ == '__main__':
    main()
