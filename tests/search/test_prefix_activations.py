"""What networks have in common in their first blocks is run once: results stay, memory is bounded, work is counted."""
from __future__ import annotations

import dataclasses
from typing import Dict, Set, Tuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import config
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from hyper_repvgg import create_hyper_repvgg, deploy
from network.alpha import kept, unpruned_alpha
from search.hardest_first import margins_of
from search.prefix_activations import PrefixActivations, PruningEvaluator, choice_of

SETTINGS = config.load((), environ={})
OPTIONS = ((True, True, True), (False, True, True))
FEW_ROWS = 24 * 4 * 10  # bytes: ten rows of six float32


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data(), limit=st.sampled_from([0, 50, FEW_ROWS, 10 ** 6]))
def test_outputs_are_given_back_as_they_were_put_and_stay_within_the_limit(data, limit):
    prefix = PrefixActivations(limit)
    put: Dict[Tuple, torch.Tensor] = {}
    for number in range(data.draw(st.integers(1, 12))):
        choice = tuple(data.draw(st.lists(st.sampled_from(OPTIONS), min_size=3, max_size=3)))
        images = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
        prefix.use(choice)
        running = [first for first in prefix.outputs if first == choice[:len(first)]]
        for depth in range(4):
            new = [image for image, known in zip(images, prefix.depths(choice, images)) if known < depth]
            if new:
                x = torch.full((len(new), 6), float(number)) + torch.tensor(new)[:, None] / 16
                prefix.put(choice, depth, new, x)
                put.update(((choice[:depth], image), row) for image, row in zip(new, x))
        assert all(first in prefix.outputs for first in running)  # what runs does not make room for itself
        rows = {(first, image): row for first, outputs in prefix.outputs.items() for image, row in outputs.rows.items()}
        assert prefix.n_bytes == sum(row.numel() * row.element_size() for row in rows.values()) <= limit
        for (first, image), row in rows.items():
            assert torch.equal(prefix.get(first, [image])[0], row) and torch.equal(row, put[first, image])
    assert limit < 10 ** 6 or set(rows) == set(put)  # with room for all, nothing is forgotten


@pytest.fixture(scope='module')
def parts():
    torch.set_num_threads(1)
    model = create_hyper_repvgg(SETTINGS.WEIGHT_PATH_SERVER, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)
    data = load_domain(SETTINGS, 0, 'val')
    return model, ImageSet(data.images[:60], data.labels[:60])


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2 ** 32 - 1), cache_mb=st.sampled_from([0, 1, 512]))
def test_any_sequence_of_looks_finds_the_margins_of_the_networks_and_runs_no_block_twice(parts, seed, cache_mb):
    model, data = parts
    rng, alpha = np.random.default_rng(seed), unpruned_alpha([block.n_branches == 3 for block in model.blocks])
    alpha *= rng.uniform(0.8, 1.2, alpha.shape)
    evaluator = PruningEvaluator(model, alpha, data, dataclasses.replace(SETTINGS, ACTIVATION_CACHE_MB=cache_mb))
    whole, n_blocks = choice_of(alpha), len(model.blocks)
    been: Set[Tuple] = set()  # (first blocks, image)
    new = total = 0
    for _ in range(6):
        choice = tuple(row if rng.random() < 0.7 else (False, False, True) if row[2] and rng.random() < 0.3 else
                       (False, True, row[2]) for row in whole)
        expected = rng.normal(size=len(data)).astype(np.float32)
        found = evaluator.look(choice, expected, needed=rng.choice([0.0, 0.99]), quiet_share=rng.choice([0.3, 1.0]))
        seen = np.argsort(expected, kind='stable')[:found.seen]
        model.set_alpha_array(kept(choice, alpha))
        with torch.inference_mode():
            images = (data.images[seen].float() / 255 - 0.5) / 0.5
            wanted = margins_of(deploy(model)(images), data.labels[seen])
        np.testing.assert_allclose(found.margins[seen].astype(float), wanted, rtol=2e-3, atol=2e-3)  # half precision
        run = {(choice[:depth], int(image)) for image in seen for depth in range(1, n_blocks + 1)}
        new, total, been = new + len(run - been), total + len(run), been | run
    if cache_mb == 512:
        assert evaluator.block_evaluations == new
    elif cache_mb == 0:
        assert evaluator.block_evaluations == total
    else:
        assert new <= evaluator.block_evaluations <= total
    assert evaluator.prefix.n_bytes <= cache_mb * 2 ** 20
