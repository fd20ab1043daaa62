"""Lets one end lie to the other, in every field of every message, ten thousand times.

    python -m benchmarks.hostile_peer --cases 10000

Both ends run the project's own code in this process and go through scenes: what device it is, weights and images,
forward passes, training, measurements, streams with the head on either end. In each case one end has the token and
lies: it replaces one value (first every one in turn, then random pairs) of one of its messages by another one: of a
wrong type, out of range, missing, too large, of another shape or kind. In half of the cases the client lies, and an
honest client waits for its turn; in the other half the server lies, and an honest server comes after it.

Then strangers without the token fill all places of a listener, with heartbeats, bytes and silence.

Bars, per case: no traceback and no line that could steer a terminal; the honest peer's scene is done within 12 s; a lie
that is refused is one line that names the liar. Peak memory grows by less than 64 MB behind the first 300. HUNG_S (how
long a peer may live without answering) is 3 s here instead of 300; measurements that take seconds are made up.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--cases', type=int, default=10000)
PARSER.add_argument('--liar', choices=('client', 'server'), help='only this end lies')
PARSER.add_argument('--seed', type=int, default=0)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import collections
import contextlib
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Counter, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import torch

import config
import network_utils
from costs.cost_model import Configuration
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from network_utils import Address, Listener
from remote import client as client_module
from remote import replies
from remote.client import ClientPart, ImageSetOnClient, RemoteClient, folded_specs
from remote.split_network import SplitNetwork
from remote.streaming import run_stream
from tier.part import cut_shape
from tier.tasks import Tasks
from tier.worker import Worker
from wire import connection as connection_module
from wire import stream as stream_module
from wire.blobs import BlobStore, hash_of
from wire.connection import Connection
from wire.frames import Kind, NetworkError, encode_headers
from wire.stream import LEAST_FRAMES

TOKEN = b'both ends know it'
HONEST_S = 12.0  # for the honest peer to be done
MEMORY_MB, WARM_CASES = 64, 300  # behind so many cases: every thread's heap has been made by then
HUNG_S = 3.0  # here
SETTINGS = config.load(('WEIGHT_PATH_SERVER=', 'DEVICE_PROFILE='), {})
SPLIT = 3
VALUES = (None, True, -1, 0, 2 ** 62, -2 ** 63, 1e308, -0.5, '', 'x' * 4000, '\x1b[2J\nerror: gone', [], [-1],
          [2 ** 62], [1e308] * 50, ['a'], [None])
Message = Tuple[Kind, Dict[str, Any], Dict[str, torch.Tensor]]
Scene = Callable[[RemoteClient], None]


class Lie(NamedTuple):
    """What is replaced in the `number`th message that an end sends in a scene: a field, a tensor ('tensor x'), the
    'kind' of the message; `None` as a value leaves it out."""
    scene: str
    number: int
    what: str
    value: Any


def told(lies: Tuple[Lie, ...], number: int, message: Message) -> Message:
    """A message as the liar sends it."""
    kind, fields, tensors = message[0], dict(message[1]), dict(message[2])
    for lie in lies:
        if lie.number != number:
            continue
        if lie.what == 'kind':
            kind = lie.value
        elif lie.what.startswith('tensor '):
            name = lie.what[len('tensor '):]
            changed = lie.value(tensors.pop(name)) if name in tensors else None
            tensors.update({} if changed is None else {name: changed})
        else:
            fields[lie.what] = lie.value
            if lie.value is None:
                del fields[lie.what]
    return kind, fields, tensors


def tensor_lies(tensor: torch.Tensor) -> Iterator[Callable[[torch.Tensor], Any]]:
    """Ways to send another tensor than this one."""
    yield lambda value: None
    for dtype in (torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8):
        if dtype != tensor.dtype:
            yield lambda value, dtype=dtype: value.nan_to_num().to(dtype)
    yield lambda value: value[:0] if value.dim() else value[None]
    yield lambda value: value[None]
    yield lambda value: torch.cat([value, value]) if value.dim() else value[None, None]
    yield lambda value: value.reshape(-1)[:-1]
    numbers = {torch.uint8: (0, 255), torch.int64: (-1, 0, 2 ** 31, 2 ** 62)}.get(
        tensor.dtype, (-1.0, 0.0, 6e4, torch.finfo(tensor.dtype).max if tensor.is_floating_point() else 0,
                       float('nan'), float('inf')))
    for number in numbers:
        yield lambda value, number=number: torch.full_like(value, number)


class Ears:
    """Counts what an end sends, and lets it lie; `heard`: the messages as they would have been."""

    def __init__(self, connection: Connection, lies: Tuple[Lie, ...] = ()) -> None:
        self.heard: List[Message] = []
        self._lies, self._send = lies, connection.send
        connection.send = self.send  # type: ignore[method-assign]
        connection.post = self.send  # type: ignore[method-assign]

    def send(self, kind: Kind, fields: Any = None, tensors: Any = None, turn_s: float = -1) -> None:
        """In place of `Connection.send` and `post`."""
        message = (kind, dict(fields or {}), dict(tensors or {}))
        if kind != Kind.HEARTBEAT:
            self.heard.append(message)
            message = told(self._lies, len(self.heard) - 1, message)
        try:
            self._send(*message)
        except ValueError:  # what no frame can carry is not sent at all
            pass


# --- the scenes -------------------------------------------------------------------------------------------

def scenes(model: HyperRepVGG, images: torch.Tensor, rng: random.Random) -> Dict[str, Scene]:
    """What the server asks, by name."""
    alpha = model.alpha_array()
    gamma = tuple(fused_gamma(tuple(row)) for row in surviving_branches(alpha))
    n = len(model.blocks)

    def weights(client: RemoteClient) -> None:
        data = np.frombuffer(rng.getrandbits(8 * 3000).to_bytes(3000, 'little'), np.uint8).copy()
        client.retry_until_answered(lambda connection: client.provide(connection, {hash_of(data): lambda: data}))

    def forward(client: RemoteClient) -> None:
        part = ClientPart(client, model, folded_specs(alpha, gamma, (0, SPLIT + 1), SETTINGS), images.shape[-1],
                          ImageSetOnClient(images))
        part.forward(rows=torch.arange(2), wire_back='uint8+zlib')
        tail = ClientPart(client, model, folded_specs(alpha, gamma, (n, n + 2), SETTINGS), images.shape[-1])
        tail.forward(x=torch.zeros(2, *cut_shape(SETTINGS.MODEL_NAME, 10, images.shape[-1], n)), wire='float16')

    def training(client: RemoteClient) -> None:
        network = SplitNetwork(model, client, SPLIT, SETTINGS)
        network(torch.zeros(2, 3, images.shape[-1], images.shape[-1])).sum().backward()

    def measuring(client: RemoteClient) -> None:
        fields = {'model': SETTINGS.MODEL_NAME, 'classes': 10, 'input_size': 32}
        client.request('time_visits', lambda reply: replies.times(reply, (1, n + 2)), fields,
                       {'gamma': torch.zeros(1, n, dtype=torch.int64)}, steps=1)
        client.request('time_wire', lambda reply: replies.codec_times(reply, 2), {'formats': ['float32', 'uint8']},
                       {'z': torch.zeros(1, 2, 4, 4)})
        client.request('roofline', replies.roofline)
        client.request('echo', lambda reply: replies.echo(reply, 100), {'reply_bytes': 100},
                       {'data': torch.zeros(10, dtype=torch.uint8)}, reply_bytes=100)

    def streaming(head_tier: str) -> Scene:
        settings = config.load((f'HEAD_TIER={head_tier}', 'WEIGHT_PATH_SERVER=', 'DEVICE_PROFILE='), {})
        configuration = Configuration(alpha, gamma, SPLIT, 'float32+zlib' if head_tier == 'client' else 'uint8')
        return lambda client: run_stream(client, model, configuration, images, LEAST_FRAMES, settings)

    return {'facts': lambda client: client.facts(), 'weights': weights, 'forward': forward, 'training': training,
            'measuring': measuring, 'stream_head_on_client': streaming('client'),
            'stream_head_on_server': streaming('server')}


def quick_tasks(folder: str) -> Tasks:
    """The client's handlers; what takes seconds is made up."""
    tasks = Tasks(torch.device('cpu'), 1, BlobStore(folder, 64 << 20))

    def time_visits(message: Any) -> Any:
        tasks.machine(message)
        gammas, = tasks.checked_rows(message, 'gamma')
        tasks.check(1, 1)
        return {}, {'ms': torch.ones(len(gammas), 3, len(gammas[0]) + 2, dtype=torch.float64)}

    tasks.handlers = {**tasks.handlers, 'time_visits': time_visits,
                      'roofline': lambda message: ({'peak_gflops': 10.0, 'bandwidth_gbs': 5.0}, {})}
    return tasks


# --- one case ---------------------------------------------------------------------------------------------

class Stage:
    """A server's listener, clients with one cache, and what went wrong."""

    def __init__(self, folder: str) -> None:
        self.said: List[str] = []
        self.errors: List[BaseException] = []
        self.listener = Listener(Address('127.0.0.1', 0), TOKEN, 'server', ('worker',), self.said.append)
        self.tasks = [quick_tasks(folder) for _ in range(2)]

    def client(self, number: int, lies: Tuple[Lie, ...] = ()) -> Tuple[Connection, Ears]:
        """Connect a client that serves in a thread."""
        connection = network_utils.connect(self.listener.address, TOKEN, 'worker', 'server')
        ears = Ears(connection, lies)

        def serve() -> None:
            try:
                Worker(self.tasks[number]).serve(connection)
            except NetworkError as error:
                self.said.append(str(error))
            except BaseException as error:
                if not lies:  # a liar may trip over his own words
                    self.errors.append(error)
            finally:
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return connection, ears

    def clear(self) -> None:
        """Nothing of an earlier case is left."""
        self.said.clear()
        for waiting in iter(lambda: self.listener.get(timeout_s=0.001), None):
            waiting.close()

    def server(self) -> RemoteClient:
        """The server's view of whoever comes next."""
        return RemoteClient(self.listener, self.said.append, return_s=HONEST_S)


def client_lies(stage: Stage, scene: Scene, lies: Tuple[Lie, ...]) -> str:
    """The first client lies, the second one waits; what came of it."""
    liar, _ = stage.client(0, lies)
    honest, _ = stage.client(1)
    server = stage.server()
    patient = '%s:%s' % honest._sock.getsockname()
    start = time.monotonic()
    try:
        scene(server)
        taken = 'accepted' if server.interruptions == 0 else 'the next client works'
    except config.UserError as error:
        stage.said.append(str(error))
        taken = 'ended in one line'
        if not isinstance(error, client_module.OtherDevice):  # then the honest one has come in already
            server.connection.close()
            server = stage.server()
        server.facts()
    assert time.monotonic() - start < HONEST_S, 'the honest client waited too long'
    if taken == 'the next client works':
        lost = [line for line in stage.said if line.startswith('client lost')]  # or what was left of the case before
        assert lost and all('127.0.0.1:' in line and patient not in line for line in lost), stage.said
    for end in (liar, honest, server.connection):
        end.close()
    return taken


def server_lies(stage: Stage, scene: Scene, lies: Tuple[Lie, ...]) -> str:
    """The server lies to the client, leaves, and an honest one comes."""
    connection, _ = stage.client(0)
    server = stage.server()
    Ears(server.connected(), lies)
    timer = threading.Timer(HUNG_S, server.connection.close)
    timer.start()
    taken = 'refused'
    with contextlib.suppress(Exception):  # his own words may trip him
        server._return_s = 0.01  # nobody comes again
        scene(server)
        taken = 'accepted'
    timer.cancel()
    server.connection.close()
    start = time.monotonic()
    again, _ = stage.client(0)  # one client: it does one thing after the other
    honest = stage.server()
    honest.facts()
    assert time.monotonic() - start < HONEST_S, 'the honest server waited too long'
    for end in (connection, again, honest.connection):
        end.close()
    return taken


def possible_lies(stage: Stage, name: str, scene: Scene, whose: str) -> List[Lie]:
    """Every value of every message that an end sends in a scene, replaced by each other one in turn."""
    _, client_ears = stage.client(0)
    server = stage.server()
    server_ears = Ears(server.connected())
    try:
        scene(server)
    except config.UserError as error:
        raise AssertionError(f'{name} does not work without lies: {stage.said}') from error
    heard = (client_ears if whose == 'client' else server_ears).heard
    server.connection.close()
    repeated: Counter[Kind] = collections.Counter()
    found = []
    for number, (kind, fields, tensors) in enumerate(heard):
        repeated[kind] += 1
        if kind in (Kind.FRAME, Kind.RESULT) and repeated[kind] not in (1, 10):
            continue  # frames are all alike
        found += [Lie(name, number, field, value) for field in fields for value in VALUES]
        found += [Lie(name, number, f'tensor {tensor}', lie) for tensor in tensors
                  for lie in tensor_lies(tensors[tensor])]
        found += [Lie(name, number, 'kind', other) for other in Kind if other != kind]
    return found


# --- strangers --------------------------------------------------------------------------------------------

def strangers_keep_nobody_out(stage: Stage) -> float:
    """Seconds that a client with the token needs while others hold all places."""
    heartbeat = encode_headers(Kind.HEARTBEAT, {}, [])
    stopping, others = threading.Event(), []

    def stay(number: int) -> None:
        while not stopping.is_set():
            with contextlib.suppress(OSError), socket.create_connection(stage.listener.address, timeout=5) as sock:
                while not stopping.is_set():
                    sock.sendall((heartbeat, b'S', b'')[number % 3])
                    stopping.wait((0.001, 1.0, 1.0)[number % 3])

    for number in range(3 * network_utils.MAX_HANDSHAKES):
        others.append(threading.Thread(target=stay, args=(number,), daemon=True))
        others[-1].start()
    time.sleep(1.0)
    start = time.monotonic()
    stage.client(0)
    server = stage.server()
    server.facts()
    taken = time.monotonic() - start
    stopping.set()
    for other in others:
        other.join()
    server.connection.close()
    return taken


def main() -> None:
    """The command line."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    connection_module.HEARTBEAT_S = 0.4
    cli.say = lambda message: None  # both ends' progress; what they say of each other is kept
    model = create_hyper_repvgg(None, SETTINGS.MODEL_NAME, 10)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    counts, slowest = collections.Counter(), (0.0, '')  # type: Counter[str], Tuple[float, str]
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(folder)
        threading.excepthook = lambda failed: stage.errors.append(failed.exc_value)
        played = scenes(model, images, rng)
        sides = {whose: play for whose, play in (('client', client_lies), ('server', server_lies))
                 if args.liar in (None, whose)}
        lies = {whose: [lie for name, scene in played.items() for lie in possible_lies(stage, name, scene, whose)]
                for whose in sides}
        print({whose: len(found) for whose, found in lies.items()}, 'single lies', flush=True)
        client_module.HUNG_S = stream_module.HUNG_S = HUNG_S
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for whose, play in sides.items():
            rng.shuffle(lies[whose])
            for case in range(args.cases // len(sides)):
                first = lies[whose][case] if case < len(lies[whose]) else rng.choice(lies[whose])
                same_scene = [lie for lie in lies[whose] if lie.scene == first.scene]
                told_lies = (first,) if case < len(lies[whose]) else (first, rng.choice(same_scene))
                stage.clear()
                start = time.monotonic()
                try:
                    outcome = play(stage, played[told_lies[0].scene], told_lies)
                    assert not stage.errors, repr(stage.errors[0])
                    assert all(line.isprintable() for line in stage.said), stage.said
                except BaseException as error:
                    raise AssertionError(f'case {case}, the {whose} lies: {told_lies}') from error
                slowest = max(slowest, (time.monotonic() - start, f'{whose}: {told_lies}'))
                counts[f'the {whose} lies: {outcome}'] += 1
                if sum(counts.values()) == WARM_CASES:
                    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if case % 500 == 499:
                    print(f'{whose} {case + 1}: {dict(counts)}, slowest {slowest[0]:.1f} s', flush=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
        for name, count in sorted(counts.items()):
            print(f'{count:6} {name}')
        print(f'slowest case {slowest[0]:.1f} s ({slowest[1][:200]}); peak memory {grown:+.1f} MB')
        waited = strangers_keep_nobody_out(stage)
        print(f'{3 * network_utils.MAX_HANDSHAKES} strangers: a client with the token is in and has answered after '
              f'{waited:.2f} s')
    if grown >= MEMORY_MB or waited >= HONEST_S:
        sys.exit(1)


if __name__ == '__main__':
    main()
