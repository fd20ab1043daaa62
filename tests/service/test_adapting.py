"""What a client meets follows from its frames, and what it should run from that."""
from __future__ import annotations

import dataclasses
import math
from collections import deque

import pytest
import torch
from client_process import batch
from hypothesis import given, settings
from hypothesis import strategies as st
from service_cases import (
    SETTINGS,
    CameraProcess,
    entry_of,
    expected,
    feed,
    random_alpha,
    running,
    wait_until,
    weights_in,
)

from benchmarks.relay import Relay
from fleet.decisions import Conditions, Switching, switch
from hyper_repvgg import deploy
from network.inputs import normalise
from service.adapting import LEAST_FRAMES, OLDEST_S, conditions_of, costs_of
from service.entries import Choice
from service.figures import Answered
from service.server import ADAPT_S

MS = st.floats(0.1, 50)


def answered(choice: Choice, link: Conditions, at_s: float, number: int = 0, batch: int = 1, wait_ms: float = 0.0,
             queue_ms: float = 0.0):
    """A frame under these conditions."""
    head, tail = choice.T_client_ms * link.client_slowdown, choice.T_server_ms * link.server_slowdown * batch
    latency = head + link.com_ms(choice) + wait_ms + tail + link.rtt_ms + queue_ms
    return Answered(at_s, head, link.com_ms(choice), wait_ms, tail, latency, batch, number, int(choice.n_bytes))


@given(MS, MS, st.integers(1000, 100_000), st.floats(1, 1000), st.floats(0, 50), st.floats(0.1, 10), st.floats(0.1, 10),
       st.integers(1, 4))
def test_conditions_are_those_under_which_the_frames_ran(client_ms, server_ms, n_bytes, mbps, rtt, slow, slower, batch):
    choice, true = Choice(3, 'float32', client_ms, server_ms, n_bytes), Conditions(mbps, rtt, slow, slower)
    frames = [answered(choice, true, float(k), 7, batch, wait_ms=5.0) for k in range(LEAST_FRAMES)]
    found = conditions_of(frames, choice, 7, float(LEAST_FRAMES))
    assert found.bandwidth_mbps == pytest.approx(mbps, rel=1e-6) and found.rtt_ms == pytest.approx(rtt, abs=1e-6)
    assert found.client_slowdown == pytest.approx(slow) and found.server_slowdown == pytest.approx(slower)


def test_frames_of_another_configuration_and_old_ones_say_nothing():
    choice, link = Choice(3, 'float32', 1.0, 1.0, 1000.0), Conditions(10.0)
    frames = [answered(choice, link, float(k), 1) for k in range(LEAST_FRAMES)]
    assert conditions_of(frames, choice, 1, LEAST_FRAMES).bandwidth_mbps == pytest.approx(10.0)
    assert conditions_of(frames, choice, 2, LEAST_FRAMES) is None
    assert conditions_of(frames, choice, 1, LEAST_FRAMES + 2 * OLDEST_S) is None
    slower = [answered(choice, Conditions(1.0), LEAST_FRAMES + k, 1) for k in range(LEAST_FRAMES)]
    assert conditions_of(frames + slower, choice, 1, 2 * LEAST_FRAMES).bandwidth_mbps == pytest.approx(1.0)
    many = [answered(choice, link, k / 100, 1) for k in range(100)]  # one that came late among many is an outlier
    assert conditions_of([*many, *slower[:1]], choice, 1, 1.0).bandwidth_mbps == pytest.approx(10.0)


CHOICES = st.lists(st.builds(Choice, st.integers(0, 11), st.just('float32'), MS, MS, st.floats(100, 1e5)), min_size=1,
                   max_size=8)


@given(CHOICES, st.floats(0.5, 1000), st.one_of(st.none(), st.floats(0.1, 100)), st.floats(0.05, 1), st.floats(0, 2),
       st.floats(0, 1))
def test_what_is_cheapest_is_what_brute_force_finds(choices, mbps, fps, share, free, omega):
    now = Conditions(mbps, 3.0, 2.0, 0.5)
    found = costs_of(choices, now, fps, share, free, omega)
    for number, one in enumerate(choices):
        client, server, link = 2 * one.T_client_ms, 0.5 * one.T_server_ms, one.n_bytes * 8 / 1000 / mbps
        cycle = max(client, link, server / share, 0.1 if fps is None else 1000 / fps)
        if fps is not None and fps * one.T_server_ms / 1000 > free:
            assert number not in found
        else:
            assert found[number] == pytest.approx(
                omega * (client + link + server + 3.0) + (1 - omega) * cycle, rel=1e-9)


def simulated_switches(mbps_at, seconds: float, queue_ms=lambda mbps: 0.0):
    """When, and to which choice, a client switches that streams as fast as it can, whose link is as fast as
    `mbps_at(second)`, and before which frames queue for `queue_ms(mbps)`."""
    choices = [Choice(1, 'float32', 20.0, 10.0, 60_000.0), Choice(8, 'float32', 40.0, 5.0, 4_000.0)]
    state, current, number, frames, found, at_s, look_s = Switching(), 0, 0, deque(), [], 0.0, ADAPT_S
    while at_s < seconds:
        choice, link = choices[current], Conditions(mbps_at(at_s))
        at_s += 1 / link.sustained_fps(choice)
        while look_s < at_s:
            now = conditions_of(frames, choices[current], number, look_s)
            if now is not None:
                costs = costs_of(choices, now, None, 1.0, 1.0, 0.5)
                state, better = switch(state, look_s, current, costs, SETTINGS)
                if better is not None:
                    current, number = better, number + 1
                    found.append((look_s, better))
            look_s += ADAPT_S
        frames.append(answered(choice, link, at_s, number, queue_ms=queue_ms(link.bandwidth_mbps)))
        while at_s - frames[0].at_s > OLDEST_S:
            frames.popleft()
    return found


@settings(max_examples=20, deadline=None)
@given(st.floats(10, 12), st.floats(72, 74), st.floats(4, 10))
def test_a_link_that_becomes_slow_and_fast_again_causes_two_switches_soon_after(slow_s, fast_s, mbps):
    found = simulated_switches(lambda s: 100.0 if s < slow_s or s >= fast_s else mbps, 80)
    assert [choice for _, choice in found] == [1, 0]
    assert all(0 <= at_s - change <= SETTINGS.SWITCH_AFTER_S + 1 for (at_s, _), change in zip(found, (slow_s, fast_s)))


@settings(max_examples=20, deadline=None)
@given(st.floats(50, 5000))
def test_frames_that_queue_before_a_slow_link_do_not_hide_that_another_choice_is_better(queue_ms):
    found = simulated_switches(lambda s: 100.0 if s < 12 else 5.0, 30, queue_ms=lambda mbps: queue_ms * (mbps < 50))
    assert [choice for _, choice in found] == [1] and 12 <= found[0][0] <= 12 + SETTINGS.SWITCH_AFTER_S + 1


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 40))
def test_an_oscillating_link_causes_at_most_a_switch_a_minute(period_s):
    found = simulated_switches(lambda s: 100.0 if math.floor(s / period_s) % 2 else 4.0, 150)
    times = [at_s for at_s, _ in found]
    assert all(after - before >= SETTINGS.SWITCH_PAUSE_S for before, after in zip(times, times[1:]))


def probabilities(network, entry, images):
    """[n, classes] of the entry's network."""
    network.set_alpha_array(entry.network.alpha)
    with torch.inference_mode():
        return deploy(network)(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).softmax(dim=1)


def lines_of_a_slowing_link(port: int, images, folder):
    """What a client prints whose link becomes slow after 30 frames."""
    relay = Relay(('127.0.0.1', port), mbps=1000.0)
    client = CameraProcess(relay.port, folder / 'client', '-', 'one')
    feed(client, images[:30])
    wait_until(lambda: len(client.lines()) == 30)
    relay.mbps = 2.0
    feed(client, images[30:])
    client.process.stdin.close()
    status, lines = client.finish()
    relay.close()
    assert status == 0, client.said()
    return lines


def test_a_client_changes_to_another_network_of_its_entry_and_no_frame_is_computed_by_two(tmp_path):
    network = weights_in(tmp_path, 4)
    first, second = (entry_of(name, random_alpha(network, seed), 1) for name, seed in (('one', 5), ('one/other', 8)))
    choices = (dataclasses.replace(first.first, n_bytes=32_768.0),
               dataclasses.replace(second.choices[9], n_bytes=4_096.0, T_client_ms=2.0, network=1))
    entry = dataclasses.replace(first, first=choices[0], choices=choices, others=(second.network,))
    images = batch(6, 160)[0]
    answers = {one.name: probabilities(network, one, images) for one in (first, second)}
    with running(tmp_path, [entry], SWITCH_AFTER_S=0.2, SWITCH_PAUSE_S=0.0) as served:
        lines = lines_of_a_slowing_link(served.port, images, tmp_path)
    assert [line['frame'] for line in lines] == list(range(160)) and not any(line['local'] for line in lines)
    ran = [line['configuration']['network'] for line in lines]
    assert [line['class'] for line in lines] == [int(answers[name][k].argmax()) for k, name in enumerate(ran)]
    assert [line['probability'] for line in lines] == pytest.approx(
        [float(answers[name][k].max()) for k, name in enumerate(ran)], abs=1e-4)
    assert ran[0] == 'one' and ran[-1] == 'one/other'
    assert any('it holds 2 networks' in line for line in served.said)


def test_a_device_without_room_for_another_network_stays_with_its_own(tmp_path):
    network = weights_in(tmp_path, 4)
    first, second = (entry_of(name, random_alpha(network, seed), 1) for name, seed in (('one', 5), ('one/other', 6)))
    entry = dataclasses.replace(first, choices=(first.first, dataclasses.replace(second.choices[9], network=1)),
                                others=(second.network,))
    with running(tmp_path, [entry], SWITCH_AFTER_S=0.2, SWITCH_PAUSE_S=0.0) as served:
        client = CameraProcess(served.port, tmp_path / 'client', '-', 'one', '--set', 'HELD_NETWORKS_MB=0.001')
        feed(client, batch(6, 3)[0])
        wait_until(lambda: len(client.lines()) == 3)
        held, found = served.service.clients[0].held, served.service.clients[0].entry.choices
        assert [one.name for one in held] == ['one'] and found == (first.first,)
        client.process.stdin.close()
        assert client.finish()[0] == 0


def test_a_client_whose_link_becomes_slow_switches_and_no_frame_is_lost_or_computed_by_two_networks(tmp_path):
    network = weights_in(tmp_path, 4)
    at_once = {'SWITCH_AFTER_S': 0.2, 'SWITCH_PAUSE_S': 0.0}
    entry = entry_of('one', random_alpha(network, 5), 1)
    choices = (dataclasses.replace(entry.first, n_bytes=32_768.0),
               dataclasses.replace(entry.choices[9], n_bytes=4_096.0, T_client_ms=2.0))
    entry = dataclasses.replace(entry, first=choices[0], choices=choices)
    images = batch(6, 200)[0]
    with running(tmp_path, [entry], **at_once) as served:
        lines = lines_of_a_slowing_link(served.port, images, tmp_path)
    assert [line['frame'] for line in lines] == list(range(200)) and not any(line['local'] for line in lines)
    assert [line['class'] for line in lines] == expected(network, entry, images)
    splits = [line['configuration']['lambda'] for line in lines]
    assert splits[0] == 1 and splits[-1] == 9
