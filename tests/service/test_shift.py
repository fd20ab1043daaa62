"""A client is switched to the domain that its frames clearly look like, soon, and by nothing else."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from client_process import SETTINGS, batch
from fleets import made_settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from service_cases import CameraProcess, entry_of, expected, feed, random_alpha, running, wait_until, weights_in

from config import UserError
from service.looks import references_for, statistics_of
from service.shift import MARGIN, NOTHING, Sum, evidence_of, features_of, references_of, watch
from service.tails import base_model

C, AFTER = 8, 10


def drawn(rng, centre, count, spread=0.1):
    """Statistics [count, 2, C] of frames around a centre [2, C]."""
    return centre * np.exp(spread * rng.standard_normal((count, 2, C)))


def domains_of(seed, apart):
    """(random numbers, three centres that differ by a factor of about exp(apart), their references)."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.5, 2.0, (2, C))
    centres = {name: first * np.exp(apart * k * rng.choice([-1, 1], (2, C))) for k, name in enumerate('abc')}
    return rng, centres, references_of({name: drawn(rng, centre, 200) for name, centre in centres.items()})


def swaps_of(frames, current, references):
    """(position, domain) of every swap."""
    found, sums = [], {}
    for k, statistics in enumerate(frames):
        sums, better = watch(sums, statistics, current, references, AFTER)
        if better is not None:
            found.append((k, better))
            current = better
    return found


@given(st.integers(0, 2 ** 32), st.floats(0.3, 2))
@hypothesis_settings(max_examples=30, deadline=None)
def test_frames_that_clearly_look_like_another_domain_lead_there_soon_and_its_own_never_away(seed, apart):
    rng, centres, references = domains_of(seed, apart)
    frames = np.concatenate([drawn(rng, centres[name], 300) for name in 'abca'])
    found = swaps_of(frames, 'a', references)
    assert [name for _, name in found] == ['b', 'c', 'a']
    for (at, _), start in zip(found, (300, 600, 900)):
        assert AFTER - 1 <= at - start < 2 * AFTER


@given(st.integers(0, 2 ** 32), st.floats(0, 2))
@hypothesis_settings(max_examples=20, deadline=None)
def test_a_domain_is_not_left_whether_others_are_near_or_far(seed, apart):
    rng, centres, references = domains_of(seed, apart)
    for name, centre in centres.items():
        assert swaps_of(drawn(rng, centre, 1000), name, references) == []


@given(st.integers(0, 2 ** 32), st.integers(1, AFTER - 1), st.integers(AFTER, 40))
@hypothesis_settings(max_examples=20, deadline=None)
def test_a_few_frames_of_another_domain_change_nothing(seed, burst, pause):
    rng, centres, references = domains_of(seed, 1.0)
    frames = np.concatenate([drawn(rng, centres[name], count) for _ in range(10)
                             for name, count in (('a', pause), ('b', burst))])
    assert swaps_of(frames, 'a', references) == []


@given(st.integers(0, 2 ** 32), st.floats(0.2, 2))
@hypothesis_settings(max_examples=20, deadline=None)
def test_frames_between_two_domains_do_not_make_a_client_go_back_and_forth(seed, apart):
    rng, centres, references = domains_of(seed, apart)
    between = np.sqrt(centres['a'] * centres['b'])
    assert len(swaps_of(drawn(rng, between, 1000, 0.02), 'a', references)) <= 1


@given(st.integers(0, 2 ** 32), st.floats(0, 3))
@hypothesis_settings(deadline=None)
def test_evidence_says_which_domain_is_nearer(seed, apart):
    rng, centres, references = domains_of(seed, apart)
    features = features_of(drawn(rng, centres['b'], 1)[0])
    found = evidence_of(features, 'a', references)
    assert sorted(found) == ['b', 'c']
    distance = {name: (((features - mean) / references.spread) ** 2).sum()
                for name, mean in zip(references.names, references.means)}
    assert all((value > 0) == (distance[name] < distance['a']) for name, value in found.items())


def test_what_cannot_be_judged_changes_nothing():
    rng, centres, references = domains_of(1, 1.0)
    before = {'b': Sum(3.0, 4.0)}
    assert watch(before, np.full((2, C), np.nan), 'a', references, AFTER) == (before, None)
    assert watch({}, centres['b'], 'elsewhere', references, AFTER) == ({}, None)
    assert watch({}, centres['b'], 'a', references, 1)[1] == 'b'
    sums, found = watch({'b': Sum(0.1, 5.0)}, centres['a'], 'a', references, 1)
    assert found is None and sums['b'] == NOTHING and MARGIN < 1


def test_what_domains_look_like_is_measured_on_training_images_as_devices_measure_it(tmp_path):
    settings = made_settings(tmp_path)
    model = base_model(settings)
    references = references_for({'domain_3': 3, 'domain_6': 6}, model, settings)
    assert references.names == ('domain_3', 'domain_6') and references.means.shape == (2, 2 * 32)
    assert (references.spread > 0).all()
    with pytest.raises(UserError, match='no such'):
        references_for({'domain_3': 3}, model, dataclasses.replace(settings, DATASET='imagefolder',
                                                                   DATA_PATH=str(tmp_path / 'none')))


def test_a_client_whose_images_change_is_switched_and_no_frame_is_lost(tmp_path):
    model = weights_in(tmp_path, 4)
    entries = [entry_of(name, random_alpha(model, seed), 1) for name, seed in (('one', 5), ('two', 8))]
    noisy = batch(1, 90)[0]
    grey = (noisy // 8 + 112).to(torch.uint8)
    looks = references_of({'one': statistics_of(noisy[60:], model, SETTINGS),
                           'two': statistics_of(grey[60:], model, SETTINGS)})
    images = torch.cat([noisy[:40], grey[:40]])
    with running(tmp_path, entries, references=looks) as served:
        client = CameraProcess(served.port, tmp_path / 'client', '-', 'one')
        feed(client, images)
        wait_until(lambda: len(client.lines()) == 80)
        assert served.service.snapshot()['clients'][0]['entry'] == 'two'
        client.process.stdin.close()
        status, lines = client.finish()
    assert status == 0, client.said()
    assert [line['frame'] for line in lines] == list(range(80)) and not any(line['local'] for line in lines)
    ran = [line['entry'] for line in lines]
    classes = {entry.name: expected(model, entry, images) for entry in entries}
    assert [line['class'] for line in lines] == [classes[name][k] for k, name in enumerate(ran)]
    assert set(ran[:40 + SETTINGS.SHIFT_AFTER_FRAMES]) == {'one'} and set(ran[70:]) == {'two'}
    assert any('its frames look so' in line for line in served.said)
