"""Train α, and only α, on a domain's images: used for each domain's reference and for recovery after pruning."""
from __future__ import annotations

from typing import Callable, Iterator, List, Optional

import numpy as np
import torch
import torch.nn.functional as F

from config import Settings
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network.alpha import kept
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
                l1: Optional[np.ndarray] = None, stop: Optional[Callable[[int], bool]] = None,
                batch_size: Optional[int] = None, kept_at: Optional[Callable[[int], np.ndarray]] = None) -> List[float]:
    """`steps` Adam steps on cross-entropy + Σ l1·|α|; returns the cross-entropy of each step.

    `l1` [N, 3]: weight of each branch's |α| (NaN where there is no branch). Pruned branches (α = 0) get no gradient
    and stay pruned. `stop` is asked after each step, with the number of steps done, whether to end here. `batch_size`:
    images a step; None: BATCH_SIZE. `kept_at`: which branches the network of a step has, bool [N, 3] of the number of
    steps done; the others get no gradient from it, and are there again afterwards.
    """
    optimizer = torch.optim.Adam(model.alphas(), lr=learning_rate)
    pressure = None if l1 is None else [torch.as_tensor(row[:alpha.numel()]).to(alpha)
                                        for row, alpha in zip(l1, model.alphas())]
    losses = []
    for index in shuffled_batches(len(data), batch_size or settings.BATCH_SIZE, steps, seed):
        images = normalise(data.images[index], settings.NORM_MEAN, settings.NORM_STD)
        optimizer.zero_grad()
        if kept_at is not None:
            whole = model.alpha_array()
            model.set_alpha_array(kept(kept_at(len(losses)), whole))
        loss = F.cross_entropy(model(images), data.labels[index])
        losses.append(float(loss.detach()))
        if pressure is not None:
            loss = loss + sum((weight * alpha.abs()).sum() for weight, alpha in zip(pressure, model.alphas()))
        loss.backward()
        if kept_at is not None:
            model.set_alpha_array(whole)
        optimizer.step()
        if stop is not None and stop(len(losses)):
            break
    return losses


def count_correct(network: DeployedNetwork, data: ImageSet, settings: Settings) -> int:
    """Correctly classified images."""
    correct = 0
    with torch.inference_mode():
        for part in batches(len(data), settings.BATCH_SIZE):
            logits = network(normalise(data.images[part], settings.NORM_MEAN, settings.NORM_STD))
            correct += int((logits.argmax(dim=1) == data.labels[part]).sum())
    return correct


def accuracy(model: HyperRepVGG, data: ImageSet, settings: Settings) -> float:
    """Accuracy (fraction of 1) of the model as it stands, folded."""
    return count_correct(deploy(model), data, settings) / len(data)
