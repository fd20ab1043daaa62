"""When a search stops: never beyond its bounds, never before its measurements are spent while anything is expected."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search import stopping
from search.state import SearchState
from search.stopping import StoppingRule

counts = st.integers(0, 40)
improvements = st.one_of(st.just(0.0), st.floats(1e-9, 1e-2))


@given(counts, counts, improvements)
def test_all_measurements_are_spent_while_anything_is_expected(most, evaluated, improvement):
    worth = StoppingRule(most, 30).worth_evaluating(evaluated, improvement)
    assert worth == (evaluated < most and improvement > 0)


@given(improvements)
def test_a_recovery_must_promise_more_than_a_measurement_and_still_more_while_measurements_go_on(improvement):
    rule = StoppingRule(96, 30)
    early, late = (rule.worth_recovering(improvement, exploring) for exploring in (True, False))
    assert early <= late
    assert late <= rule.worth_evaluating(90, improvement)
    assert early == (improvement > stopping.WORTH_RECOVERING_EARLY)
    assert late == (improvement > stopping.WORTH_RECOVERING)


@given(counts, counts)
def test_so_many_changes_are_accepted_at_most(most, accepted):
    state = SearchState(None, [None] * (1 + accepted))  # the curve begins with the unpruned network
    assert StoppingRule(96, most).is_spent(state) == (accepted >= most)
