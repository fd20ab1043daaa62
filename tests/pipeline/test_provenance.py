"""A number belongs to the settings that it names: files of other settings or inputs are refused by name."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from typing import Any, Dict, List

import pytest
from prepared import prepare
from random_cases import whole_table
from table_files import content_of, run_step1, write_text

import config
import lut_manager
import step2_initial_throughput_opt as step2
import step_3_joint
from config import Settings, UserError
from costs.cost_model import Link
from pipeline import fingerprints, kinds, provenance, writing

FEW_STEPS = 'THROUGHPUT_OPTIM_STEPS=1'


@pytest.fixture(autouse=True)
def without_images(monkeypatch):
    """Step 2 compares no image formats here: that takes a second."""
    from steps import unpruned
    monkeypatch.setattr(unpruned, 'image_formats_of', lambda table, settings: {})


@pytest.fixture
def folder(made, tmp_path) -> str:
    """A RESULTS_DIR with both tiers' files and the complete table."""
    run_step1('merge', tmp_path)
    return str(tmp_path)


def run_step2(folder: str, *overrides: str, lut_file: str = '') -> Dict[str, Any]:
    named = ['--lut_file', lut_file] if lut_file else []
    step2.main([*named, '--set', f'RESULTS_DIR={folder}', FEW_STEPS, *overrides])
    return content_of(os.path.join(folder, 'initial_throughput_config.json'))


# --- a table -------------------------------------------------------------------------------------------------------

def test_another_link_is_applied_to_the_table(folder):
    before, slow = run_step2(folder), run_step2(folder, 'BANDWIDTH_MBPS=1', 'RTT_MS=200')
    assert slow['metadata']['config']['BANDWIDTH_MBPS'] == 1
    for was, now in zip(before['per_split'][1:-1], slow['per_split'][1:-1]):
        assert now['T_com_ms'] == pytest.approx(100 * was['T_com_ms'])
        assert now['T_lat_ms'] == pytest.approx(was['T_lat_ms'] + 99 * was['T_com_ms'] + 198)
    sizes = content_of(os.path.join(folder, 'hardware_lut_complete.json'))['Comm_size']
    assert slow['per_split'][1]['T_com_ms'] == pytest.approx(8 * sizes['stage1.0']['float32'] / 1000)
    assert min(entry['T_com_ms'] for entry in slow['per_split'][1:-1]) > 20


def test_a_measured_link_stays_until_another_is_named(tmp_path):
    chosen = Settings(RESULTS_DIR=str(tmp_path))
    path = lut_manager.save(dataclasses.replace(whole_table(chosen), link=Link(7.0, 3.0, True)), chosen)
    assert lut_manager.load(path, chosen).link == Link(7.0, 3.0, True)
    other = dataclasses.replace(chosen, BANDWIDTH_MBPS=50.0)
    assert lut_manager.load(path, other).link == Link(50.0, 2.0, False)
    assert fingerprints.inputs_of('step2', chosen) != fingerprints.inputs_of('step2', other)
    with pytest.raises(UserError, match='link was measured with HEAD_TIER=client'):
        lut_manager.load(path, dataclasses.replace(chosen, HEAD_TIER='server'))


@pytest.mark.parametrize('override, file, was, now, command', [
    ('SERVER_THREADS=2', 'lut_server.json', 1, 2, 'step1_measure_lut.py --mode server'),
    ('EDGE_CPU_SLOWDOWN=3', 'lut_client.json', 6.0, 3.0, 'step1_measure_lut.py --mode client'),
    ('DEVICE_PROFILE=jetson-tx2', 'lut_client.json', 'edge-cpu', 'jetson-tx2', 'step1_measure_lut.py --mode client'),
    ('LUT_ROUNDS=5', 'lut_server.json', 21, 5, 'step1_measure_lut.py --mode server')])
def test_a_table_of_other_hardware_is_refused_with_the_users_own_command(folder, override, file, was, now, command):
    name, value = override.split('=')
    with pytest.raises(UserError) as caught:
        run_step2(folder, override)
    shown = now if name != 'EDGE_CPU_SLOWDOWN' else 3.0
    assert str(caught.value) == (f'{folder}/{file}: was made with {name}={was} (now {shown}); make it again with '
                                 f'`python {command} --set RESULTS_DIR={folder} {name}={shown}`')
    assert not os.path.exists(os.path.join(folder, 'initial_throughput_config.json'))


def test_the_table_itself_is_refused_when_its_tiers_have_been_made_again(folder):
    run_step1('server', folder, 'SERVER_THREADS=2')
    with pytest.raises(UserError, match=r'hardware_lut_complete.json: was made with SERVER_THREADS=1 \(now 2\).*merge'):
        run_step2(folder, 'SERVER_THREADS=2')
    with pytest.raises(UserError, match='hardware_lut_complete.json: was made with another .*lut_server.json'):
        run_step2(folder)  # the same settings as the table, but not the server's file that it was made from
    run_step1('merge', folder, 'SERVER_THREADS=2')
    run_step2(folder, 'SERVER_THREADS=2')


def test_a_table_that_is_named_is_meant_as_it_is_and_the_output_says_which(folder, tmp_path):
    named = shutil.copy(os.path.join(folder, 'hardware_lut_complete.json'), os.path.join(folder, 'board.json'))
    found = run_step2(str(tmp_path / 'other'), 'SERVER_THREADS=2', 'DEVICE_PROFILE=jetson-tx2', lut_file=named)
    table = found['metadata']['made_from']['lut']
    assert table['file'] == 'board.json' and table['sha256']
    assert (table['config']['SERVER_THREADS'], table['config']['DEVICE_PROFILE']) == (1, 'edge-cpu')
    assert 'SERVER_THREADS' not in found['metadata']['config']
    with pytest.raises(UserError, match='was made for model RepVGG-Micro'):
        run_step2(str(tmp_path / 'other'), 'MODEL_NAME=RepVGG-A0', lut_file=named)


def test_settings_of_other_versions_in_a_file_are_no_difference(folder):
    path = os.path.join(folder, 'hardware_lut_complete.json')
    content = content_of(path)
    content['metadata']['config']['LOOKS'] = 9  # no setting has this name any more
    del content['metadata']['config']['SERVER_DEVICE'], content['metadata']['made_from']  # recorded from now on
    write_text(path, json.dumps(content))
    run_step2(folder)
    with pytest.raises(UserError, match='was made with SERVER_DEVICE=auto .now cpu.'):
        run_step2(folder, 'SERVER_DEVICE=cpu')


@pytest.mark.parametrize('metadata', [{'config': 'x'}, {'config': {}, 'made_from': 7}, {'made_from': {'lut': []}},
                                      {'config': {'OMEGA': [{}]}}])
def test_strange_metadata_is_no_traceback(folder, metadata):
    run_step2(folder)
    path = os.path.join(folder, 'initial_throughput_config.json')
    content = content_of(path)
    content['metadata'] = {'model': 'RepVGG-Micro', **metadata}
    write_text(path, json.dumps(content))
    settings = config.load((f'RESULTS_DIR={folder}',), {})
    try:
        provenance.read_kind('step2', settings)
    except UserError as error:
        assert '\n' not in str(error)


# --- the command in a refusal --------------------------------------------------------------------------------------

OVERRIDES = [
    [], ['OBJECTIVE=latency', 'MAX_SERVER_MS=3.5'],
    ['PROFILE=imagenet', 'DATA_PATH=/my photos/val', 'SERVER_THREADS=3'],
    ['NORM_MEAN=0.4,0.5,0.25', 'WIRE_FORMATS=float32,uint8+zlib', 'RECALIBRATE_BN=1', 'DEVICE_PROFILE='],
    ['PROFILE=imagenet', 'WEIGHT_PATH_SERVER=', 'PICK=budget', 'BUDGET_MIN_FPS=30', 'RTT_MS=0.5'], ['CONFIDENCE=none']]


@pytest.mark.parametrize('overrides', OVERRIDES, ids=' '.join)
def test_the_command_gives_the_settings_back(overrides):
    settings = config.load(tuple(overrides), {})
    words = shlex.split(kinds.command_for('joint', settings, 4))
    assert words[:6] == ['python', 'step_3_joint.py', '--domain_id', '4', '--mode', 'pseudo']
    again = config.load(tuple(words[7:]), {})
    groups = [*kinds.groups_of('joint'), 'pick']
    assert again.group(*groups) == settings.group(*groups) and again.RESULTS_DIR == settings.RESULTS_DIR
    default = config.profile_defaults(settings)
    for word in words[7:]:
        name = word.split('=')[0]
        assert name == 'PROFILE' or getattr(settings, name) != getattr(default, name)


# --- α, weights, results -------------------------------------------------------------------------------------------

@pytest.fixture
def trained(tmp_path, monkeypatch) -> Settings:
    """Settings with weights of their own, for which tasks 1 and 2 are there."""
    monkeypatch.chdir(config.ROOT)
    weights = shutil.copy(Settings.WEIGHT_PATH_SERVER, str(tmp_path / 'mine.pt'))
    settings = Settings(RESULTS_DIR=str(tmp_path), WEIGHT_PATH_SERVER=weights)
    prepare(settings)
    return settings


def test_weights_are_known_by_their_content(trained, tmp_path):
    renamed = shutil.copy(trained.WEIGHT_PATH_SERVER, str(tmp_path / 'renamed.pt'))
    provenance.read_kind('importance_rankings', dataclasses.replace(trained, WEIGHT_PATH_SERVER=renamed))
    with open(trained.WEIGHT_PATH_SERVER, 'ab') as stream:
        stream.write(b'other')
    for kind in ('alpha', 'importance_rankings'):
        with pytest.raises(UserError, match='trained_hyper_weights.json: was made with another .*mine.pt.*code1_train'):
            provenance.read_kind(kind, trained)


@pytest.mark.parametrize('changed', [{'SEED': 7}, {'NORM_MEAN': (0.4, 0.4, 0.4)}, {'IMAGES_PER_SUBSET': 50},
                                     {'ALPHA_LR': 0.5}, {'WEIGHT_PATH_SERVER': ''}])
def test_alpha_of_other_settings_is_refused_by_name(trained, changed):
    (name, value), = changed.items()
    other = dataclasses.replace(trained, **changed)
    with pytest.raises(UserError, match=rf'trained_hyper_weights.json: was made with {name}=.*code1_train.*{name}='):
        provenance.read_kind('importance_rankings', other)
    assert f'(now {config.as_text(value)})' in refused(lambda: provenance.read_kind('alpha', other))


def refused(work) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


def test_the_second_half_of_the_baseline_depends_on_the_first(tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    before = fingerprints.inputs_of('sequential', settings, 3)
    writing.write(kinds.path_of('sequential_accuracy', settings, 3), {'value': 1}, {})
    assert fingerprints.inputs_of('sequential', settings, 3) != before


def test_a_result_without_a_client_is_not_up_to_date_for_real_mode_and_the_reverse(tmp_path, monkeypatch):
    overrides = [f'RESULTS_DIR={tmp_path}', 'DEVICE_PROFILE=']
    settings = config.load(tuple(overrides), {})
    started: List[str] = []
    monkeypatch.setattr(step_3_joint, 'load_work',
                        lambda settings, mode='pseudo': lambda *rest, **options: started.append(mode))
    for mode in fingerprints.MODES:
        writing.write(kinds.path_of('joint', settings, 0), {}, {
            'inputs': fingerprints.inputs_of('joint', settings, 0, mode)})
        del started[:]
        for asked in fingerprints.MODES:
            step_3_joint.main(['--domain_id', '0', '--mode', asked, '--if_changed', '--set', *overrides])
        assert started == [other for other in fingerprints.MODES if other != mode]


def test_the_message_is_one_line_however_much_differs(trained):
    other = dataclasses.replace(trained, SEED=7, ALPHA_LR=0.5, BATCH_SIZE=3, NORM_STD=(0.1, 0.2, 0.3))
    said = refused(lambda: provenance.read_kind('alpha', other))
    assert '\n' not in said and re.search(r'SEED=0 \(now 7\), .*NORM_STD=0.5,0.5,0.5 \(now 0.1,0.2,0.3\)', said)


def test_a_result_of_a_domain_takes_rankings_of_all_domains(trained):
    """Of task 1 a result depends on its own domain, task 2 on all of them: each is held against what it names."""
    inputs = fingerprints.inputs_of('joint', trained, 3)
    writing.write(kinds.path_of('joint', trained, 3), {}, writing.make_metadata(trained, 'joint', inputs, 3))
    provenance.require('joint', kinds.path_of('joint', trained, 3), trained, 3)
