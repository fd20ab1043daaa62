"""JSON files that were damaged or edited: every reader takes them, or refuses them in one line, whatever they hold."""
from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
from typing import Any

import pytest
from random_cases import whole_table

import code1_train_and_record_weights as code1
import config
import lut_manager
import step2_initial_throughput_opt as step2
import step5_visualize_results as step5
from config import Settings, UserError
from costs.device_profiles import load_profile
from domains import partition, trained_images
from domains.image_sources import open_source
from pipeline import fingerprints, kinds, provenance, writing
from search import domain_inputs, result_file, result_warnings

ODD = (None, True, -1, 0, 3, 10 ** 400, 10 ** 30, 1e308, -0.5, 'x', '', [], {}, [1, 2], [[1]], {'a': 1}, {'0': [1]},
       '\ud800', [None], '../../x', '\0')
TEXTS = ('[' * 100_000, '{"a":' * 100_000, '[1, 2]', 'null', '"x"', '3', '', '\ufeff{}')
MUTATIONS = 60  # of each kind


def mutated(text: str, rng: random.Random) -> bytes:
    """Truncated, with flipped bits, something else, or with one or two values replaced or left out."""
    how = rng.random()
    if how < 0.05:
        return text[:rng.randrange(len(text))].encode()
    if how < 0.1:
        found = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        return bytes(found)
    if how < 0.15:
        return rng.choice(TEXTS).encode()
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        replace_somewhere(content, rng)
    return json.dumps(content).encode()


def replace_somewhere(node: Any, rng: random.Random) -> None:
    """Replace a value at a random depth, or leave it out."""
    parent, key = None, None
    for _ in range(rng.randint(1, 7)):
        if not isinstance(node, (dict, list)) or not node:
            break
        parent, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = parent[key]
    if parent is not None and rng.random() < 0.15:
        del parent[key]
    elif parent is not None:
        parent[key] = copy.deepcopy(rng.choice(ODD))


@pytest.fixture(scope='module')
def readers(tmp_path_factory):
    """{kind: (path, readers)} of files made for the test and copies of those that ship."""
    folder = tmp_path_factory.mktemp('files')
    weights = os.path.join(str(folder), 'weights.pt')
    shipped, settings = Settings(), Settings(RESULTS_DIR=str(folder), WEIGHT_PATH_SERVER=weights)
    shutil.copy(os.path.join(config.ROOT, shipped.WEIGHT_PATH_SERVER), weights)
    shutil.copy(os.path.join(config.ROOT, os.path.splitext(shipped.WEIGHT_PATH_SERVER)[0] + '.json'),
                os.path.join(str(folder), 'weights.json'))
    for kind in ('partition', 'alpha', 'alpha_training', 'importance_rankings'):
        path = kinds.path_of(kind, settings)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.path.join(config.ROOT, kinds.path_of(kind, shipped)), path)
    lut_manager.save(whole_table(settings), settings)
    profile = os.path.join(str(folder), 'profile.json')
    writing.write(profile, {'kind': 'measured', 'name': 'a phone', 'slowdown': 2.5, 'threads': 2}, {})
    result = os.path.join(str(folder), 'step2.json')
    writing.write(result, {'limited': {'fits': True}, 'pictures': ['a']}, {'search_inputs': 'x'})
    source, names = open_source(settings), lut_manager.blocks_of(settings)[0]
    unknown = dataclasses.replace(settings, DATASET='imagefolder')
    return {
        'partition': (kinds.path_of('partition', settings), (
            lambda: partition.load_partition(source, settings), lambda: result_warnings.of_settings(settings))),
        'alpha': (kinds.path_of('alpha', settings), (
            lambda: domain_inputs.load_alphas(settings), lambda: code1.recorded(settings, ''))),
        'alpha_training': (kinds.path_of('alpha_training', settings), (
            lambda: code1.print_table(code1.recorded(settings, '')['alpha_training']),)),
        'importance_rankings': (kinds.path_of('importance_rankings', settings), (
            lambda: domain_inputs.importance_ranking(0, names, settings),)),
        'base_model': (os.path.join(str(folder), 'weights.json'), (
            lambda: trained_images.read(settings), lambda: trained_images.why_unknown(unknown, 'x'))),
        'lut': (kinds.path_of('lut', settings), (
            lambda: lut_manager.load(kinds.path_of('lut', settings), settings),
            lambda: fingerprints.inputs_of('step2', settings))),
        'profile': (profile, (lambda: load_profile(profile),)),
        'results': (result, (lambda: step2.fits(result), lambda: step5.earlier_pictures(result),
                             lambda: result_file.search_inputs_of(result))),
    }


@pytest.mark.parametrize('kind', ['partition', 'alpha', 'alpha_training', 'importance_rankings', 'base_model', 'lut',
                                  'profile', 'results'])
def test_a_damaged_file_is_read_or_refused_in_one_line(kind, readers, monkeypatch):
    """With what stands behind it taken for the same: nothing else may shield a reader."""
    monkeypatch.setattr(provenance, 'require', lambda *args, **options: None)
    monkeypatch.setattr(fingerprints, 'is_current', lambda paths, inputs: True)
    path, read = readers[kind]
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    seed = random.randrange(10 ** 9)
    rng = random.Random(seed)
    try:
        for number in range(MUTATIONS):
            with open(path, 'wb') as stream:
                stream.write(mutated(text, rng))
            for reader in read:
                try:
                    reader()
                except UserError as error:
                    assert '\n' not in str(error)
                except Exception as error:
                    raise AssertionError(f'{kind}: seed {seed}, mutation {number}') from error
    finally:
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write(text)


@pytest.mark.parametrize('kind, field, value', [
    ('partition', ('warnings',), 5), ('base_model', ('training_pool', 'indices'), [10 ** 30]),
    ('alpha', ('domains', '0', 'alpha', 'stage1.0', 'dense'), 10 ** 400),
    ('alpha_training', ('domains', '0', 'accuracy'), [1]), ('alpha_training', ('domains',), {'a': {}}),
    ('importance_rankings', ('domains', '0', 'ranking'), [[1]]), ('results', ('limited',), [1])])
def test_values_that_were_tracebacks(kind, field, value, readers, monkeypatch):
    monkeypatch.setattr(provenance, 'require', lambda *args, **options: None)
    monkeypatch.setattr(fingerprints, 'is_current', lambda paths, inputs: True)
    path, read = readers[kind]
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    content = node = json.loads(text)
    for key in field[:-1]:
        node = node[key]
    node[field[-1]] = value
    with open(path, 'w', encoding='utf-8') as stream:
        json.dump(content, stream)
    try:
        for reader in read:
            try:
                reader()
            except UserError as error:
                assert '\n' not in str(error)
    finally:
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write(text)
