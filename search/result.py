"""What step 3 found for one domain."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from costs.cost_model import Configuration, ImageFormat, Times
from network.shapes import BRANCHES
from search.frontier import FrontierPoint
from search.pick import PickRule
from search.state import CurvePoint


@dataclass(frozen=True)
class AccuracyReport:
    """Accuracies as fractions of 1; test figures unless their name says validation or calibration."""
    original: float  # α = 1
    reference: float  # the network behind A_ref
    final: float
    n_test: int
    ci95: Tuple[float, float]  # of final
    val_reference: float  # A_ref
    val_final: float
    cal_reference: float
    cal_final: float
    n_cal: int
    cal_p_value: float  # of a loss of ε or more, on calibration images (noninferiority.p_value)


@dataclass(frozen=True)
class Baseline:
    """A configuration to compare with."""
    accuracy: float  # test
    times: Times
    sends_image: bool = False  # does the image cross the link?
    image: Optional[ImageFormat] = None  # as what; None: as it is, uint8

    def as_dict(self) -> Dict[str, Any]:
        """As the result file holds it."""
        return {'accuracy': self.accuracy, **self.times.as_dict(), 'sends_image': self.sends_image,
                'image': None if self.image is None else vars(self.image)}


@dataclass(frozen=True)
class JointResult:
    """What step 3 found for one domain."""
    domain_id: int
    domain_name: str
    mode: str  # 'pseudo' or 'real'
    block_names: Tuple[str, ...]
    configuration: Configuration
    accuracy: AccuracyReport
    epsilon: float
    xi_A: float
    J: float
    times: Times
    baselines: Dict[str, Baseline]
    curve: List[CurvePoint]
    measured: Optional[Dict[str, Any]]
    seed: int
    wall_s: float
    block_evaluations: int  # forward passes of one block on one image, in the whole search
    frontier: Dict[str, List[FrontierPoint]] = field(default_factory=dict)  # by objective; none: not a joint search
    pick: Optional[PickRule] = None  # how the configuration was picked from the frontier
    batchnorm: Optional[np.ndarray] = None  # re-estimated BatchNorm statistics, float32 [n]; None: the model's own
    energy: Optional[Dict[str, Any]] = None  # of a frame, mJ, by 'chosen' and baseline (costs/energy.py); None: unknown
    warnings: Tuple[str, ...] = ()  # why its numbers mean less than they seem to, a sentence each

    @property
    def nothing_confirmed(self) -> bool:
        """Is the unpruned network the answer because no pruned one passed the test on calibration images?"""
        return not self.pruned and self.pick is not None and (self.pick.n_passed or 0) < (self.pick.n_tested or 0)

    @property
    def pruned(self) -> List[str]:
        """['stage1.0.dense', ...]: branches with α = 0."""
        return [f'{name}.{branch}' for name, row in zip(self.block_names, self.configuration.alpha)
                for branch, value in zip(BRANCHES, row) if value == 0]
