"""What every script shares: help, settings, one line for a user's mistake, and results that survive failures."""
from __future__ import annotations

import ast
import dataclasses
import glob
import os
import re
import subprocess
import sys
from importlib import util
from typing import Optional, Tuple, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cli
import config
from config import Settings, UserError

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
TYPES = get_type_hints(Settings)


def source_of(path: str) -> str:
    with open(path, encoding='utf-8') as stream:
        return stream.read()


SCRIPTS = sorted(os.path.basename(path) for path in glob.glob(os.path.join(config.ROOT, '*.py'))
                 if 'cli.run(main)' in source_of(path) and os.path.basename(path) != 'cli.py')

BENCHMARKS = sorted(os.path.basename(path)[:-3] for path in glob.glob(os.path.join(config.ROOT, 'benchmarks', '*.py'))
                    if "__name__ == '__main__'" in source_of(path))


def run_python(*arguments: str, cwd: str = config.ROOT, **environ: str) -> Tuple[int, str, str]:
    """(status, stdout, stderr) of a Python process."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': config.ROOT, **environ})
    return done.returncode, done.stdout, done.stderr


def only_line(text: str) -> str:
    """The text without its line end, if it is one line."""
    assert text.endswith('\n') and text.count('\n') == 1, text
    return text[:-1]


# --- help and imports -----------------------------------------------------------------------------------

HELP_WITHOUT = '''
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in blocked:
            raise SystemExit(name + ' was loaded')

command, blocked = sys.argv[1], sys.argv[2].split(',')
sys.meta_path.insert(0, Blocker())
sys.argv = [command, '--help']
if command.endswith('.py'):
    runpy.run_path(command, run_name='__main__')
else:
    runpy.run_module(command, run_name='__main__', alter_sys=True)
'''
SLOW = ('torch', 'torchvision', 'matplotlib', 'numpy')
NEEDS_NUMPY = ('roofline_measure.py',)  # a library as well: costs.cost_model stands among its imports


def help_of(command: str) -> Tuple[int, str, str]:
    """(status, stdout, stderr) of `python script.py --help` or `python -m benchmarks.name --help`, which fails when
    something slow is imported."""
    blocked = [name for name in SLOW if command not in NEEDS_NUMPY or name != 'numpy']
    return run_python('-c', HELP_WITHOUT, command, ','.join(blocked))


def test_the_scripts_of_the_specification_are_there():
    named = {'create_noniid_partition.py', 'code1_train_and_record_weights.py', 'roofline_measure.py',
             'code2_calculate_flops_importance.py', 'step1_measure_lut.py', 'step2_initial_throughput_opt.py',
             'step_3_joint.py', 'step5_visualize_results.py', 'client_worker.py', 'step3_accuracy_opt.py',
             'step4_final_throughput_opt.py', 'server_main.py', 'server_main_throughput.py'}
    assert named <= set(SCRIPTS)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_works_without_loading_torch_and_shows_the_commands(script):
    status, out, err = help_of(script)
    assert (status, err) == (0, '')
    docstring = ast.get_docstring(ast.parse(source_of(os.path.join(config.ROOT, script))))
    assert docstring.splitlines()[0] in out and f'python {script}' in out
    assert '--set NAME=VALUE' in out


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_help_of_a_benchmark_works_without_loading_torch_and_shows_the_command(benchmark):
    status, out, err = help_of(f'benchmarks.{benchmark}')
    assert (status, err) == (0, '')
    assert out.startswith('usage: ') and f'python -m benchmarks.{benchmark}' in out


def test_bad_flags_of_a_benchmark_are_one_line():
    status, out, err = run_python('-m', 'benchmarks.limited_optimiser', '--fast')
    assert (status, out) == (2, '') and 'unrecognized arguments: --fast; see --help' in only_line(err)


@pytest.mark.parametrize('script, flags', [
    ('step1_measure_lut.py', ['--mode {client,server,merge}', '--device_profile']),
    ('step2_initial_throughput_opt.py', ['--lut_file']),
    ('step_3_joint.py', ['--domain_id', '--mode {pseudo,real}']),
    ('client_worker.py', ['--server_ip', '--port']),
])
def test_the_flags_of_the_specification_are_there(script, flags):
    out = run_python(script, '--help')[1]
    assert all(flag in out for flag in flags)


def test_importing_any_module_says_and_does_nothing(tmp_path):
    paths = glob.glob(f'{config.ROOT}/*.py')
    for init in glob.glob(f'{config.ROOT}/*/__init__.py'):
        paths += glob.glob(f'{os.path.dirname(init)}/*.py')
    modules = sorted(os.path.relpath(path, config.ROOT)[:-3].replace(os.sep, '.') for path in paths)
    if util.find_spec('ray') is None:
        modules = [name for name in modules if name not in ('engines.ray_cluster', 'service.ray_workers')]
    code = (f'import importlib\nfor name in {modules}: importlib.import_module(name)\n'
            'import torch\nassert not torch.cuda.is_initialized()')
    assert run_python('-c', code, cwd=str(tmp_path), PYTHONDONTWRITEBYTECODE='1') == (0, '', '')
    assert os.listdir(str(tmp_path)) == []


# --- settings ---------------------------------------------------------------------------------------------

def refused(*overrides: str, **environ: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(overrides, environ)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_the_first_profile_and_have_their_declared_types():
    settings = config.load((), {})
    assert settings == Settings()
    for name, kind in TYPES.items():
        value = getattr(settings, name)
        if kind in (int, float, str):
            assert type(value) is kind, name
        elif kind == Tuple[float, ...]:
            assert all(type(part) is float for part in value), name


def test_names_that_users_know_are_there():
    assert {'MODEL_NAME', 'WEIGHT_PATH_SERVER', 'WEIGHT_PATH_CLIENT', 'SERVER_IP', 'PORT_MAIN', 'MAX_PRUNING_ROUNDS',
            'THROUGHPUT_OPTIM_STEPS', 'DATA_PATH', 'BATCH_SIZE', 'NUM_DOMAINS', 'PRUNING_THRESHOLD'} <= set(FIELDS)


@pytest.mark.parametrize('name', [name for name in FIELDS if len(name) >= 5])
def test_a_misspelt_setting_is_an_error_that_suggests_the_right_one(name):
    for k in range(len(name)):
        for typo in (name[:k] + name[k + 1:], name[:k] + 'X' + name[k:], (name[:k] + name[k + 1:]).lower()):
            if typo not in FIELDS:
                assert f'unknown setting {typo}: did you mean ' in refused(f'{typo}=1')
    longest = name[:-1]  # a letter lost at the end leaves no doubt
    assert f'did you mean {name}?' in refused(f'{longest}=1') or longest in FIELDS or any(
        other.startswith(longest) for other in FIELDS if other != name)


@pytest.mark.parametrize('name', ['FOO', 'TURBO', 'VERBOSE', 'GPU'])
def test_a_name_that_is_like_no_setting_suggests_none(name):
    assert refused(f'{name}=1') == f'unknown setting {name}: config.py lists them all'


@given(st.text(alphabet='abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789', min_size=1, max_size=25))
def test_an_unknown_setting_is_never_ignored(name):
    if name not in FIELDS:
        assert f'unknown setting {name}' in refused(f'{name}=1')


def test_what_looks_like_a_setting_in_the_environment_is_a_warning(capsys):
    """Other programs have names there, too: `SERVER_ID=web1` must not stop a script."""
    for name, near in (('MAX_PRUNING_ROUND', 'MAX_PRUNING_ROUNDS'), ('SERVER_ID', 'SERVER_IP'),
                       ('DATASETS', 'DATASET')):
        assert config.load((), {name: 'x'}) == Settings()
        assert only_line(capsys.readouterr().err) == \
            f'warning: {name} in the environment is no setting: did you mean {near}?'
    assert config.load((), {'HOME': '/root', 'PATH': '/bin', 'LANG': 'C', 'OMP_NUM_THREADS': '2'}) == Settings()


@pytest.mark.parametrize('name', [name for name, kind in TYPES.items() if kind is not str and kind != Tuple[str, ...]])
def test_a_value_of_the_wrong_type_is_refused_by_name(name):
    wrong = ['three', '1,2,x', '0x10', '1;2', 'nan', 'inf', '--1', '[1]']
    if TYPES[name] is not bool:
        wrong += ['True']
    if TYPES[name] in (int, Optional[int]):
        wrong += ['1.5', '1e3']
    if TYPES[name] in (int, float):
        wrong += ['', 'none']
    for text in wrong:
        for message in (refused(f'{name}={text}'), refused(**{name: text})):
            assert message.startswith(f'setting {name}={text!r}: must be ')


@pytest.mark.parametrize('override', [
    'PROFILE=laptop', 'HEAD_TIER=both', 'NUM_DOMAINS=11', 'NUM_DOMAINS=0', 'OMEGA=1.01', 'OMEGA=-0.1', 'EPSILON=2',
    'BANDWIDTH_MBPS=0', 'RTT_MS=-1', 'PORT_MAIN=0', 'PORT_MAIN=65536', 'BATCH_SIZE=0', 'INPUT_SIZE=0', 'NUM_CLASSES=0',
    'TRAIN_FRACTION=0', 'TRAIN_FRACTION=1', 'VAL_FRACTION=1', 'CAL_FRACTION=0', 'NORM_MEAN=0.5', 'NORM_STD=1,1,0',
    'NORM_STD=1,1,1,1',
    'WIRE_FORMATS=', 'LAMBDA_MIN=-1', 'LAMBDA_MAX=-1', 'LUT_ROUNDS=0', 'EDGE_CPU_SLOWDOWN=0', 'SEED=-1', 'SIGMA=0',
    f'SEED={2 ** 63}', 'RESULTS_DIR=', 'PARTITION_FILE= ',
    'MAX_PRUNING_ROUNDS=-1', 'ALPHA_LR=0', 'SERVER_THREADS=-1', 'KAPPA=-1', 'THROUGHPUT_OPTIM_STEPS=-1'])
def test_a_value_out_of_range_is_refused_with_its_range(override):
    name = override.partition('=')[0]
    assert re.match(rf'setting {name}=.*: must be ', refused(override))


@pytest.mark.parametrize('former, now, says', [('OLD_EPSILON', 'EPSILON', 'it is now called EPSILON'),
                                               ('SPEED', 'leave it out, nothing needs it', 'leave it out, nothing')])
def test_a_setting_of_earlier_versions_is_an_error_that_says_what_to_do_now(former, now, says, monkeypatch):
    monkeypatch.setitem(config.RENAMED, former, now)
    assert re.match(f'unknown setting {former}: {says}', refused(f'{former}=1'))
    assert re.match(f'unknown setting {former} in the environment: {says}', refused(**{former: '1'}))


def test_no_setting_is_also_a_former_name():
    assert not set(config.RENAMED) & set(FIELDS)
    for now in config.RENAMED.values():
        assert now in FIELDS or ' ' in now  # another setting, or a sentence


def test_an_override_without_a_value_says_how_to_write_it():
    assert 'NAME=VALUE' in refused('OMEGA')


def test_the_command_line_wins_over_the_environment_and_that_over_the_profile():
    assert config.load((), {'PROFILE': 'imagenet'}).MODEL_NAME == 'RepVGG-B3'
    assert (config.load((), {}).CLIENTS, config.load((), {'PROFILE': 'imagenet'}).CLIENTS) == (8, 1)
    assert config.load((), {'PROFILE': 'imagenet', 'MODEL_NAME': 'RepVGG-A0'}).MODEL_NAME == 'RepVGG-A0'
    settings = config.load(('MODEL_NAME=RepVGG-A1',), {'PROFILE': 'imagenet', 'MODEL_NAME': 'RepVGG-A0'})
    assert (settings.MODEL_NAME, settings.NUM_CLASSES) == ('RepVGG-A1', 1000)
    assert config.load(('PROFILE=quickstart',), {'PROFILE': 'imagenet'}) == Settings()
    assert config.load(('SEED=1', 'SEED=2'), {}).SEED == 2


@given(st.data())
def test_a_setting_reads_back_what_was_written(data):
    name = data.draw(st.sampled_from(['SEED', 'BANDWIDTH_MBPS', 'DATA_PATH', 'NORM_MEAN', 'WIRE_FORMATS',
                                      'LAMBDA_MAX']))
    values = {'SEED': st.integers(0, 2 ** 31), 'BANDWIDTH_MBPS': st.floats(1e-3, 1e6), 'LAMBDA_MAX': st.integers(0, 99),
              'DATA_PATH': st.text(min_size=1), 'NORM_MEAN': st.tuples(*[st.floats(-5, 5)] * 3),
              'WIRE_FORMATS': st.lists(st.sampled_from(['float32', 'uint8']), min_size=1).map(tuple)}
    value = data.draw(values[name])
    text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
    for settings in (config.load((f'{name}={text}',), {}), config.load((), {name: text})):
        assert getattr(settings, name) == value
        assert dataclasses.replace(settings, **{name: getattr(Settings(), name)}) == Settings()


def test_set_may_be_repeated_and_take_several(monkeypatch):
    monkeypatch.delenv('SEED', raising=False)
    parser = cli.parser('A script.')
    _, settings = cli.parse(parser, ['--set', 'SEED=5', 'OMEGA=1', '--set', 'EPSILON=0.1'])
    assert (settings.SEED, settings.OMEGA, settings.EPSILON) == (5, 1.0, 0.1)


@pytest.mark.parametrize('text, found', [(None, list(range(10))), ('3', [3]), ('7,0,7', [0, 7]),
                                         ('0-9', list(range(10))), ('5-5, 1-2', [1, 2, 5])])
def test_domains_are_read_as_a_list(text, found):
    assert cli.domains(text, Settings()) == found


@pytest.mark.parametrize('text', ['10', '-1', 'a', '', '1,,2', '3-1', '0-', '8-10', '0-999999999', '1-2-3'])
def test_a_domain_that_does_not_exist_is_one_line(text):
    with pytest.raises(UserError) as caught:
        cli.domains(text, Settings())
    assert '\n' not in str(caught.value)


# --- exit statuses ------------------------------------------------------------------------------------------

def status_of(main) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def raising(error: BaseException):
    def main(argv):
        raise error
    return main


def test_a_users_mistake_is_one_line_on_stderr_and_status_2(capsys):
    assert status_of(raising(UserError('the file is not there'))) == 2
    out, err = capsys.readouterr()
    assert out == '' and only_line(err).endswith('error: the file is not there')


def test_ctrl_c_is_one_line_and_status_130(capsys):
    assert status_of(raising(KeyboardInterrupt())) == 130
    assert 'interrupted' in only_line(capsys.readouterr().err)


def test_success_is_status_0():
    assert status_of(lambda argv: None) == 0


@pytest.mark.parametrize('error', [KeyError('x'), ValueError('y'), AssertionError(), OSError('z')])
def test_a_programming_error_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(raising(error))
    code = f'import cli\ndef main(argv): raise {error!r}\ncli.run(main)'
    status, out, err = run_python('-c', code)
    assert status == 1 and 'Traceback' in err and type(error).__name__ in err


def test_a_reader_that_goes_away_is_no_error_message():
    code = 'import cli\ndef main(argv):\n  for i in range(100000): print(i)\ncli.run(main)'
    writer = subprocess.Popen([sys.executable, '-c', code], cwd=config.ROOT, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b'' and writer.wait(60) == 1
    writer.stderr.close()


@pytest.mark.parametrize('command, says', [
    (['step2_initial_throughput_opt.py', '--lut_file', 'no/such/lut.json'], 'no/such/lut.json: no such file'),
    (['step_3_joint.py', '--domain_id', '10'], 'domain 10: there are domains 0 to 9'),
    (['step_3_joint.py', '--domain_id', '-1'], 'domain -1'),
    (['roofline_measure.py', '--set', 'SERVER_THREAD=1'], 'did you mean SERVER_THREADS?'),
    (['step1_measure_lut.py', '--mode', 'server', '--set', 'MODEL_NAME=ResNet18'], 'ResNet18'),
    (['code1_train_and_record_weights.py', '--domains', '0,12'], 'domain 12'),
    (['client_worker.py', '--port', '99999'], "--port: '99999': must be a port"),
    (['client_worker.py', '--control_port', '-1'], 'must be a port'),
    (['client_worker.py', '--cache_gib', 'nan'], "'nan': must be a number above 0"),
    (['client_worker.py', '--server_ip', 'a..b', '--control_port', '0'], 'a..b: is no host name or address'),
    (['client_control.py', 'status', '--port', '99999'], 'must be a port'),
    (['server_main.py', '--port', '70000'], 'must be a port'),
    (['step_3_joint.py', '--domain_id', '0', '--mode', 'real', '--jobs', '2'], 'without --engine and --jobs'),
    (['step_3_joint.py', '--domain_id', '0', '--mode', 'real', '--lut_file', 'x.json'], 'leave --lut_file out'),
])
def test_scripts_say_in_one_line_what_is_wrong(command, says, tmp_path):
    status, out, err = run_python(*command, RESULTS_DIR=str(tmp_path))
    assert (status, out) == (2, '')
    assert says in err and only_line(err).startswith(f'{command[0]}: error: ')
    assert os.listdir(str(tmp_path)) == []
