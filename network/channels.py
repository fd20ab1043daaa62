"""Which channels of a feature map are sent, and what stands for the others where it arrives. Loads no torch."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence, Tuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CutChannels:
    """The channels of a feature map of C channels that cross the cut. Raises `ValueError` for others than there are."""
    sent: Tuple[int, ...]  # k of them, ascending
    fill: Tuple[float, ...]  # [C], float32: what a channel is taken to be, at every position, where it is not sent

    def __post_init__(self) -> None:
        if not self.sent or list(self.sent) != sorted(set(self.sent)) or not (
                0 <= self.sent[0] and self.sent[-1] < len(self.fill)):
            raise ValueError(f'{len(self.sent)} channels are not some of {len(self.fill)}, each once, in order')
        if not all(map(math.isfinite, self.fill)):
            raise ValueError('a channel is filled with no finite number')

    def shape(self, shape: Sequence[int]) -> Tuple[int, ...]:
        """Of a map of this shape (C, h, w), what is sent: (k, h, w). Raises `ValueError` for another C."""
        if shape[0] != len(self.fill):
            raise ValueError(f'{shape[0]} channels, not {len(self.fill)}')
        return (len(self.sent), *shape[1:])

    def take(self, z: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> what is sent, [B, k, h, w]."""
        return z[:, list(self.sent)]

    def restore(self, z: torch.Tensor) -> torch.Tensor:
        """What was sent, [B, k, h, w] -> [B, C, h, w]."""
        whole = z.new_tensor(self.fill)[None, :, None, None].repeat(len(z), 1, *z.shape[2:])
        whole[:, list(self.sent)] = z
        return whole
