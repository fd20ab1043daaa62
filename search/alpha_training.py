"""Train α, and only α, on a domain's images: used for each domain's reference and for recovery after pruning."""
from __future__ import annotations

from typing import Callable, Iterator, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from config import Settings
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from network.inputs import batches, normalise


def seed_of(*parts: int) -> int:
    """One seed from several whole numbers (seed, domain, round, ...), different for different parts."""
    return int(np.random.SeedSequence([int(part) for part in parts]).generate_state(1)[0])


def shuffled_batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` index tensors; every image once before any comes again, in a new order each time. Full batches only,
    unless there are fewer images than that."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=generator)
        for part in batches(count, batch_size):
            if done < steps and (part.stop - part.start == min(batch_size, count)):
                yield order[part]
                done += 1


def train_alpha(model: HyperRepVGG, data: ImageSet, settings: Settings, steps: int, learning_rate: float, seed: int,
                stop: Optional[Callable[[int], bool]] = None, batch_size: Optional[int] = None) -> List[float]:
    """`steps` Adam steps on cross-entropy; returns the cross-entropy of each step.

    Pruned branches (α = 0) get no gradient and stay pruned. `stop` is asked after each step, with the number of steps
    done, whether to end here. `batch_size`: images a step; None: BATCH_SIZE.
    """
    optimizer = torch.optim.Adam(model.alphas(), lr=learning_rate)
    losses = []
    for index in shuffled_batches(len(data), batch_size or settings.BATCH_SIZE, steps, seed):
        images = normalise(data.images[index], settings.NORM_MEAN, settings.NORM_STD)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), data.labels[index])
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        if stop is not None and stop(len(losses)):
            break
    return losses


def recalibrated_statistics(model: HyperRepVGG, alpha: np.ndarray, unpruned: np.ndarray, train: ImageSet,
                            domain_id: int, settings: Settings) -> Tuple[np.ndarray, int]:
    """`batchnorm.recalibrated_for` on training images drawn with the seed of the domain."""
    images = recalibration_batches(train, settings, seed_of(settings.SEED, domain_id))
    return batchnorm.recalibrated_for(model, alpha, unpruned, images)


def recalibration_batches(data: ImageSet, settings: Settings, seed: int) -> Iterator[torch.Tensor]:
    """Up to RECALIBRATION_IMAGES images drawn with `seed`, normalised, in batches."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    images = data.images[order[:settings.RECALIBRATION_IMAGES]]
    for part in batches(len(images), settings.BATCH_SIZE):
        yield normalise(images[part], settings.NORM_MEAN, settings.NORM_STD)


def classified_right(network: DeployedNetwork, data: ImageSet, settings: Settings) -> np.ndarray:
    """Which images are classified correctly, bool [n]."""
    right = []
    with torch.inference_mode():
        for part in batches(len(data), settings.BATCH_SIZE):
            logits = network(normalise(data.images[part], settings.NORM_MEAN, settings.NORM_STD))
            right.append((logits.argmax(dim=1) == data.labels[part]).cpu().numpy())
    return np.concatenate(right)


def count_correct(network: DeployedNetwork, data: ImageSet, settings: Settings) -> int:
    """Correctly classified images."""
    return int(classified_right(network, data, settings).sum())


def accuracy(model: HyperRepVGG, data: ImageSet, settings: Settings) -> float:
    """Accuracy (fraction of 1) of the model as it stands, folded."""
    return count_correct(deploy(model), data, settings) / len(data)
