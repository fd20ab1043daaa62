"""Who is let in: promises are kept, and who wants none gets what is left."""
from __future__ import annotations

import numpy as np
from client_process import SETTINGS
from hypothesis import given
from hypothesis import strategies as st

from fleet.decisions import load_of
from service.admission import LEAST_SHARE, admitted, shares
from service.entries import Choice, Entry, ServedNetwork

NETWORK = ServedNetwork('network', np.zeros((0, 3)), {})
CHOICES = st.builds(Choice, st.integers(0, 11), st.just('float32'), st.floats(0.1, 20), st.floats(0, 50),
                    st.floats(10, 1e5))


def entry_of(first: Choice, *others: Choice) -> Entry:
    return Entry('one', NETWORK, first, (first, *others))


@given(st.lists(st.tuples(st.one_of(st.none(), st.floats(0.1, 100)), CHOICES, st.lists(CHOICES, max_size=4)),
                max_size=12), st.integers(1, 4))
def test_promises_are_never_more_than_the_workers_can_keep(wishes, workers):
    promised = 0.0
    for fps, first, others in wishes:
        found = admitted(entry_of(first, *others), fps, promised, workers, SETTINGS)
        if found.option is None:
            assert found.reason and '\n' not in found.reason
        else:
            assert found.option in (first, *others)
            promised += 0.0 if fps is None else load_of(fps, found.option)
            assert promised <= SETTINGS.MAX_LOAD * workers * (1 + 1e-6)


def test_the_first_choice_needs_no_others():
    first = Choice(2, 'float32', 1.0, 10.0, 100.0)
    assert admitted(Entry('one', NETWORK, first), 20.0, 0.0, 1, SETTINGS).option == first
    assert admitted(Entry('one', NETWORK, first), None, 0.0, 1, SETTINGS).option == first
    assert 'all of the 1 worker(s)' in admitted(Entry('one', NETWORK, first), None, 0.9, 1, SETTINGS).reason


def test_a_deeper_split_is_offered_where_the_first_choice_does_not_fit():
    first, deeper = Choice(2, 'float32', 1.0, 10.0, 100.0), Choice(8, 'float32', 20.0, 2.0, 100.0)
    assert admitted(entry_of(first, deeper), 20.0, 0.8, 1, SETTINGS).option == deeper
    assert admitted(entry_of(first, deeper), 60.0, 0.8, 1, SETTINGS).option is None  # the device cannot


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1)), min_size=1, max_size=10), st.integers(1, 4))
def test_who_has_no_promise_gets_what_is_left(loads, workers):
    found = shares(dict(enumerate(loads)), workers)
    assert all(found[i] == max(load, LEAST_SHARE) for i, load in enumerate(loads) if load)
    rest = [found[i] for i, load in enumerate(loads) if not load]
    assert len(set(rest)) <= 1 and all(share >= LEAST_SHARE for share in rest)
