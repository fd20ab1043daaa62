"""Accuracy of many prunings of one network, without running again what they have in common.

Networks whose first blocks keep the same branches put out the same there. What a block put out for an image is kept,
and every later network with the same first blocks goes on from the deepest of them that this image has been through.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import torch

from config import Settings
from domains.image_sets import ImageSet
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from network.inputs import normalise
from search import hardest_first
from search.hardest_first import Look

Keep = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
Choice = Tuple[Keep, ...]  # the same of every block, or of the first few


def choice_of(alpha: np.ndarray) -> Choice:
    """α [N, 3] -> which branches every block keeps."""
    return tuple(tuple(bool(v) for v in row) for row in surviving_branches(alpha))


@dataclass
class Outputs:
    """What some first blocks put out."""
    rows: Dict[int, torch.Tensor] = field(default_factory=dict)  # by image
    n_bytes: int = 0


class PrefixActivations:
    """Outputs of first blocks by what these keep and by image, at most `limit_bytes` of them: those of which the last
    use is longest ago make room. No blocks: the stem's output."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes, self.n_bytes = limit_bytes, 0
        self.outputs: Dict[Choice, Outputs] = {}  # the last used ones last

    def use(self, choice: Choice) -> None:
        """A network is about to run."""
        for depth in range(len(choice), -1, -1):  # deep ones go before those that more networks share
            outputs = self.outputs.pop(choice[:depth], None)
            if outputs is not None:
                self.outputs[choice[:depth]] = outputs

    def depths(self, choice: Choice, images: List[int]) -> np.ndarray:
        """How many of the network's first blocks each image has been through, [B]; -1: not even through the stem."""
        found = np.full(len(images), -1)
        for depth in range(len(choice) + 1):
            if choice[:depth] in self.outputs:
                rows = self.outputs[choice[:depth]].rows
                found[[image in rows for image in images]] = depth
        return found

    def get(self, first: Choice, images: List[int]) -> torch.Tensor:
        """Outputs [B, ...] of these first blocks."""
        rows = self.outputs[first].rows
        return torch.stack([rows[image] for image in images])

    def put(self, choice: Choice, depth: int, images: List[int], x: torch.Tensor) -> None:
        """Keep the outputs x [B, ...] of the first blocks of the network that is running, if there is room or room can
        be made without it."""
        more = x.numel() * x.element_size()
        while self.n_bytes + more > self.limit_bytes:
            oldest = next((first for first in self.outputs if first != choice[:len(first)]), None)
            if oldest is None:
                return
            self.n_bytes -= self.outputs.pop(oldest).n_bytes
        outputs = self.outputs.setdefault(choice[:depth], Outputs())
        outputs.rows.update(zip(images, x.unbind(0)))
        outputs.n_bytes += more
        self.n_bytes += more


class PruningEvaluator:
    """Accuracy of prunings of a model with fixed α [N, 3] on a set of images."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, data: ImageSet, settings: Settings) -> None:
        self.model, self.alpha, self.data, self.settings = model, alpha, data, settings
        model.set_alpha_array(alpha)
        self.network, self.whole = deploy(model), choice_of(alpha)
        self.prefix = PrefixActivations(settings.ACTIVATION_CACHE_MB * 2.0 ** 20)
        self.block_evaluations = 0  # forward passes of one block on one image

    def accuracy(self, choice: Choice) -> float:
        """Accuracy when every block keeps `choice`; α of what is kept stays as it is."""
        return self.look(choice).accuracy

    def look(self, choice: Choice, expected: Optional[np.ndarray] = None, needed: float = 0.0,
             quiet_share: float = 1.0) -> Look:
        """The same, left as soon as it is known that it is below `needed`, or probably known to be enough. `expected`:
        margins [n]; None: nothing is known of them."""
        plans: Dict[int, torch.nn.Module] = {}
        self.prefix.use(choice)

        def block(k: int) -> torch.nn.Module:
            if choice[k] == self.whole[k]:
                return self.network.blocks[k]
            if k not in plans:
                plans[k] = self._plan(k, choice[k])
            return plans[k]

        def margins_at(index: torch.Tensor) -> np.ndarray:
            return self._margins(choice, block, index)

        if expected is None:
            expected = np.zeros(len(self.data), np.float32)
        with torch.inference_mode():
            return hardest_first.look(margins_at, expected, self.settings.BATCH_SIZE, needed, quiet_share)

    def _margins(self, choice: Choice, block: Callable[[int], torch.nn.Module], index: torch.Tensor) -> np.ndarray:
        """Margins of the images `index` [B]. Those that have been through fewer first blocks start, the others join
        them on the way."""
        depths = self.prefix.depths(choice, index.tolist())
        order = np.argsort(depths, kind='stable')
        images, depths, running = index.numpy()[order].tolist(), depths[order], 0
        x: Optional[torch.Tensor] = None
        for depth in range(-1, len(choice) + 1):
            joining = images[running:running + int((depths == depth).sum())]
            if joining:
                new = self._normalised(joining) if depth < 0 else self.prefix.get(choice[:depth], joining)
                x = new if x is None else torch.cat([x, new])
                running += len(joining)
            if x is not None and depth < len(choice):
                x = self.network.stem(x) if depth < 0 else block(depth)(x)
                self.prefix.put(choice, depth + 1, images[:running], x)
                self.block_evaluations += running if depth >= 0 else 0
        margins = np.empty(len(images), np.float32)
        margins[order] = hardest_first.margins_of(self.network.classify(x), self.data.labels[index[order]])
        return margins

    def _normalised(self, images: List[int]) -> torch.Tensor:
        return normalise(self.data.images[images], self.settings.NORM_MEAN, self.settings.NORM_STD)

    def _plan(self, k: int, keep: Keep) -> torch.nn.Module:
        block = self.model.blocks[k]
        alpha = np.where(keep, self.alpha[k], 0)[:block.n_branches]
        return build_plan(block, torch.as_tensor(alpha).to(block.alpha), fused_gamma(keep))
