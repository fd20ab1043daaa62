"""How images enter a network: normalised, in batches."""
from __future__ import annotations

from typing import Callable, Iterator, Sequence, Tuple

import torch


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> float32, (x / 255 - mean) / std per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=images.device)[:, None, None]
    return torch.addcmul(shift, images.float(), scale)


def crop_box(width: int, height: int, size: int, shorter_side: int) -> Tuple[float, float, float, float]:
    """What is kept of an image when its shorter side is resized to `shorter_side` pixels and size x size pixels are
    cropped at the centre: left, top, right, bottom in pixels of the image."""
    box = []
    for side in (width, height):
        full = int(shorter_side * side / min(width, height))  # after resizing
        first = int(round((full - size) / 2))
        box.append([min(edge * side / full, side) for edge in (first, first + size)])
    (left, right), (top, bottom) = box
    return left, top, right, bottom


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices that cover range(count) in order."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def predict(network: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Class indices [n] of inputs [n, ...], in batches, without gradients."""
    with torch.no_grad():
        return torch.cat([network(inputs[part]).argmax(dim=1) for part in batches(len(inputs), batch_size)])
