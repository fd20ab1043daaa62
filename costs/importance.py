"""How important every branch is for what it costs: |α| per GFLOP, and the ranking that follows. No PyTorch."""
from __future__ import annotations

from typing import List, Sequence

import numpy as np

from config import Settings
from costs.work import branch_flops
from network.outline import outline_for
from network.shapes import BRANCHES


def model_branch_flops(settings: Settings) -> np.ndarray:
    """FLOPs [N, 3] of the model's branches for one image; NaN where there is no branch."""
    return np.array([branch_flops(shape) for shape in outline_for(settings).blocks], dtype=float)


def importance_of(alpha: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """|α| / (FLOPs / 1e9), [N, 3]; NaN where there is no branch, or one of zero FLOPs."""
    return np.abs(alpha) / np.where(flops > 0, flops / 1e9, np.nan)


def ranking(scores: np.ndarray, names: Sequence[str]) -> List[str]:
    """['stage1.0.dense', ...] from least to most important; branches without a score are left out."""
    flat = scores.ravel()
    order = [i for i in np.argsort(flat, kind='stable') if not np.isnan(flat[i])]
    return [f'{names[i // len(BRANCHES)]}.{BRANCHES[i % len(BRANCHES)]}' for i in order]
