"""Accuracy of many prunings of one network, without running again what they have in common.

A pruning changes nothing before its first changed block, so the inputs of blocks are kept for all images.
"""
from __future__ import annotations

from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch

from config import Settings
from evaluation import ImageSet, batches, normalise
from gamma_configurator import build_plan, fused_gamma
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy

Keep = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
Choice = Tuple[Keep, ...]  # the same of every block


class PrefixActivations:
    """The inputs of blocks for all images, cached for as many blocks as fit into ACTIVATION_CACHE_MB, the last ones
    first: they are the smallest and save the most."""

    def __init__(self, network: DeployedNetwork, data: ImageSet, settings: Settings) -> None:
        self.settings, self.data = settings, data
        parts: Dict[int, List[torch.Tensor]] = {}
        allowed: Optional[Set[int]] = None
        for part in batches(len(data), settings.BATCH_SIZE):
            x = network.stem(normalise(data.images[part], settings.NORM_MEAN, settings.NORM_STD))
            inputs = []
            for block in network.blocks:
                inputs.append(x)
                x = block(x)
            if allowed is None:
                allowed = self._fitting([len(data) / len(x) * z.numel() * z.element_size() for z in inputs])
            for k in allowed:
                parts.setdefault(k, []).append(inputs[k])
        self.cached = {k: torch.cat(tensors) for k, tensors in parts.items()}

    def _fitting(self, n_bytes: Sequence[float]) -> Set[int]:
        left, allowed = self.settings.ACTIVATION_CACHE_MB * 2.0 ** 20, set()
        for k in reversed(range(len(n_bytes))):
            left -= n_bytes[k]
            if left < 0:
                break
            allowed.add(k)
        return allowed

    def batches_before(self, block: int) -> Iterator[Tuple[int, torch.Tensor, torch.Tensor]]:
        """(first block still to run, its input [B, ...], labels [B]) of each batch, for evaluating from `block` on.
        First block -1: the input is normalised images."""
        start = max((k for k in self.cached if k <= block), default=-1)
        for part in batches(len(self.data), self.settings.BATCH_SIZE):
            x = (self.cached[start][part] if start >= 0 else
                 normalise(self.data.images[part], self.settings.NORM_MEAN, self.settings.NORM_STD))
            yield start, x, self.data.labels[part]


class PruningEvaluator:
    """Accuracy of prunings of a model with fixed α on a set of images."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, data: ImageSet, settings: Settings) -> None:
        self.model, self.alpha, self.data = model, alpha, data
        model.set_alpha_array(alpha)
        with torch.inference_mode():
            self.network = deploy(model)
            self.prefix = PrefixActivations(self.network, data, settings)
        self.unpruned: Choice = tuple(tuple(bool(v) for v in row) for row in ~np.isnan(alpha) & (alpha != 0))
        self.block_evaluations = 0  # forward passes of one block on one image, without those that filled the cache

    def accuracy(self, choice: Choice) -> float:
        """Accuracy when every block keeps `choice`; α of what is kept stays as it is."""
        changed = [k for k, (keep, whole) in enumerate(zip(choice, self.unpruned)) if keep != whole]
        first_changed = changed[0] if changed else len(choice) - 1
        with torch.inference_mode():
            plans = list(self.network.blocks)
            for k in changed:
                plans[k] = self._plan(k, choice[k])
            correct = 0
            for first, x, labels in self.prefix.batches_before(first_changed):
                x = self.network.stem(x) if first < 0 else x
                for plan in plans[max(first, 0):]:
                    x = plan(x)
                correct += int((self.network.classify(x).argmax(1) == labels).sum())
                self.block_evaluations += (len(plans) - max(first, 0)) * len(labels)
        return correct / len(self.data)

    def _plan(self, k: int, keep: Keep) -> torch.nn.Module:
        block = self.model.blocks[k]
        alpha = np.where(keep, self.alpha[k], 0)[:block.n_branches]
        return build_plan(block, torch.as_tensor(alpha, dtype=block.alpha.dtype), fused_gamma(keep))
