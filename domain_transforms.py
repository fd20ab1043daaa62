"""The ten domains: ten corruptions of clean images.

    noisy = corrupt(image, domain_id=3, seed=0, image_index=17)

A pixel is a pure function of (clean image, seed, domain, image index): whichever process asks, in whatever
order, sees the same image. The noise is added to images in [0, 1], clipped, and rounded back to 8 bits,
which is what a camera delivers and what split 0 sends.
"""
from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import Iterator, NamedTuple

import torch

from config import UserError


class Corruption(NamedTuple):
    """One domain: `kind` is 'gaussian' (amount: σ) or 'salt and pepper' (amount: fraction of pixels hit)."""
    kind: str
    amount: float

    @property
    def name(self) -> str:
        """'Gaussian noise σ=0.20' or 'salt and pepper 0.20'."""
        return f'Gaussian noise σ={self.amount:.2f}' if self.kind == 'gaussian' else f'{self.kind} {self.amount:.2f}'


CORRUPTIONS = (
    Corruption('gaussian', 0.20), Corruption('gaussian', 0.22), Corruption('gaussian', 0.24),
    Corruption('salt and pepper', 0.20), Corruption('salt and pepper', 0.22), Corruption('salt and pepper', 0.18),
    Corruption('gaussian', 0.50), Corruption('gaussian', 0.25), Corruption('gaussian', 0.35),
    Corruption('gaussian', 0.40),
)


def check_domain(domain_id: int, num_domains: int = len(CORRUPTIONS)) -> None:
    """Raise `UserError` unless `domain_id` is one of 0..num_domains-1."""
    if not 0 <= domain_id < num_domains:
        raise UserError(f'domain {domain_id}: there are domains 0 to {num_domains - 1}')


def domain_name(domain_id: int) -> str:
    """'Gaussian noise σ=0.20' for domain 0; `UserError` for a domain that does not exist."""
    check_domain(domain_id)
    return CORRUPTIONS[domain_id].name


def corrupt(image: torch.Tensor, domain_id: int, seed: int, image_index: int) -> torch.Tensor:
    """uint8 [3, S, S] -> uint8 [3, S, S] as this domain's camera delivers it; torch's random state stays as it was.

    Raises `UserError` for a domain that does not exist.
    """
    check_domain(domain_id)
    kind, amount = CORRUPTIONS[domain_id]
    clean = image.float() / 255
    with _random_numbers_of(seed, domain_id, image_index):
        noisy = gaussian_noise(clean, amount) if kind == 'gaussian' else salt_and_pepper(clean, amount)
    return (noisy * 255).round_().to(torch.uint8)


def gaussian_noise(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """float [..., 3, S, S] in [0, 1] plus noise of every pixel and channel, clipped; torch's current random state. What
    torchvision's GaussianNoise computes (from 0.20 on), bit for bit."""
    return (image + torch.randn_like(image) * sigma).clamp_(0, 1)


def salt_and_pepper(image: torch.Tensor, amount: float) -> torch.Tensor:
    """float [..., 3, S, S]: a fraction `amount` of the pixels turns black or white, equally likely, in all channels."""
    draw = torch.rand_like(image[..., :1, :, :])  # (..., 1, S, S)
    image = torch.where(draw < amount / 2, torch.zeros_like(image), image)
    return torch.where(draw >= 1 - amount / 2, torch.ones_like(image), image)


@contextmanager
def _random_numbers_of(seed: int, domain_id: int, image_index: int) -> Iterator[None]:
    """Within: torch's CPU generator seeded by a stable hash of the three. Afterwards: as it was.
    (`torch.manual_seed` would also reseed CUDA.)"""
    digest = hashlib.sha256(f'{seed}/{domain_id}/{image_index}'.encode()).digest()
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], 'little') >> 1)  # 63 bits
    try:
        yield
    finally:
        torch.set_rng_state(before)
