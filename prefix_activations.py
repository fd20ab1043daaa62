"""Accuracy of many prunings of one network, without running again what they have in common.

A pruning changes nothing before its first changed block, so the inputs of blocks are kept for all images.
"""
from __future__ import annotations

from collections import deque
from typing import Deque, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch

import early_stopping
from config import Settings
from evaluation import ImageSet, batches, normalise
from gamma_configurator import build_plan, fused_gamma
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy

Keep = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
Choice = Tuple[Keep, ...]  # the same of every block
SHARED_LOOKS = 6  # latest choices whose activations are kept; more would save little (5 % of a search's blocks)


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

    def input_before(self, block: int, part: slice) -> Tuple[int, torch.Tensor]:
        """(first block still to run, its input [B, ...]) of a batch, for evaluating from `block` on. First block -1:
        the input is normalised images."""
        start = max((k for k in self.cached if k <= block), default=-1)
        return start, (self.cached[start][part] if start >= 0 else
                       normalise(self.data.images[part], self.settings.NORM_MEAN, self.settings.NORM_STD))


class Look(NamedTuple):
    """What was seen of one choice."""
    accuracy: float  # on the images seen
    seen: int  # images


class PruningEvaluator:
    """Accuracy of prunings of a model with fixed α on a set of images, in an order drawn from `seed`.

    Activations are shared with the unpruned network up to the first changed block, and with the latest few choices up
    to the first block in which they differ. `latest` tells what was looked at before a restart: it is counted as
    shared, so that counts do not depend on restarts."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, data: ImageSet, settings: Settings, seed: int = 0,
                 latest: Sequence[Tuple[Choice, int]] = ()) -> None:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        self.model, self.alpha, self.settings = model, alpha, settings
        self.data = ImageSet(data.images[order], data.labels[order])
        model.set_alpha_array(alpha)
        with torch.inference_mode():
            self.network = deploy(model)
            self.prefix = PrefixActivations(self.network, self.data, settings)
        self.unpruned: Choice = tuple(tuple(bool(v) for v in row) for row in ~np.isnan(alpha) & (alpha != 0))
        self.block_evaluations = 0  # forward passes of one block on one image, without those that filled the cache
        self._latest: Deque[_Shared] = deque((_Shared(choice, seen) for choice, seen in latest), self._shared_looks())

    def _shared_looks(self) -> int:
        """How many choices' activations fit beside those of the unpruned network."""
        whole = sum(z.numel() * z.element_size() for z in self.prefix.cached.values())
        if len(self.prefix.cached) < len(self.network.blocks):
            return 0  # not even one fits
        return min(SHARED_LOOKS, int(self.settings.ACTIVATION_CACHE_MB * 2.0 ** 20 / whole) - 1)

    def accuracy(self, choice: Choice) -> float:
        """Accuracy when every block keeps `choice`; α of what is kept stays as it is."""
        return self.look(choice).accuracy

    def look(self, choice: Choice, needed: float = 0.0, level: float = 0.0) -> Look:
        """The same, given up on a part of the images when it is `early_stopping.hopeless`."""
        count, correct, shared = len(self.data), 0, _Shared(choice, 0)
        stops = early_stopping.peeks(count, self.settings.BATCH_SIZE)
        with torch.inference_mode():
            plans = [plan if keep == whole else self._plan(k, keep) for k, (plan, keep, whole) in
                     enumerate(zip(self.network.blocks, choice, self.unpruned))]
            for part in batches(count, self.settings.BATCH_SIZE):
                logits = self._run(plans, choice, part, shared)
                correct += int((logits.argmax(1) == self.data.labels[part]).sum())
                shared.seen = part.stop
                if part.stop in stops and level > 0 and early_stopping.hopeless(correct, part.stop, count, needed,
                                                                                level / len(stops)):
                    break
        self._latest.append(shared)
        return Look(correct / shared.seen, shared.seen)

    def _run(self, plans: List[torch.nn.Module], choice: Choice, part: slice, shared: '_Shared') -> torch.Tensor:
        """Logits of one batch. Counts the blocks that no earlier run shares."""
        first_changed = next((k for k, (keep, whole) in enumerate(zip(choice, self.unpruned)) if keep != whole),
                             len(choice) - 1)
        start, x = self.prefix.input_before(first_changed, part)
        counted = max(start, 0)
        for other in self._latest:
            common = next((k for k, (a, b) in enumerate(zip(choice, other.choice)) if a != b), len(choice) - 1)
            if other.seen >= part.stop and common > counted:
                counted = common
                if (part.start, common) in other.inputs:
                    start, x = common, other.inputs[part.start, common]
                    shared.inputs.update({(part.start, k): other.inputs[part.start, k]
                                          for k in range(first_changed + 1, common)})
        self.block_evaluations += (len(plans) - counted) * (part.stop - part.start)
        x = self.network.stem(x) if start < 0 else x
        for k, plan in enumerate(plans):
            if k >= max(start, 0):
                if k > first_changed and self._latest.maxlen:
                    shared.inputs[part.start, k] = x
                x = plan(x)
        return self.network.classify(x)

    def _plan(self, k: int, keep: Keep) -> torch.nn.Module:
        block = self.model.blocks[k]
        alpha = np.where(keep, self.alpha[k], 0)[:block.n_branches]
        return build_plan(block, torch.as_tensor(alpha, dtype=block.alpha.dtype), fused_gamma(keep))


class _Shared:
    """What a look leaves for later ones: inputs of blocks, by (first image of the batch, block)."""

    def __init__(self, choice: Choice, seen: int) -> None:
        self.choice, self.seen = choice, seen
        self.inputs: Dict[Tuple[int, int], torch.Tensor] = {}
