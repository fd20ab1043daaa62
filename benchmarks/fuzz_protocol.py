"""Gives both ends of the protocol a million random and mutated frames, none of which may break anything.

    python -m benchmarks.fuzz_protocol --frames 1000000

On a 2-core virtual machine that other work kept busy (Python 3.11, PyTorch 2): 1,000,000 frames in 329 s, the slowest
89 ms of the processor, memory +5.8 MB when warm; 10,000 real connections, the slowest 42 ms, memory +0.5 MB.

Three quarters go into `Connection.receive`, as a stranger (before the handshake), as a trusted peer, and as a peer of a
session with keys, where no frame at all may come through, since none has a right MAC: random bytes,
valid frames with flipped, cut, repeated or inserted bytes, and frames whose headers are rewritten with correct
checksums. One quarter are well-formed requests with wrong contents, given to the client's handlers (all but `roofline`
and `time_visits`, whose valid requests take seconds by design). 10,000 of the damaged ones also go to a listening
server over real connections. Allowed are an error of the protocol, an error reply, or a message within the limits;
anything else, more than a second of the processor for one frame, or 64 MB more memory at the end, fails.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--frames', type=int, default=1000000)
PARSER.add_argument('--connections', type=int, default=10000)
PARSER.add_argument('--seed', type=int, default=0)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import gc
import json
import os
import random
import socket
import struct
import tempfile
import time
import zlib
from typing import Any, Dict, Iterable, Sequence

import torch

from network_utils import Address, Listener, connect
from tier.tasks import Tasks
from wire.blobs import BlobStore
from wire.connection import Connection
from wire.frames import FIXED, VERSION, Kind, Message, NetworkError, PeerError
from wire.handshake import SessionKeys


class Bytes:
    """A socket that delivers some bytes and then ends; what is sent to it is dropped."""
    family = socket.AF_UNIX

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def recv_into(self, view: memoryview, size: int = 0, flags: int = 0) -> int:
        """Hand out the next bytes."""
        count = min(len(view), len(self.data) - self.at)
        view[:count] = self.data[self.at:self.at + count]
        self.at += count
        return count

    def recv(self, count: int) -> bytes:
        """What comes after the last words."""
        return b''

    def sendmsg(self, views: Iterable[memoryview], *more: object) -> int:
        """Count, and drop."""
        return sum(len(view) for view in views)

    def settimeout(self, seconds: float) -> None:
        """Nothing waits."""

    shutdown = settimeout

    def setsockopt(self, *arguments: object) -> None:
        """There is nothing to set."""

    def close(self) -> None:
        """There is nothing to close."""


VALUES = (None, True, -1, 0, 1, 3, 11, 2 ** 62, -2 ** 63, 1.5, 1e308, '', 'a', '../../etc/passwd', '\x1b]0;x\x07',
          'x' * 4096, [], [1], [1, 3, 4, 4], [None] * 50, ['a'] * 50, '0' * 64, 'float32', 'RepVGG-Micro', 'head',
          'as_computed', 'onnxruntime', 'onnxruntime-int8')
NAMES = ('id', 'op', 'hashes', 'hash', 'size', 'offset', 'model', 'classes', 'first', 'last', 'dtype', 'mean', 'std',
         'folded', 'place', 'engine', 'gamma', 'step', 'keep', 'input_grad', 'wire', 'wire_back', 'shape', 'images',
         'n_images', 'input_size', 'reply_bytes', 'role', 'total', 'formats', 'round', 'rounds')
OPS = ('facts', 'have', 'put', 'part', 'echo', 'time_wire', 'forward', 'backward', 'stream', 'nothing')
VALID: Dict[str, Dict[str, Any]] = {
    'part': {'model': 'RepVGG-Micro', 'classes': 10, 'first': 13, 'last': 13, 'dtype': 'float32', 'mean': [0, 0, 0],
             'std': [1, 1, 1], 'folded': False, 'hashes': [], 'place': 0},
    'forward': {'step': 1, 'keep': True, 'input_grad': True, 'wire': 'uint8', 'wire_back': 'float32',
                'shape': [1, 3, 4, 4]},
    'backward': {'step': 1}, 'put': {'hash': '0' * 64, 'size': 8, 'offset': 0}, 'have': {'hashes': ['0' * 64]},
    'echo': {'reply_bytes': 10}, 'stream': {'role': 'tail', 'first': 0, 'last': 0, 'total': 0, 'wire': 'float32',
                                            'shape': [1, 3, 4, 4]}, 'time_wire': {'formats': ['uint8+zlib']}}
TENSORS = ('x', 'z', 'scale', 'offset', 'data', 'rows', 'alpha', 'grad', 'peaks')


def random_tensor(rng: random.Random) -> torch.Tensor:
    """Any dtype, small."""
    shape = [rng.choice((0, 1, 2, 3, 4)) for _ in range(rng.randint(0, 6))]
    dtype = rng.choice((torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8))
    return torch.full(shape, rng.choice((0, 1, 200)), dtype=dtype)


def request(rng: random.Random) -> Message:
    """A well-formed request with some wrong contents."""
    op = rng.choice(OPS)
    fields = {**VALID.get(op, {}), 'op': op, 'id': 1}
    for _ in range(rng.randint(0, 3)):
        fields[rng.choice(NAMES)] = rng.choice(VALUES)
    return Message(Kind.REQUEST, fields, {rng.choice(TENSORS): random_tensor(rng) for _ in range(rng.randint(0, 3))})


def frame_bytes(message: Message) -> bytes:
    """The frame of a message."""
    near, far = socket.socketpair()
    Connection(near, 'near').send(message.kind, message.fields, message.tensors)
    near.shutdown(socket.SHUT_WR)
    data = b''.join(iter(lambda: far.recv(1 << 16), b''))
    near.close(), far.close()
    return data


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Random bytes, damage, or a rewritten header with correct checksums."""
    kind = rng.randint(0, 5)
    if kind == 0:
        return bytes(rng.getrandbits(8) for _ in range(rng.randint(0, 80)))
    work = bytearray(data)
    at = rng.randrange(len(work))
    if kind == 1:
        work[at] ^= 1 << rng.randint(0, 7)
    elif kind == 2:
        del work[at:]
    elif kind == 3:
        work[at:at] = work[:rng.randint(0, 40)]
    else:
        typed = rng.choice((json.dumps({'fields': {rng.choice(NAMES): rng.choice(VALUES)}, 'tensors': [
            [rng.choice(TENSORS + ('../x', '')), rng.choice(('float32', 'uint8', 'object', 5)),
             [rng.choice((0, 1, 2 ** 31 - 1, 2 ** 40, -1, 1.5)) for _ in range(rng.randint(0, 8))]]]}).encode(),
            b'[' * rng.randint(0, 5000), b'{"fields":{"a":' + b'9' * rng.randint(0, 5000) + b'},"tensors":[]}',
            bytes(work[24:])[:65535]))
        payload_bytes = rng.choice((0, 1, 4, 2 ** 20, 2 ** 28, 2 ** 63))
        fixed = FIXED.pack(b'SPLT', VERSION, rng.randint(0, 14), len(typed), payload_bytes, zlib.crc32(typed))
        work = bytearray(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed)
    return bytes(work)


def memory_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    with open('/proc/self/statm', encoding='ascii') as stream:
        return int(stream.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def main() -> None:
    """The command line."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    rng, outcomes, slowest = random.Random(args.seed), {}, 0.0  # type: random.Random, Dict[str, int], float
    corpus = [frame_bytes(request(rng)) for _ in range(300)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = Tasks(torch.device('cpu'), 1, BlobStore(folder, 1 << 20))
        before = start_mb = memory_mb()
        began = time.perf_counter()
        for number in range(args.frames):
            start = time.process_time()  # other programs may keep this one waiting
            if number % 4 == 3:
                message = request(rng)
                # a stream that is accepted needs a peer: here one that has gone
                tasks.connection = Connection(Bytes(b''), 'gone')
                try:
                    tasks.run(message)
                    name = 'request answered'
                except PeerError as error:
                    name = f'request {error.code}'
                except NetworkError:
                    name = 'request ended by the connection'
            else:
                connection = Connection(Bytes(mutated(rng, rng.choice(corpus))), 'fuzz')
                connection.max_payload_bytes = (0, 256 << 20)[number % 2]
                has_keys = number % 4 == 1 and rng.random() < 0.5
                if has_keys:
                    connection.use_keys(SessionKeys(b'a', b'b'))
                try:
                    connection.receive()
                    assert not has_keys, f'frame {number} has no right MAC'
                    name = 'message within the limits'
                except NetworkError as error:
                    assert connection.is_closed
                    name = type(error).__name__
            outcomes[name] = outcomes.get(name, 0) + 1
            taken = time.process_time() - start
            slowest = max(slowest, taken)
            assert taken < 1, f'frame {number} took {taken:.1f} s'
            if number == min(10000, args.frames // 10):
                before = memory_mb()  # caches are filled
    grown = memory_mb() - before
    print(f'{args.frames} frames in {time.perf_counter() - began:.0f} s, slowest {1000 * slowest:.0f} ms; memory '
          f'{start_mb:.0f} MB, {before:.0f} MB when warm, then {grown:+.1f} MB')
    for name, count in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(f'  {count:8} {name}')
    assert grown < 64
    against_a_listener(rng, corpus, args.connections)


def against_a_listener(rng: random.Random, corpus: Sequence[bytes], connections: int) -> None:
    """Damaged frames over real connections; the server must close each and still take a proper client."""
    listener = Listener(Address('127.0.0.1', 0), b'', 'server', ('worker',), lambda text: None)
    before, slowest = memory_mb(), 0.0
    for _ in range(connections):
        start = time.perf_counter()
        with socket.create_connection(listener.address, timeout=15) as sock:
            try:
                sock.sendall(mutated(rng, rng.choice(corpus)))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except OSError:
                pass
        slowest = max(slowest, time.perf_counter() - start)
    client = connect(listener.address, b'', 'worker', 'server')
    assert listener.get(timeout_s=5) is not None
    client.close()
    print(f'{connections} connections to a listener: all closed, slowest {1000 * slowest:.0f} ms, memory '
          f'{memory_mb() - before:+.1f} MB; a proper client then connects')


if __name__ == '__main__':
    main()
