"""Accuracy of many prunings of one network on the same images, without running twice what they have in common.

Networks whose first blocks keep the same branches put out the same there. What a block put out for a batch of images is
kept, and a later network with the same first blocks goes on from there. The result is the same to the last bit whether
something was kept or not, since batches never change.
"""
from __future__ import annotations

import math
from collections import OrderedDict
from typing import List, Optional, Tuple

import numpy as np
import torch

from config import Settings
from domains.image_sets import ImageSet
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import BlockMask, PruningMask, mask_of
from network.gammas import fused_gamma
from network.inputs import batches, normalise

LARGEST_MARGIN = 100.0  # nothing is more certain; half-precision numbers, as which margins are stored, go to 65,504
SMALLEST_MARGIN = 2.0 ** -24  # the smallest half-precision number: rounding must not turn right into wrong


def margins_of(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Logit of the right class less the highest other one, over the standard deviation of the image's logits, float16
    [n], of logits [n, classes]. An image is classified correctly where its margin is above 0."""
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    margins = (right - others) / logits.std(dim=1).clamp_min(torch.finfo(logits.dtype).tiny)
    margins = torch.nan_to_num(margins, nan=-1.0).clamp(-LARGEST_MARGIN, LARGEST_MARGIN).cpu().numpy()
    return np.where(margins > 0, np.maximum(margins, SMALLEST_MARGIN), margins).astype(np.float16)


def accuracy_of(margins: np.ndarray) -> float:
    """The share of images with a margin above 0."""
    return int((margins > 0).sum()) / len(margins)


class Evaluator:
    """Margins of networks that are pruned from one, with the α of that one."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, images: ImageSet, settings: Settings) -> None:
        self.model, self.images, self.settings = model, images, settings
        self.block_evaluations = 0  # forward passes of one block on one image
        self._prune_from(alpha)

    def _prune_from(self, alpha: np.ndarray) -> None:
        self.model.set_alpha_array(alpha)
        self.alpha, self.network, self.unpruned = alpha, deploy(self.model), mask_of(alpha)
        self.cache = PrefixCache(self.settings.ACTIVATION_CACHE_MB * 2 ** 20)

    def use(self, alpha: np.ndarray) -> None:
        """Prune from the network with this α [N, 3] from now on."""
        if not np.array_equal(alpha, self.alpha, equal_nan=True):
            self._prune_from(alpha)

    def margins(self, mask: PruningMask) -> np.ndarray:
        """Margins [n] of the network that keeps these branches."""
        blocks = [self.network.blocks[k] if kept == self.unpruned[k] else self._plan(k, kept)
                  for k, kept in enumerate(mask)]
        with torch.inference_mode():
            return np.concatenate([margins_of(self._logits(mask, blocks, index, part), self.images.labels[part])
                                   for index, part in enumerate(batches(len(self.images), self.settings.BATCH_SIZE))])

    def _logits(self, mask: PruningMask, blocks: List[torch.nn.Module], index: int, part: slice) -> torch.Tensor:
        """Logits of batch number `index`, the images of `part`."""
        depth, x = self.cache.deepest(mask, index)
        if x is None:
            x = self.network.stem(normalise(self.images.images[part], self.settings.NORM_MEAN, self.settings.NORM_STD))
            self.cache.put((), index, x)
        for k in range(depth, len(mask)):
            x = blocks[k](x)
            self.cache.put(mask[:k + 1], index, x)
        self.block_evaluations += (len(mask) - depth) * len(x)
        return self.network.classify(x)

    def _plan(self, k: int, kept: BlockMask) -> torch.nn.Module:
        block = self.model.blocks[k]
        alpha = np.where(kept, self.alpha[k], 0)[:block.n_branches]
        return build_plan(block, torch.as_tensor(alpha).to(block.alpha), fused_gamma(kept))


class PrefixCache:
    """What first blocks put out, by what they keep and by batch, at most `limit_bytes` of it: what was not used for
    longest makes room. No blocks: the stem's output."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes, self.n_bytes = limit_bytes, 0
        self._outputs: 'OrderedDict[Tuple[PruningMask, int], torch.Tensor]' = OrderedDict()  # the last used ones last

    def deepest(self, mask: PruningMask, batch: int) -> Tuple[int, Optional[torch.Tensor]]:
        """(how many of the mask's first blocks this batch has been through, what came out); (0, None) if it has not
        even been through the stem."""
        found: Tuple[int, Optional[torch.Tensor]] = (0, None)
        for depth in range(len(mask), -1, -1):  # deep outputs make room before those that more networks share
            output = self._outputs.get((mask[:depth], batch))
            if output is not None:
                self._outputs.move_to_end((mask[:depth], batch))
                found = found if found[1] is not None else (depth, output)
        return found

    def put(self, first: PruningMask, batch: int, output: torch.Tensor) -> None:
        """Keep the output of these first blocks."""
        size = output.numel() * output.element_size()
        if size > self.limit_bytes:
            return
        while self.n_bytes + size > self.limit_bytes:
            _, oldest = self._outputs.popitem(last=False)
            self.n_bytes -= oldest.numel() * oldest.element_size()
        self._outputs[first, batch] = output
        self.n_bytes += size
