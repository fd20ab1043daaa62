"""Results that survive: interrupted writes, failing runs, unwritable folders; and when a file is current."""
from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Dict, List, Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import whole_table
from table_files import bytes_of

import config
import lut_manager
from config import Settings, UserError
from pipeline import documents, kinds, writing
from pipeline import fingerprints as pipeline_fingerprints

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


# --- results that survive -------------------------------------------------------------------------------------

@pytest.fixture
def step2_done(tmp_path) -> Tuple[str, str, List[str]]:
    """(the table's path, step 2's result, overrides) in a folder where step 2 has been run."""
    overrides = [f'RESULTS_DIR={tmp_path}', 'THROUGHPUT_OPTIM_STEPS=1']
    settings = config.load(tuple(overrides), {})
    lut = lut_manager.save(whole_table(settings), settings)
    run_main('step2_initial_throughput_opt', '--set', *overrides)
    return lut, kinds.path_of('step2', settings), overrides


def run_main(script: str, *argv: str) -> None:
    importlib.import_module(script).main(list(argv))


def test_an_existing_result_survives_a_run_that_fails(step2_done, monkeypatch):
    import throughput_optimizer
    lut, result, overrides = step2_done
    before, files = bytes_of(result), sorted(os.listdir(os.path.dirname(result)))
    with pytest.raises(UserError):  # other input than expected
        run_main('step2_initial_throughput_opt', '--lut_file', result, '--set', *overrides)
    with pytest.raises(UserError):
        run_main('step2_initial_throughput_opt', '--set', *overrides, 'LAMBDA_MIN=99')
    monkeypatch.setattr(throughput_optimizer, 'solve_gradient', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_main('step2_initial_throughput_opt', '--set', *overrides)
    with open(lut, 'r+', encoding='utf-8') as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match='not valid JSON'):
        run_main('step2_initial_throughput_opt', '--set', *overrides)
    assert bytes_of(result) == before
    assert sorted(os.listdir(os.path.dirname(result))) == files


def test_a_step_runs_again_only_when_something_changed(step2_done, monkeypatch, capsys):
    import throughput_optimizer
    lut, result, overrides = step2_done
    before = bytes_of(result)
    with monkeypatch.context() as patched:
        patched.setattr(throughput_optimizer, 'solve_exact', lambda *args, **kwargs: pytest.fail('ran again'))
        run_main('step2_initial_throughput_opt', '--if_changed', '--set', *overrides)
    assert bytes_of(result) == before and 'up to date' in capsys.readouterr().err
    run_main('step2_initial_throughput_opt', '--if_changed', '--set', *overrides, 'OMEGA=1')
    assert json.loads(bytes_of(result))['omega'] == 1
    settings = config.load(tuple(overrides), {})
    lut_manager.save(whole_table(settings, seed=5), settings)
    again = bytes_of(result)
    run_main('step2_initial_throughput_opt', '--if_changed', '--set', *overrides, 'OMEGA=1')
    assert bytes_of(result) != again


@pytest.mark.parametrize('script, argv', [
    ('roofline_measure', []), ('step1_measure_lut', ['--mode', 'server']), ('step1_measure_lut', ['--mode', 'client']),
    ('step1_measure_lut', ['--mode', 'merge']), ('step2_initial_throughput_opt', []),
    ('step_3_joint', ['--domain_id', '0']), ('step3_accuracy_opt', ['--domain_id', '0']),
])
def test_a_results_folder_that_cannot_be_written_is_one_line_before_any_work(script, argv, tmp_path, monkeypatch,
                                                                             capsys):
    """A plain file stands in the folder's place: a folder without write permission would not stop root."""
    import roofline_measure
    import throughput_optimizer
    blocked, lut_folder = str(tmp_path / 'results'), str(tmp_path / 'elsewhere')
    with open(blocked, 'w', encoding='utf-8') as stream:
        stream.write('not a folder')
    settings = config.load((f'RESULTS_DIR={lut_folder}',), {})
    if script == 'step2_initial_throughput_opt':
        argv = ['--lut_file', lut_manager.save(whole_table(settings), settings)]
    for module, name in ((roofline_measure, 'roofline_of_tier'), (lut_manager, 'measure_tier'),
                         (lut_manager, 'simulate_client'), (throughput_optimizer, 'solve_exact')):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail('worked before it knew that it could write'))
    with pytest.raises(UserError, match=f'cannot write {re.escape(blocked)}') as caught:
        run_main(script, *argv, '--set', f'RESULTS_DIR={blocked}')
    assert '\n' not in str(caught.value) and 'RESULTS_DIR' in str(caught.value)
    assert bytes_of(blocked) == b'not a folder' and capsys.readouterr().out == ''


# --- the files themselves ---------------------------------------------------------------------------------------

OLD = {'value': 1}


@pytest.fixture
def old_file(tmp_path) -> str:
    path = str(tmp_path / 'folder' / 'result.json')
    writing.write(path, OLD, {'made': 'before'})
    return path


@pytest.mark.parametrize('function', ['fsync', 'replace', 'chmod'])
@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EROFS, 'Read-only'),
                                   RuntimeError('bug'), KeyboardInterrupt()], ids=lambda error: str(error) or 'ctrl-c')
def test_whatever_interrupts_a_write_the_old_file_stays(old_file, monkeypatch, function, error):
    before = bytes_of(old_file)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, function, fail)
    wanted = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted) as caught:
        writing.write(old_file, {'value': 2}, {})
    if wanted is UserError:
        assert str(caught.value).startswith(f'cannot write {old_file}: ') and '\n' not in str(caught.value)
    assert bytes_of(old_file) == before
    assert os.listdir(os.path.dirname(old_file)) == ['result.json']  # nothing is left lying about


@pytest.mark.parametrize('value', [float('nan'), float('inf'), np.float32(1), {1, 2}, object()])
def test_what_json_cannot_hold_is_never_written(old_file, value):
    before = bytes_of(old_file)
    with pytest.raises((ValueError, TypeError)):
        writing.write(old_file, {'value': [value]}, {})
    assert bytes_of(old_file) == before


WRITER = '''
import sys
from pipeline import writing
n = 0
while True:
    writing.write(sys.argv[1], {'n': n, 'rows': [n] * 20000}, {})
    n += 1
    if n == 2:
        print('started', flush=True)
'''


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    path = str(tmp_path / 'result.json')
    rng = np.random.default_rng()
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, '-c', WRITER, path], stdout=subprocess.PIPE,
                                  env={**os.environ, 'PYTHONPATH': config.ROOT})
        assert writer.stdout.readline() == b'started\n'
        for _ in range(20):  # a reader at any time sees a whole file
            content = documents.read(path, '').content
            assert content['rows'] == [content['n']] * 20000
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = documents.read(path, '').content
        assert content['rows'] == [content['n']] * 20000
    writing.write(path, {}, {})
    assert os.listdir(str(tmp_path)) == ['result.json']  # what the killed ones left is gone


def test_a_writer_removes_nothing_of_others_that_still_write(tmp_path):
    with writing.replacing(str(tmp_path / 'a.json')) as temporary:
        writing.write(str(tmp_path / 'a.json'), {}, {})
        assert os.path.exists(temporary)
        with open(temporary, 'w') as stream:
            stream.write('{}')


@pytest.mark.parametrize('suffix', ['pdf', 'png'])
def test_a_full_disk_while_a_picture_is_written_is_one_line(suffix, tmp_path):
    """The system refuses to write more than a few bytes into any file."""
    script = ('import resource, signal, sys\nimport cli\nfrom matplotlib.figure import Figure\n'
              'from report import style\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n'
              'cli.run(lambda argv: style.save(Figure(), sys.argv[1]))')
    path = str(tmp_path / f'a.{suffix}')
    done = subprocess.run([sys.executable, '-c', script, path], cwd=config.ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == f'-c: error: cannot write {path}: File too large\n'
    assert os.listdir(str(tmp_path)) == []


def test_a_file_is_as_readable_for_others_as_any_other(tmp_path):
    path, plain = str(tmp_path / 'result.json'), str(tmp_path / 'plain')
    writing.write(path, {}, {})
    open(plain, 'w').close()
    assert os.stat(path).st_mode == os.stat(plain).st_mode


def test_a_folder_in_the_way_is_one_line(tmp_path):
    with pytest.raises(UserError, match='cannot write'):
        writing.check_writable(str(tmp_path))
    with pytest.raises(UserError, match='cannot write'):
        writing.write(str(tmp_path), {}, {})


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                           | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9)


@given(st.dictionaries(st.text(), json_values), st.dictionaries(st.text(), json_values))
def test_what_is_written_is_read_back(tmp_path_factory, content, metadata):
    path = str(tmp_path_factory.getbasetemp() / 'any.json')
    content = {key: value for key, value in content.items() if key not in ('schema_version', 'metadata')}
    writing.write(path, content, metadata)
    assert documents.read(path, '').content == {'schema_version': 1, 'metadata': metadata, **content}


@given(st.lists(st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_list_of_numbers_is_one_line(tmp_path_factory, numbers):
    path = str(tmp_path_factory.getbasetemp() / 'numbers.json')
    writing.write(path, {'text': '[\n 1,\n 2\n]', 'rows': {'a': numbers, 'b': [numbers, ['x']]}}, {})
    content = {'text': '[\n 1,\n 2\n]', 'rows': {'a': numbers, 'b': [numbers, ['x']]}}
    assert documents.read(path, '').content == {'schema_version': 1, 'metadata': {}, **content}
    with open(path, encoding='utf-8') as stream:
        assert stream.read().count(json.dumps(numbers)) == 2


def test_a_byte_order_mark_in_front_changes_nothing(old_file):
    content, text = documents.read(old_file, '').content, bytes_of(old_file)
    with open(old_file, 'wb') as stream:
        stream.write(b'\xef\xbb\xbf' + text)
    assert documents.read(old_file, '').content == content


@pytest.mark.parametrize('text', ['[1, 2]', '3', '"text"', 'null', '[' * 100_000, '{"a": ' * 100_000, '', '\xff'])
def test_any_content_of_an_input_gives_a_fingerprint_and_is_refused_by_its_reader(text, tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    path = kinds.path_of('lut', settings)
    with open(path, 'w', encoding='latin-1') as stream:
        stream.write(text)
    assert pipeline_fingerprints.inputs_of('step2', settings) == pipeline_fingerprints.inputs_of('step2', settings)
    assert not pipeline_fingerprints.is_current([path], '')
    with pytest.raises(UserError) as caught:
        lut_manager.load(path, settings)
    assert str(caught.value).startswith(f'{path}: is not ') and '\n' not in str(caught.value)


@given(json_values, st.sampled_from([dict, list, str, float, int, bool]))
def test_a_checked_field_has_its_type_or_is_refused_by_name(value, kind):
    document = documents.Document('f.json', {'a': {'b': value}}, '')
    try:
        found = document.get('a.b', kind)
    except UserError as error:
        assert "f.json: field 'a.b' is" in str(error) and '\n' not in str(error)
        assert not isinstance(value, kind) or isinstance(value, bool) or abs(value) > 1e308
    else:
        assert type(found) is kind and found == value


def test_metadata_says_what_shaped_the_file(tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    metadata = writing.make_metadata(settings, 'step2', 'abc')
    assert metadata['model'] == 'RepVGG-Micro' and metadata['seed'] == 0 and metadata['inputs'] == 'abc'
    assert {'python', 'torch', 'numpy'} <= set(metadata['software'])
    assert metadata['config']['OMEGA'] == 0.5 and 'ALPHA_LR' not in metadata['config']
    assert json.loads(json.dumps(metadata)) == metadata  # nothing that JSON would change, such as tuples


@pytest.mark.parametrize('kind', sorted(kinds.KINDS))
def test_the_fingerprint_of_a_result_changes_with_its_settings_and_with_nothing_else(kind, tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    shaping = kinds.KINDS[kind].groups
    first = pipeline_fingerprints.inputs_of(kind, settings, 0)
    assert first == pipeline_fingerprints.inputs_of(kind, settings, 0)
    changes: Dict[str, object] = {
        'MODEL_NAME': 'RepVGG-A0', 'SEED': 7, 'ALPHA_LR': 0.5, 'LUT_ROUNDS': 3, 'BANDWIDTH_MBPS': 1.5, 'OMEGA': 0.25,
        'SIGMA': 1.0, 'KAPPA': 7.0, 'SERVER_THREADS': 3, 'EDGE_CPU_SLOWDOWN': 9.0, 'NUM_WORKERS': 2, 'PORT_MAIN': 99}
    for name, value in changes.items():
        group = FIELDS[name].metadata['group']
        found = pipeline_fingerprints.inputs_of(kind, dataclasses.replace(settings, **{name: value}), 0)
        if group in shaping:
            assert found != first, name
        elif name != 'MODEL_NAME' and group not in kinds.groups_of(kind):  # other inputs: a model has files of its own,
            # and files that ship with the repository are inputs under the settings that they were made under
            assert found == first, name


def test_the_fingerprint_follows_the_content_of_inputs_and_not_their_metadata(tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    path = kinds.path_of('lut', settings)
    fingerprints = []
    for value, created in ((1, 'monday'), (1, 'tuesday'), (2, 'tuesday')):
        writing.write(path, {'value': value}, {'created': created})
        fingerprints.append(pipeline_fingerprints.inputs_of('step2', settings))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    os.unlink(path)
    assert pipeline_fingerprints.inputs_of('step2', settings) not in fingerprints


@pytest.mark.parametrize('kind', ['joint', 'joint_state', 'sequential'])
def test_the_fingerprint_of_a_domain_follows_its_own_entries_and_no_others(kind, tmp_path):
    settings = Settings(RESULTS_DIR=str(tmp_path))
    path = kinds.path_of('alpha', settings)

    def with_entries(**domains) -> str:
        writing.write(path, {'domains': domains}, {})
        return pipeline_fingerprints.inputs_of(kind, settings, 3)

    alone = with_entries(**{'3': {'alpha': 1}})
    assert with_entries(**{'3': {'alpha': 1}, '4': {'alpha': 7}}) == alone  # one more domain
    assert with_entries(**{'3': {'alpha': 2}, '4': {'alpha': 7}}) != alone
    assert with_entries(**{'4': {'alpha': 7}}) != alone


def test_weights_are_hashed_once_for_all_domains(tmp_path, monkeypatch):
    weights = tmp_path / 'weights.pt'
    weights.write_bytes(os.urandom(5000))
    hashed, hash_of = [], pipeline_fingerprints._bytes_hash
    monkeypatch.setattr(pipeline_fingerprints, '_bytes_hash', lambda path: hashed.append(path) or hash_of(path))
    settings = Settings(RESULTS_DIR=str(tmp_path), WEIGHT_PATH_SERVER=str(weights))
    first = [pipeline_fingerprints.inputs_of('joint', settings, domain) for domain in range(10)]
    assert hashed.count(str(weights)) == 1
    weights.write_bytes(os.urandom(5000))
    assert pipeline_fingerprints.inputs_of('joint', settings, 0) != first[0] and hashed.count(str(weights)) == 2
