"""Tests in a fixed order: which network they end with, and how rarely that loses more than was allowed."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_cases import first_images, trained_model, with_settings

from config import UserError
from costs.cost_model import Configuration
from network.alpha import unpruned_alpha
from search.answers import Answer, first_confirmed, last_confirmed
from search.confirmation import Calibration, Comparison, in_fixed_order
from search.noninferiority import p_value


@given(st.lists(st.booleans(), max_size=12))
def test_what_stands_before_the_first_failure_passes_and_nothing_behind_it_is_tested(outcomes):
    tested = []

    def passes(option):
        tested.append(option)
        return outcomes[option]

    passed, count = in_fixed_order(iter(range(len(outcomes))), passes)
    assert passed == list(itertools.takewhile(lambda option: outcomes[option], range(len(outcomes))))
    assert tested == list(range(count)) and count == min(len(outcomes), len(passed) + 1)


@pytest.mark.parametrize('losses', [(0.002, 0.01, 0.021, 0.03), (0.021, 0.0, 0.04), (0.02001,), (0.0, 0.0, 0.0, 0.025)])
def test_the_answer_truly_loses_more_than_allowed_as_rarely_as_promised(losses):
    """Ten thousand sets of 350 calibration images and networks of these losses, which gain 1 % of the images."""
    rng, n, gain, broken = np.random.default_rng(0), 350, 0.01, 0
    outcomes = [rng.multinomial(n, (loss + gain, gain, 1 - loss - 2 * gain), size=10_000)[:, :2] for loss in losses]
    for pairs in zip(*outcomes):
        passed, _ = in_fixed_order(zip(losses, pairs), lambda network: p_value(*map(int, network[1]), n, 0.02) <= 0.1)
        broken += bool(passed) and passed[-1][0] > 0.02
    assert broken / 10_000 < 0.1 + 3 * 0.003


def answer_of(value: float) -> Answer:
    return Answer(Configuration(np.ones((1, 3)), (13,), 1), 0.9, Comparison(0.9, 0.9, 100, value))


def calibration(reference, images=None, **changes) -> Calibration:
    images = images or first_images(3, 'calibration', 60)
    return Calibration(trained_model(), reference, images, with_settings(**changes))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_without_confidence_everything_passes_and_with_it_what_is_improbable_enough(values):
    options = [answer_of(value) for value in values]
    trusting, strict = TRUSTING, STRICT
    assert last_confirmed(options, trusting).answer is options[-1] and first_confirmed(options, trusting) is options[0]
    if values[0] <= 0.1:
        found = last_confirmed(options, strict)
        assert found.n_passed == len(list(itertools.takewhile(lambda value: value <= 1 - 0.9, values)))
        assert found.answer is options[found.n_passed - 1]
    else:
        with pytest.raises(UserError, match='no configuration is shown to lose at most ε = 0.02 with confidence 0.9'):
            last_confirmed(options, strict)


ONES = unpruned_alpha([block.n_branches for block in trained_model().blocks])
TRUSTING, STRICT = calibration(ONES, CONFIDENCE=None), calibration(ONES)


def test_a_configuration_is_compared_image_by_image_with_the_reference():
    alpha = ONES.copy()
    alpha[2:6, 0] = 0
    found = STRICT.compare(Configuration(alpha, (), 0))
    right = STRICT.reference_right
    assert found.n_cal == len(right) == 60 and found.cal_reference == right.mean()
    mine = calibration(alpha).reference_right
    assert found.cal_final == mine.mean() < found.cal_reference
    assert found.cal_p_value == p_value(int((right & ~mine).sum()), int((mine & ~right).sum()), 60, 0.02)


def test_the_reference_itself_needs_no_images_and_its_lossy_copy_does():
    assert STRICT.compare(Configuration(ONES, (), 4)).cal_p_value == 0
    assert STRICT.compare(Configuration(ONES, (), 4, 'uint8')).cal_p_value > 0.1  # 60 images show nothing at ε = 0.02
