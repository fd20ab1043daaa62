"""What a client may answer: the one place where replies are checked for meaning before anything uses them.

A client that has proved the token may still be broken, or lie. Frames are well-formed when they come here
(wire/frames.py); these functions check that shapes are those that were asked for, and that numbers are such as physics
allows. Each takes a reply and gives what it holds, or raises `ProtocolError`: the connection is then given up in one
line that names the client (`RemoteClient.retry_until_answered`), and the next client's turn has come.
"""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np
import torch

from costs.cost_model import Roofline
from tier.tasks import FIGURE
from wire import codec
from wire.frames import Message, ProtocolError
from wire.stream import FIGURES

SHORTEST_MS, LONGEST_MS = 1e-6, 6e5  # a nanosecond to ten minutes: of one block, part or encoding
PEAK_GFLOPS, BANDWIDTH_GBS = (1e-3, 1e6), (1e-3, 1e5)  # a microcontroller to many times the largest GPU
MAX_PASSES = 1024  # timings that a client may send for one visit
MAX_FACT_CHARS = 200
LARGEST_FACT = 1e18  # bytes of memory, the largest of the facts
LARGEST_FIGURE = 1e12  # of a stream: bytes, or frames a second


def facts(reply: Message) -> Dict[str, Any]:
    """What a device says of itself: short texts, numbers, or None where it does not know."""
    found = {name: value for name, value in reply.fields.items() if name != 'id'}
    for name, value in found.items():
        if isinstance(value, list) or (isinstance(value, str) and len(value) > MAX_FACT_CHARS) or (
                isinstance(value, (int, float)) and not -LARGEST_FACT <= value <= LARGEST_FACT):
            raise reply.wrong(name)
    for name in ('name', 'device', 'torch'):
        reply.text(name)
    reply.integer('threads', 1, 1 << 16)
    return found


def kept_bytes(reply: Message, count: int) -> List[int]:
    """How much of each blob the client has."""
    return reply.integers('bytes', 0, 2 ** 62, count)


def times(reply: Message, shape: Tuple[int, ...]) -> np.ndarray:
    """Times of visits or parts, ms [shape[0], passes, *shape[1:]]."""
    ms = reply.tensor('ms', torch.float64, len(shape) + 1)
    if (ms.shape[0], *ms.shape[2:]) != shape or not 0 < ms.shape[1] <= MAX_PASSES:
        raise ProtocolError(f'times of shape {tuple(ms.shape)}')
    return _possible_ms(ms, SHORTEST_MS)


def codec_times(reply: Message, n_formats: int) -> np.ndarray:
    """What encoding and decoding take, ms [formats, 2]; 0 where there is nothing to do."""
    ms = reply.tensor('ms', torch.float64, 2)
    if tuple(ms.shape) != (n_formats, 2):
        raise ProtocolError(f'times of shape {tuple(ms.shape)}')
    return _possible_ms(ms, 0.0)


def _possible_ms(ms: torch.Tensor, shortest: float) -> np.ndarray:
    if not bool(((ms >= shortest) & (ms <= LONGEST_MS)).all()):  # not for NaN
        raise ProtocolError('times that are impossible')
    return ms.numpy()


def roofline(reply: Message) -> Roofline:
    """Peak and bandwidth of the device."""
    return Roofline(reply.number('peak_gflops', *PEAK_GFLOPS), reply.number('bandwidth_gbs', *BANDWIDTH_GBS))


def echo(reply: Message, n_bytes: int) -> None:
    """As many bytes as were asked for: a shorter answer would make the link look fast."""
    if reply.tensor('data', torch.uint8, 1).numel() != n_bytes:
        raise ProtocolError('echo of another size')


def feature_map(reply: Message, shape: Tuple[int, ...], wire: str, dtype: torch.dtype) -> torch.Tensor:
    """What a part made of its input: of the shape [B, ...] that follows from the request, whatever the reply claims;
    nothing larger is decompressed."""
    if tuple(reply.integers('shape', 0, 2 ** 31 - 1)) != shape:
        raise reply.wrong('shape')
    try:
        y = codec.decode(reply.tensors, wire, shape)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    if y.dtype != dtype:
        raise ProtocolError(f'an output of type {y.dtype}')
    return y


def gradients(reply: Message, n_blocks: int, x: Optional[torch.Tensor], alpha_dtype: torch.dtype,
              ) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
    """Gradients of the input (where `x`, the input, is given) and of α [k, 3]: finite, of their shapes."""
    def gradient(name: str, dtype: torch.dtype, shape: Tuple[int, ...]) -> torch.Tensor:
        grad = reply.tensor(name, dtype, len(shape))
        if tuple(grad.shape) != shape or not bool(torch.isfinite(grad).all()):
            raise ProtocolError(f'{name}: another shape, or not finite')
        return grad

    return (None if x is None else gradient('x_grad', x.dtype, tuple(x.shape)),
            gradient('alpha_grad', alpha_dtype, (n_blocks, 3)))


def stream_figures(reply: Message) -> Mapping[str, float]:
    """What the client measured as the head end of a stream: all figures, and no others."""
    names = [name[len(FIGURE):] for name in reply.fields if name.startswith(FIGURE)]
    if sorted(names) != sorted(FIGURES):
        raise ProtocolError('other figures than those of a stream')
    return {name: reply.number(FIGURE + name, 0, LARGEST_FIGURE) for name in FIGURES}
