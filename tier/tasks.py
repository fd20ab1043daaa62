"""What the client does when asked (docs/protocol.md, Requests).

Every handler takes a checked message and returns the reply's fields and tensors. Nothing is kept that the server could
not send again: weights and images on disk under their hash, the current part, and one step's graph between `forward`
and `backward`.
"""
from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn

from config import ENGINES, TORCH, UserError
from hyper_repvgg import create_network
from network.channels import CutChannels
from network.outline import n_blocks_of
from tier import block_timing, devices
from tier.part import DTYPES, NetworkPart, PartSpec, check_engine, cut_shape, empty_unit, load_unit
from tier.roofline import measure_roofline
from wire import codec
from wire import formats as wire_formats
from wire.blobs import BlobStore
from wire.connection import Connection
from wire.frames import MAX_PAYLOAD_BYTES, Message, NetworkError, PeerError, ProtocolError
from wire.stream import head_compute, stream_head, stream_tail, tail_compute

Reply = Tuple[Dict[str, Any], Dict[str, torch.Tensor]]
MAX_INPUT_SIZE, MAX_CLASSES, MAX_ROWS, MAX_RANK = 4096, 1 << 17, 10000, 8
REFUSED, CANCELLED, UNKNOWN, FAILED = 'refused', 'cancelled', 'unknown', 'failed'
FIGURE = 'figure_'  # prefix of a stream's figures in the reply
WIRE_REPEATS = 9  # timed encodings and decodings; the median is sent


class TaskError(PeerError):
    """A request that this client cannot answer."""


class Tasks:
    """The client's handlers and what they share."""

    def __init__(self, device: torch.device, threads: int, store: BlobStore) -> None:
        self.device, self.threads, self.store = device, threads, store
        self.cancelled = threading.Event()
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self.connection: Optional[Connection] = None
        self.parts: List[NetworkPart] = []  # the last one is the current one; a service has a device hold several
        self._units: Dict[Tuple[int, str], nn.Module] = {}  # of these parts, by index and hash: they share them
        self._input_shape: Tuple[int, ...] = ()  # of one image or feature map that enters the part
        self._step: Optional[Tuple[int, torch.Tensor, torch.Tensor]] = None  # number, input, output with its graph
        self._images: Tuple[str, Optional[torch.Tensor]] = ('', None)
        self._timing_model: Tuple[Tuple[str, int], Any] = (('', 0), None)
        self.handlers: Mapping[str, Callable[[Message], Reply]] = {
            'facts': self.facts, 'have': self.have, 'put': self.put, 'part': self.part, 'echo': self.echo,
            'time_visits': self.time_visits, 'time_parts': self.time_parts, 'time_wire': self.time_wire,
            'roofline': self.roofline, 'forward': self.forward, 'backward': self.backward, 'stream': self.stream}

    def run(self, message: Message) -> Reply:
        """Answer one request; raises `TaskError`, and `NetworkError` from within a stream."""
        op = message.text('op')
        if op not in self.handlers:
            raise TaskError(REFUSED, f'unknown operation {op}')
        self.check()  # the operator may have cancelled between two requests of one job
        try:
            return self.handlers[op](message)
        except (UserError, ValueError, IndexError, ProtocolError) as error:
            raise TaskError(REFUSED, f'{op}: {error}') from None
        except KeyError:
            raise TaskError(UNKNOWN, f'{op}: weights or images are not here') from None
        except (NetworkError, PeerError):
            raise
        except Exception as error:  # out of memory, a full disk, ...: the server is told, this client lives on
            reason = str(error).strip().splitlines()
            raise TaskError(FAILED, f'{op}: {reason[0][:200] if reason else type(error).__name__}') from None

    def check(self, done: int = 0, total: int = 0) -> None:
        """Between pieces of work: report progress, stop when cancelled or when nobody waits for the answer."""
        if self.cancelled.is_set():
            self.cancelled.clear()  # the server ends its job when it is told
            raise TaskError(CANCELLED, 'cancelled by the operator')
        if self.connection is not None and self.connection.is_closed:
            raise TaskError(CANCELLED, 'the connection is gone')
        if total:
            self.progress(done, total)

    # --- facts, weights and images ---

    def facts(self, message: Message) -> Reply:
        """What this device is."""
        return devices.facts_of(self.device, self.threads), {}

    def have(self, message: Message) -> Reply:
        """How much of each blob is here; what is named is kept until a part is set up."""
        hashes = message.texts('hashes')
        self.store.wanted.update(hashes)
        return {'bytes': [self.store.present_bytes(digest) for digest in hashes]}, {}

    def put(self, message: Message) -> Reply:
        """Take the next piece of a blob."""
        data = message.tensor('data', torch.uint8, rank=1).numpy()
        size = message.integer('size', 1, self.store.max_bytes)
        return {'bytes': self.store.append(message.text('hash'), size, message.integer('offset', 0, size), data)}, {}

    def images(self, message: Message) -> torch.Tensor:
        """The image set that a request names: uint8 [n, 3, S, S]."""
        digest = message.text('images')
        if self._images[0] != digest or self._images[1] is None:
            count, size = message.integer('n_images', 1, 1 << 24), message.integer('input_size', 1, MAX_INPUT_SIZE)
            data = self.store.read(digest)
            self._images = digest, torch.from_numpy(data).reshape(count, 3, size, size)
        return self._images[1]

    # --- the part ---

    def part(self, message: Message) -> Reply:
        """Build the part that this client runs from now on."""
        name = message.text('model')
        classes, dtype = message.integer('classes', 1, MAX_CLASSES), message.text('dtype', list(DTYPES))
        n_units = n_blocks_of(name, classes) + 2
        first = message.integer('first', 0, n_units)
        last = message.integer('last', first, n_units)
        size = message.integer('input_size', 1, MAX_INPUT_SIZE)
        input_shape = cut_shape(name, classes, size, first)
        spec = PartSpec(name, classes, first, last, dtype, tuple(message.numbers('mean', 3)),
                        tuple(message.numbers('std', 3)), engine=engine_of(message))
        if message.flag('folded'):
            gamma = tuple(message.integers('gamma', 0, 13, len(spec.blocks)))
            alpha = message.tensor('alpha', torch.float64, rank=2)
            if tuple(alpha.shape) != (len(spec.blocks), 3):
                raise message.wrong('alpha')
            spec = replace(spec, gamma=gamma, alpha=tuple(map(tuple, alpha.tolist())))
            if 'peaks' in message.tensors:
                spec = replace(spec, peaks=peaks_in(message, spec.n_blocks + 1))
        if 'sent' in message.tensors:
            channels = CutChannels(tuple(message.tensor('sent', torch.int64, 1).tolist()),
                                   tuple(message.tensor('fill', torch.float32, 1).tolist()))
            channels.shape(cut_shape(name, classes, size, first or last))
            spec, input_shape = replace(spec, channels=channels), channels.shape(input_shape) if first else input_shape
        hashes = message.texts('hashes')
        if len(hashes) != last - first:
            raise message.wrong('hashes')
        place = message.integer('place', 0, len(self.parts))
        self._forget_parts(place)  # free the memory of the old ones first
        units, lacking = [], []
        for index, digest in zip(range(first, last), hashes):
            self.check()
            if (index, digest) in self._units:
                units.append(self._units[index, digest])
                continue
            try:
                data = self.store.read(digest)
            except KeyError:  # go on: all that are damaged are dropped now, and are sent together
                lacking.append(digest)
                continue
            unit = empty_unit(name, spec.num_classes, index)
            load_unit(unit, data)
            units.append(unit)
        if lacking:
            raise KeyError(lacking[0])
        self.parts.append(NetworkPart(spec, units, self.device))
        self._input_shape = input_shape
        self._units.update(zip(zip(range(first, last), hashes), units))
        self.store.wanted.clear()
        return {}, {}

    def _forget_parts(self, kept: int = 0) -> None:
        """All but the first so many."""
        del self.parts[kept:]
        self._step = None
        if not self.parts:
            self._units.clear()

    def current_part(self) -> NetworkPart:
        """The part built last; `TaskError` when there is none."""
        if not self.parts:
            raise TaskError(UNKNOWN, 'no part has been set up')
        return self.parts[-1]

    def input_of(self, message: Message) -> torch.Tensor:
        """A forward request's input: rows of an image set, or a tensor that came along, of the part's input shape."""
        if 'images' in message.fields:
            return self.images(message)[message.tensor('rows', torch.int64, rank=1)]
        return codec.decode(message.tensors, message.text('wire'), self.shape_of(message))

    def shape_of(self, message: Message) -> Tuple[int, ...]:
        """The input's shape [B, ...] that a request claims."""
        shape = tuple(message.integers('shape', 0, 2 ** 31 - 1))
        if shape[1:] != self._input_shape:
            raise message.wrong('shape')
        return shape

    def forward(self, message: Message) -> Reply:
        """Run the part; with `keep`, remember the step's graph for `backward`."""
        part, keep = self.current_part(), message.flag('keep')
        self._step = None
        step, wire_back = message.integer('step', 0, 2 ** 62), message.text('wire_back', _WIRES)
        x = self.input_of(message)
        if part.spec.gamma is None:
            alpha = message.tensor('alpha', torch.float64, rank=2)
            if tuple(alpha.shape) != (len(part.blocks), 3):
                raise message.wrong('alpha')
            part.set_alpha(alpha)
        with torch.enable_grad() if keep else torch.no_grad():
            if keep and message.flag('input_grad') and x.is_floating_point():
                x.requires_grad_(True)
            y = part(x)
        if keep:
            self._step = step, x, y
        return {'shape': list(y.shape)}, codec.encode(y.detach(), wire_back)

    def backward(self, message: Message) -> Reply:
        """Gradients of the step that `forward` kept."""
        part = self.current_part()
        step = message.integer('step', 0, 2 ** 62)
        if self._step is None or self._step[0] != step:
            raise TaskError(UNKNOWN, f'step {step} is not here')
        _, x, y = self._step
        self._step = None
        grad = message.tensor('grad', y.dtype, y.dim())
        if grad.shape != y.shape:
            raise message.wrong('grad')
        for block in part.blocks:
            block.alpha.grad = None
        if y.requires_grad:
            y.backward(grad.to(y.device))
        tensors = {'alpha_grad': part.alpha_grad()}
        if x.grad is not None:
            tensors['x_grad'] = x.grad
        return {}, tensors

    def stream(self, message: Message) -> Reply:
        """Run the client's side of a stream until its last frame."""
        part, wire = self.current_part(), message.text('wire')
        first, last = message.integer('first', 0, 2 ** 31), message.integer('last', 0, 2 ** 31)
        total = message.integer('total', last, 2 ** 31)

        def seen(i: int, prediction: List[int], latency_s: float) -> None:
            self.check()
            self.progress(i + 1, total)

        if message.text('role', ('head', 'tail')) == 'tail':
            stream_tail(self.connection, tail_compute(part, wire, self.shape_of(message)), first, last, seen)
            return {}, {}
        record = stream_head(self.connection, head_compute(part, self.images(message), wire), first, last, seen)
        return {f'{FIGURE}{name}': value for name, value in record.figures().items()}, {}

    # --- measurements ---

    def time_visits(self, message: Message) -> Reply:
        """Times of stem, blocks and classifier in visits of the network, each under a γ of its own."""
        machine, (gammas,) = self.machine(message), self.checked_rows(message, 'gamma')
        ms = machine.visits(gammas, lambda done: self.check(done, len(gammas)))
        return {}, {'ms': torch.from_numpy(ms)}

    def time_parts(self, message: Message) -> Reply:
        """Times of parts of the network that run without a stop."""
        machine, (gammas, spans) = self.machine(message), self.checked_rows(message, 'gamma', 'span')
        n = len(gammas[0])
        if any(len(span) != 2 or not 0 <= span[0] <= span[1] <= n for span in spans):
            raise message.wrong('span')
        self.check()
        parts = [block_timing.PartTiming(*span, tuple(gamma), math.nan) for gamma, span in zip(gammas, spans)]
        return {}, {'ms': torch.from_numpy(machine.parts(parts))}

    def machine(self, message: Message) -> block_timing.ThisMachine:
        """What times the model that a request names."""
        key = message.text('model'), message.integer('classes', 1, MAX_CLASSES)
        size = message.integer('input_size', 1, MAX_INPUT_SIZE)
        if self._timing_model[0] != key:
            self._forget_parts()  # two models may be more than a small device can hold
            torch.manual_seed(0)  # random weights: times do not depend on their values
            self._timing_model = key, create_network(None, *key).to(self.device)
        image = torch.rand(1, 3, size, size, device=self.device)
        engine = engine_of(message)
        check_engine(engine, self.device)
        return block_timing.ThisMachine(self._timing_model[1], image, self.threads, engine)

    def checked_rows(self, message: Message, *names: str) -> List[List[List[int]]]:
        """Tensors of a timing request as lists, one row a visit or part; γ [rows, N] that every block can run."""
        tensors = [message.tensor(name, torch.int64, rank=2) for name in names]
        counts = block_timing.branch_counts(self._timing_model[1])
        gammas = tensors[0].tolist()
        if tensors[0].shape[1] != len(counts) or not 0 < len(gammas) <= MAX_ROWS or any(
                g not in block_timing.runnable_ids(count) for row in gammas for g, count in zip(row, counts)):
            raise message.wrong(names[0])
        if any(len(tensor) != len(gammas) for tensor in tensors):
            raise message.wrong(names[-1])
        return [tensor.tolist() for tensor in tensors]

    def time_wire(self, message: Message) -> Reply:
        """Encode and decode a feature map in each format: median ms of both."""
        self._timing_model = ('', 0), None
        formats = wire_formats.formats_of(message.texts('formats'))
        z = message.tensor('z', torch.float32).to(self.device)
        if not 2 <= z.dim() <= MAX_RANK:
            raise message.wrong('z')
        return {}, {'ms': torch.from_numpy(wire_ms(z, formats))}

    def roofline(self, message: Message) -> Reply:
        """Peak and bandwidth of this device."""
        self._timing_model = ('', 0), None
        peak_gflops, bandwidth_gbs = measure_roofline(self.device, self.threads)
        return {'peak_gflops': peak_gflops, 'bandwidth_gbs': bandwidth_gbs}, {}

    def echo(self, message: Message) -> Reply:
        """Answer with as many bytes as asked for."""
        return {}, {'data': torch.zeros(message.integer('reply_bytes', 0, MAX_PAYLOAD_BYTES // 4), dtype=torch.uint8)}


def engine_of(message: Message) -> str:
    """What is to run a part or a network."""
    return message.text('engine', ENGINES) if 'engine' in message.fields else TORCH


def peaks_in(message: Message, count: int) -> Tuple[float, ...]:
    """The largest values of so many feature maps."""
    peaks = message.tensor('peaks', torch.float64, rank=1)
    if len(peaks) != count or not (torch.isfinite(peaks) & (peaks >= 0)).all():
        raise message.wrong('peaks')
    return tuple(peaks.tolist())


_WIRES = (wire_formats.AS_COMPUTED, *wire_formats.WIRE_FORMATS)


def wire_ms(z: torch.Tensor, formats: Tuple[str, ...], clock: Callable[[], float] = time.perf_counter) -> np.ndarray:
    """Median times (encode, decode) of a feature map in each format by a clock in seconds, ms: [formats, 2]."""
    result = np.zeros((len(formats), 2))
    for row, wire in zip(result, formats):
        samples, encoding, k = [], wire_formats.encoding_of(wire), wire_formats.channels_sent(wire, z.shape[1])
        channels = None if k == z.shape[1] else CutChannels(tuple(range(k)), (0.0,) * z.shape[1])
        for _ in range(WIRE_REPEATS):
            start = clock()
            sent = z if channels is None else channels.take(z)
            tensors = codec.encode(sent, encoding)
            middle = clock()
            arrived = codec.decode(tensors, encoding, sent.shape).to(z.device)
            _ = arrived if channels is None else channels.restore(arrived)
            if z.is_cuda:
                torch.cuda.synchronize()  # the copy goes on behind the call
            samples.append((middle - start, clock() - middle))
        row[:] = 1000 * np.median(np.array(samples), axis=0)
    return result
