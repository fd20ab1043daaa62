"""Margins of pruned networks: those of the network run alone, whatever is kept in memory; work is counted, memory
bounded."""
from __future__ import annotations

from collections import OrderedDict
from typing import Set, Tuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import pruned_models, seeds
from search_cases import first_images, random_mask, trained_model, training_form_logits, with_settings

from domains.image_sets import ImageSet
from hyper_repvgg import deploy
from network.alpha import mask_of, pruned, unpruned_alpha
from network.inputs import batches, normalise
from search.evaluator import Evaluator, PrefixCache, accuracy_of, margins_of

BLOCKS = ((True, True, True), (False, True, True))


def network_margins(network, images, settings):
    """A network's margins on all images, [n], each batch run on its own from the start."""
    with torch.inference_mode():
        return np.concatenate([
            margins_of(network(normalise(images.images[part], settings.NORM_MEAN, settings.NORM_STD)),
                       images.labels[part]) for part in batches(len(images), settings.BATCH_SIZE)])


@pytest.fixture(scope='module')
def parts():
    """The built-in network and a few images."""
    torch.set_num_threads(1)
    return trained_model(), first_images(0, 'val', 40)


# --- margins ------------------------------------------------------------------------------------------------

@hypothesis_settings(max_examples=60)
@given(seed=seeds, classes=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_a_margin_is_above_0_exactly_where_the_network_is_right_and_does_not_depend_on_its_scale(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, classes, generator=generator)
    labels = torch.randint(0, classes, (50,), generator=generator)
    right = (logits.argmax(1) == labels).numpy()
    margins = margins_of(logits, labels)
    assert margins.dtype == np.float16 and ((margins > 0) == right).all()
    assert accuracy_of(margins) == right.mean()
    np.testing.assert_allclose(margins_of(scale * logits + 1, labels), margins, rtol=1e-3, atol=1e-3)


@given(st.floats(1e-30, 1e30), st.booleans())
def test_half_precision_turns_no_hair_between_right_and_wrong_and_no_certainty_into_infinity(gap, right):
    logits = torch.zeros(1, 5, dtype=torch.float64)
    logits[0, 0], logits[0, 1:4] = gap if right else -gap, torch.tensor([-1e25, -2e20, -3e24])
    margin = margins_of(logits, torch.tensor([0]))
    assert np.isfinite(margin).all() and (margin > 0) == right


def test_a_network_without_finite_or_different_logits_is_wrong_everywhere():
    labels = torch.zeros(3, dtype=torch.long)
    for logits in (torch.full((3, 4), float('nan')), torch.full((3, 4), float('inf')), torch.ones(3, 4)):
        margins = margins_of(logits, labels)
        assert np.isfinite(margins).all() and (margins <= 0).all()


# --- pruned networks ------------------------------------------------------------------------------------------

@hypothesis_settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, cache_mb=st.sampled_from([0, 1, 512]), batch_size=st.sampled_from([7, 32, 64]))
def test_any_sequence_of_masks_has_the_margins_of_its_networks_and_runs_no_block_twice(parts, seed, cache_mb,
                                                                                       batch_size):
    model, data = parts
    rng, alpha = np.random.default_rng(seed), unpruned_alpha([block.n_branches for block in model.blocks])
    alpha *= rng.uniform(0.8, 1.2, alpha.shape)
    settings = with_settings(ACTIVATION_CACHE_MB=cache_mb, BATCH_SIZE=batch_size)
    evaluator = Evaluator(model, alpha, data, settings)
    nothing_kept = Evaluator(model, alpha, data, with_settings(ACTIVATION_CACHE_MB=0, BATCH_SIZE=batch_size))
    whole, n_blocks = mask_of(alpha), len(model.blocks)
    been: Set[Tuple] = set()  # first blocks
    total = 0
    for _ in range(4):
        mask = random_mask(whole, rng, rng.choice([0.05, 0.3]))
        found = evaluator.margins(mask)
        np.testing.assert_array_equal(found, nothing_kept.margins(mask))  # to the last bit
        logits = training_form_logits(model, pruned(alpha, mask), data.images)
        np.testing.assert_allclose(found.astype(float), margins_of(logits, data.labels).astype(float), rtol=2e-3,
                                   atol=2e-3)  # half precision
        model.set_alpha_array(pruned(alpha, mask))
        np.testing.assert_array_equal(found, network_margins(deploy(model), data, settings))
        been |= {mask[:depth] for depth in range(1, n_blocks + 1)}
        total += n_blocks
    assert nothing_kept.block_evaluations == total * len(data)
    least, most = len(been) * len(data), total * len(data)
    assert evaluator.block_evaluations == {0: most, 512: least}.get(cache_mb, evaluator.block_evaluations)
    assert least <= evaluator.block_evaluations <= most
    assert evaluator.cache.n_bytes <= cache_mb * 2 ** 20


@hypothesis_settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(pruned_models(), seeds, st.sampled_from([0.0, 0.2, 512]))
def test_margins_of_any_family_of_networks_pruned_before_or_not_are_those_of_its_training_form(model, seed, cache_mb):
    model, rng = model.float(), np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    classes = model.linear.out_features
    assume(classes > 1)
    data = ImageSet(torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
                    torch.randint(0, classes, (6,), generator=generator))
    alpha = model.alpha_array()
    evaluator = Evaluator(model, alpha, data, with_settings(ACTIVATION_CACHE_MB=cache_mb, BATCH_SIZE=4))
    for _ in range(3):
        mask = random_mask(mask_of(alpha), rng)
        found = evaluator.margins(mask)
        logits = training_form_logits(model, pruned(alpha, mask), data.images)
        assert (evaluator.margins(mask) == found).all()
        np.testing.assert_allclose(found.astype(float), margins_of(logits, data.labels).astype(float), rtol=5e-3,
                                   atol=5e-3)
    assert evaluator.cache.n_bytes <= cache_mb * 2 ** 20


def test_what_happens_to_the_model_in_between_changes_no_margin(parts):
    model, data = parts
    alpha = unpruned_alpha([block.n_branches for block in model.blocks])
    evaluator, rng = Evaluator(model, alpha, data, with_settings(ACTIVATION_CACHE_MB=0)), np.random.default_rng(0)
    masks = [random_mask(mask_of(alpha), rng) for _ in range(3)]
    before = [evaluator.margins(mask) for mask in masks]
    model.set_alpha_array(1.3 * pruned(alpha, masks[0]))  # as a recovery leaves it
    for mask, margins in zip(masks, before):
        np.testing.assert_array_equal(evaluator.margins(mask), margins)


# --- what is kept ---------------------------------------------------------------------------------------------

class Reference:
    """The cache written down plainly: what was used last stands last."""

    def __init__(self, limit: float) -> None:
        self.limit, self.kept = limit, OrderedDict()

    def n_bytes(self) -> int:
        return sum(4 * x.numel() for x in self.kept.values())

    def deepest(self, mask, batch):
        present = [depth for depth in range(len(mask), -1, -1) if (mask[:depth], batch) in self.kept]
        for depth in present:
            self.kept.move_to_end((mask[:depth], batch))
        return (present[0], self.kept[mask[:present[0]], batch]) if present else (0, None)

    def put(self, first, batch, output):
        if 4 * output.numel() <= self.limit:
            while self.n_bytes() + 4 * output.numel() > self.limit:
                self.kept.popitem(last=False)
            self.kept[first, batch] = output


@hypothesis_settings(max_examples=150)
@given(limit=st.sampled_from([0, 20, 100, 400, 10 ** 6]), runs=st.lists(st.tuples(
    st.lists(st.sampled_from(BLOCKS), min_size=3, max_size=3).map(tuple), st.integers(0, 2)), min_size=1, max_size=25),
    sizes=st.lists(st.integers(1, 12), min_size=4, max_size=4))
def test_outputs_come_back_as_they_were_put_and_what_was_not_used_for_longest_makes_room(limit, runs, sizes):
    cache, reference = PrefixCache(limit), Reference(limit)
    for number, (mask, batch) in enumerate(runs):
        depth, x = cache.deepest(mask, batch)
        expected_depth, expected = reference.deepest(mask, batch)
        assert depth == expected_depth and x is expected
        for deeper in range(0 if x is None else depth + 1, 4):  # as the evaluator runs on
            output = torch.full((sizes[deeper],), float(number))
            cache.put(mask[:deeper], batch, output)
            reference.put(mask[:deeper], batch, output)
            assert cache.n_bytes == reference.n_bytes() <= limit
    if limit == 10 ** 6:  # with room for all, nothing is forgotten
        assert all(cache.deepest(mask, batch)[0] == 3 for mask, batch in runs)
