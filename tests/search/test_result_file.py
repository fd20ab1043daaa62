"""Step 3 as a user runs it: what its file says, that it says the same twice, after a kill, and whatever test data hold;
and which files are refused."""
from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from typing import Any, Dict, List, NamedTuple

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prepared import copy_prepared, prepare
from random_cases import whole_table
from search_cases import trained_model, with_settings

import config
import create_noniid_partition
import lut_manager
import step3_accuracy_opt
import step4_final_throughput_opt
import step_3_joint
from config import UserError
from costs.cost_model import Configuration, HardwareTable, scenario_of
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import create_hyper_repvgg
from network.alpha import surviving_branches, unpruned_alpha
from pipeline import kinds, provenance
from search import domain_inputs, result_file, state_file
from search.result import AccuracyReport, JointResult
from throughput_optimizer import solve_exact

DOMAIN = 0


class Workspace(NamedTuple):
    """A folder in which step 3 can run, and has run once."""
    folder: str
    overrides: List[str]
    table: HardwareTable
    content: Dict[str, Any]  # of the undisturbed run's file

    def settings(self, *more: str) -> config.Settings:
        return config.load((*self.overrides, f'RESULTS_DIR={self.folder}', *more), {})


def run_step3(overrides: List[str], results: str) -> Dict[str, Any]:
    """Step 3 with its results in another folder; the content of its file."""
    settings = config.load((*overrides, f'RESULTS_DIR={results}'), {})
    lut = os.path.join(os.path.dirname(results), 'table.json')
    copy_prepared(os.path.dirname(results), results)
    step_3_joint.main(['--domain_id', str(DOMAIN), '--lut_file', lut, '--set', *overrides, f'RESULTS_DIR={results}'])
    return provenance.read_anyhow('joint', settings, DOMAIN).content


def without_times(content: Dict[str, Any]) -> Dict[str, Any]:
    """A file's content less what differs between two runs of one seed."""
    kept = {key: value for key, value in content.items() if key != 'wall_s'}
    kept['metadata'] = {key: value for key, value in kept['metadata'].items() if key != 'created'}
    return kept


@pytest.fixture(scope='module')
def workspace(tmp_path_factory) -> Workspace:
    """80 images a split of the built-in data, random times, few measurements: a search of seconds."""
    before = os.getcwd()
    os.chdir(config.ROOT)  # where the built-in data, weights and task 1 and 2 outputs are
    yield made_workspace(str(tmp_path_factory.mktemp('step3')))
    os.chdir(before)


def made_workspace(folder: str, *more: str) -> Workspace:
    """In this folder, with these further settings."""
    overrides = [f'PARTITION_FILE={folder}/partition.json', 'IMAGES_PER_SUBSET=80', 'MAX_EVALUATIONS=12',
                 'RECOVERY_STEPS=4', 'MAX_PRUNING_ROUNDS=6', 'EPSILON=0.05', *more]
    settings = config.load((*overrides, f'RESULTS_DIR={folder}'), {})
    create_noniid_partition.main(['--set', *overrides])
    prepare(settings)
    table = whole_table(settings, seed=3)
    os.rename(lut_manager.save(table, settings), os.path.join(folder, 'table.json'))
    return Workspace(folder, overrides, table, run_step3(overrides, os.path.join(folder, 'undisturbed')))


def model_with(workspace: Workspace, alpha: np.ndarray):
    settings = workspace.settings()
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    model.set_alpha_array(alpha)
    return model


def alpha_in(workspace: Workspace) -> np.ndarray:
    """α [N, 3] as the file has it."""
    return np.array([[np.nan if value is None else value for value in workspace.content['alpha'][name].values()]
                     for name in workspace.table.block_names])


# --- what the file says ---------------------------------------------------------------------------------

def test_the_file_has_every_field_of_the_specification(workspace):
    content, names = workspace.content, list(workspace.table.block_names)
    assert {'domain_id', 'domain_name', 'mode', 'alpha', 'pruned', 'gamma', 'lambda', 'wire', 'accuracy', 'epsilon',
            'xi_A', 'J', 'T_client_ms', 'T_server_ms', 'T_com_ms', 'T_lat_ms', 'T_cyc_ms', 'T_eff_ms',
            'throughput_fps', 'baselines', 'curve', 'measured', 'seed', 'wall_s', 'frontier', 'pick'} <= set(content)
    assert (content['domain_id'], content['mode'], content['measured']) == (DOMAIN, 'pseudo', None)
    assert list(content['alpha']) == list(content['gamma']) == names
    assert all(list(row) == list(oracles.BRANCH_NAMES) for row in content['alpha'].values())
    assert {'original', 'reference', 'final', 'n_test', 'ci95', 'val_reference', 'val_final', 'cal_reference',
            'cal_final', 'n_cal', 'cal_p_value'} == set(content['accuracy'])
    assert {'all_client', 'all_server', 'step2'} <= set(content['baselines'])
    for point in content['curve']:
        assert set(point) == {'n_pruned', 'accuracy', 'T_eff_ms', 'throughput_fps'}


def test_something_was_pruned_and_every_pruned_branch_has_an_alpha_of_exactly_zero(workspace):
    content = workspace.content
    zero = [f'{name}.{branch}' for name, row in content['alpha'].items() for branch, value in row.items() if value == 0]
    assert content['pruned'] == zero and zero
    for name, has in zip(workspace.table.block_names, workspace.table.has_identity):
        row = content['alpha'][name]
        assert (row['identity'] is None) == (not has)
        assert any(value for value in row.values())  # every block keeps a branch


def test_gamma_is_valid_and_the_times_are_those_of_section_5(workspace):
    content, settings = workspace.content, workspace.settings()
    gamma = list(content['gamma'].values())
    for g, row in zip(gamma, alpha_in(workspace)):
        assert g in oracles.valid_gammas(np.nan_to_num(row) != 0)
    expected = oracles.naive_times(workspace.table, gamma, content['lambda'], content['wire'],
                                   scenario_of(settings, workspace.table))
    for name, value in expected._asdict().items():
        assert content[name] == pytest.approx(value, rel=1e-12)
    assert content['throughput_fps'] == pytest.approx(1000 / expected.T_cyc_ms)


def test_the_constraint_is_met_and_J_is_not_above_the_unpruned_answers(workspace):
    content, accuracy = workspace.content, workspace.content['accuracy']
    step2 = content['baselines']['step2']
    assert accuracy['val_final'] >= accuracy['val_reference'] - content['epsilon'] and content['xi_A'] == 0
    J = content['T_eff_ms'] / step2['T_eff_ms'] - accuracy['val_final']  # μ = 1
    assert content['J'] == pytest.approx(J) and content['T_eff_ms'] <= step2['T_eff_ms']
    first, last = content['curve'][0], content['curve'][-1]  # the last: the search's best, on validation images alone
    assert (first['n_pruned'], first['accuracy']) == (0, accuracy['val_reference'])
    assert first['T_eff_ms'] == step2['T_eff_ms']
    assert last['T_eff_ms'] < first['T_eff_ms']


def test_accuracies_are_those_of_the_network_that_trains_on_the_images_of_each_split(workspace):
    accuracy, settings = workspace.content['accuracy'], workspace.settings()
    model = model_with(workspace, alpha_in(workspace))
    for split, expected in (('val', accuracy['val_final']), ('test', accuracy['final'])):
        images = domain_inputs.load_domain(settings, DOMAIN, split)
        with torch.no_grad():
            found = model((images.images.float() / 255 - 0.5) / 0.5).argmax(dim=1) == images.labels
        # an image on the boundary may fall either way
        assert float(found.double().mean()) == pytest.approx(expected, abs=1.5 / len(images))
    images = domain_inputs.load_domain(settings, DOMAIN, 'test')
    assert accuracy['n_test'] == len(images)
    assert accuracy['ci95'] == list(wilson_interval(round(accuracy['final'] * len(images)), len(images)))


def test_the_file_reads_back_as_the_result_that_it_is(workspace):
    settings = workspace.settings(f'RESULTS_DIR={workspace.folder}/undisturbed')
    result = result_file.load(DOMAIN, workspace.table, settings)
    assert result.pruned == workspace.content['pruned'] and result.J == workspace.content['J']
    again = dataclasses.replace(settings, RESULTS_DIR=os.path.join(workspace.folder, 'again'))
    fingerprints = workspace.content['metadata']
    copy_prepared(workspace.folder, again.RESULTS_DIR)
    result_file.save('joint', result, again, fingerprints['inputs'], fingerprints['search_inputs'],
                     f'{workspace.folder}/table.json')
    found = provenance.read_anyhow('joint', again, DOMAIN).content
    assert without_times(found) == without_times(workspace.content)


# --- the same again ---------------------------------------------------------------------------------------

def test_two_runs_with_one_seed_give_the_same_file(workspace):
    again = run_step3(workspace.overrides, os.path.join(workspace.folder, 'second'))
    assert json.dumps(without_times(again)) == json.dumps(without_times(workspace.content))


class Killed(BaseException):
    """Stands for a kill just after a round was saved."""


@pytest.mark.parametrize('cache_mb', [0, 512])
def test_a_run_killed_after_every_round_ends_with_the_same_file(workspace, monkeypatch, cache_mb):
    results = os.path.join(workspace.folder, f'killed_{cache_mb}')
    overrides = [*workspace.overrides, f'ACTIVATION_CACHE_MB={cache_mb}']
    save, kills = state_file.save, 0

    def save_and_die(*arguments):
        save(*arguments)
        raise Killed

    monkeypatch.setattr(state_file, 'save', save_and_die)
    while kills < 50:
        try:
            content = run_step3(overrides, results)
            break
        except Killed:
            kills += 1
    content, undisturbed = without_times(content), without_times(workspace.content)
    assert content.pop('block_evaluations') >= undisturbed.pop('block_evaluations')  # what was in memory is run again
    for found in (content, undisturbed):
        found['metadata'] = {**found['metadata'], 'config': {**found['metadata']['config'], 'ACTIVATION_CACHE_MB': 0}}
    assert kills > 2 and json.dumps(content) == json.dumps(undisturbed)
    assert os.listdir(os.path.join(results, 'joint_optimization')) == [f'domain_{DOMAIN}_joint.json']


def with_wrong_labels(monkeypatch, subset):
    """From now on every image of this subset has a wrong label."""
    load_domain = domain_inputs.load_domain

    def load(settings, domain, wanted):
        images = load_domain(settings, domain, wanted)
        return ImageSet(images.images, (images.labels + 1) % 10) if wanted == subset else images

    monkeypatch.setattr(domain_inputs, 'load_domain', load)


def test_test_images_decide_nothing(workspace, monkeypatch):
    with_wrong_labels(monkeypatch, 'test')
    content = run_step3(workspace.overrides, os.path.join(workspace.folder, 'wrong_labels'))
    changed = {key for key, value in without_times(content).items() if value != workspace.content[key]}
    assert changed <= {'accuracy', 'baselines', 'metadata'}
    assert content['accuracy']['final'] < 0.2 < workspace.content['accuracy']['final']
    for name in ('val_reference', 'val_final'):
        assert content['accuracy'][name] == workspace.content['accuracy'][name]


def test_calibration_images_decide_nothing_but_which_point_is_the_answer(workspace, monkeypatch):
    with_wrong_labels(monkeypatch, 'calibration')
    content = run_step3(workspace.overrides, os.path.join(workspace.folder, 'wrong_calibration'))
    for name in ('frontier', 'curve', 'block_evaluations'):
        assert content[name] == workspace.content[name]
    assert content['accuracy']['cal_reference'] < 0.2 < workspace.content['accuracy']['cal_reference']
    assert content['accuracy']['reference'] == workspace.content['accuracy']['reference']


def test_the_sequential_baseline_keeps_the_same_promise(workspace):
    found = {}
    for confidence in ('none', '0.9', '0.999999'):
        results = f'RESULTS_DIR={workspace.folder}/sequential_{confidence}'
        overrides = [*workspace.overrides, 'MAX_PRUNING_ROUNDS=2', f'CONFIDENCE={confidence}', results]
        settings = config.load(tuple(overrides), {})
        lut_manager.save(workspace.table, settings)
        copy_prepared(workspace.folder, settings.RESULTS_DIR)
        for step, kind in ((step3_accuracy_opt, 'sequential_accuracy'), (step4_final_throughput_opt, 'sequential')):
            step.main(['--domain_id', str(DOMAIN), '--set', *overrides])
            found[confidence, kind] = provenance.read_anyhow(kind, settings, DOMAIN).content
    for kind in ('sequential_accuracy', 'sequential'):
        trusting, confirmed, strict = (found[confidence, kind] for confidence in ('none', '0.9', '0.999999'))
        assert strict['pruned'] == [] and strict['accuracy']['cal_p_value'] == 0  # the unpruned network itself
        assert confirmed['accuracy']['cal_p_value'] <= 0.1
        assert len(confirmed['pruned']) <= len(trusting['pruned']) > 0
        assert confirmed['curve'] == trusting['curve'] == strict['curve']
    assert strict['T_eff_ms'] == strict['baselines']['step2']['T_eff_ms']


def test_a_damaged_state_file_is_not_gone_on_from(workspace):
    results = os.path.join(workspace.folder, 'damaged_state')
    path = kinds.path_of('joint_state', workspace.settings(f'RESULTS_DIR={results}'), DOMAIN)
    os.makedirs(os.path.dirname(path))
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write('{"schema_version": 1, "metadata": {"inp')
    assert without_times(run_step3(workspace.overrides, results)) == without_times(workspace.content)


# --- files that are refused -----------------------------------------------------------------------------------

def write_and_load(workspace: Workspace, content: Dict[str, Any], text: str = '') -> JointResult:
    settings = workspace.settings(f'RESULTS_DIR={workspace.folder}/refused')
    path = kinds.path_of('joint', settings, DOMAIN)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(text or json.dumps(content))
    return result_file.load(DOMAIN, workspace.table, settings)


def put(*keys_and_value: Any):
    """Set content[k1][k2].. = value."""
    *keys, last, value = keys_and_value

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value
    return change


def prune_whole_block(content: Dict[str, Any]) -> None:
    row = content['alpha']['stage1.1']
    row.update({branch: 0.0 for branch in row})


REFUSED = {
    'γ 14': (put('gamma', 'stage1.1', 14), r'block stage1.1: there is no γ 14; γ ids are 0 to 13'),
    'γ -1': (put('gamma', 'stage1.1', -1), r'there is no γ -1'),
    'γ of other branches': (put('alpha', 'stage1.1', {'dense': 1.0, '1x1': 1.0, 'identity': 1.0}), None),
    'γ missing': (lambda content: content['gamma'].pop('stage1.1') and None, r"'gamma.stage1.1' is missing"),
    'γ as text': (put('gamma', 'stage1.1', '13'), r"'gamma.stage1.1' is \"13\", not a whole number"),
    'a block without branches': (prune_whole_block, 'block stage1.1 has no branch left'),
    'α where there is none': (put('alpha', 'stage3.0', 'identity', 1.0), "'alpha.stage3.0.identity' must be null"),
    'no α where there is one': (put('alpha', 'stage1.1', 'identity', None), "'alpha.stage1.1.identity' is null"),
    'α NaN': (put('alpha', 'stage1.1', 'dense', float('nan')), 'NaN is not a number'),
    'λ too large': (put('lambda', 12), 'lambda is 12, not between 0 and 11'),
    'λ negative': (put('lambda', -1), 'lambda is -1'),
    'λ a fraction': (put('lambda', 2.5), "'lambda' is 2.5, not a whole number"),
    'unknown wire': (put('wire', 'float15'), "unknown wire format 'float15'"),
    'another domain': (put('domain_id', 5), 'is of domain 5'),
    'another model': (put('metadata', 'model', 'RepVGG-A0'), 'was made for model RepVGG-A0'),
    'version 2': (put('schema_version', 2), 'schema_version 2'),
    'negative time': (put('T_eff_ms', -1), "'T_eff_ms' is -1.0, below 0"),
    'curve of text': (put('curve', 0, 'n_pruned'), r'curve\[0\]'),
    'a point too short': (lambda content: content['curve'][0].pop('accuracy') and None, r'curve\[0\].accuracy'),
}


@pytest.mark.parametrize('case', sorted(REFUSED))
def test_a_damaged_or_foreign_result_is_refused_in_one_line_that_says_why(case, workspace):
    change, why = REFUSED[case]
    content = copy.deepcopy(workspace.content)
    if case == 'γ of other branches':
        content['gamma']['stage1.1'] = 0
        why = r'block stage1.1: γ 0 does not run exactly the surviving branches'
    change(content)
    with pytest.raises(UserError) as caught:
        write_and_load(workspace, content)
    message = str(caught.value)
    assert re.search(why, message), message
    assert f'domain_{DOMAIN}_joint.json' in message and '\n' not in message


def ways_in(content: Any, at=()) -> List[tuple]:
    """The way to every value in a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at] * bool(at) + [way for key, value in items for way in ways_in(value, (*at, key))]


@given(st.data())
@hypothesis_settings(max_examples=150)
def test_whatever_one_value_is_replaced_by_the_result_is_refused_or_read(workspace, data):
    content = copy.deepcopy(workspace.content)
    way = data.draw(st.sampled_from(ways_in(content)))
    junk = data.draw(st.sampled_from(['', 'x', [], {}, [[]], -7, 10 ** 400, True, float('nan'), None]))
    put(*way, junk)(content)
    try:
        write_and_load(workspace, content)
    except UserError as error:
        assert '\n' not in str(error) and f'domain_{DOMAIN}_joint.json' in str(error)


def test_a_missing_result_says_how_to_make_it(workspace):
    with pytest.raises(UserError, match=f'make it with `python step_3_joint.py --domain_id {DOMAIN} --mode pseudo '):
        result_file.load(DOMAIN, workspace.table, workspace.settings('RESULTS_DIR=nowhere'))


# --- BatchNorm statistics in it -----------------------------------------------------------------------------

def test_statistics_are_part_of_the_result_and_damaged_ones_are_refused(tmp_path):
    settings = with_settings(RESULTS_DIR=str(tmp_path))
    table, own = whole_table(settings, seed=3), trained_model().batchnorm()
    alpha = unpruned_alpha(table.n_branches)
    solution = solve_exact(table, surviving_branches(alpha), settings)
    result = JointResult(
        6, 'name', 'pseudo', table.block_names, Configuration(alpha, solution.gamma, solution.split, solution.wire),
        AccuracyReport(1.0, 1.0, 1.0, 10, (0.7, 1.0), 1.0, 1.0, 1.0, 1.0, 10, 0.5), 0.02, 0.0, 0.0,
        solution.times, {}, [], None, 0, 1.0, 1, batchnorm=own)
    path = result_file.save('joint', result, settings, 'inputs')
    np.testing.assert_array_equal(result_file.load(6, table, settings).batchnorm, own)
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    for damage in ({'float32_base64': 'AAAA'}, {'float32_base64': '!'}, {'sha256': '0'}, {'sha256': None}):
        with open(path, 'w', encoding='utf-8') as stream:
            json.dump({**content, 'batchnorm': {**content['batchnorm'], **damage}}, stream)
        with pytest.raises(UserError, match='batchnorm'):
            result_file.load(6, table, settings)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]  # nothing beside it that a kill could part
    result_file.save('joint', dataclasses.replace(result, batchnorm=None), settings, 'inputs')
    assert result_file.load(6, table, settings).batchnorm is None
