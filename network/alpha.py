"""α as an array [N, 3]: which branches survive, and how the JSON files hold it. No PyTorch."""
from __future__ import annotations

from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from network.shapes import BRANCHES

AlphaByBlock = Dict[str, Dict[str, Optional[float]]]  # {'stage1.0': {'dense': 1.0, '1x1': 0.0, 'identity': None}}
BlockMask = Tuple[bool, ...]  # which branches a block keeps, in the order of BRANCHES
PruningMask = Tuple[BlockMask, ...]  # of every block, or of the first few


def branches_of(n_branches: Sequence[int]) -> np.ndarray:
    """Which branches blocks have that have the first n of BRANCHES, bool [N, 3]. `n_branches`: [N]."""
    return np.arange(len(BRANCHES)) < np.asarray(n_branches)[:, None]


def unpruned_alpha(n_branches: Sequence[int]) -> np.ndarray:
    """α = 1 everywhere, [N, 3]; NaN where there is no branch. `n_branches`: as for `branches_of`."""
    return np.where(branches_of(n_branches), 1.0, np.nan)


def surviving_branches(alpha: np.ndarray) -> np.ndarray:
    """α [N, 3] -> bool [N, 3]: present and not pruned."""
    return ~np.isnan(alpha) & (alpha != 0)


def mask_of(alpha: np.ndarray) -> PruningMask:
    """α [N, 3] -> which branches every block keeps."""
    return tuple(tuple(bool(v) for v in row) for row in surviving_branches(alpha))


def pruned(alpha: np.ndarray, mask: Sequence[Sequence[bool]]) -> np.ndarray:
    """α [N, 3] with 0 for what a mask [N, 3] drops."""
    return np.where(np.isnan(alpha), np.nan, np.where(np.array(mask), alpha, 0.0))


def alpha_by_block(alpha: np.ndarray, names: Sequence[str]) -> AlphaByBlock:
    """α [N, 3] as the JSON files hold it: None where there is no identity."""
    return {name: {branch: None if np.isnan(value) else float(value) for branch, value in zip(BRANCHES, row)}
            for name, row in zip(names, alpha)}


def alpha_from_blocks(by_block: AlphaByBlock, names: Sequence[str]) -> np.ndarray:
    """The inverse of `alpha_by_block`; `KeyError` when a block or a branch is missing."""
    return np.array([[np.nan if by_block[name][branch] is None else by_block[name][branch] for branch in BRANCHES]
                     for name in names], dtype=np.float64)
