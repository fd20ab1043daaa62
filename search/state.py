"""What a search has found so far: everything that it needs to go on from here after a kill."""
from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Dict, List, Set, Tuple

import numpy as np

from network.alpha import BlockMask, PruningMask
from search.evaluator import accuracy_of
from search.pruned_times import Formats
from wire.formats import share_of


class Phase(Enum):
    """What the next round of a search does."""
    START = 'start'  # measure single changes
    EXPLORE = 'explore'  # measure and recover what is expected to lower J
    DONE = 'done'


@dataclass(frozen=True)
class Measurement:
    """A mask measured with the α that the best network had then."""
    alpha: np.ndarray  # [N, 3], 0 where the mask drops a branch
    margins: np.ndarray  # float16 [n], on the validation images (evaluator.margins_of)

    @property
    def accuracy(self) -> float:
        """The share of images that are classified correctly."""
        return accuracy_of(self.margins)


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A pruned network and its validation accuracy on all images."""
    alpha: np.ndarray  # [N, 3]
    accuracy: float  # with the loss of the wire format where `formats` is given
    lossless_accuracy: float  # of the network itself
    formats: Formats = None  # wire formats for which `accuracy` holds, at the split that is best with them
    recovered: bool = False  # was α trained for this network?
    recalibrated: bool = False  # measured with BatchNorm statistics re-estimated for this α

    @property
    def is_narrow(self) -> bool:
        """Does `accuracy` hold where not all channels of the cut are sent?"""
        return self.formats is not None and share_of(self.formats[0]) < 1


@dataclass(frozen=True)
class CurvePoint:
    """One accepted change."""
    n_pruned: int  # branches with α = 0
    accuracy: float  # validation
    T_eff_ms: float
    throughput_fps: float


@dataclass
class Work:
    """What a search has computed."""
    block_evaluations: int = 0  # forward passes of one block on one image
    trained_block_images: int = 0  # forward and backward passes of one block on one training image


@dataclass
class SearchState:
    """A search between two rounds."""
    best: EvaluatedNetwork
    curve: List[CurvePoint]
    phase: Phase = Phase.START
    rounds: int = 0
    measured: Dict[PruningMask, Measurement] = field(default_factory=dict)  # without recovery
    recovered: Dict[PruningMask, EvaluatedNetwork] = field(default_factory=dict)
    narrow: List[EvaluatedNetwork] = field(default_factory=list)  # the best ones that were `is_narrow`
    rejected: Set[Tuple[int, BlockMask]] = field(default_factory=set)  # single changes undone (search by importance)
    work: Work = field(default_factory=Work)
