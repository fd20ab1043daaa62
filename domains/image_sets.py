"""Images in memory with their labels, and the 95 % interval of an accuracy measured on them."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import torch


@dataclass(frozen=True)
class ImageSet:
    """Images as a camera delivers them and their labels."""
    images: torch.Tensor  # uint8 [n, 3, S, S]
    labels: torch.Tensor  # int64 [n]

    def to(self, device: torch.device) -> 'ImageSet':
        """A copy on that device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return int(self.labels.numel())


def wilson_interval(correct: int, total: int) -> Tuple[float, float]:
    """95 % score interval of a proportion (Wilson, 1927): sound near 0 and 1, where the normal one is not."""
    if total == 0:
        raise ValueError('an accuracy needs at least one image')
    z = 1.959963984540054  # 97.5 % quantile of the standard normal
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
