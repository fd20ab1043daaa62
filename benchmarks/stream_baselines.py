"""Streams frames through a split network as others usually write it; stream_throughput.py compares our stream with it.

    python -m benchmarks.stream_baselines server push 127.0.0.1 7500 RepVGG-A0 5 224 100 &
    python -m benchmarks.stream_baselines client push 127.0.0.1 7500 RepVGG-A0 5 224 100

The client runs the head, the server runs the tail and prints throughput and latency:
reply   send a pickled feature map, wait for the pickled answer, start the next frame
push    pickled feature maps sent as fast as the socket takes them, a receiving thread and an endless queue
rpc     torch.distributed RPC, `rpc_async` with up to two calls in flight
Latency: from the start of a frame's head to the end of its tail, on one machine's clock.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('side', choices=('client', 'server'))
PARSER.add_argument('kind', choices=('reply', 'push', 'rpc'))
PARSER.add_argument('host')
PARSER.add_argument('port', type=cli.port)
PARSER.add_argument('model', help='its name; RepVGG-A0, with random weights')
PARSER.add_argument('split', type=int, help='λ: how many blocks the client runs')
PARSER.add_argument('size', type=int, help='of the square images, pixels')
PARSER.add_argument('frames', type=int, help='how many to stream')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import json
import pickle
import queue
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch.distributed import rpc

from benchmarks import stream_throughput

LENGTH = struct.Struct('<Q')
WARM_UP = 14  # frames that do not count, as many as in our own streams
Network = Callable[[torch.Tensor], torch.Tensor]


def send(sock: socket.socket, item: object) -> None:
    """Length and pickle."""
    data = pickle.dumps(item)
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Any:
    """The inverse."""
    def exactly(count: int) -> bytes:
        parts = []
        while count:
            part = sock.recv(min(count, 1 << 20))
            if not part:
                raise ConnectionError('closed')
            parts.append(part)
            count -= len(part)
        return b''.join(parts)

    return pickle.loads(exactly(LENGTH.unpack(exactly(LENGTH.size))[0]))


def figures(starts: List[float], ends: List[float]) -> Dict[str, float]:
    """Throughput and median latency of the frames after the warm-up, and the throughput while the head ran (0: too few
    frames ended then)."""
    both = [end for end in ends[WARM_UP - 1:] if end <= starts[-1]]
    latencies = sorted(end - start for start, end in zip(starts[WARM_UP:], ends[WARM_UP:]))
    return {'throughput_fps': (len(ends) - WARM_UP) / (ends[-1] - ends[WARM_UP - 1]),
            'latency_p50_ms': 1000 * latencies[len(latencies) // 2],
            'both_fps': (len(both) - 1) / (both[-1] - both[0]) if len(both) > WARM_UP else 0.0}


def connected(address: Tuple[str, int]) -> socket.socket:
    """A connection to a server that may still be starting."""
    for _ in range(600):
        try:
            return socket.create_connection(address, timeout=60)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise ConnectionError(f'nobody listens at {address}')


# --- the client's side ---------------------------------------------------------------------------------

def client(kind: str, head: Network, image: torch.Tensor, address: Tuple[str, int], n_frames: int) -> None:
    """Run the head on `n_frames` frames."""
    if kind == 'rpc':
        return rpc_client(head, image, address, n_frames)
    sock = connected(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with torch.inference_mode():
        for _ in range(n_frames):
            start = time.perf_counter()
            send(sock, (start, head(image)))
            if kind == 'reply':
                receive(sock)
    receive(sock)  # the server has seen everything


def rpc_client(head: Network, image: torch.Tensor, address: Tuple[str, int], n_frames: int) -> None:
    """The head calls the tail by RPC."""
    rpc.init_rpc('client', rank=1, world_size=2, rpc_backend_options=rpc_options(address))
    waiting: List[Any] = []
    with torch.inference_mode():
        for _ in range(n_frames):
            start = time.perf_counter()
            z = head(image)
            if len(waiting) == 2:
                waiting.pop(0).wait()
            waiting.append(rpc.rpc_async('server', rpc_tail, args=(start, z)))
        for call in waiting:
            call.wait()
    rpc.shutdown()


# --- the server's side ---------------------------------------------------------------------------------

def server(kind: str, tail: Network, address: Tuple[str, int], n_frames: int) -> Dict[str, float]:
    """Run the tail on `n_frames` frames; throughput and latency."""
    if kind == 'rpc':
        return rpc_server(tail, address, n_frames)
    with socket.create_server(address) as listener:
        listener.settimeout(60)
        sock = listener.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inbox: 'queue.Queue[Any]' = queue.Queue()

    def read() -> None:
        for _ in range(n_frames):
            inbox.put(receive(sock))

    if kind == 'push':
        threading.Thread(target=read, daemon=True).start()
    starts, ends = [], []
    with torch.inference_mode():
        for _ in range(n_frames):
            start, z = inbox.get() if kind == 'push' else receive(sock)
            answer = tail(z).argmax(dim=1).tolist()
            if kind == 'reply':
                send(sock, answer)
            starts.append(start)
            ends.append(time.perf_counter())
    send(sock, 'done')
    sock.close()
    return figures(starts, ends)


_RPC: Dict[str, Any] = {}


def rpc_tail(start: float, z: torch.Tensor) -> List[int]:
    """Runs on the server."""
    with _RPC['lock'], torch.inference_mode():
        answer = _RPC['tail'](z).argmax(dim=1).tolist()
        _RPC['seen'].append((start, time.perf_counter()))
    return answer


def rpc_options(address: Tuple[str, int]) -> rpc.TensorPipeRpcBackendOptions:
    """Both ends meet at this address. TCP only: on one machine it would pass the shaped link by in shared memory."""
    return rpc.TensorPipeRpcBackendOptions(init_method=f'tcp://{address[0]}:{address[1]}', num_worker_threads=4,
                                           _transports=['uv'], _channels=['basic'])


def rpc_server(tail: Network, address: Tuple[str, int], n_frames: int) -> Dict[str, float]:
    """Serve until the client leaves."""
    _RPC.update(tail=tail, seen=[], lock=threading.Lock())
    rpc.init_rpc('server', rank=0, world_size=2, rpc_backend_options=rpc_options(address))
    rpc.shutdown()
    seen = sorted(_RPC['seen'])
    return figures([start for start, _ in seen], [end for _, end in seen])


def main() -> None:
    """One end of one stream."""
    args = PARSER.parse_args()
    cli.keep_freed_memory()  # as our own ends do
    torch.set_num_threads(1)
    network, configuration = stream_throughput.network_of(args.model, args.split)
    part = stream_throughput.part_for(network, configuration, 'head' if args.side == 'client' else 'tail')
    address = (args.host, args.port)
    if args.side == 'client':
        client(args.kind, part, torch.randn(1, 3, args.size, args.size), address, args.frames)
    else:
        print(json.dumps(server(args.kind, part, address, args.frames)))


if __name__ == '__main__':
    main()
