"""Accuracy of many prunings of one network, without running again what they have in common.

A pruning changes nothing before its first changed block, so the inputs of blocks are kept for all images.
"""
from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch

import hardest_first
from config import Settings
from evaluation import ImageSet, batches, normalise
from gamma_configurator import build_plan, fused_gamma
from hardest_first import Look
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy, kept, surviving_branches

Keep = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
Choice = Tuple[Keep, ...]  # the same of every block


def choice_of(alpha: np.ndarray) -> Choice:
    """α [N, 3] -> which branches every block keeps."""
    return tuple(tuple(bool(v) for v in row) for row in surviving_branches(alpha))


class PrefixActivations:
    """The inputs of blocks for all images, cached for as many blocks as fit into ACTIVATION_CACHE_MB, the last ones
    first: they are the smallest and save the most."""

    def __init__(self, network: DeployedNetwork, data: ImageSet, settings: Settings) -> None:
        self.settings, self.data = settings, data
        parts: Dict[int, List[torch.Tensor]] = {}
        logits = []
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
            logits.append(network.classify(x))
        self.logits = torch.cat(logits)  # [n, classes], of the network itself
        self.cached = {k: torch.cat(tensors) for k, tensors in parts.items()}

    def _fitting(self, n_bytes: Sequence[float]) -> Set[int]:
        left, allowed = self.settings.ACTIVATION_CACHE_MB * 2.0 ** 20, set()
        for k in reversed(range(len(n_bytes))):
            left -= n_bytes[k]
            if left < 0:
                break
            allowed.add(k)
        return allowed

    def input_before(self, block: int, index: torch.Tensor) -> Tuple[int, torch.Tensor]:
        """(first block still to run, its input [B, ...]) of the images `index` [B], for evaluating from `block` on. -1
        as first block: the input is normalised images."""
        start = max((k for k in self.cached if k <= block), default=-1)
        return start, (self.cached[start][index] if start >= 0 else
                       normalise(self.data.images[index], self.settings.NORM_MEAN, self.settings.NORM_STD))


class PruningEvaluator:
    """Accuracy of prunings of a model with fixed α [N, 3] on a set of images.

    Activations are shared with the network that keeps `base` up to the first changed block."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, data: ImageSet, settings: Settings,
                 base: Optional[Choice] = None) -> None:
        self.model, self.alpha, self.data, self.settings = model, alpha, data, settings
        self.base = base or choice_of(alpha)
        model.set_alpha_array(kept(self.base, alpha))
        with torch.inference_mode():
            self.network = deploy(model)
            self.prefix = PrefixActivations(self.network, data, settings)
        self.margins = hardest_first.margins_of(self.prefix.logits, data.labels)  # of the base network
        self.block_evaluations = 0  # forward passes of one block on one image, without those that filled the cache

    def accuracy(self, choice: Choice) -> float:
        """Accuracy when every block keeps `choice`; α of what is kept stays as it is."""
        return self.look(choice).accuracy

    def look(self, choice: Choice, expected: Optional[np.ndarray] = None, needed: float = 0.0,
             quiet_share: float = 1.0) -> Look:
        """The same, left as soon as it is known that it is below `needed`, or probably known to be enough. `expected`:
        margins [n]; None: those of the base network."""
        first_changed = next((k for k, (keep, whole) in enumerate(zip(choice, self.base)) if keep != whole),
                             len(choice) - 1)
        plans = [plan if keep == whole else self._plan(k, keep) for k, (plan, keep, whole) in
                 enumerate(zip(self.network.blocks, choice, self.base))]

        def margins_at(index: torch.Tensor) -> np.ndarray:
            start, x = self.prefix.input_before(first_changed, index)
            self.block_evaluations += (len(plans) - max(start, 0)) * len(index)
            x = self.network.stem(x) if start < 0 else x
            for plan in plans[max(start, 0):]:
                x = plan(x)
            return hardest_first.margins_of(self.network.classify(x), self.data.labels[index])

        with torch.inference_mode():
            return hardest_first.look(margins_at, self.margins if expected is None else expected,
                                      self.settings.BATCH_SIZE, needed, quiet_share)

    def _plan(self, k: int, keep: Keep) -> torch.nn.Module:
        block = self.model.blocks[k]
        alpha = np.where(keep, self.alpha[k], 0)[:block.n_branches]
        return build_plan(block, torch.as_tensor(alpha).to(block.alpha), fused_gamma(keep))
