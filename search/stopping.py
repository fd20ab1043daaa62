"""When a search stops measuring networks, and when it stops recovering them."""
from __future__ import annotations

from dataclasses import dataclass

from search.state import SearchState

WORTH_EVALUATING = 3e-4  # of J, expected improvement: a measurement costs what this is worth (see docs/search.md)
WORTH_RECOVERING = 1e-3  # the same of a recovery, which costs as much as three measurements
WORTH_RECOVERING_EARLY = 4e-3  # while measurements go on, which may find something better to recover


@dataclass(frozen=True)
class StoppingRule:
    """At most `max_evaluations` networks are measured; half of them always, as a surrogate of few measurements may be
    too sure that nothing is left to find."""
    max_evaluations: int
    max_accepted: int

    def worth_evaluating(self, n_evaluated: int, improvement: float) -> bool:
        """Is another network measured, of which this improvement of J is expected?"""
        if n_evaluated >= self.max_evaluations:
            return False
        return improvement > (WORTH_EVALUATING if n_evaluated >= self.max_evaluations // 2 else 0.0)

    def worth_recovering(self, improvement: float, exploring: bool) -> bool:
        """Is a measured network recovered, of which this improvement is expected? `exploring`: measurements go on."""
        return improvement > (WORTH_RECOVERING_EARLY if exploring else WORTH_RECOVERING)

    def is_spent(self, state: SearchState) -> bool:
        """Were all changes accepted that are allowed? What is measured or recovered then would belie the curve."""
        return len(state.curve) > self.max_accepted
