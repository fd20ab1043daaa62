"""Which γ are valid for a block, given its surviving branches: exactly those that run these and no others."""
from __future__ import annotations

import numpy as np

from network.alpha import branches_of
from network.gammas import GAMMAS
from network.shapes import BRANCHES

# [14, 3]: does γ run this branch?
GAMMA_RUNS = np.array([[branch in gamma.branches for branch in range(len(BRANCHES))] for gamma in GAMMAS])


def build_gamma_mask(surviving: np.ndarray) -> np.ndarray:
    """Surviving branches bool [..., 3] -> valid γ bool [..., 14].

    Raises `ValueError` when a block has lost all its branches.
    """
    surviving = np.asarray(surviving, dtype=bool)
    if not surviving.any(axis=-1).all():
        raise ValueError('every block must keep at least one branch')
    return (surviving[..., None, :] == GAMMA_RUNS).all(axis=-1)


def runnable_gammas(n_branches: np.ndarray) -> np.ndarray:
    """γ that a block with the first n of BRANCHES could run under some pruning, bool [N, 14]. `n_branches`: [N]."""
    missing = ~branches_of(n_branches)
    return ~(missing[:, None, :] & GAMMA_RUNS).any(axis=-1)
