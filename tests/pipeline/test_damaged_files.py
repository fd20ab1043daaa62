"""JSON files that were damaged or edited: every reader takes them, or refuses them in one line, whatever they hold.
`python -m benchmarks.fuzz_json` damages thousands of each kind."""
from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
from made_results import make_result, make_table

import config
import lut_manager
from benchmarks import fuzz_json
from config import Settings, UserError
from costs.device_profiles import load_profile
from fleet import plan_file, planning
from fleet.fleet_file import read_fleet
from pipeline import documents, fingerprints, kinds, provenance, writing
from network.alpha import mask_of, unpruned_alpha
from search import result_file, state_file
from search.state import CurvePoint, EvaluatedNetwork, Measurement, Phase, SearchState, Work
from steps import unpruned

MUTATIONS = 20  # of each kind


@pytest.fixture(scope='module')
def readers(tmp_path_factory):
    """{kind: (path, readers)} of files made for the test and copies of those that ship."""
    folder = tmp_path_factory.mktemp('files')
    weights = os.path.join(str(folder), 'weights.pt')
    shipped = Settings()
    settings = Settings(RESULTS_DIR=str(folder), WEIGHT_PATH_SERVER=weights, THROUGHPUT_OPTIM_STEPS=3)
    shutil.copy(os.path.join(config.ROOT, shipped.WEIGHT_PATH_SERVER), weights)
    shutil.copy(os.path.join(config.ROOT, os.path.splitext(shipped.WEIGHT_PATH_SERVER)[0] + '.json'),
                os.path.join(str(folder), 'weights.json'))
    for kind in ('partition', 'alpha', 'alpha_training', 'importance_rankings'):
        path = kinds.path_of(kind, settings)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.path.join(config.ROOT, kinds.path_of(kind, shipped)), path)
    profile = os.path.join(str(folder), 'profile.json')
    writing.write(profile, {'kind': 'measured', 'name': 'a phone', 'slowdown': 2.5, 'threads': 2}, {})
    table = make_table(settings)
    lut_manager.save(table, settings)
    for tier in ('server', 'client'):
        lut_manager.save_tier(lut_manager.TierCosts(
            tier, table.tier_info[tier], table.T_ms[tier], 0 * table.T_ms[tier], 1.0, 1.0, table.roofline[tier]),
            settings)
        kind = f'roofline_{tier}'
        writing.write(kinds.path_of(kind, settings), {'tier': tier, 'simulated': tier == 'client', 'i_knee': 2.0,
                                                      'peak_gflops': 10.0, 'bandwidth_gbs': 5.0},
                      writing.make_metadata(settings, kind, ''))
    writing.write(kinds.path_of('step2', settings), unpruned.optimise(table, settings),
                  writing.make_metadata(settings, 'step2', ''))
    for kind in ('joint', 'sequential'):
        result_file.save(kind, make_result(table, settings, 0, sequential=True), settings, 'made for a test')
    mask = mask_of(unpruned_alpha(table.n_branches))
    network = EvaluatedNetwork(unpruned_alpha(table.n_branches), 0.9, 0.9, ('float32',), True, False)
    state_file.save('joint_state', SearchState(
        network, [CurvePoint(0, 0.9, 3.0, 100.0)], list(Phase)[0], 2, {mask: Measurement(network.alpha, np.zeros(
            9, np.float16))}, {mask: network}, [network], {(3, (True, False, True))}, Work(5, 6)), 0, table, settings,
        'x', 1.5)
    fleet = os.path.join(str(folder), 'fleet.json')
    with open(fleet, 'w', encoding='utf-8') as stream:
        json.dump(fuzz_json.FLEET, stream)
    planned = planning.make_plan(planning.model_of(read_fleet(fleet, settings), settings), settings.FLEET_OBJECTIVE)
    plan_file.save(planned, settings, {})
    return fuzz_json.readers_of(settings, profile, fleet)


KINDS = ('partition', 'alpha', 'alpha_training', 'importance_rankings', 'base_model', 'roofline_server',
         'roofline_client', 'lut_server', 'lut_client', 'lut', 'step2', 'joint', 'sequential', 'joint_state', 'fleet',
         'fleet_plan', 'profile')


def test_every_kind_that_is_read_is_damaged_here(readers):
    assert set(KINDS) == set(readers)


@pytest.mark.parametrize('kind', KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind, readers):
    counts = fuzz_json.fuzz(kind, *readers[kind], MUTATIONS, seed=random.randrange(10 ** 9))
    assert sum(counts.values()) == MUTATIONS * len(readers[kind][1])


@pytest.mark.parametrize('kind, field, value', [
    ('partition', ('warnings',), 5), ('base_model', ('training_pool', 'indices'), [10 ** 30]),
    ('alpha', ('domains', '0', 'alpha', 'stage1.0', 'dense'), 10 ** 400),
    ('alpha_training', ('domains', '0', 'accuracy'), [1]), ('alpha_training', ('domains',), {'a': {}}),
    ('importance_rankings', ('domains', '0', 'ranking'), [[1]]), ('joint', ('limited',), [1]),
    ('lut', ('metadata', 'made_from'), [1]), ('fleet_plan', ('groups', 0, 'point_sets'), {'another': 0})])
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


@pytest.mark.parametrize('content', ['[]', '{"a":' * 3000 + '1' + '}' * 3000, '[' * 100_000, '9' * 5000, ''])
def test_fingerprints_are_as_careful_as_readers(content, tmp_path):
    path = str(tmp_path / 'file.json')
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(content)
    assert len(fingerprints.content_hash(path)) == 64 and fingerprints.metadata_of(path) == {}
    with pytest.raises(UserError, match='file.json'):
        documents.read(path, '')


@pytest.mark.parametrize('name', ['file.json', 'file.pt'])
def test_what_is_no_file_or_cannot_be_read_keeps_nobody_waiting(name, tmp_path, monkeypatch):
    path = str(tmp_path / name)
    os.mkfifo(path)
    assert fingerprints.content_hash(path) == ''
    for read in (lambda: documents.read(path, ''), lambda: documents.read_object(path), lambda: load_profile(path)):
        with pytest.raises(UserError) as caught:
            read()
        assert path in str(caught.value) and '\n' not in str(caught.value)
    os.unlink(path)
    shutil.copy(__file__, path)

    def refuse(*args, **options):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', refuse)
    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(UserError, match=f'cannot read {path}: Permission denied'):
        fingerprints.content_hash(path)
