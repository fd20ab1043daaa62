"""Trains the built-in base model so that it later does without many of its branches.

Two phases. First everything is learnt, every batch with another random set of branches. Then the BatchNorm
statistics are estimated once more with all branches present and frozen, and training goes on with them:
each batch is run with all branches and with a random set, and the second is pulled towards the first.
Without the second phase a network without some of its branches sees statistics that are not its own and
collapses: pruning keeps the statistics of the whole network.
"""
from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from config import Settings
from domain_dataset import load_clean
from domains.image_sets import ImageSet
from pipeline import writing
from repvgg import RepVGG
from training.augmentation import with_noise
from training.branches import (Keep, estimate_statistics, every_branch, forward_frozen, forward_with,
                               random_branches)


@dataclass(frozen=True)
class Recipe:
    """What the training does; the defaults made the weights in data/weights."""
    seed: int = 0
    batch_size: int = 64  # images
    first_epochs: int = 20  # random branches, BatchNorm learns
    second_epochs: int = 25  # BatchNorm frozen, distillation into random sub-networks
    first_lr: float = 3e-3  # AdamW, peak of a one-cycle schedule
    second_lr: float = 2e-3
    weight_decay: float = 0.02
    drop_dense: float = 0.8  # a batch drops 3x3 branches with a probability drawn from 0 .. this
    drop_other: float = 0.1  # and every other branch with this one
    statistics_batches: int = 20  # batches of 256 for the BatchNorm statistics


def augment(images: torch.Tensor, mean: Sequence[float], std: Sequence[float], generator: torch.Generator,
            ) -> torch.Tensor:
    """uint8 [B, 3, S, S] -> float [B, 3, S, S]: small affine changes, then for most images noise of the kinds that
    the domains have, at random strengths; clipped to [0, 1] and normalised."""
    count = len(images)

    def draw(low: float, high: float) -> torch.Tensor:  # (B,)
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, scale, shear = draw(-12, 12) * math.pi / 180, draw(0.88, 1.15), draw(-0.15, 0.15)
    shift_x, shift_y = draw(-0.15, 0.15), draw(-0.15, 0.15)  # of half the image
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    affine = torch.stack([cos, shear - sin, shift_x, sin, cos, shift_y], dim=1).view(count, 2, 3)
    x = images.float() / 255
    x = F.grid_sample(x, F.affine_grid(affine, list(x.shape), align_corners=False), align_corners=False)
    x = with_noise(x, generator, gaussian=0.5, salt=0.3)
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def train_and_save(path: str, recipe: Recipe, settings: Settings) -> float:
    """Train the network of the settings on the clean training images and write its weights; the seconds of training."""
    writing.check_writable(path)
    torch.set_num_threads(settings.TORCH_THREADS or 1)  # the same weights whatever the number of cores
    torch.manual_seed(recipe.seed)  # the initial weights
    network = RepVGG(settings.MODEL_NAME, settings.NUM_CLASSES)
    start = time.perf_counter()
    images = load_clean(replace(settings, WEIGHT_PATH_SERVER=''), 'train')  # whatever weights at `path` have seen
    train(network, images, settings.NORM_MEAN, settings.NORM_STD, recipe)
    seconds = time.perf_counter() - start
    with writing.replacing(path) as temporary, open(temporary, 'wb') as stream:
        torch.save(network.state_dict(), stream)  # given a path, torch writes its (random) name into the file
    return seconds


def train(network: RepVGG, images: ImageSet, mean: Sequence[float], std: Sequence[float], recipe: Recipe) -> None:
    """Both phases, in place; a pure function of weights, images, recipe, and the arithmetic of this machine."""
    generator = torch.Generator().manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)

    def some_branches() -> Keep:
        return random_branches(network, recipe.drop_dense, recipe.drop_other, rng)

    def first_loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward_with(network, x, some_branches()), labels)

    def second_loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        whole, part = forward_frozen(network, x, [every_branch(network), some_branches()])
        towards_whole = F.kl_div(F.log_softmax(part, dim=1), F.softmax(whole.detach(), dim=1), reduction='batchmean')
        return F.cross_entropy(whole, labels) + 0.5 * F.cross_entropy(part, labels) + 0.5 * towards_whole

    def batch_of(chosen: torch.Tensor) -> torch.Tensor:
        return augment(images.images[chosen], mean, std, generator)

    network.train()
    _phase(network, first_loss, batch_of, images.labels, recipe, recipe.first_epochs, recipe.first_lr, generator,
           'phase 1')
    estimate_statistics(network, (batch_of(torch.randint(len(images), (256,), generator=generator))
                                  for _ in range(recipe.statistics_batches)))
    _phase(network, second_loss, batch_of, images.labels, recipe, recipe.second_epochs, recipe.second_lr, generator,
           'phase 2')


def _phase(network: RepVGG, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
           batch_of: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, recipe: Recipe, epochs: int,
           lr: float, generator: torch.Generator, name: str) -> None:
    steps = len(labels) // recipe.batch_size
    if not epochs or not steps:
        return
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.15)
    progress = tqdm(range(epochs), name, disable=None)
    for _ in progress:
        total = 0.0
        order = torch.randperm(len(labels), generator=generator)[:steps * recipe.batch_size]
        for chosen in order.split(recipe.batch_size):
            loss = loss_of(batch_of(chosen), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        progress.set_postfix(loss=f'{total / steps:.3f}')
