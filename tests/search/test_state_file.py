"""The file that a killed search goes on from: read back to the last bit, refused when it is damaged."""
from __future__ import annotations

import copy
import json
import os
from typing import Any, List

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import seeds
from search_cases import assert_same_networks, random_mask, slow_client_table, with_settings

from config import UserError
from network.alpha import mask_of, pruned, unpruned_alpha
from pipeline import kinds
from search import state_file
from search.state import CurvePoint, EvaluatedNetwork, Measurement, Phase, SearchState, Work

KIND, DOMAIN = 'joint_state', 3
TABLE = slow_client_table()
UNPRUNED = unpruned_alpha(TABLE.n_branches)


def random_alpha(rng: np.random.Generator, mask) -> np.ndarray:
    return pruned(UNPRUNED * rng.normal(1, 1 / 3, UNPRUNED.shape), mask)


def random_network(rng: np.random.Generator, mask) -> EvaluatedNetwork:
    formats = [None, ('float32',), ('uint8', 'uint8+zlib'), ('uint4@0.5',)][rng.integers(4)]
    flags = [bool(value) for value in rng.random(2) < 0.5]
    return EvaluatedNetwork(random_alpha(rng, mask), rng.random(), rng.random(), formats, *flags)


def random_state(seed: int) -> SearchState:
    """A state of any phase, with numbers that are not round."""
    rng = np.random.default_rng(seed)
    masks = [mask_of(UNPRUNED), *(random_mask(mask_of(UNPRUNED), rng) for _ in range(rng.integers(0, 5)))]
    curve = [CurvePoint(int(rng.integers(20)), *rng.random(3).tolist()) for _ in range(rng.integers(1, 4))]
    n_images = int(rng.integers(1, 40))
    return SearchState(
        random_network(rng, masks[-1]), curve, list(Phase)[rng.integers(3)], int(rng.integers(100)),
        {mask: Measurement(random_alpha(rng, mask), rng.normal(0, 3, n_images).astype(np.float16)) for mask in masks},
        {mask: random_network(rng, mask) for mask in masks if rng.random() < 0.5},
        [random_network(rng, mask) for mask in masks if rng.random() < 0.3],
        {(int(rng.integers(11)), (True, False, bool(rng.random() < 0.5))) for _ in range(rng.integers(0, 4))},
        Work(int(rng.integers(10 ** 9)), int(rng.integers(10 ** 9))))


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    return with_settings(RESULTS_DIR=str(tmp_path_factory.mktemp('state')))


@given(seeds, st.floats(0, 1e6))
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_state_is_read_back_to_the_last_bit_and_in_the_same_order(settings, seed, wall_s):
    state = random_state(seed)
    state_file.save(KIND, state, DOMAIN, TABLE, settings, 'inputs', wall_s)
    found, seconds = state_file.load(KIND, DOMAIN, TABLE, settings, 'inputs')
    assert_same_networks(found, state)
    assert found.work == state.work and seconds == wall_s
    assert all(measurement.margins.dtype == np.float16 for measurement in found.measured.values())


def test_a_state_of_other_inputs_or_none_is_not_gone_on_from_and_a_finished_one_is_dropped(settings):
    state_file.save(KIND, random_state(1), DOMAIN, TABLE, settings, 'inputs', 1.0)
    path = kinds.path_of(KIND, settings, DOMAIN)
    assert state_file.load(KIND, DOMAIN, TABLE, settings, 'other inputs') is None
    assert state_file.load(KIND, DOMAIN + 1, TABLE, settings, 'inputs') is None
    state_file.drop(KIND, DOMAIN, settings)
    assert not os.path.exists(path) and state_file.load(KIND, DOMAIN, TABLE, settings, 'inputs') is None
    state_file.drop(KIND, DOMAIN, settings)  # there is none: nothing to do


def ways_in(content: Any, at=()) -> List[tuple]:
    """The way to every value in a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at] * bool(at) + [way for key, value in items for way in ways_in(value, (*at, key))]


@given(st.data(), seeds)
@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_value_is_replaced_by_the_state_is_refused_in_one_line_or_read(settings, data, seed):
    path = kinds.path_of(KIND, settings, DOMAIN)
    state_file.save(KIND, random_state(seed), DOMAIN, TABLE, settings, 'inputs', 1.0)
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    *before, last = data.draw(st.sampled_from([way for way in ways_in(content) if way[0] != 'metadata']))
    junk = data.draw(st.sampled_from(['', 'x', [], {}, [[]], -7, 10 ** 400, True, None]))
    at = content = copy.deepcopy(content)
    for key in before:
        at = at[key]
    at[last] = junk
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(json.dumps(content))
    try:
        state_file.load(KIND, DOMAIN, TABLE, settings, 'inputs')
    except UserError as error:
        assert '\n' not in str(error) and f'domain_{DOMAIN}_state.json' in str(error)


def first_measured(content):
    return next(iter(content['measured'].values()))


@pytest.mark.parametrize('damage', [
    lambda content: content['best']['alpha'].pop(),
    lambda content: content['best']['alpha'].__setitem__(1, [1.0, 1.0]),
    lambda content: first_measured(content)['alpha'].pop(),
    lambda content: first_measured(content).__setitem__('margins', 'AAAA=A'),
    lambda content: first_measured(content).__setitem__('margins', 'AHw='),  # infinity
    lambda content: content['measured'].__setitem__('111', {**first_measured(content), 'margins': 'AAA='}),
    lambda content: content.__setitem__('phase', 'polish'),
    lambda content: content['best'].pop('formats'),
    lambda content: content.__setitem__('block_evaluations', 10 ** 400) or content['best'].__setitem__('accuracy', []),
])
def test_a_damaged_state_says_what_to_do(settings, damage):
    path = kinds.path_of(KIND, settings, DOMAIN)
    state_file.save(KIND, random_state(7), DOMAIN, TABLE, settings, 'inputs', 1.0)
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    damage(content)
    with open(path, 'w', encoding='utf-8') as stream:
        json.dump(content, stream)
    with pytest.raises(UserError, match='domain_3_state.json: is damaged; delete it to start the search again'):
        state_file.load(KIND, DOMAIN, TABLE, settings, 'inputs')
