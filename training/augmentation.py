"""What training makes of an image: another crop, flip and colours, then noise of the kinds that the domains have.

Crops and colours are drawn from (seed, pass, image), so they do not depend on which loading process works on an image,
nor on whether a training was interrupted.
"""
from __future__ import annotations

from typing import Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import transforms

from domain_dataset import no_longer_readable
from domains.source_base import ImageSource

STRONGEST_SIGMA, LARGEST_AMOUNT = 0.5, 0.27  # of Gaussian noise; of salt and pepper, share of pixels
Key = Tuple[int, int, int]  # a number that stands for the pass over the images, image, seed


class Crops(NamedTuple):
    """How images are cropped and changed."""
    smallest_area: float = 0.35  # of a crop, share of the image
    flip: float = 0.5  # probability of a mirrored image
    colours: float = 0.5  # probability of a change by TrivialAugment (Müller and Hutter, 2021, arXiv:2103.10158)


class AugmentedImages(Dataset):
    """Training images of a source: (uint8 [3, S, S], label) for every `Key`."""

    def __init__(self, source: ImageSource, size: int, crops: Crops) -> None:
        self.source = source
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(size, scale=(crops.smallest_area, 1.0)),
            transforms.RandomHorizontalFlip(crops.flip),
            transforms.RandomApply([transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR)],
                                   crops.colours),
            transforms.PILToTensor()])

    def __getitem__(self, key: Key) -> Tuple[torch.Tensor, int]:
        number, index, seed = key
        try:
            image = self.source.original(index)
        except Exception as error:  # whatever a file that was damaged or removed since provokes
            raise no_longer_readable(self.source, index, error) from None
        before = torch.get_rng_state()  # torchvision's transforms take no generator
        torch.default_generator.manual_seed(seed_of(seed, number, index))  # torch.manual_seed would reseed CUDA, too
        try:
            return self.transform(image), int(self.source.labels[index])
        finally:
            torch.set_rng_state(before)


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits that depends on all of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def keys_of(pool: np.ndarray, batch_size: int, numbers: Sequence[int], seed: int) -> Iterator[List[Key]]:
    """Keys of all batches of several passes over `pool`, each in another order; what is left over is left out."""
    for number in numbers:
        order = np.random.default_rng([seed, number]).permutation(pool)
        for start in range(0, len(pool) - batch_size + 1, batch_size):
            yield [(number, int(index), seed) for index in order[start:start + batch_size]]


def with_noise(images: torch.Tensor, generator: torch.Generator, gaussian: float, salt: float) -> torch.Tensor:
    """float [B, 3, S, S] in [0, 1] with noise at random strengths, clipped: a share `gaussian` of the images gets
    Gaussian noise, a share `salt` salt and pepper, the others stay clean."""
    def draw(high: float) -> torch.Tensor:  # (B,)
        return torch.rand(len(images), generator=generator, device=images.device) * high

    kind = draw(1)
    sigma = (draw(STRONGEST_SIGMA) * (kind < gaussian)).view(-1, 1, 1, 1)
    amount = (draw(LARGEST_AMOUNT) * (kind > 1 - salt)).view(-1, 1, 1, 1)
    images = images + torch.randn(images.shape, generator=generator, device=images.device) * sigma
    hit = torch.rand((len(images), 1, *images.shape[2:]), generator=generator, device=images.device)  # in all channels
    zero, one = images.new_zeros(()), images.new_ones(())
    return torch.where(hit < amount / 2, zero, torch.where(hit >= 1 - amount / 2, one, images)).clamp_(0, 1)
