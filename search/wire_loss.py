"""What a wire format costs in accuracy: a network run with its feature map encoded and decoded at the cut.

float32 (with or without compression), the image and the logits arrive as they left, so nothing is run for them.
"""
from __future__ import annotations

from typing import Callable, Dict, Optional, Tuple

import numpy as np
import torch

from config import Settings
from costs.cost_model import Configuration
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from search import alpha_training
from wire import codec
from wire.formats import format_at, is_lossless, plain


def through_wire(network: DeployedNetwork, split: int, wire: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as a function of normalised images [B, 3, S, S], with what `wire` does to the map at `split`."""
    sent_as = plain(format_at(split, len(network.blocks), wire))  # compression changes no value
    if is_lossless(sent_as):
        return network

    def run(x: torch.Tensor) -> torch.Tensor:
        z = network.head(x, split)
        received = codec.decode(codec.encode(z, sent_as), sent_as, z.shape)
        return network.tail(received.to(z.device), split)

    return run


def classified_right(model: HyperRepVGG, chosen: Configuration, data: ImageSet, settings: Settings,
                     statistics: Optional[np.ndarray] = None) -> np.ndarray:
    """Which images are classified correctly under this α and these BatchNorm statistics (None: the model's own), with
    the loss of the wire format at the split: bool [n]. The model keeps the α."""
    model.set_alpha_array(chosen.alpha)
    with batchnorm.using(model, statistics):
        return alpha_training.classified_right(through_wire(deploy(model), chosen.split, chosen.wire), data, settings)


class WireLoss:
    """Accuracy of networks of one model on one set of images, with the loss of the wire; each is run once."""

    def __init__(self, model: HyperRepVGG, data: ImageSet, settings: Settings,
                 statistics_of: Callable[[np.ndarray], Optional[np.ndarray]] = lambda alpha: None) -> None:
        """`statistics_of(alpha)`: the re-estimated BatchNorm statistics of a network that is measured with such."""
        self.model, self.data, self.settings, self._statistics_of = model, data, settings, statistics_of
        self.block_evaluations = 0  # forward passes of one block on one image
        self._known: Dict[Tuple[bytes, int, str, bool], float] = {}

    def accuracy(self, alpha: np.ndarray, split: int, wire: str, lossless: float, recalibrated: bool = False) -> float:
        """Accuracy of α [N, 3] when it is cut at `split` and sent as `wire`; `lossless`: what it is without a loss;
        `recalibrated`: with re-estimated BatchNorm statistics."""
        if is_lossless(wire):
            return lossless
        n = len(self.model.blocks)
        sent_as = plain(format_at(split, n, wire))
        if is_lossless(sent_as):
            return lossless
        key = (alpha.tobytes(), split, sent_as, recalibrated)
        if key not in self._known:
            statistics = self._statistics_of(alpha) if recalibrated else None
            chosen = Configuration(alpha, (), split, wire)
            right = classified_right(self.model, chosen, self.data, self.settings, statistics)
            self._known[key] = int(right.sum()) / len(right)
            self.block_evaluations += n * len(self.data)
        return self._known[key]
