"""The 14 γ configurations as a table: how the surviving branches of a block are executed. No PyTorch."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, FrozenSet, List, Tuple

from config import UserError
from network.shapes import DENSE, IDENTITY, ONE


@dataclass(frozen=True)
class Gamma:
    """One row of the table: `paths` holds the branch indices (order of BRANCHES) of each path."""
    id: int
    name: str
    paths: Tuple[Tuple[int, ...], ...]
    folded: bool  # BatchNorm folded into the operators; False: convolution, then BatchNorm

    @property
    def branches(self) -> FrozenSet[int]:
        """The branches that it executes, as indices into BRANCHES."""
        return frozenset(branch for path in self.paths for branch in path)

    @property
    def n_streams(self) -> int:
        """How many paths may run side by side."""
        return len(self.paths)
GAMMAS: Tuple[Gamma, ...] = (
    Gamma(0, 'SOLO_K3', ((DENSE,),), True),
    Gamma(1, 'SOLO_K1', ((ONE,),), True),
    Gamma(2, 'SOLO_ID', ((IDENTITY,),), True),
    Gamma(3, 'PARA_3_1', ((DENSE,), (ONE,)), False),
    Gamma(4, 'FUSED_3_1', ((DENSE, ONE),), True),
    Gamma(5, 'PARA_3_I', ((DENSE,), (IDENTITY,)), False),
    Gamma(6, 'FUSED_3_I', ((DENSE, IDENTITY),), True),
    Gamma(7, 'PARA_1_I', ((ONE,), (IDENTITY,)), False),
    Gamma(8, 'FUSED_1_I', ((ONE, IDENTITY),), True),
    Gamma(9, 'PARA_ALL', ((DENSE,), (ONE,), (IDENTITY,)), False),
    Gamma(10, 'PART_31_I', ((DENSE, ONE), (IDENTITY,)), True),
    Gamma(11, 'PART_3I_1', ((DENSE, IDENTITY), (ONE,)), True),
    Gamma(12, 'PART_1I_3', ((ONE, IDENTITY), (DENSE,)), True),
    Gamma(13, 'FUSED_ALL', ((DENSE, ONE, IDENTITY),), True),
)
N_GAMMA = len(GAMMAS)
FUSED: Dict[FrozenSet[int], int] = {g.branches: g.id for g in GAMMAS if g.n_streams == 1}
UNFUSED: Dict[FrozenSet[int], int] = {g.branches: g.id for g in GAMMAS if g.n_streams == len(g.branches)}


def gamma_by_id(gamma: int, where: str = '') -> Gamma:
    """The table's row; `UserError` (naming `where` the id was read) when there is none."""
    if not (isinstance(gamma, int) and 0 <= gamma < N_GAMMA):
        raise UserError(f'{where + ": " if where else ""}there is no γ {gamma!r}; γ ids are 0 to {N_GAMMA - 1}')
    return GAMMAS[gamma]


def runnable_ids(n_branches: int) -> List[int]:
    """The γ that a block with the first `n_branches` of BRANCHES can run."""
    return [g.id for g in GAMMAS if max(g.branches) < n_branches]


def fused_gamma(surviving: Tuple[bool, ...]) -> int:
    """The γ that runs exactly these branches (flags in the order of BRANCHES) as one operator."""
    return FUSED[frozenset(i for i, alive in enumerate(surviving) if alive)]


def unfused_gamma(surviving: Tuple[bool, ...]) -> int:
    """The γ that runs exactly these branches each on its own."""
    return UNFUSED[frozenset(i for i, alive in enumerate(surviving) if alive)]
