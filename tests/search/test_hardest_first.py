"""The hardest images first: giving up is never wrong, what is left out is estimated, all images are exact; and what
is predicted from the margins found."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from search import hardest_first
from search.hardest_first import look, margins_of
from search.surrogate import AccuracySurrogate, expected_improvement

BATCH = 16


def networks(seed: int, count: int, spread: float):
    """(expected margins [n], margins of networks [m, n]): what was expected, lowered by something, with noise."""
    rng = np.random.default_rng(seed)
    expected = (np.abs(rng.normal(2, 1.5, count)) - 0.15).astype(np.float32)
    found = [(expected - lowered_by + rng.normal(0, spread, count)).astype(np.float32)
             for lowered_by in rng.uniform(-0.5, 1.5, 6)]
    return expected, found


@hypothesis_settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), classes=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_a_margin_is_above_0_exactly_where_the_network_is_right_and_does_not_depend_on_its_scale(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, classes, generator=generator)
    labels = torch.randint(0, classes, (50,), generator=generator)
    assert ((margins_of(logits, labels) > 0) == (logits.argmax(1) == labels).numpy()).all()
    np.testing.assert_allclose(margins_of(scale * logits + 1, labels), margins_of(logits, labels), rtol=1e-3, atol=1e-3)


def test_a_network_without_finite_or_different_logits_is_wrong_everywhere():
    labels = torch.zeros(3, dtype=torch.long)
    assert (margins_of(torch.full((3, 4), float('nan')), labels) <= 0).all()
    assert (margins_of(torch.ones(3, 4), labels) <= 0).all()


@hypothesis_settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), count=st.integers(20, 400), spread=st.floats(0.05, 2),
       needed=st.floats(0, 1), quiet_share=st.sampled_from([0.05, 0.25, 1.0]))
@example(seed=1, count=317, spread=0.5, needed=1.0, quiet_share=0.05)  # too many errors, then a quiet stretch
def test_no_network_that_is_accurate_enough_is_given_up_and_what_is_skipped_only_flatters(seed, count, spread, needed,
                                                                                          quiet_share):
    expected, others = networks(seed, count, spread)
    for margins in others:
        true, asked = float((margins > 0).mean()), []

        def margins_at(index, margins=margins, asked=asked):
            asked.append(index.numpy())
            return margins[index.numpy()]

        found = look(margins_at, expected, BATCH, needed, quiet_share)
        seen = np.concatenate(asked)
        assert len(seen) == len(set(seen.tolist())) == found.seen
        assert expected[seen].max() <= np.delete(expected, seen).min(initial=np.inf)  # the hardest ones
        np.testing.assert_array_equal(found.margins[seen], margins[seen].astype(np.float16))
        assert np.isfinite(found.margins).all() and len(found.margins) == count
        if not found.enough:
            assert true < needed and (found.whole or found.seen >= hardest_first.LEAST_SHARE * count)
            assert found.accuracy < needed
        if found.whole:
            assert found.seen == count and found.accuracy == pytest.approx(true, abs=1e-12)
        elif found.enough:
            assert found.accuracy >= true and quiet_share < 1


@hypothesis_settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), spread=st.floats(0.4, 1))
def test_the_accuracy_of_a_network_that_is_given_up_is_estimated_within_its_stated_error(seed, spread):
    off = []
    for repeat in range(12):
        expected, others = networks((seed + repeat) % 2 ** 32, 500, spread)
        for margins in others:
            found = look(lambda index, margins=margins: margins[index.numpy()], expected, BATCH, needed=0.97)
            if not found.whole:
                off.append((found.accuracy - float((margins > 0).mean())) / found.sd)
    assert len(off) >= 10
    assert np.mean(np.abs(off) < 3) >= 0.85  # of the standard deviation that it states


@hypothesis_settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_the_surrogate_predicts_networks_whose_branches_add_up_and_is_less_sure_where_it_has_not_been(seed):
    rng = np.random.default_rng(seed)
    images, branches = 400, 10
    effect = rng.normal(-0.15, 0.3, (branches, images))  # of each branch on each image
    seen = np.vstack([np.zeros(branches, bool), np.eye(branches, dtype=bool), rng.random((20, branches)) < 0.3])
    pairs = np.array([np.eye(branches, dtype=bool)[i] | np.eye(branches, dtype=bool)[j]
                      for i in range(branches) for j in range(i)])
    whole = np.abs(rng.normal(2, 1.5, images))

    def margins(dropped):
        return whole + dropped.astype(float) @ effect

    surrogate = AccuracySurrogate(seen, margins(seen), (margins(seen) > 0).mean(axis=1), np.ones(len(seen), bool),
                                  epsilon=0.02)
    accuracy, sd = surrogate.predict(pairs)
    truth = (margins(pairs) > 0).mean(axis=1)
    assert np.abs(accuracy - truth).mean() < 0.01
    assert np.abs(surrogate.expected_margins(pairs[0]) - margins(pairs)[0]).mean() < 0.15
    assert sd.mean() > surrogate.predict(seen[:11])[1].mean()


@hypothesis_settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_images_with_wide_margins_that_the_surrogate_leaves_out_count_as_right(seed):
    rng = np.random.default_rng(seed)
    dropped = np.vstack([np.zeros(6, bool), np.eye(6, dtype=bool)])
    hard = np.abs(rng.normal(0.5, 0.5, 200)) + dropped.astype(float) @ rng.normal(-0.2, 0.3, (6, 200))
    easy = np.full((7, 1800), 9.0)
    margins, enough = np.hstack([hard, easy]), np.ones(7, bool)
    pool = rng.random((20, 6)) < 0.5
    accuracy = (margins > 0).mean(axis=1)
    alone = AccuracySurrogate(dropped, hard, (hard > 0).mean(axis=1), enough, 0.02).predict(pool)[0]
    together = AccuracySurrogate(dropped, margins, accuracy, enough, 0.02).predict(pool)[0]
    assert len(AccuracySurrogate(dropped, margins, accuracy, enough, 0.02).hardest) < margins.shape[1]
    np.testing.assert_allclose(1 - together, (1 - alone) * 200 / 2000, atol=0.015)


@hypothesis_settings(max_examples=60, deadline=None)
@given(accuracy=st.floats(0.8, 1), sd=st.floats(0.001, 0.05), T_eff=st.floats(0.5, 1.2), bound=st.floats(0.85, 0.99),
       mu=st.sampled_from([0.0, 0.5, 1.0]), best=st.floats(-0.3, 0.3))
def test_the_expected_improvement_is_the_mean_over_what_the_accuracy_may_turn_out_to_be(accuracy, sd, T_eff, bound, mu,
                                                                                        best):
    step = np.linspace(-8, 8, 400001)
    density = np.exp(-step * step / 2) / np.sqrt(2 * np.pi) * (step[1] - step[0])
    values = accuracy + sd * step
    wanted = float((density * np.where(values >= bound, np.maximum(0, best - (T_eff - mu * values)), 0)).sum())
    found = expected_improvement(np.array([accuracy]), np.array([sd]), np.array([T_eff]), bound, mu, best)[0]
    assert found == pytest.approx(wanted, abs=1e-4)
