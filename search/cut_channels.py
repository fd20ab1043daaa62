"""Which channels of a cut matter least: those are not sent where a wire format has a share, such as 'uint4@0.5'.

A channel that is not sent is taken to be its mean over training images, everywhere. What that costs is estimated by the
loss function's first-order change: for each training image the sum over positions of gradient times deviation from that
mean. The channels that are left out have the least mean square of it (the Fisher information of a gate on the channel:
Theis et al., 2018, arXiv:1801.05787; Molchanov et al., 2019, arXiv:1906.10771). Where the loss on training images is
lower with zeros in their place, as behind a layer whose channels are rarely active, they are taken to be 0 instead.
"""
from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from config import Settings
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from network.channels import CutChannels
from network.inputs import batches, normalise
from search.int8_loss import Peaks
from wire.formats import channels_sent, format_at, share_of

IMAGES = 256  # training images that choose
MAPS_BYTES = 512 << 20  # of their feature maps, at most: fewer images where these are larger
Maps = List[Tuple[torch.Tensor, torch.Tensor]]  # batches: feature maps [B, C, h, w] at the cut, images' labels [B]
Tail = Callable[[torch.Tensor], torch.Tensor]  # what was sent -> logits [B, classes]


class Ranking(NamedTuple):
    """The channels of a cut."""
    order: np.ndarray  # [C], those that matter most first
    mean: torch.Tensor  # [C]


class WithoutChannels:
    """A network of which some channels do not cross the cut, differentiable in the model's α: what a recovery trains.
    All of it runs on this machine."""

    def __init__(self, model: HyperRepVGG, split: int, channels: CutChannels) -> None:
        self.network = DeployedNetwork(model.stage0, model.blocks, model.linear)  # not folded
        self.alphas, self.split, self.channels = model.alphas, split, channels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, S, S] -> logits [B, classes]."""
        z = self.network.head(x, self.split)
        return self.network.tail(self.channels.restore(self.channels.take(z)), self.split)


class ChannelChoice:
    """The channels that networks of one model send at their cuts, chosen by training images of one domain, and the
    peaks of their feature maps, which these images give, too."""

    def __init__(self, model: HyperRepVGG, train: Optional[ImageSet], settings: Settings) -> None:
        """`train` may be missing where no format has a share and no tier runs in int8."""
        self.model, self.train, self.settings = model, train, settings
        self.peaks = Peaks(model, train, settings)
        self._ranked: Dict[Tuple[bytes, int, bytes], Ranking] = {}
        self._known: Dict[Tuple[bytes, int, bytes, float], CutChannels] = {}

    def at(self, alpha: np.ndarray, split: int, wire: str, statistics: Optional[np.ndarray] = None,
           ) -> Optional[CutChannels]:
        """What a network of this α [N, 3] and these BatchNorm statistics (None: the model's own) sends at a split; None
        where all of it is sent. The model keeps the α."""
        share = share_of(format_at(split, len(self.model.blocks), wire))
        if share == 1:
            return None
        key = alpha.tobytes(), split, b'' if statistics is None else statistics.tobytes()
        if (*key, share) in self._known:
            return self._known[(*key, share)]
        self.model.set_alpha_array(alpha)
        with batchnorm.using(self.model, statistics), torch.inference_mode(False):
            network = deploy(self.model)
            maps = self._maps(lambda x: network.head(x, split))
            if key not in self._ranked:
                self._ranked[key] = ranking(lambda z: network.tail(z, split), maps)
            k = channels_sent(wire, len(self._ranked[key].order))
            self._known[(*key, share)] = chosen(lambda z: network.tail(z, split), maps, self._ranked[key], k)
        return self._known[(*key, share)]

    def _maps(self, head: Callable[[torch.Tensor], torch.Tensor]) -> Maps:
        """Feature maps of IMAGES training images, or of as many as MAPS_BYTES hold, one batch at least."""
        if self.train is None:
            raise ValueError('which channels are sent is chosen by training images, and there are none')
        found: Maps = []
        with torch.no_grad():
            for part in batches(min(IMAGES, len(self.train)), self.settings.BATCH_SIZE):
                x = normalise(self.train.images[part], self.settings.NORM_MEAN, self.settings.NORM_STD)
                found.append((head(x), self.train.labels[part]))
                if (len(found) + 1) * found[0][0].numel() * found[0][0].element_size() > MAPS_BYTES:
                    break
        return found


def ranking(tail: Tail, maps: Maps) -> Ranking:
    """All channels of a cut."""
    mean = torch.cat([z for z, _ in maps]).mean(dim=(0, 2, 3), dtype=torch.float64).to(maps[0][0])
    return Ranking(np.argsort(-importance(tail, maps, mean), kind='stable'), mean)


def chosen(tail: Tail, maps: Maps, ranked: Ranking, k: int) -> CutChannels:
    """The k channels of a cut that matter most, and what the others are filled with."""
    sent = tuple(sorted(int(channel) for channel in ranked.order[:k]))
    options = [CutChannels(sent, tuple(fill.tolist())) for fill in (ranked.mean, torch.zeros_like(ranked.mean))]
    return min(options, key=lambda channels: loss(lambda z: tail(channels.restore(channels.take(z))), maps))


def importance(tail: Tail, maps: Maps, mean: torch.Tensor) -> np.ndarray:
    """What it costs not to send a channel that is taken to be its mean, estimated for each, [C]."""
    found = torch.zeros_like(mean, dtype=torch.float64)
    for z, labels in maps:
        x = z.clone().requires_grad_(True)
        grad, = torch.autograd.grad(F.cross_entropy(tail(x), labels, reduction='sum'), x)
        change = (grad * (z - mean[None, :, None, None])).sum(dim=(2, 3))  # (B, C)
        found += change.double().square().sum(dim=0)
    return found.cpu().numpy()


def loss(tail: Tail, maps: Maps) -> float:
    """Cross-entropy of all images."""
    with torch.no_grad():
        return sum(float(F.cross_entropy(tail(z), labels, reduction='sum')) for z, labels in maps)
