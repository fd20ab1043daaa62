"""Running tails: what a worker does, in whatever process it is (workers, ray_workers).

A worker gets batches of frames and answers with classes and probabilities. It holds every network that it was asked
for, folded.
"""
from __future__ import annotations

import copy
import time
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch

from config import Settings
from hyper_repvgg import HyperRepVGG, create_network
from network.channels import CutChannels
from pipeline import kinds
from remote.client import folded_specs
from service.entries import ServedNetwork
from service.holding import folded_mb
from tier.devices import device_of
from tier.part import NetworkPart, cut_shape, head_units, part_of
from wire import codec, formats


class TailKey(NamedTuple):
    """Frames of one key run through the same tail and may share a batch."""
    network: str
    split: int
    wire: str


class TailInput(NamedTuple):
    """What arrives for a tail."""
    first: int  # unit of the tail
    encoding: str
    shape: Tuple[int, ...]  # of one frame, with its batch of 1
    channels: Optional[CutChannels]  # that were sent; None: all


class Prediction(NamedTuple):
    """A frame's answer."""
    label: int
    probability: float


class Answer(NamedTuple):
    """Of a batch: a prediction a frame, or why there is none."""
    frames: List[Union[Prediction, str]]
    ms: float  # of the worker


class Tails:
    """Networks, folded when they are first asked for."""

    def __init__(self, settings: Settings, networks: Mapping[str, ServedNetwork], base: HyperRepVGG) -> None:
        """`base`: `base_model`, wherever it was loaded."""
        self._settings, self._networks, self._base = settings, networks, base
        self._device = device_of(settings.SERVER_DEVICE)
        self._folded: Dict[str, NetworkPart] = {}  # those that were used last at its end

    def answer(self, key: TailKey, frames: Sequence[Mapping[str, torch.Tensor]]) -> Answer:
        """Decode the frames of a batch, run them together, take the best classes. Without frames the network is only
        made ready."""
        network = self._network(key.network)
        if not frames:
            return Answer([], 0.0)
        sent = self._input(key)
        start = time.perf_counter()
        answers: List[Union[Prediction, str]] = []
        inputs: List[torch.Tensor] = []
        for tensors in frames:
            try:
                inputs.append(codec.decode(tensors, sent.encoding, sent.shape))
                answers.append('')
            except ValueError as error:
                answers.append(str(error))
        if inputs:
            with torch.inference_mode():
                x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
                x = x if sent.channels is None else sent.channels.restore(x)
                found = iter(predictions(network(x, first=sent.first)))
            answers = [answer or next(found) for answer in answers]
        return Answer(answers, 1000 * (time.perf_counter() - start))

    def _network(self, name: str) -> NetworkPart:
        """A whole network under the server's γ: its last units are the tail at every split. Those that were used
        longest ago make room."""
        found = self._folded.pop(name, None)
        if found is None:
            network, model = self._networks[name], model_of(self._base, self._networks[name])
            sizes_mb = [folded_mb(self._networks[other], 'server', self._settings) for other in (*self._folded, name)]
            while self._folded and sum(sizes_mb) > self._settings.HELD_NETWORKS_MB:
                del self._folded[next(iter(self._folded))], sizes_mb[0]
            units = 0, len(model.blocks) + 2
            spec = folded_specs(network.alpha, network.gamma['server'], units, self._settings,
                                self._settings.SERVER_ENGINE)
            found = part_of(model, spec, self._device)
        self._folded[name] = found
        return found

    def _input(self, key: TailKey) -> TailInput:
        """What a tail of this key gets."""
        settings, n_blocks = self._settings, len(self._base.blocks)
        first = head_units(key.split, n_blocks)[1]
        shape = cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, first)
        channels = self._networks[key.network].channels_at(key.split, key.wire)
        return TailInput(first, formats.encoding_at(key.split, n_blocks, key.wire),
                         (1, *(shape if channels is None else channels.shape(shape))), channels)


def base_model(settings: Settings) -> HyperRepVGG:
    """The network with its base weights; random ones are those of SEED."""
    torch.manual_seed(settings.SEED)
    return create_network(kinds.weights_file(settings), settings.MODEL_NAME, settings.NUM_CLASSES)


def model_of(base: HyperRepVGG, network: ServedNetwork) -> HyperRepVGG:
    """The base network, or a copy with the BatchNorm statistics that belong to this one."""
    if network.batchnorm is None:
        return base
    model = copy.deepcopy(base)
    model.set_batchnorm(network.batchnorm)
    return model


def predictions(logits: torch.Tensor) -> List[Prediction]:
    """The best class of each row of logits [B, classes], and its probability."""
    probability, label = logits.float().softmax(dim=1).max(dim=1)
    return [Prediction(*pair) for pair in zip(label.tolist(), probability.tolist())]
