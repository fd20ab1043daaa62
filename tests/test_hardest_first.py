"""The hardest images first: giving up is never wrong, what is left out is estimated, all images are exact."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings as hypothesis_settings, strategies as st

import hardest_first
from accuracy_surrogate import expected_improvement
from hardest_first import Hardness, look, margins_of

BATCH = 16


def networks(seed: int, count: int, spread: float):
    """(labels [n], margins of a reference network [n], logits of others [m, n, 4]): the others' margins are the
    reference's, lowered by something, with noise."""
    rng = np.random.default_rng(seed)
    labels = torch.as_tensor(rng.integers(0, 4, count))
    reference = np.abs(rng.normal(4, 3, count)) - 0.3
    found = []
    for lowered_by in rng.uniform(-1, 3, 6):
        margins = reference - lowered_by + rng.normal(0, spread, count)
        logits = rng.uniform(-9, -8, (count, 4))
        logits[np.arange(count), labels] = margins
        logits[np.arange(count), (labels.numpy() + 1) % 4] = 0.0  # the highest of the others
        found.append(torch.as_tensor(logits))
    return labels, reference.astype(np.float32), found


@hypothesis_settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), classes=st.integers(2, 12))
def test_a_margin_is_above_0_exactly_where_the_right_class_has_the_highest_logit(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, classes, generator=generator)
    labels = torch.randint(0, classes, (50,), generator=generator)
    assert ((margins_of(logits, labels) > 0) == (logits.argmax(1) == labels).numpy()).all()


@hypothesis_settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), count=st.integers(20, 400), spread=st.floats(0.1, 4),
       needed=st.floats(0, 1), quiet_share=st.sampled_from([0.05, 0.25, 1.0]))
@example(seed=1, count=317, spread=1.0, needed=1.0, quiet_share=0.05)  # too many errors, then a quiet stretch
def test_no_network_that_is_accurate_enough_is_given_up_and_what_is_skipped_only_flatters(seed, count, spread, needed,
                                                                                          quiet_share):
    labels, reference, others = networks(seed, count, spread)
    hardness = Hardness(reference, reference.copy())
    for logits in others:
        true, before, asked = float((logits.argmax(1) == labels).double().mean()), hardness.lowest_margins.copy(), []

        def logits_of(index, logits=logits, asked=asked):
            asked.append(index)
            return logits[index]

        found = look(logits_of, labels, hardness, BATCH, needed, quiet_share)
        seen = torch.cat(asked).numpy()
        assert len(seen) == len(set(seen.tolist())) == found.seen
        assert before[seen].max() <= np.delete(before, seen).min(initial=np.inf)  # the hardest ones
        assert (hardness.lowest_margins <= before).all()
        if not found.enough:
            assert true < needed and (found.whole or found.seen >= hardest_first.LEAST_SHARE * count)
            assert found.accuracy < needed
        if found.whole:
            assert found.seen == count and found.accuracy == pytest.approx(true, abs=1e-12)
        elif found.enough:
            assert found.accuracy >= true and quiet_share < 1


@hypothesis_settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1), spread=st.floats(0.8, 2))
def test_the_accuracy_of_a_network_that_is_given_up_is_estimated_within_its_stated_error(seed, spread):
    off = []
    for repeat in range(12):
        labels, reference, others = networks((seed + repeat) % 2 ** 32, 500, spread)
        hardness = Hardness(reference, reference.copy())
        for logits in others:
            found = look(lambda index, logits=logits: logits[index], labels, hardness, BATCH, needed=0.97)
            if not found.whole:
                off.append((found.accuracy - float((logits.argmax(1) == labels).double().mean())) / found.sd)
    assert len(off) >= 10
    assert np.mean(np.abs(off) < 3) >= 0.85  # of the standard deviation that it states


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
