"""Confirming an answer on calibration images, which neither training nor the search has seen.

The networks that a search found are the best of many by their measured accuracy on validation images, so they are
measured too high there. What is promised of the answer is therefore tested on other images, in an order that was fixed
before: the tests end at the first network that fails, so that all of them together err as rarely as one (fixed-sequence
testing; Pareto testing, Laufer-Goldshtein et al., 2023, arXiv:2210.07913; Learn then Test, Angelopoulos et al., 2021,
arXiv:2110.01052).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, List, Optional, Tuple, TypeVar

import numpy as np

from config import Settings
from costs.cost_model import FLOAT32, Configuration
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG
from search.cut_channels import ChannelChoice
from search.noninferiority import p_value
from search.wire_loss import classified_right
from wire.formats import format_at, is_lossless

Tested = TypeVar('Tested')


@dataclass(frozen=True)
class Comparison:
    """A configuration beside the reference network, on the same calibration images."""
    cal_reference: float  # accuracy of the network behind A_ref, fraction of 1
    cal_final: float
    n_cal: int
    cal_p_value: float  # how probable so low a loss would be if it were ε or more (noninferiority.p_value)


class Calibration:
    """Compares configurations of one model with the reference network."""

    def __init__(self, model: HyperRepVGG, reference: np.ndarray, images: ImageSet, settings: Settings,
                 choice: Optional[ChannelChoice] = None) -> None:
        """`reference`: α [N, 3] of the network behind A_ref; `choice`: of the channels that are sent, given where a
        format has a share."""
        self.model, self.reference, self.images, self.settings = model, reference, images, settings
        self.choice = choice
        self.reference_right = classified_right(model, Configuration(reference, (), 0, FLOAT32), images, settings)

    def compare(self, chosen: Configuration, statistics: Optional[np.ndarray] = None) -> Comparison:
        """The configuration, with the loss of its wire format and these BatchNorm statistics (None: the model's own).
        The reference network itself loses nothing, whatever the number of images: its value is 0."""
        right = classified_right(self.model, chosen, self.images, self.settings, statistics)
        lost, gained = (int((one & ~other).sum()) for one, other in ((self.reference_right, right),
                                                                     (right, self.reference_right)))
        value = p_value(lost, gained, len(right), self.settings.EPSILON)
        if statistics is None and self.is_reference(chosen):
            value = 0.0
        return Comparison(float(self.reference_right.mean()), float(right.mean()), len(right), value)

    def is_reference(self, chosen: Configuration) -> bool:
        """Does it compute what the reference network computes?"""
        return chosen.peaks is None and self.is_unpruned(chosen)

    def is_unpruned(self, chosen: Configuration) -> bool:
        """Is it the reference network, without loss on the wire? In int8 it loses something all the same."""
        return (np.array_equal(chosen.alpha, self.reference, equal_nan=True) and
                is_lossless(format_at(chosen.split, len(self.model.blocks), chosen.wire)))

    def passes(self, found: Comparison) -> bool:
        """Is a loss of at most ε confirmed? Without CONFIDENCE nothing is asked for."""
        return self.settings.CONFIDENCE is None or found.cal_p_value <= 1 - self.settings.CONFIDENCE


def in_fixed_order(options: Iterable[Tested], passes: Callable[[Tested], bool]) -> Tuple[List[Tested], int]:
    """(those that pass, how many were tested): tested one after another, up to the first that fails."""
    passed: List[Tested] = []
    for option in options:
        if not passes(option):
            return passed, len(passed) + 1
        passed.append(option)
    return passed, len(passed)
