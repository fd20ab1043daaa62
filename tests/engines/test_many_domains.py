"""Many domains at once: the same results from every engine, also where files lie elsewhere; failures, kills, Ctrl-C."""
from __future__ import annotations

import glob
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

import pytest
from prepared import copy_prepared, prepare
from random_cases import whole_table

import config
import create_noniid_partition
import lut_manager
import step_3_joint
from config import UserError
from engines import jobs as engines_jobs
from engines import many_domains, parcel, processes
from pipeline import fingerprints, kinds, writing
from steps import joint
from tier import devices

DOMAINS = [2, 3]
SLOW = ['MAX_EVALUATIONS=2000', 'RECOVERY_STEPS=400']  # a search that is not over before a signal comes


def heed_interrupts() -> None:
    """A process that a shell started in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Workspace(NamedTuple):
    """A folder with the table, and the files that the serial engine left in it."""
    folder: str
    overrides: List[str]  # less RESULTS_DIR
    serial: Dict[str, Any]

    def results(self, name: str) -> str:
        """A fresh folder of results with nothing but the table."""
        path = os.path.join(self.folder, name)
        os.makedirs(path)
        shutil.copy(os.path.join(self.folder, 'serial', 'hardware_lut_complete.json'), path)
        copy_prepared(os.path.join(self.folder, 'serial'), path)
        return path

    def argv(self, results: str, *more: str) -> List[str]:
        return ['--domains', '2-3', *more, '--set', *self.overrides, f'RESULTS_DIR={results}']

    def step3(self, results: str, *more: str) -> 'subprocess.Popen[str]':
        """Step 3 in a session of its own."""
        return subprocess.Popen([sys.executable, 'step_3_joint.py', *self.argv(results, *more)], cwd=config.ROOT,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                preexec_fn=heed_interrupts)


def joint_files(results: str) -> Dict[str, Any]:
    """Every domain's file by name, without what differs between two runs of one seed."""
    found = {}
    folder = os.path.join(results, 'joint_optimization')
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding='utf-8') as stream:
            content = json.load(stream)
        content.pop('wall_s')
        content['metadata'].pop('created')
        found[name] = json.dumps(content)
    return found


@pytest.fixture(scope='module')
def workspace(tmp_path_factory) -> Workspace:
    folder = str(tmp_path_factory.mktemp('engine'))
    before = os.getcwd()
    os.chdir(config.ROOT)
    # no memory for activations: a search that is resumed measures exactly what it would have measured
    overrides = [f'PARTITION_FILE={folder}/partition.json', 'IMAGES_PER_SUBSET=60', 'MAX_EVALUATIONS=8',
                 'RECOVERY_STEPS=1', 'MAX_PRUNING_ROUNDS=4', 'EPSILON=0.02', 'ACTIVATION_CACHE_MB=0']
    results = os.path.join(folder, 'serial')
    settings = config.load((*overrides, f'RESULTS_DIR={results}'), {})
    create_noniid_partition.main(['--set', *overrides])
    prepare(settings)
    lut_manager.save(whole_table(settings, seed=3), settings)
    empty = Workspace(folder, overrides, {})
    assert step_3_joint.main(empty.argv(results, '--engine', 'serial')) == 0
    yield empty._replace(serial=joint_files(results))
    os.chdir(before)


def finished(process: 'subprocess.Popen[str]') -> 'subprocess.CompletedProcess[str]':
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_worker_process_that_serves_two_domains_writes_the_same_files(workspace):
    results = workspace.results('one_worker')
    run = finished(workspace.step3(results, '--jobs', '1'))
    assert run.returncode == 0, run.stderr
    assert joint_files(results) == workspace.serial
    again = finished(workspace.step3(results, '--if_changed'))
    assert (again.returncode, again.stderr.count('is up to date')) == (0, len(DOMAINS))


def test_a_domain_alone_gives_the_same_file_too(workspace):
    results = workspace.results('alone')
    step_3_joint.main(['--domain_id', '3', '--set', *workspace.overrides, f'RESULTS_DIR={results}'])
    assert joint_files(results) == {'domain_3_joint.json': workspace.serial['domain_3_joint.json']}


def damaged_state(workspace: Workspace, results: str) -> str:
    """The path of a state of domain 2 that lacks its content."""
    settings = config.load((*workspace.overrides, f'RESULTS_DIR={results}'), {})
    metadata = writing.make_metadata(settings, 'joint_state', fingerprints.inputs_of('joint_state', settings, 2))
    path = kinds.path_of('joint_state', settings, 2)
    writing.write(path, {}, metadata)
    return path


def test_a_domain_that_fails_is_one_line_and_the_other_finishes(workspace):
    results = workspace.results('one_fails')
    state = damaged_state(workspace, results)
    run = finished(workspace.step3(results, '--jobs', '2'))
    assert run.returncode == 2
    errors = [line for line in run.stderr.splitlines() if 'error' in line]
    assert errors[0].startswith('domain 2: error: ') and "domain_2_state.json: field '" in errors[0]
    assert errors[1].startswith('step_3_joint.py: error: domain 2 failed, 1 of 2 done') and len(errors) == 2
    assert 'domain 3 (' in run.stdout and 'Traceback' not in run.stderr
    os.unlink(state)
    again = finished(workspace.step3(results, '--if_changed'))
    assert again.returncode == 0 and 'domain_3_joint.json is up to date' in again.stderr
    assert joint_files(results) == workspace.serial


@pytest.mark.parametrize('error, text, bad_input', [
    (UserError('what to do'), 'what to do', True), (KeyError('no\nsuch'), 'KeyError', False)])
def test_an_error_of_a_domain_is_one_line_and_says_whose_fault_it_is(error, text, bad_input):
    def fails(*arguments):
        raise error

    outcome = engines_jobs.attempt(engines_jobs.Job(fails, 5, config.Settings(), '', ''))
    assert text in outcome.error and '\n' not in outcome.error
    assert (outcome.domain, outcome.bad_input) == (5, bad_input)
    if not bad_input:
        assert 'test_many_domains.py:' in outcome.error  # where


def children_of(pid: int) -> List[int]:
    with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as stream:
        return [int(child) for child in stream.read().split()]


def wait_for_a_state(results: str) -> None:
    """Until a search has finished its first round."""
    deadline = time.monotonic() + 120
    while not glob.glob(os.path.join(results, 'joint_optimization', 'domain_*_state.json')):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_line_of_progress(process: 'subprocess.Popen[str]') -> str:
    line = process.stderr.readline()
    assert line.startswith('domain ') and ' round ' in line, line + process.stderr.read()
    return line


def alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as stream:
            return stream.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='needs /proc to find worker processes')


@needs_proc
def test_a_killed_worker_costs_its_domain_and_the_same_command_goes_on(workspace):
    results = workspace.results('killed')
    process = workspace.step3(results, '--jobs', '1', '--if_changed')
    first_line_of_progress(process)
    worker = max(children_of(process.pid))  # the other child, multiprocessing's resource tracker, came first
    os.kill(worker, signal.SIGKILL)
    run = finished(process)
    assert run.returncode == 1
    assert 'domain 2: error: its worker process was killed by signal 9' in run.stderr
    assert sorted(os.listdir(os.path.join(results, 'joint_optimization'))) == ['domain_2_state.json',
                                                                               'domain_3_joint.json']
    again = finished(workspace.step3(results, '--if_changed'))
    assert again.returncode == 0 and joint_files(results) == workspace.serial


@needs_proc
@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_the_driver(workspace, number, status):
    results = workspace.results(f'stopped_by_{number}')
    slow = workspace._replace(overrides=[*workspace.overrides, *SLOW])
    process = slow.step3(results, '--jobs', '1' if number == signal.SIGKILL else '2')
    wait_for_a_state(results)
    workers = children_of(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(number)
    run = finished(process)
    assert run.returncode == status and 'Traceback' not in run.stderr
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    leftover = [name for name in os.listdir(os.path.join(results, 'joint_optimization')) if name.startswith('.')]
    assert number == signal.SIGKILL or not leftover


# --- Ray -----------------------------------------------------------------------------------------------------

def test_a_job_needs_nothing_but_its_parcel_and_hands_back_what_it_wrote(workspace, tmp_path):
    """As on a node of a cluster that shares no files: another process, another folder, the inputs gone."""
    results = workspace.results('parcel')
    settings = config.load((*workspace.overrides, f'RESULTS_DIR={results}'), {})
    lut_file = kinds.path_of('lut', settings)
    job = engines_jobs.Job(joint.joint, 3, settings, fingerprints.inputs_of('joint', settings, 3), lut_file, {
        'search_inputs': fingerprints.inputs_of('joint_state', settings, 3), 'search_again': True})
    (tmp_path / 'sent').write_bytes(pickle.dumps(parcel.packed(job)))
    ignored = shutil.ignore_patterns(*(pattern.lstrip('/').replace('\\', '') for pattern in parcel.not_code()))
    shutil.copytree(config.ROOT, str(tmp_path / 'code'), ignore=ignored)
    os.rename(results, results + '_elsewhere')
    os.rename(f'{workspace.folder}/partition.json', f'{workspace.folder}/partition_elsewhere.json')
    script = ('import os, pickle, sys\n'
              'sys.path[0] = os.path.join(os.getcwd(), "code")\n'
              'from engines import parcel\n'
              'sent, common = pickle.load(open("sent", "rb"))\n'
              'messages = []\n'
              'end = parcel.work(sent, common, messages.append)\n'
              'pickle.dump((messages, end), open("received", "wb"))\n')
    try:
        subprocess.run([sys.executable, '-c', script], cwd=str(tmp_path), check=True)
    finally:
        os.rename(results + '_elsewhere', results)
        os.rename(f'{workspace.folder}/partition_elsewhere.json', f'{workspace.folder}/partition.json')
    sent, (outcome, changes) = pickle.loads((tmp_path / 'received').read_bytes())
    assert outcome.error == '' and 'domain 3 (' in outcome.printed
    files: Dict[str, Optional[bytes]] = {}
    for message in [*sent, changes]:
        files.update(message if isinstance(message, dict) else {})
    assert any('domain 3 round 1' in message for message in sent if isinstance(message, str))
    assert {os.path.basename(name) for name, content in files.items() if content} == {'domain_3_joint.json'}
    os.makedirs(os.path.join(results, 'joint_optimization'))
    with open(kinds.path_of('joint', settings, 3), 'wb') as stream:
        stream.write(files['results/joint_optimization/domain_3_joint.json'])
    assert joint_files(results) == {'domain_3_joint.json': workspace.serial['domain_3_joint.json']}
    assert fingerprints.is_current([kinds.path_of('joint', settings, 3)], job.inputs)


def test_what_travels_as_code_is_neither_data_nor_results():
    excluded = parcel.not_code()
    for name in ('data', 'results', 'docs', 'tests', 'benchmarks', 'README.md'):
        assert f'/{name}' in excluded
    for name in ('engines', 'search', 'config.py', 'step_3_joint.py'):
        assert f'/{name}' not in excluded


def test_without_ray_its_engine_is_refused_in_one_line(workspace, monkeypatch):
    monkeypatch.setattr(many_domains.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install ray'):
        step_3_joint.main(workspace.argv('nowhere', '--engine', 'ray'))


def test_ray_writes_the_same_file_as_one_after_another_whatever_becomes_of_the_other_domain(workspace):
    pytest.importorskip('ray', reason='Ray is optional and not installed: pip install ray')
    results = workspace.results('ray')
    state = damaged_state(workspace, results)
    run = finished(workspace.step3(results, '--engine', 'ray'))
    assert run.returncode == 2, run.stderr
    assert f"domain 2: error: {state}: field '" in run.stderr  # by its name here, not on the node
    os.unlink(state)
    assert joint_files(results) == {'domain_3_joint.json': workspace.serial['domain_3_joint.json']}


@pytest.mark.parametrize('argv', [['--domains', '0-3', '--jobs', '0'], ['--domains', '0-3', '--jobs', 'x'],
                                  ['--domains', '0-3', '--engine', 'dask'], ['--domains', '3-10'], [],
                                  ['--domains', '1', '--domain_id', '1'], ['--domains', '1', '--mode', 'real']])
def test_bad_arguments_are_one_line_and_status_2(argv):
    run = subprocess.run([sys.executable, 'step_3_joint.py', *argv], cwd=config.ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1 and 'error' in run.stderr


@pytest.mark.parametrize('asked, gpus, wanted', [
    ('cpu', 2, ['cpu']), ('auto', 0, ['cpu']), ('auto', 2, ['cuda:0', 'cuda:1']), ('cuda', 1, ['cuda:0']),
    ('cuda:1', 2, ['cuda:1']), ('cuda', 0, ['cuda'])])
def test_domains_may_use_the_device_that_was_asked_for_or_all_gpus(asked, gpus, wanted, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: gpus)
    assert processes.train_devices(config.load((f'TRAIN_DEVICE={asked}',), {})) == wanted


def say_device(domain, settings, inputs, lut_file):
    print(settings.TRAIN_DEVICE)


def test_worker_processes_take_turns_on_the_devices():
    settings, outcomes = config.load((), {}), []
    jobs = [engines_jobs.Job(say_device, domain, settings, '', '') for domain in range(2)]
    processes.run_in_processes(jobs, 2, outcomes.append, ['cpu', 'cpu:0'])
    assert sorted(outcome.printed for outcome in outcomes) == ['cpu\n', 'cpu:0\n']
    assert not any(outcome.error for outcome in outcomes)


def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match='device .cuda:7. cannot be used'):
        devices.device_of('cuda:7')
