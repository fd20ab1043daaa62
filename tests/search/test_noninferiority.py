"""The test behind the promise: it errs as rarely as it says, and follows the evidence."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from search.noninferiority import p_value


def acceptance(n: int, margin: float, confidence: float, most: int) -> np.ndarray:
    """Which outcomes (lost, gained) pass, bool [most + 1, most + 1]. For every number gained those up to a number
    lost."""
    passes = np.zeros((most + 1, most + 1), dtype=bool)
    lost = 0
    for gained in range(most + 1):  # more gained, more may be lost
        while lost <= most and lost + gained <= n and p_value(lost, gained, n, margin) <= 1 - confidence:
            lost += 1
        passes[:min(lost, n - gained + 1 if gained <= n else 0), gained] = True
    return passes


def probabilities(n: int, lose: float, gain: float, most: int) -> np.ndarray:
    """Of all outcomes (lost, gained) of n images, by the trinomial distribution, [most + 1, most + 1]."""
    log_factorial = np.concatenate([[0], np.cumsum(np.log(np.arange(1, n + 1)))])
    lost, gained = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing='ij')
    possible = lost + gained <= n
    rest = np.where(possible, n - lost - gained, 0)
    log = (log_factorial[n] - log_factorial[np.minimum(lost, n)] - log_factorial[np.minimum(gained, n)]
           - log_factorial[rest] + lost * math.log(lose) + rest * math.log(1 - lose - gain)
           + gained * math.log(max(gain, 1e-300)))
    return np.where(possible, np.exp(log), 0)


@hypothesis_settings(max_examples=60)
@given(st.integers(20, 1500), st.floats(0.003, 0.15), st.one_of(st.just(0.0), st.floats(0, 0.08)),
       st.sampled_from([0.9, 0.95, 0.99]))
def test_a_network_that_loses_the_margin_passes_as_rarely_as_promised(n, margin, gain, confidence):
    expected = n * (margin + gain)
    most = min(n, int(expected + 8 * math.sqrt(expected) + 12))
    assume(most <= 320)
    passes = acceptance(n, margin, confidence, most)
    chance = probabilities(n, margin + gain, gain, most)
    assert chance.sum() == pytest.approx(1, abs=1e-6)
    assert chance[passes].sum() <= 1 - confidence + 1e-9


@pytest.mark.parametrize('n', [273, 334, 400, 700])
def test_a_network_that_loses_nothing_passes_mostly(n):
    """Of networks that differ on 2 % of the images."""
    assert probabilities(n, 0.01, 0.01, 60)[acceptance(n, 0.02, 0.9, 60)].sum() > 0.7


@given(st.integers(1, 2000), st.data())
def test_more_lost_means_less_evidence_and_more_gained_more(n, data):
    lost = data.draw(st.integers(0, n - 1))
    gained = data.draw(st.integers(0, n - 1 - lost))
    margin = data.draw(st.floats(0, 0.3))
    value = p_value(lost, gained, n, margin)
    assert 0 <= value <= 1
    worse = p_value(lost + 1, gained, n, margin)
    assert worse >= value - 1e-12 or worse > 0.5  # without evidence, any difference is more uncertainty
    if value <= 0.5:
        assert p_value(lost, gained, n, min(1.0, margin + 0.01)) <= value + 1e-12
        assert p_value(lost, gained + 1, n, margin) <= value + 1e-12


def test_without_a_margin_only_a_gain_is_evidence():
    assert p_value(0, 0, 400, 0.0) == 1.0 and p_value(3, 3, 400, 0.0) > 0.5
    assert p_value(0, 12, 400, 0.0) < 0.001


def test_one_image_shows_nothing_and_many_without_a_difference_do():
    assert p_value(0, 0, 1, 0.02) > 0.5 and p_value(0, 0, 50, 0.02) > 0.1
    assert p_value(0, 0, 400, 0.02) < 0.01
    assert p_value(0, 1, 1, 1.0) == 0 and p_value(1, 0, 1, 1.0) == 1  # half an image beyond all of them


@pytest.mark.parametrize('lost, gained, n, margin', [(1, 0, 0, 0.1), (-1, 0, 5, 0.1), (3, 3, 5, 0.1), (0, 0, 5, 1.5)])
def test_what_is_no_comparison_is_refused(lost, gained, n, margin):
    with pytest.raises(ValueError, match='no paired comparison'):
        p_value(lost, gained, n, margin)
