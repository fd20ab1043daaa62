"""Feature maps as bytes and back, in the formats of wire/formats.py.

What is compressed has its bytes sorted by significance first, and after ReLU about half of a map is zero, so a fast
compression gets most of what there is.
"""
from __future__ import annotations

import math
from typing import Dict, Mapping, Optional, Sequence

import numpy as np
import torch

from wire.compression import COMPRESSIONS
from wire.formats import AFFINE, AS_COMPUTED, compression_of, numbers_of
from wire.frames import MAX_PAYLOAD_BYTES

_DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'uint8': torch.uint8, 'uint4': torch.uint8}
_LARGEST = {'uint8': 255, 'uint4': 15}


def encode(z: torch.Tensor, wire: str) -> Dict[str, torch.Tensor]:
    """Float32 feature map [B, C, h, w], or [B, ...] of any rank -> the tensors to send, on the CPU; AS_COMPUTED takes
    any tensor as it is."""
    if wire == AS_COMPUTED:
        return {'z': z.cpu()}
    kind = numbers_of(wire)
    tensors = _quantise(z, _LARGEST[kind]) if kind in AFFINE else {'z': _as_half(z) if kind == 'float16' else z}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    if kind == 'uint4':
        tensors['z'] = _two_a_byte(tensors['z'])
    if compression_of(wire):
        tensors['z'] = _pack(tensors['z'], compression_of(wire))
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], wire: str, shape: Sequence[int]) -> torch.Tensor:
    """The inverse: float32 [B, C, h, w] of this shape (AS_COMPUTED: what went). `ValueError` when it does not fit."""
    z = tensors.get('z')
    if 4 * math.prod(shape) > MAX_PAYLOAD_BYTES:  # what a frame may hold as float32, whatever it is compressed to
        raise ValueError(f'a feature map of shape {tuple(shape)} is larger than {MAX_PAYLOAD_BYTES >> 20} MiB')
    if z is None:
        raise ValueError("there is no tensor 'z'")
    if wire == AS_COMPUTED:
        return _of_shape(z, shape)
    kind = numbers_of(wire)
    sent_shape = (-(-math.prod(shape) // 2),) if kind == 'uint4' else tuple(shape)
    if compression_of(wire):
        z = _unpack(z, _DTYPES[kind], sent_shape, compression_of(wire))
    if _of_shape(z, sent_shape).dtype != _DTYPES[kind]:
        raise ValueError(f'a {wire} feature map of type {z.dtype}')
    if kind not in AFFINE:
        return z.float()
    if kind == 'uint4':
        z = _one_a_byte(z, shape)
    channels = (shape[0], shape[1] if len(shape) > 2 else 1)
    scale, offset = (_of_shape(tensors.get(name), channels) for name in ('scale', 'offset'))
    if scale.dtype != torch.float32 or offset.dtype != torch.float32:
        raise ValueError('scale and offset must be float32')
    return z.float().mul_(beside(scale, z)).add_(beside(offset, z))


def _of_shape(tensor: Optional[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    if tensor is None or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f'expected shape {tuple(shape)}, got {None if tensor is None else tuple(tensor.shape)}')
    return tensor


def _as_half(z: torch.Tensor) -> torch.Tensor:
    limit = torch.finfo(torch.float16).max
    return z.clamp(-limit, limit).half()


def _quantise(z: torch.Tensor, largest: int) -> Dict[str, torch.Tensor]:
    """z ~ scale·q + offset per image and channel, q in 0..largest; exact for constant channels, error at most
    scale / 2. A vector [B, n] is one channel."""
    flat = z.flatten(2) if z.dim() > 2 else z[:, None]  # (B, C, h·w)
    low, high = flat.min(dim=2)[0], flat.max(dim=2)[0]
    scale = ((high - low) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    q = z - beside(low, z)  # the only copy: on a small device, memory is what quantising costs
    q = q.div_(beside(scale, z)).round_().clamp_(0, largest).to(torch.uint8)
    return {'z': q, 'scale': scale, 'offset': low}


def beside(values: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Numbers of channels, [B, C], for arithmetic with z [B, C, ...]."""
    return values[(..., *[None] * (z.dim() - 2))]


def _two_a_byte(q: torch.Tensor) -> torch.Tensor:
    """uint8 values of 0..15, n of them -> uint8 [(n + 1) // 2]: the first of each pair in the high bits; 0 behind the
    last where n is odd."""
    flat = q.numpy().reshape(-1)
    packed = flat[0::2] << 4
    packed[:flat.size // 2] |= flat[1::2]
    return torch.from_numpy(packed)


def _one_a_byte(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The inverse, for values of this shape."""
    pairs = packed.numpy()
    flat = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)
    return torch.from_numpy(flat[:math.prod(shape)].reshape(tuple(shape)))


def _pack(z: torch.Tensor, compression: str) -> torch.Tensor:
    array = z.numpy().reshape(-1)
    shuffled = array.view(np.uint8).reshape(-1, array.itemsize).T  # all first bytes, then all second bytes, ...
    packed = COMPRESSIONS[compression].compress(np.ascontiguousarray(shuffled).tobytes())
    return torch.from_numpy(np.frombuffer(bytearray(packed), dtype=np.uint8))


def _unpack(packed: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], compression: str) -> torch.Tensor:
    """Never makes more bytes than the shape needs: a small message cannot fill the memory."""
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError('a compressed feature map must be uint8 [n]')
    result = torch.empty(tuple(shape), dtype=dtype)
    item_bytes = result.element_size()
    wanted = item_bytes * math.prod(shape)
    try:
        data = COMPRESSIONS[compression].decompress(packed.numpy().tobytes(), wanted)
    except ValueError as error:
        raise ValueError(f'damaged compressed feature map ({error})') from None
    if len(data) != wanted:
        raise ValueError(f'a compressed feature map of {len(data)} bytes, not {wanted}')
    bytes_first = np.frombuffer(data, dtype=np.uint8).reshape(item_bytes, -1)
    result.numpy().reshape(-1).view(np.uint8).reshape(-1, item_bytes)[:] = bytes_first.T
    return result


def encoded_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that these tensors take on the wire, without the frame's own 32 and its typed header."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
