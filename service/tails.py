"""Worker processes that run tails.

A worker gets batches through a pipe as slot numbers of the shared memory, and answers with classes and probabilities.
It holds every network that it was asked for, folded. A worker that dies is replaced, and its batch is asked again: an
answer exists only once it came through the pipe.
"""
from __future__ import annotations

import contextlib
import copy
import multiprocessing
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch

import cli
import config
from config import Settings
from engines.processes import GRACE_S, how_it_ended, join_or_kill
from hyper_repvgg import HyperRepVGG, create_network
from network.channels import CutChannels
from pipeline import kinds
from remote.client import folded_specs
from service.arena import Arena, Layout
from service.entries import ServedNetwork
from service.figures import BusyTime
from service.holding import folded_mb
from tier.devices import device_of
from tier.part import NetworkPart, cut_shape, head_units, part_of
from wire import codec, formats


class TailKey(NamedTuple):
    """Frames of one key run through the same tail and may share a batch."""
    network: str
    split: int
    wire: str


class TailInput(NamedTuple):
    """What arrives for a tail."""
    first: int  # unit of the tail
    encoding: str
    shape: Tuple[int, ...]  # of one frame, with its batch of 1
    channels: Optional[CutChannels]  # that were sent; None: all


class Prediction(NamedTuple):
    """A frame's answer."""
    label: int
    probability: float


class Request(NamedTuple):
    """A batch, as it goes to a worker."""
    key: TailKey
    frames: List[Tuple[int, Layout]]  # slots and what lies in them


class Answer(NamedTuple):
    """A batch, as it comes back: a prediction a frame, or why there is none."""
    frames: List[Union[Prediction, str]]
    ms: float  # of the worker


# --- in the worker -----------------------------------------------------------------------------------------

def work(connection: Connection, arena: Arena, settings: Settings, networks: Mapping[str, ServedNetwork], threads: int,
         ) -> None:
    """A worker process: batches come in, answers go out, until None comes or the front is gone."""
    cli.keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the front, which ends its workers
    torch.set_num_threads(threads)
    tails = Tails(settings, networks)
    with contextlib.suppress(EOFError, OSError):  # the front is gone
        connection.send(None)  # ready
        for request in iter(connection.recv, None):
            connection.send(tails.answer(request, arena))


class Tails:
    """Networks, folded when they are first asked for."""

    def __init__(self, settings: Settings, networks: Mapping[str, ServedNetwork]) -> None:
        self._settings, self._networks = settings, networks
        self._device = device_of(settings.SERVER_DEVICE)
        self._base = base_model(settings)
        self._folded: Dict[str, NetworkPart] = {}  # those that were used last at its end

    def answer(self, request: Request, arena: Arena) -> Answer:
        """Decode the frames of a batch, run them together, take the best classes. Without frames the network is only
        made ready."""
        network = self._network(request.key.network)
        if not request.frames:
            return Answer([], 0.0)
        sent = self._input(request.key)
        start = time.perf_counter()
        answers: List[Union[Prediction, str]] = []
        inputs: List[torch.Tensor] = []
        for slot, layout in request.frames:
            try:
                inputs.append(codec.decode(arena.read(slot, layout), sent.encoding, sent.shape))
                answers.append('')
            except ValueError as error:
                answers.append(str(error))
        if inputs:
            with torch.inference_mode():
                x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
                x = x if sent.channels is None else sent.channels.restore(x)
                found = iter(predictions(network(x, first=sent.first)))
            answers = [answer or next(found) for answer in answers]
        return Answer(answers, 1000 * (time.perf_counter() - start))

    def _network(self, name: str) -> NetworkPart:
        """A whole network under the server's γ: its last units are the tail at every split. Those that were used
        longest ago make room."""
        found = self._folded.pop(name, None)
        if found is None:
            network, model = self._networks[name], model_of(self._base, self._networks[name])
            sizes_mb = [folded_mb(self._networks[other], 'server', self._settings) for other in (*self._folded, name)]
            while self._folded and sum(sizes_mb) > self._settings.HELD_NETWORKS_MB:
                del self._folded[next(iter(self._folded))], sizes_mb[0]
            units = 0, len(model.blocks) + 2
            spec = folded_specs(network.alpha, network.gamma['server'], units, self._settings,
                                self._settings.SERVER_ENGINE)
            found = part_of(model, spec, self._device)
        self._folded[name] = found
        return found

    def _input(self, key: TailKey) -> TailInput:
        """What a tail of this key gets."""
        settings, n_blocks = self._settings, len(self._base.blocks)
        first = head_units(key.split, n_blocks)[1]
        shape = cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, first)
        channels = self._networks[key.network].channels_at(key.split, key.wire)
        return TailInput(first, formats.encoding_at(key.split, n_blocks, key.wire),
                         (1, *(shape if channels is None else channels.shape(shape))), channels)


def workers_of(settings: Settings) -> int:
    """How many workers pay: one a core, or one for a GPU, which runs one batch after the other anyway."""
    return 1 if device_of(settings.SERVER_DEVICE).type == 'cuda' else config.cores()


def base_model(settings: Settings) -> HyperRepVGG:
    """The network with its base weights; random ones are those of SEED."""
    torch.manual_seed(settings.SEED)
    return create_network(kinds.weights_file(settings), settings.MODEL_NAME, settings.NUM_CLASSES)


def model_of(base: HyperRepVGG, network: ServedNetwork) -> HyperRepVGG:
    """The base network, or a copy with the BatchNorm statistics that belong to this one."""
    if network.batchnorm is None:
        return base
    model = copy.deepcopy(base)
    model.set_batchnorm(network.batchnorm)
    return model


def predictions(logits: torch.Tensor) -> List[Prediction]:
    """The best class of each row of logits [B, classes], and its probability."""
    probability, label = logits.float().softmax(dim=1).max(dim=1)
    return [Prediction(*pair) for pair in zip(label.tolist(), probability.tolist())]


# --- in the front ------------------------------------------------------------------------------------------

class WorkerDied(Exception):
    """A worker process ended while it had a batch; it has been replaced."""


class TailWorker:
    """A worker process as the front sees it; it is replaced when it dies."""

    def __init__(self, number: int, arena: Arena, settings: Settings, networks: Mapping[str, ServedNetwork],
                 threads: int) -> None:
        """`threads`: PyTorch's, in this worker. The process is started; `wait_until_ready` waits for it."""
        self.number, self.restarts, self.busy = number, 0, BusyTime()
        self._arguments = arena, settings, networks, threads
        self._ended, self._asking = threading.Event(), threading.Lock()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context('spawn')  # nothing inherited: PyTorch's threads do not survive a fork
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self._arguments), daemon=True,
                                       name=f'tail worker {self.number}')
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when it has loaded the network. Raises `WorkerDied`."""
        try:
            self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerDied(f'worker {self.number} {self._how_it_ended()}') from None

    def ask(self, request: Request) -> Answer:
        """Run a batch; one thread after the other. Raises `WorkerDied` after starting another process."""
        with self._asking:
            try:
                self._pipe.send(request)
                return self._pipe.recv()
            except (EOFError, OSError):
                how = self._how_it_ended()
                if not self._ended.is_set():
                    self.restarts += 1
                    self._pipe.close()
                    self._start()
                    self.wait_until_ready()
                raise WorkerDied(f'worker {self.number} {how}') from None

    def _how_it_ended(self) -> str:
        self.process.join(GRACE_S)
        return how_it_ended(self.process)

    def end(self) -> None:
        """Ask it to end, from any thread."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def join(self) -> None:
        """Wait until it has ended; it is killed when that takes too long."""
        join_or_kill(self.process)
