"""When a search stops measuring networks, and when it stops recovering them."""
from __future__ import annotations

from dataclasses import dataclass

from config import Settings
from search.state import SearchState

# Expected improvements of J. One validation image is worth 0.0014 of J in the built-in example: what promises a part of
# that is noise. A recovery takes about as long as seven measurements.
WORTH_RECOVERING = 1e-3
WORTH_RECOVERING_EARLY = 4e-3  # while measurements go on, which may find something better to recover
EVALUATIONS_A_BLOCK = 4  # twice as many lowered J by 0.0003 with a standard error of 0.0006 (docs/search.md)


@dataclass(frozen=True)
class StoppingRule:
    """`max_evaluations` networks are measured while the surrogate expects anything at all of another one. (To stop when
    it expects little lost 0.027 of J in one domain of ten: a surrogate of few measurements is too sure.)"""
    max_evaluations: int
    max_accepted: int

    def worth_evaluating(self, n_evaluated: int, improvement: float) -> bool:
        """Is another network measured, of which this improvement of J is expected?"""
        return n_evaluated < self.max_evaluations and improvement > 0

    def worth_recovering(self, improvement: float, exploring: bool) -> bool:
        """Is a measured network recovered, of which this improvement is expected? `exploring`: measurements go on."""
        return improvement > (WORTH_RECOVERING_EARLY if exploring else WORTH_RECOVERING)

    def is_spent(self, state: SearchState) -> bool:
        """Were all changes accepted that are allowed? Then nothing more is measured or recovered."""
        return len(state.curve) > self.max_accepted


def stopping_rule(n_blocks: int, settings: Settings) -> StoppingRule:
    """The settings' rule for a network of so many blocks."""
    return StoppingRule(settings.MAX_EVALUATIONS or EVALUATIONS_A_BLOCK * n_blocks, settings.MAX_PRUNING_ROUNDS)
