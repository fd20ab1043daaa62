"""What goes into the head, between head and tail, and out of the tail of an exported split: names, types and shapes."""
from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from config import UserError
from wire.formats import AS_COMPUTED, BITS, format_at, without_compression

IMAGES, LOGITS = 'images', 'logits'
EXPORTED_WIRES = ('float32', 'float16', 'uint8')  # whose quantiser is part of the graphs
DTYPES = {'uint8': torch.uint8, 'float16': torch.float16, 'float32': torch.float32}


class TensorSpec(NamedTuple):
    """A tensor [batch, *shape]."""
    name: str
    dtype: str  # of DTYPES
    shape: Tuple[int, ...]
    unit: str  # what its numbers mean

    def as_dict(self) -> Dict[str, Any]:
        """As the manifest holds it."""
        return {'name': self.name, 'dtype': self.dtype, 'shape': ['batch', *self.shape], 'unit': self.unit}

    @property
    def n_bytes(self) -> int:
        """Of one image."""
        return BITS[self.dtype] // 8 * math.prod(self.shape)


def image_spec(size: int) -> TensorSpec:
    """Images as a camera delivers them."""
    return TensorSpec(IMAGES, 'uint8', (3, size, size), 'red, green, blue, 0 to 255; normalised inside')


def logits_spec(num_classes: int) -> TensorSpec:
    """The answer."""
    return TensorSpec(LOGITS, 'float32', (num_classes,), 'the class is the largest; softmax gives probabilities')


def wire_in_graph(wire: str, split: int, n_blocks: int) -> str:
    """The format whose quantiser is part of the graphs at this split, AS_COMPUTED at both ends. Compression is left to
    whoever sends. Raises `UserError` for a format that cannot be part of a graph."""
    found = without_compression(format_at(split, n_blocks, wire))
    if found not in (AS_COMPUTED, *EXPORTED_WIRES):
        raise UserError(f'wire format {wire} cannot be part of an exported graph, only {", ".join(EXPORTED_WIRES)}: '
                        'search again with WIRE_FORMATS of these')
    return found


def sent_specs(wire: str, shape: Tuple[int, ...], images: bool) -> List[TensorSpec]:
    """What crosses the cut. `wire`: of `wire_in_graph`; `shape`: of what is sent, without the batch; `images`: is it
    the images themselves?"""
    if wire == AS_COMPUTED:
        return [image_spec(shape[-1]) if images else logits_spec(shape[0])]
    if wire != 'uint8':
        return [TensorSpec('z', wire, shape, 'feature map')]
    channels = shape[:1] if len(shape) > 1 else (1,)  # a vector is one channel
    return [TensorSpec('z', 'uint8', shape, 'feature map = scale * z + offset, for each image and channel'),
            TensorSpec('scale', 'float32', channels, 'feature map for each step of z'),
            TensorSpec('offset', 'float32', channels, 'feature map where z is 0')]
