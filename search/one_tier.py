"""The network without a split: each tier alone, the image sent as it is, as PNG and as JPEG.

What a split is held against. The JPEG has the lowest quality at which the network keeps the accuracy that the goal asks
for on validation images; how accurate it then is, is measured on test images.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, Optional, Tuple

import numpy as np

from config import Settings
from costs.cost_model import TIERS, HardwareTable, ImageFormat, Solution, other_tier
from costs.verdict import OneTier, Verdict, verdict_of
from domains import image_formats
from domains.image_sets import ImageSet
from network.alpha import surviving_branches
from search.result import Baseline, JointResult
from throughput_optimizer import solve_exact

PRUNED_ENDS = ('all_client_pruned', 'all_server_pruned')
CorrectOn = Callable[[ImageSet], int]  # how many images a network classifies correctly


class SentImages:
    """One domain's images as they arrive after being sent; each quality is encoded once."""

    def __init__(self, val: ImageSet, test: ImageSet, table: HardwareTable, settings: Settings) -> None:
        self.val, self.test = val, test
        self._codec_ms = table.image_codec_ms or image_formats.codec_ms(val.images)
        self._slower = {tier: float(table.tier_info[tier].get('slowdown', 1.0)) for tier in TIERS}
        self._head_tier = settings.HEAD_TIER
        self._received: Dict[Tuple[int, str], ImageSet] = {}
        self._formats: Dict[Optional[int], ImageFormat] = {}

    def received(self, quality: int, subset: str) -> ImageSet:
        """'val' or 'test' images after a JPEG of this quality."""
        if (quality, subset) not in self._received:
            sent = self.val if subset == 'val' else self.test
            self._received[quality, subset] = replace(sent, images=image_formats.received(sent.images, quality))
        return self._received[quality, subset]

    def format(self, quality: Optional[int]) -> ImageFormat:
        """Mean size and times of validation images as JPEG of this quality (None: as PNG)."""
        if quality not in self._formats:
            name = 'png' if quality is None else 'jpeg'
            encode_ms, decode_ms = self._codec_ms[name]
            self._formats[quality] = ImageFormat(
                name, quality, image_formats.mean_bytes(self.val.images, quality),
                encode_ms * self._slower[self._head_tier], decode_ms * self._slower[other_tier(self._head_tier)])
        return self._formats[quality]


    def jpeg_within(self, accuracy_on: Callable[[ImageSet], float], lowest: float) -> Optional[int]:
        """The lowest quality of QUALITIES that leaves a network at least this accuracy on validation images."""
        return image_formats.smallest_within(lambda quality: accuracy_on(self.received(quality, 'val')), lowest)


@dataclass(frozen=True)
class Network:
    """A network that is to run without a split."""
    alpha: np.ndarray  # [N, 3]
    correct_on: CorrectOn  # all of it on the tier of the tail
    lowest_accuracy: float  # that a JPEG must leave it, validation
    correct_on_head: Optional[CorrectOn] = None  # all of it on the tier of the head; None: as on the other one


def solve_end(table: HardwareTable, surviving: np.ndarray, split: int, image: Optional[ImageFormat],
              settings: Settings) -> Solution:
    """Everything on one tier, at split 0 or N, with the image sent as this (None: as it is)."""
    return solve_exact(replace(table, image=image), surviving, settings, splits=[split])


def without_split(network: Network, suffix: str, images: SentImages, table: HardwareTable, settings: Settings,
                  ) -> Dict[str, Baseline]:
    """`all_client` and `all_server` (with this suffix), and the one of them that is sent the image again with the image
    as PNG and as JPEG; no JPEG where none of QUALITIES leaves the accuracy."""
    tail = other_tier(settings.HEAD_TIER)
    ends = {settings.HEAD_TIER: table.n_blocks, tail: 0}
    surviving = surviving_branches(network.alpha)
    accuracy = network.correct_on(images.test) / len(images.test)

    def at(split: int, image: Optional[ImageFormat], accuracy: float) -> Baseline:
        return Baseline(accuracy, solve_end(table, surviving, split, image, settings).times, split == 0, image)

    on_head = accuracy if network.correct_on_head is None else network.correct_on_head(images.test) / len(images.test)
    found = {f'all_{tier}{suffix}': at(ends[tier], None, accuracy if tier == tail else on_head) for tier in TIERS}
    found[f'all_{tail}{suffix}_png'] = at(0, images.format(None), accuracy)
    quality = images.jpeg_within(lambda data: network.correct_on(data) / len(data), network.lowest_accuracy)
    if quality is not None:
        left = network.correct_on(images.received(quality, 'test')) / len(images.test)
        found[f'all_{tail}{suffix}_jpeg'] = at(0, images.format(quality), left)
    return found


def verdict_on(result: JointResult, settings: Settings) -> Verdict:
    """Does the result's split pay?"""
    ways = [OneTier(name, baseline.times, baseline.sends_image) for name, baseline in result.baselines.items()
            if name.startswith('all_')]
    return verdict_of(result.times, ways, settings.LAMBDA_MIN > 0)
