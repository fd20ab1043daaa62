"""Decisions of a service without threads, sockets or sleeping: the clock is a number."""
from __future__ import annotations

import math
from typing import List, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from config import Settings
from fleet import decisions
from fleet.decisions import GO_ALONE, RETURN, STAY, Conditions, Moving, Reach, Server, Switching

SETTINGS = Settings()


class Choice(NamedTuple):
    """An option."""
    T_client_ms: float
    T_server_ms: float
    n_bytes: float
    uses_link: bool = True


ms = st.floats(0.01, 50)
choices = st.builds(Choice, ms, ms, st.floats(10, 1e5))
links = st.builds(Conditions, st.floats(0.1, 1000), st.floats(0, 100))


# --- admission --------------------------------------------------------------------------------------

@given(st.lists(choices, min_size=1, max_size=6), links, st.floats(0.1, 100), st.floats(0, 4), st.integers(1, 4),
       st.floats(0.1, 1))
def test_whoever_is_let_in_keeps_the_promises_and_sustains_its_rate(options, now, fps, promised, workers, max_load):
    found = decisions.admit(promised, workers, max_load, fps, options[0], options, now)
    able = [option for option in options if promised + fps * option.T_server_ms / 1000 <= max_load * workers
            and fps * option.T_client_ms <= 1000 and fps * 8 * option.n_bytes <= 1e6 * now.bandwidth_mbps]
    if found.option is None:
        assert not able and f'{fps:g} frames a second' in found.reason
    else:
        assert promised + decisions.load_of(fps, found.option) <= max_load * workers + 1e-6
        assert now.sustained_fps(found.option) >= fps * (1 - 1e-6)
        if options[0] in able:
            assert found.option == options[0]  # what it wants, wherever that fits
        elif able:
            assert found.option.T_client_ms <= min(option.T_client_ms for option in able) + 1e-9


def test_a_deeper_split_is_offered_where_the_wanted_one_does_not_fit():
    shallow, deep, alone = Choice(1, 20, 1e4), Choice(5, 4, 1e4), Choice(30, 0, 0, False)
    options, now = [shallow, deep, alone], Conditions(100.0)
    assert decisions.admit(0.0, 1, 0.9, 30, shallow, options, now).option == shallow
    assert decisions.admit(0.7, 1, 0.9, 30, shallow, options, now).option == deep
    assert decisions.admit(0.89, 1, 0.9, 30, shallow, options, now).option == alone
    assert 'need 1.00 of a worker, 0.01 of 1 is left' in decisions.admit(0.89, 1, 0.9, 50, shallow, options, now).reason


# --- shedding ---------------------------------------------------------------------------------------

@given(st.integers(0, 100), st.integers(0, 10))
def test_only_live_sources_lose_frames_and_only_the_surplus(waiting, most):
    assert decisions.shed(waiting, most, live=False) == 0
    assert waiting - decisions.shed(waiting, most, live=True) == min(waiting, most)


# --- switching --------------------------------------------------------------------------------------

def switches(costs: List[dict], step_s: float, settings: Settings = SETTINGS, current: int = 0) -> List[float]:
    """When a client switches that is asked every `step_s`."""
    state, found = Switching(), []
    for number, now in enumerate(costs):
        state, chosen = decisions.switch(state, number * step_s, current, now, settings)
        if chosen is not None:
            found.append(number * step_s)
            current = chosen
    return found


def test_a_better_option_is_taken_after_it_has_been_better_for_long_enough():
    better, same = {0: 10.0, 1: 8.0}, {0: 10.0, 1: 9.5}
    assert switches([better] * 20, 0.5) == [SETTINGS.SWITCH_AFTER_S]
    assert switches([same] * 100, 0.5) == []  # 5 % is no reason
    assert switches(([better] * 5 + [same]) * 20, 0.5) == []  # never long enough


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.floats(0.05, 2), st.floats(0.2, 0.99))
def test_a_link_that_oscillates_causes_at_most_one_switch_a_minute(lengths, step_s, depth):
    """Whatever its rhythm."""
    costs: List[dict] = []
    for number, length in enumerate(lengths):
        costs += [{0: 10.0, 1: 10.0 * depth} if number % 2 else {0: 10.0 * depth, 1: 10.0}] * length
    found = switches(costs, step_s)
    assert all(later - earlier >= SETTINGS.SWITCH_PAUSE_S - 1e-9 for earlier, later in zip(found, found[1:]))


@given(st.lists(st.dictionaries(st.integers(0, 3), st.floats(1, 100), min_size=4), min_size=1, max_size=50))
def test_a_switch_always_wins_more_than_the_gain(costs):
    settings = Settings(SWITCH_AFTER_S=0.0, SWITCH_PAUSE_S=0.0)
    state, current = Switching(), 0
    for number, now in enumerate(costs):
        state, chosen = decisions.switch(state, float(number), current, now, settings)
        if chosen is not None:
            assert now[chosen] == min(now.values()) and now[chosen] < now[current] * (1 - settings.SWITCH_GAIN)
            current = chosen
        else:
            assert min(now.values()) >= now[current] * (1 - settings.SWITCH_GAIN)


COST_MS = st.sampled_from([5.0, 10.0, 20.0])


@given(st.lists(st.tuples(st.fixed_dictionaries({0: COST_MS, 1: COST_MS, 2: COST_MS}), st.integers(1, 10)), min_size=1,
                max_size=20))
def test_before_a_switch_one_and_the_same_option_was_better_all_the_time(lengths):
    step_s = SETTINGS.SWITCH_AFTER_S / 4
    costs = [now for now, length in lengths for _ in range(length)]
    state, current, last = Switching(), 0, 0
    for number, now in enumerate(costs):
        state, chosen = decisions.switch(state, number * step_s, current, now, SETTINGS)
        if chosen is not None:
            since = costs[number - 4:number + 1]
            assert number - 4 >= last and any(all(
                one[option] < one[current] * (1 - SETTINGS.SWITCH_GAIN) for one in since) for option in now)
            current, last = chosen, number


def test_an_option_that_is_gone_is_left_at_once():
    assert decisions.switch(Switching(), 5.0, 7, {2: 4.0, 3: 3.0}, SETTINGS)[1] == 3
    assert decisions.switch(Switching(), 5.0, 7, {}, SETTINGS)[1] is None


def test_what_a_slower_link_costs():
    shallow, alone = Choice(2, 1, 125_000), Choice(20, 0, 0, False)
    fast, slow = Conditions(1000.0, 2.0), Conditions(10.0, 2.0)
    assert fast.com_ms(shallow) == 1.0 and slow.com_ms(shallow) == 100.0 and slow.com_ms(alone) == 0
    assert fast.latency_ms(shallow) == 6.0 and slow.latency_ms(alone) == 20.0
    assert decisions.cost_ms(shallow, fast, 10.0, 0.5) == 0.5 * 6 + 0.5 * 100  # a frame comes every 100 ms
    assert decisions.cost_ms(shallow, slow, 50.0, 0.0) == 100.0 and fast.sustained_fps(alone) == 50.0
    assert Conditions(1.0).sustained_fps(Choice(0, 1, 0)) == math.inf


# --- fallback and return ----------------------------------------------------------------------------

def actions(answers: List[float], until_s: float, step_s: float = 0.25) -> List[tuple]:
    """(second, action) of a client whose server answers at these times, asked every `step_s`."""
    state, found, clock_s = Reach(), [], 0.0
    while clock_s <= until_s:
        last = max([0.0] + [answer for answer in answers if answer <= clock_s])
        state, action = decisions.reach(state, clock_s, last, SETTINGS)
        if action != STAY:
            found.append((clock_s, action))
        clock_s += step_s
    return found


def every(from_s: float, to_s: float, step_s: float = 0.5) -> List[float]:
    return [from_s + k * step_s for k in range(int((to_s - from_s) / step_s) + 1)]


def test_a_client_goes_on_alone_and_returns_when_the_server_does():
    assert actions(every(0, 60), 60) == []
    assert actions(every(0, 10) + every(20, 40), 40) == [(11.25, GO_ALONE), (23.0, RETURN)]
    assert actions(every(0, 10), 40) == [(11.25, GO_ALONE)]  # gone for good


def test_a_server_that_answers_now_and_then_is_not_returned_to():
    assert actions(every(0, 10) + [14.0, 17.5, 21.0, 24.5], 30) == [(11.25, GO_ALONE)]


@given(st.lists(st.floats(0, 30), max_size=40), st.floats(0.05, 0.5))
def test_going_alone_and_returning_take_turns(answers, step_s):
    found = [action for _, action in actions(sorted(answers), 30, step_s)]
    assert found == [GO_ALONE, RETURN] * (len(found) // 2) + [GO_ALONE] * (len(found) % 2)


# --- a server that fails ----------------------------------------------------------------------------

@given(st.lists(st.tuples(st.floats(0.1, 60), choices, links), max_size=12),
       st.dictionaries(st.sampled_from('ABC'), st.tuples(st.integers(1, 4), st.floats(0, 3)), max_size=3))
def test_nobody_is_rehomed_at_the_cost_of_promises(moving, servers):
    servers = {name: Server(*values) for name, values in servers.items()}
    clients = [Moving(number, fps, now, option, {name: (option, Choice(option.T_client_ms + 5, 0.5, 100))
                                                 for name in servers})
               for number, (fps, option, now) in enumerate(moving)]
    found = decisions.rehome(clients, servers, 0.9)
    assert set(found) == set(range(len(moving)))
    for name, server in servers.items():
        added = sum(decisions.load_of(clients[number].fps, at[1]) for number, at in found.items()
                    if at is not None and at[0] == name)
        assert not added or server.promised + added <= 0.9 * server.workers + 1e-6
