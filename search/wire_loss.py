"""What a wire format costs in accuracy: a network run with its feature map encoded and decoded at the cut, and
with what its tiers lose in int8 (search/int8_loss.py).

float32 (with or without compression), the image and the logits arrive as they left, so nothing is run for them.
"""
from __future__ import annotations

from typing import Callable, Dict, Optional, Tuple

import numpy as np
import torch

from config import Settings
from costs.cost_model import Configuration, Solution
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from network.channels import CutChannels
from search import alpha_training
from search.cut_channels import ChannelChoice
from search.int8_loss import as_it_runs, uses_int8
from wire import codec
from wire.formats import format_at, is_lossless, numbers_of, share_of, without_compression


def through_wire(network: DeployedNetwork, split: int, wire: str, channels: Optional[CutChannels] = None,
                 ) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as a function of normalised images [B, 3, S, S], with what `wire` does to the map at `split`;
    `channels`: those that are sent, given where `wire` has a share."""
    wire = format_at(split, len(network.blocks), wire)
    if is_lossless(wire):
        return network
    if (channels is None) != (share_of(wire) == 1):
        raise ValueError(f'{wire} with {"all" if channels is None else "some"} of the channels')
    numbers = numbers_of(wire)  # compression changes no value

    def run(x: torch.Tensor) -> torch.Tensor:
        whole = network.head(x, split)
        z = whole if channels is None else channels.take(whole)
        received = codec.decode(codec.encode(z, numbers), numbers, z.shape).to(z.device)
        return network.tail(received if channels is None else channels.restore(received), split)

    return run


def classified_right(model: HyperRepVGG, chosen: Configuration, data: ImageSet, settings: Settings,
                     statistics: Optional[np.ndarray] = None) -> np.ndarray:
    """Which images are classified correctly under this α and these BatchNorm statistics (None: the model's own), with
    the loss of the wire format at the split and of int8 on its tiers: bool [n]. The model keeps the α."""
    model.set_alpha_array(chosen.alpha)
    with batchnorm.using(model, statistics):
        network = through_wire(as_it_runs(deploy(model), chosen, settings), chosen.split, chosen.wire, chosen.channels)
        return alpha_training.classified_right(network, data, settings)


class WireLoss:
    """Accuracy of networks of one model on one set of images, with the loss of wire and int8; each is run once."""

    def __init__(self, model: HyperRepVGG, data: ImageSet, settings: Settings,
                 statistics_of: Callable[[np.ndarray], Optional[np.ndarray]] = lambda alpha: None,
                 choice: Optional[ChannelChoice] = None) -> None:
        """`statistics_of(alpha)`: the re-estimated BatchNorm statistics of a network that is measured with such;
        `choice`: of the channels that are sent, given where a format has a share."""
        self.model, self.data, self.settings = model, data, settings
        self._statistics_of, self._choice = statistics_of, choice or ChannelChoice(model, None, settings)
        self.block_evaluations = 0  # forward passes of one block on one image
        self._known: Dict[Tuple[bytes, int, str, bool], float] = {}

    def accuracy(self, alpha: np.ndarray, split: int, wire: str, lossless: float, recalibrated: bool = False) -> float:
        """Accuracy of α [N, 3] when it is cut at `split` and sent as `wire`; `lossless`: without a loss;
        `recalibrated`: with re-estimated BatchNorm statistics."""
        loses = uses_int8(self.settings)
        if is_lossless(wire) and not loses:
            return lossless
        n = len(self.model.blocks)
        sent_as = without_compression(format_at(split, n, wire))
        if is_lossless(sent_as) and not loses:
            return lossless
        key = (alpha.tobytes(), split, sent_as, recalibrated)
        if key not in self._known:
            statistics = self._statistics_of(alpha) if recalibrated else None
            chosen = Configuration(alpha, (), split, wire, self.channels(alpha, split, wire, recalibrated),
                                   self._peaks(alpha, recalibrated))
            right = classified_right(self.model, chosen, self.data, self.settings, statistics)
            self._known[key] = int(right.sum()) / len(right)
            self.block_evaluations += n * len(self.data)
        return self._known[key]

    def configuration(self, alpha: np.ndarray, solution: Solution, recalibrated: bool = False) -> Configuration:
        """The configuration of α [N, 3] that runs as this solution says, with the channels that it sends."""
        return Configuration(alpha, solution.gamma, solution.split, solution.wire,
                             self.channels(alpha, solution.split, solution.wire, recalibrated),
                             self._peaks(alpha, recalibrated))

    def _peaks(self, alpha: np.ndarray, recalibrated: bool) -> Optional[Tuple[float, ...]]:
        if not uses_int8(self.settings):
            return None
        return self._choice.peaks.of(alpha, self._statistics_of(alpha) if recalibrated else None)

    def channels(self, alpha: np.ndarray, split: int, wire: str, recalibrated: bool = False) -> Optional[CutChannels]:
        """Those that α [N, 3] sends at `split`; None: all."""
        if share_of(wire) == 1:
            return None
        return self._choice.at(alpha, split, wire, self._statistics_of(alpha) if recalibrated else None)
