"""What step 2 found, read back from results/initial_throughput_config.json: the times at every split."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from config import Settings
from costs.cost_model import TIERS, HardwareTable, SplitTimes, Times, other_tier
from pipeline import documents
from pipeline.documents import Document
from search.joint_result import times_from_json


@dataclass(frozen=True)
class Step2Result:
    """The unpruned network at every split, and the split that step 2 chose."""
    head_tier: str
    wire: str
    omega: float
    allowed: Tuple[int, int]  # smallest and largest λ that the optimisers may choose
    split: int  # λ of the exact optimum
    per_split: SplitTimes  # λ = 0..N

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.per_split.T_eff_ms) - 1

    @property
    def single_tier(self) -> Tuple[Tuple[int, str], Tuple[int, str]]:
        """The two baselines as (λ, tier that does everything)."""
        return (0, other_tier(self.head_tier)), (self.n_blocks, self.head_tier)


def load(table: HardwareTable, settings: Settings) -> Step2Result:
    """Read and check the file; `UserError` when it is missing, damaged or of another model."""
    document = documents.read_kind('step2', settings)
    entries, last = document.get('per_split', list), table.n_blocks
    if len(entries) != last + 1:
        raise document.refuse(f"field 'per_split' has {len(entries)} entries, not {last + 1}")
    rows = []
    for split, entry in enumerate(entries):
        name = f'per_split[{split}]'
        row = Document(document.path, {name: entry}, document.made_by)
        if row.get((name, 'lambda'), int) != split:
            raise document.refuse(f"field '{name}.lambda' is not {split}")
        rows.append(times_from_json(row, (name,)))
    head_tier = document.get('head_tier', str)
    if head_tier not in TIERS:
        raise document.refuse(f'head_tier is {head_tier!r}, not client or server')
    low, high = document.numbers('lambda_range', 2, lowest=0)
    chosen = document.get('optimal_lambda', int)
    if not low <= chosen <= high <= last:
        raise document.refuse(f'optimal_lambda {chosen} and lambda_range [{low:g}, {high:g}] do not fit {last} blocks')
    arrays = {name: np.array([getattr(row, name) for row in rows]) for name in Times.__dataclass_fields__}
    return Step2Result(head_tier, document.get('wire', str), document.number('omega', 0), (int(low), int(high)), chosen,
                       SplitTimes(**arrays))
