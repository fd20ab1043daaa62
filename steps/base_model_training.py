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
from typing import Callable, List, Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from config import Settings
from domain_dataset import load_clean
from domains.image_sets import ImageSet
from network.folding import FoldedBranch, fold_branch, fuse_branches
from network.shapes import DENSE, ONE, BlockShape
from pipeline import writing
from repvgg import RepVGG

Keep = Sequence[Sequence[bool]]  # one flag a branch of every block, in the order of BRANCHES


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
    kind = draw(0, 1)  # below 0.5: Gaussian noise, above 0.7: salt and pepper, clean in between
    sigma = (draw(0, 0.5) * (kind < 0.5)).view(-1, 1, 1, 1)
    amount = (draw(0, 0.27) * (kind > 0.7)).view(-1, 1, 1, 1)
    x = x + torch.randn(x.shape, generator=generator) * sigma
    hit = torch.rand((count, 1, *x.shape[2:]), generator=generator)  # the same pixels in every channel
    x = torch.where(hit < amount / 2, torch.zeros(()), torch.where(hit >= 1 - amount / 2, torch.ones(()), x))
    return (x.clamp_(0, 1) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def forward_with(network: RepVGG, x: torch.Tensor, keep: Keep) -> torch.Tensor:
    """Logits [B, classes] of the network with only these branches; every branch as it stands."""
    x = network.stage0(x)
    for block, flags in zip(network.blocks, keep):
        x = F.relu(block.se(sum(branch(x) for branch, kept in zip(block.branches(), flags) if kept)))
    return network.classify(x)


def forward_frozen(network: RepVGG, x: torch.Tensor, keeps: Sequence[Keep]) -> List[torch.Tensor]:
    """Logits for each of several sets of branches under frozen BatchNorm statistics: every block is folded into one
    convolution, through which all weights still learn (half the time of running the branches one by one)."""
    stem = [fold_branch(branch) for branch in network.stage0.branches()]
    first = F.relu(network.stage0.se(_convolve(x, stem, network.stage0.shape)))
    outputs = [first] * len(keeps)
    for number, block in enumerate(network.blocks):
        folded = [fold_branch(branch) for branch in block.branches()]
        for index, keep in enumerate(keeps):
            kept = [branch for branch, flag in zip(folded, keep[number]) if flag]
            outputs[index] = F.relu(block.se(_convolve(outputs[index], kept, block.shape)))
    return [network.classify(output) for output in outputs]


def _convolve(x: torch.Tensor, folded: List[FoldedBranch], shape: BlockShape) -> torch.Tensor:
    kernel, scale, bias = fuse_branches(folded, shape.groups)
    if kernel is None:
        return torch.addcmul(bias[:, None, None], x, scale[:, None, None])
    return F.conv2d(x, kernel, bias, shape.stride, kernel.shape[-1] // 2, 1, shape.groups)


def random_branches(network: RepVGG, recipe: Recipe, rng: np.random.Generator) -> List[List[bool]]:
    """A random set of branches; every block keeps at least its 1x1."""
    drop = np.full(3, recipe.drop_other)
    drop[DENSE] = rng.uniform(0, recipe.drop_dense)
    keep = []
    for block in network.blocks:
        flags = (rng.random(block.n_branches) >= drop[:block.n_branches]).tolist()
        flags[ONE] = flags[ONE] or not any(flags)
        keep.append(flags)
    return keep


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
    everything = [[True] * block.n_branches for block in network.blocks]

    def first_loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward_with(network, x, random_branches(network, recipe, rng)), labels)

    def second_loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        whole, part = forward_frozen(network, x, [everything, random_branches(network, recipe, rng)])
        towards_whole = F.kl_div(F.log_softmax(part, dim=1), F.softmax(whole.detach(), dim=1), reduction='batchmean')
        return F.cross_entropy(whole, labels) + 0.5 * F.cross_entropy(part, labels) + 0.5 * towards_whole

    def batch_of(chosen: torch.Tensor) -> torch.Tensor:
        return augment(images.images[chosen], mean, std, generator)

    network.train()
    _phase(network, first_loss, batch_of, images.labels, recipe, recipe.first_epochs, recipe.first_lr, generator,
           'phase 1')
    estimate_statistics(network, lambda: batch_of(torch.randint(len(images), (256,), generator=generator)),
                        recipe.statistics_batches)
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


def estimate_statistics(network: RepVGG, next_batch: Callable[[], torch.Tensor], batches: int) -> None:
    """Set every BatchNorm's mean and variance to their average over `batches` batches through the whole network, and
    leave the network in evaluation mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train()
    with torch.no_grad():
        for _ in range(batches):
            network(next_batch())
    network.eval()
