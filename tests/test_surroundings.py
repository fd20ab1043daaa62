"""Odd surroundings: output in other encodings, other folders, limited processors, settings that cannot be."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import Tuple

import numpy as np
import pytest
from test_cli import SCRIPTS, only_line, run_python

import config
from config import Settings, UserError
from costs.checks import check_settings
from domains.image_sources import open_source
from network.shapes import ARCHITECTURES

SAYS = '''
import sys
import cli

def main(argv):
    print('domain 0: α = 1')
    cli.say('σ=0.20, \\udcff in a file name')
    print('domain 1: α = 2')

cli.run(main)
'''


def test_what_a_file_or_a_peer_says_steers_no_terminal_and_forges_no_line():
    script = ("import cli, config\ndef main(argv):\n    cli.say('α: \\x1b[2J\\r' + chr(0x202e))\n"
              "    raise config.UserError('a.json: is of \\x1b]0;x\\x07\\nerror: all is lost')\ncli.run(main)")
    status, _, err = run_python('-c', script)
    assert status == 2 and err == ('α: \\x1b[2J\\r\\u202e\n'
                                   '-c: error: a.json: is of \\x1b]0;x\\x07\\nerror: all is lost\n')


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_what_an_encoding_cannot_hold_does_not_end_the_work(encoding):
    status, out, err = run_python('-c', SAYS, PYTHONIOENCODING=encoding)
    alpha = 'α' if encoding == 'utf-8' else '\\u03b1'
    assert (status, out) == (0, f'domain 0: {alpha} = 1\ndomain 1: {alpha} = 2\n')
    assert err.endswith('\\udcff in a file name\n') and 'Traceback' not in err


@pytest.mark.parametrize('command', [('step_3_joint.py',), ('-m', 'benchmarks.verdict')])
def test_help_in_ascii(command):
    status, out, err = run_python(*command, '--help', PYTHONIOENCODING='ascii')
    assert (status, err) == (0, '') and out.startswith('usage: ')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize('script', ["print('a')", "print('a' * 100000)", "print('a', flush=True)"])
def test_output_to_a_full_disk_is_one_line(script):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', f'import cli\ncli.run(lambda argv: {script})'], stdout=full,
                              stderr=subprocess.PIPE, cwd=config.ROOT, universal_newlines=True)
    assert done.returncode == 1 and 'No space left on device' in only_line(done.stderr)


@pytest.mark.parametrize('raised', [
    "MemoryError()", "ImportError('libtorch_cpu.so: failed to map segment')",
    "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')"])
def test_no_memory_is_one_line_that_blames_no_file(raised):
    status, _, err = run_python('-c', 'import cli\ndef main(argv):\n'
                                f'    raise {raised}\ncli.run(main)')
    assert status == 1 and 'not enough memory' in only_line(err)


def test_memory_that_is_missing_while_the_digits_are_read_is_no_damage(monkeypatch):
    def none_left(*args, **options):
        raise MemoryError

    monkeypatch.setattr(np, 'load', none_left)
    with pytest.raises(MemoryError):
        open_source(Settings())


def test_a_step_whose_output_is_latin_1(tmp_path):
    status, _, err = run_python('roofline_measure.py', '--tier', 'client', '--set', f'RESULTS_DIR={tmp_path}α',
                                'DEVICE_PROFILE=jetson-tx2', PYTHONIOENCODING='latin-1')
    assert (status, err) == (0, '') and os.listdir(f'{tmp_path}α') == ['roofline_client.json']


# --- run_pipeline.sh, typed in another folder ----------------------------------------------------------------

def run_bash(cwd, *arguments: str, **environ: str) -> Tuple[int, str]:
    """(status, stderr) of run_pipeline.sh."""
    done = subprocess.run(['bash', os.path.join(config.ROOT, 'run_pipeline.sh'), *arguments], cwd=str(cwd),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120,
                          env={**os.environ, **environ})
    return done.returncode, done.stderr


@pytest.mark.parametrize('name', ['DATA_PATH', 'PARTITION_FILE', 'RESULTS_DIR', 'WEIGHT_PATH_SERVER', 'DEVICE_PROFILE'])
@pytest.mark.parametrize('by_flag', [False, True])
def test_paths_are_those_of_the_callers_folder(name, by_flag, tmp_path, monkeypatch):
    """A `python` that prints its settings stands in for the steps."""
    fake = tmp_path / 'bin' / 'python'
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n[ "$1" != - ] || exit 0\necho "{name}=${name} $*" >&2\nexit 7\n', encoding='utf-8')
    fake.chmod(0o755)
    (tmp_path / 'in here').write_text('', encoding='utf-8')
    given = {name: 'in here'}
    status, said = run_bash(tmp_path, *(['--set', f'{name}=in here', 'OMEGA=1'] if by_flag else []),
                            **{'PATH': f"{fake.parent}:{os.environ['PATH']}", 'VIRTUAL_ENV': 'fake'},
                            **({} if by_flag else given))
    assert status == 7 and f'{name}={tmp_path}/in here' in said and ('--set OMEGA=1' in said) == by_flag


STEP = """
import subprocess, sys, time
import cli

def main(argv):
    other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    try:
        print(other.pid, flush=True)
        time.sleep(600)
    finally:
        other.kill()
        other.wait()

cli.run(main)
"""


@pytest.mark.parametrize('sent, status', [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_to_run_pipeline_ends_the_step_and_what_it_started(sent, status, tmp_path):
    """A step that started another process stands in for all."""
    fake, step = tmp_path / 'bin' / 'python', tmp_path / 'step.py'
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncase $1 in -|-m) ;; *) exec {sys.executable} {step} ;; esac\n', encoding='utf-8')
    fake.chmod(0o755)
    step.write_text(STEP, encoding='utf-8')
    pipeline = subprocess.Popen(  # bash cannot catch what it was started to ignore, as below nohup
        [sys.executable, '-c', 'import os, signal, sys; [signal.signal(s, signal.SIG_DFL) for s in (1, 2, 15)]; '
         'os.execvp("bash", ["bash", sys.argv[1]])', os.path.join(config.ROOT, 'run_pipeline.sh')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, env={**os.environ, 'PATH': f"{fake.parent}:{os.environ['PATH']}",
                                      'VIRTUAL_ENV': 'fake', 'PYTHONPATH': config.ROOT})
    other = int(pipeline.stdout.readline())
    pipeline.send_signal(sent)
    assert pipeline.wait(60) == status and 'interrupted' in pipeline.communicate()[1]
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_names_and_whole_paths_stay_as_they_are(tmp_path):
    status, said = run_bash(tmp_path, '--set', 'DEVICE_PROFILE=jetson-nano', PYTHON='python3')
    assert status == 2 and "no device profile 'jetson-nano'" in said
    assert run_bash(tmp_path, '--help')[0] == 0


def test_scripts_have_line_ends_that_bash_reads_whatever_git_is_set_to():
    if not os.path.exists(os.path.join(config.ROOT, '.git')) or shutil.which('git') is None:
        pytest.skip('not a clone')
    for name, wanted in (('run_pipeline.sh', 'lf'), ('config.py', 'lf')):
        found = subprocess.run(['git', 'check-attr', 'eol', name], cwd=config.ROOT, stdout=subprocess.PIPE, check=True,
                               universal_newlines=True).stdout
        assert found.strip().endswith(f'eol: {wanted}')


# --- how many cores there are ----------------------------------------------------------------------------------

@pytest.mark.parametrize('files, expected', [
    ({'cpu.max': '50000 100000'}, 1), ({'cpu.max': '300000 100000'}, 3), ({'cpu.max': 'max 100000'}, 64),
    ({'pod/cpu.max': '200000 100000', 'pod/box/cpu.max': 'max 100000'}, 2), ({'pod/box/cpu.max': '250000 100000'}, 2),
    ({'cpu/cpu.cfs_quota_us': '50000', 'cpu/cpu.cfs_period_us': '100000'}, 1),
    ({'cpu/pod/cpu.cfs_quota_us': '400000', 'cpu/pod/cpu.cfs_period_us': '100000'}, 4),
    ({'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 64), ({'cpu.max': 'nonsense'}, 64), ({}, 64)])
def test_a_containers_share_of_the_processor_counts(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)
    (tmp_path / 'groups').write_text('3:cpu,cpuacct:/pod/box\n0::/pod/box\n', encoding='utf-8')
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + '\n', encoding='utf-8')
    assert config.cores(str(tmp_path / 'groups'), str(tmp_path)) == expected


def test_a_thread_setting_of_0_takes_these_cores(monkeypatch):
    monkeypatch.setattr(config, 'cores', lambda: 5)
    assert Settings().threads(0) == 5 and Settings().threads(2) == 2


# --- settings that cannot be, before any work --------------------------------------------------------------------

IMPOSSIBLE = [('WIRE_FORMATS=int4', "unknown wire format 'int4'"), ('LAMBDA_MAX=99', 'LAMBDA_MAX=99 leave no split'),
              ('LAMBDA_MIN=12', 'LAMBDA_MIN=12'), ('DEVICE_PROFILE=jetson-nano', "no device profile 'jetson-nano'"),
              ('SERVER_DEVICE=gpu', "SERVER_DEVICE='gpu': must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
              ('TRAIN_DEVICE=cuda:', 'TRAIN_DEVICE'), ('CLIENT_DEVICE=mps', 'CLIENT_DEVICE'),
              ('MODEL_NAME=C9', "unknown MODEL_NAME 'C9'"), ('WEIGHT_PATH_SERVER=no.pt', 'no.pt: no such weights file')]


@pytest.mark.parametrize('override, says', IMPOSSIBLE)
def test_impossible_settings_are_refused_by_the_first_check(override, says):
    with pytest.raises(UserError) as caught:
        check_settings(config.load((override,), {}))
    assert says in str(caught.value) and '\n' not in str(caught.value)


def test_run_pipeline_refuses_them_before_its_first_step():
    status, out, err = run_python('-m', 'engines.many_domains', '--set', 'LAMBDA_MAX=99')
    assert (status, out) == (2, '') and 'LAMBDA_MAX=99' in only_line(err)
    assert err.startswith('run_pipeline.sh: error: ')  # what was typed


ARGUMENTS = {'step1_measure_lut.py': ['--mode', 'server'], 'step_3_joint.py': ['--domain_id', '0'],
             'step3_accuracy_opt.py': ['--domain_id', '0'], 'step4_final_throughput_opt.py': ['--domain_id', '0'],
             'plan_fleet.py': ['fleet.json'], 'export_split.py': ['--domain_id', '0', '--out', 'deployed']}


@pytest.mark.parametrize('script', [name for name in SCRIPTS if not name.startswith('client_')])
def test_every_script_refuses_them_before_any_work(script, tmp_path):
    status, out, err = run_python(script, *ARGUMENTS.get(script, []), '--set', 'WIRE_FORMATS=int4',
                                  RESULTS_DIR=str(tmp_path / 'results'))
    assert (status, out) == (2, '') and "unknown wire format 'int4'" in only_line(err)
    assert not (tmp_path / 'results').exists()


def test_defaults_of_all_networks_and_both_profiles_pass():
    check_settings(config.load((), {}))
    check_settings(config.load(('PROFILE=imagenet',), {}))
    for name in ARCHITECTURES:
        check_settings(Settings(MODEL_NAME=name), weights=False)
