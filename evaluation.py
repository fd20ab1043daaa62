"""Images in memory, accuracy on them, and its 95 % interval."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence, Tuple

import torch


@dataclass(frozen=True)
class ImageSet:
    """Images as a camera delivers them and their labels."""
    images: torch.Tensor  # uint8 [n, 3, S, S]
    labels: torch.Tensor  # int64 [n]

    def to(self, device: torch.device) -> 'ImageSet':
        """The same images there."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return int(self.labels.numel())


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> float32, (x / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=images.device)[:, None, None]
    return torch.addcmul(shift, images.float(), scale)


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices that cover range(count) in order."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def predict(network: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Class indices [n] of inputs [n, ...], in batches, without gradients."""
    with torch.no_grad():
        return torch.cat([network(inputs[part]).argmax(dim=1) for part in batches(len(inputs), batch_size)])


def wilson_interval(correct: int, total: int) -> Tuple[float, float]:
    """95 % score interval of a proportion (Wilson, 1927): sound near 0 and 1, where the normal one is not."""
    if total == 0:
        raise ValueError('an accuracy needs at least one image')
    z = 1.959963984540054  # 97.5 % quantile of the standard normal
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
