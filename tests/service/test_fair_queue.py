"""Fair queueing: nobody loses a frame, nobody overtakes itself, and work is shared by weight."""
from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batches import LARGEST, TRIALS, BatchTimes
from service.fair_queue import FairQueue, Waiting

ACTIONS = st.lists(st.one_of(
    st.tuples(st.just('push'), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(st.just('take'), st.integers(1, 4), st.just(0)),
    st.tuples(st.just('return'), st.just(0), st.just(0)),
    st.tuples(st.just('drop'), st.integers(0, 3), st.just(0)),
    st.tuples(st.just('leave'), st.integers(0, 3), st.just(0))), max_size=60)


@given(ACTIONS)
def test_every_frame_comes_out_once_and_those_of_a_client_in_order(actions):
    queue, pushed, out, gone, batch, taken = FairQueue(), Counter(), [], [], [], []
    for client in range(4):
        queue.add_client(client)
    for action, number, key in actions:
        if action == 'push':
            queue.push(Waiting(number, key, 1.0, (number, pushed[number])))
            pushed[number] += 1
        elif action == 'take':
            out += batch
            most = number
            taken = queue.take(lambda _, available, most=most: min(most, available))
            batch = [frame.work for frame in taken]
            assert len(batch) <= number and len({frame.key for frame in taken}) <= 1
        elif action == 'return':
            queue.give_back(taken if batch else [])
            batch = []
        elif action == 'drop':
            dropped = queue.drop_oldest(number)
            gone += [dropped.work] if dropped else []
        else:
            gone += [frame.work for frame in queue.remove_client(number)]
            queue.add_client(number)
    out += batch
    while len(queue):
        out += [frame.work for frame in queue.take(lambda _, available: available)]
    assert sorted(out + gone) == [(client, i) for client in range(4) for i in range(pushed[client])]
    for client in range(4):
        numbers = [i for who, i in out if who == client]
        assert numbers == sorted(numbers)


CLIENTS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 5)), min_size=2, max_size=5)


@given(CLIENTS, st.integers(1, 200))
def test_clients_that_always_wait_get_work_in_proportion_to_their_weights(clients, n_taken):
    """|W_i / w_i - W_j / w_j| <= cost_i / w_i + cost_j / w_j: theorem 1 of the paper."""
    queue, work = FairQueue(), [0.0] * len(clients)
    for client, (cost_ms, weight) in enumerate(clients):
        queue.add_client(client, weight)
        for _ in range(2):
            queue.push(Waiting(client, client, cost_ms, None))
    for _ in range(n_taken):
        (frame,) = queue.take(lambda _, available: 1)
        work[frame.client] += frame.cost_ms
        queue.push(frame)
        for i, (cost_i, weight_i) in enumerate(clients):
            for j, (cost_j, weight_j) in enumerate(clients):
                bound = cost_i / weight_i + cost_j / weight_j
                assert abs(work[i] / weight_i - work[j] / weight_j) <= bound * (1 + 1e-9)


def test_a_client_that_was_away_saves_up_no_time():
    queue = FairQueue()
    for client in ('busy', 'away'):
        queue.add_client(client)
    for _ in range(100):
        queue.push(Waiting('busy', 0, 1.0, None))
    for _ in range(50):
        queue.take(lambda *_: 1)
    for _ in range(10):
        queue.push(Waiting('away', 0, 1.0, None))
    following = [queue.take(lambda *_: 1)[0].client for _ in range(20)]
    assert 9 <= following.count('away') <= 10 and following[:4].count('busy') >= 1


def test_frames_of_several_clients_share_a_batch_and_are_all_paid_for():
    queue = FairQueue()
    for client in range(3):
        queue.add_client(client)
        queue.push(Waiting(client, client == 2, 1.0, client))
    assert [frame.work for frame in queue.take(lambda _, available: available)] == [0, 1]
    assert [frame.work for frame in queue.take(lambda _, available: available)] == [2]


def test_a_weight_of_0_is_refused():
    with pytest.raises(ValueError):
        FairQueue().add_client(1, 0.0)


# --- sizes of batches ---------------------------------------------------------------------------------------

@given(st.floats(0.1, 5), st.floats(0.01, 5), st.floats(1, 200))
def test_the_largest_batch_that_surely_keeps_the_bound_is_found_by_serving(frame_ms, fixed_ms, bound_ms):
    """A batch of b takes fixed + b·frame ms, so larger ones are faster per frame."""
    times = BatchTimes(frame_ms)
    for _ in range(40):
        size = times.best_size(LARGEST, bound_ms)
        ms = fixed_ms + size * frame_ms
        assert size == 1 or ms <= bound_ms
        times.add(size, ms)
    size = times.best_size(LARGEST, bound_ms)
    assert size == LARGEST or 2 * size * (fixed_ms / size + frame_ms) > bound_ms
    assert times.best_size(3, bound_ms) <= 2 and times.best_size(1, bound_ms) == 1


def test_batches_that_do_not_pay_are_tried_a_few_times_and_one_slow_run_says_nothing():
    times, sizes = BatchTimes(1.0), []
    for k in range(40):
        sizes.append(times.best_size(2, 100.0))
        times.add(sizes[-1], 50.0 if k == 0 else sizes[-1] ** 1.5)
    assert sizes.count(2) == TRIALS
    times = BatchTimes(1.0)
    for k in range(40):
        size = times.best_size(2, 100.0)
        times.add(size, 50.0 if k in (0, TRIALS) else 1.0 + 0.1 * size)
    assert times.best_size(2, 100.0) == 2
