"""Feature maps as bytes and back, in the formats of wire/formats.py.

Compression is zlib because it is part of every Python, also on the device; bytes are first sorted by significance, and
after ReLU about half of a map is zero, so level 1 gets most of what there is.
"""
from __future__ import annotations

import math
import zlib
from typing import Dict, Mapping, Optional, Sequence

import numpy as np
import torch

from wire.formats import AS_COMPUTED, ZLIB, plain
from wire.frames import MAX_PAYLOAD_BYTES

ZLIB_LEVEL = 1  # higher levels cost several times the time for a few per cent
_DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'uint8': torch.uint8}


def encode(z: torch.Tensor, wire: str) -> Dict[str, torch.Tensor]:
    """Float32 feature map [B, C, h, w] -> the tensors to send, on the CPU; AS_COMPUTED takes any tensor as it is."""
    if wire == AS_COMPUTED:
        return {'z': z.cpu()}
    kind = plain(wire)
    tensors = _quantise(z) if kind == 'uint8' else {'z': _as_half(z) if kind == 'float16' else z}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    if wire.endswith(ZLIB):
        tensors['z'] = _pack(tensors['z'])
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
    kind = plain(wire)
    if wire.endswith(ZLIB):
        z = _unpack(z, _DTYPES[kind], shape)
    if _of_shape(z, shape).dtype != _DTYPES[kind]:
        raise ValueError(f'a {wire} feature map of type {z.dtype}')
    if kind != 'uint8':
        return z.float()
    scale, offset = (_of_shape(tensors.get(name), shape[:2]) for name in ('scale', 'offset'))
    if scale.dtype != torch.float32 or offset.dtype != torch.float32:
        raise ValueError('scale and offset must be float32')
    return z.float().mul_(scale[:, :, None, None]).add_(offset[:, :, None, None])


def _of_shape(tensor: Optional[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    if tensor is None or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f'expected shape {tuple(shape)}, got {None if tensor is None else tuple(tensor.shape)}')
    return tensor


def _as_half(z: torch.Tensor) -> torch.Tensor:
    limit = torch.finfo(torch.float16).max
    return z.clamp(-limit, limit).half()


def _quantise(z: torch.Tensor) -> Dict[str, torch.Tensor]:
    """z ~ scale·q + offset per image and channel; exact for constant channels, error at most scale / 2."""
    flat = z.flatten(2)  # (B, C, h·w)
    low, high = flat.min(dim=2)[0], flat.max(dim=2)[0]
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    q = z - low[:, :, None, None]  # the only copy: on a small device, memory is what quantising costs
    q = q.div_(scale[:, :, None, None]).round_().clamp_(0, 255).to(torch.uint8)
    return {'z': q, 'scale': scale, 'offset': low}


def _pack(z: torch.Tensor) -> torch.Tensor:
    array = z.numpy().reshape(-1)
    shuffled = array.view(np.uint8).reshape(-1, array.itemsize).T  # all first bytes, then all second bytes, ...
    packed = zlib.compress(np.ascontiguousarray(shuffled), ZLIB_LEVEL)
    return torch.from_numpy(np.frombuffer(bytearray(packed), dtype=np.uint8))


def _unpack(packed: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Never makes more bytes than the shape needs: a small message cannot fill the memory."""
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError('a compressed feature map must be uint8 [n]')
    result = torch.empty(tuple(shape), dtype=dtype)
    item_bytes = result.element_size()
    wanted = item_bytes * math.prod(shape)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.numpy().tobytes(), wanted + 1)
    except zlib.error as error:
        raise ValueError(f'damaged compressed feature map ({error})') from None
    if len(data) != wanted or not stream.eof:
        raise ValueError(f'a compressed feature map of {len(data)} bytes, not {wanted}')
    bytes_first = np.frombuffer(data, dtype=np.uint8).reshape(item_bytes, -1)
    result.numpy().reshape(-1).view(np.uint8).reshape(-1, item_bytes)[:] = bytes_first.T
    return result


def encoded_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that these tensors take on the wire, without the frame's own 32 and its typed header."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
