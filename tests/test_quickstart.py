"""A newcomer's first command, in a fresh clone: every file is there, and the second run has nothing left to do."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ['--domains', '0', '--set', 'LUT_ROUNDS=2', 'MAX_EVALUATIONS=14', 'RECOVERY_STEPS=2']


def run(folder: Path, *arguments: str) -> 'subprocess.CompletedProcess[str]':
    """run_pipeline.sh in the environment that runs the tests."""
    environment = {**os.environ, 'VIRTUAL_ENV': sys.prefix,
                   'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']}
    return subprocess.run(['bash', 'run_pipeline.sh', *arguments], cwd=folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(not (ROOT / '.git').exists() or not shutil.which('git'), reason='needs a git checkout to clone')
def test_the_quick_start_works_in_a_fresh_clone_and_does_nothing_twice(tmp_path):
    clone = tmp_path / 'clone'
    subprocess.run(['git', 'clone', '--quiet', str(ROOT), str(clone)], check=True)
    first = run(clone, *SHORT)
    assert first.returncode == 0, first.stderr
    results = clone / 'results'
    for name in ('hardware_lut_complete', 'lut_server', 'lut_client', 'roofline_server', 'roofline_client',
                 'initial_throughput_config', 'joint_optimization/domain_0_joint'):
        assert json.loads((results / f'{name}.json').read_text())['schema_version'] == 1
    for picture in ('accuracy_throughput_curve.pdf', 'domain_comparison.png', 'lut_heatmap.png'):
        assert (results / 'visualization' / picture).stat().st_size > 1000
    status = subprocess.run(['git', 'status', '--porcelain'], cwd=clone, stdout=subprocess.PIPE, text=True, check=True)
    assert status.stdout == '', 'a run must not change what is in the repository'
    before = {path: path.stat().st_mtime_ns for path in results.rglob('*.json')}
    second = run(clone, *SHORT)
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in results.rglob('*.json')} == before
    third = run(clone, *SHORT, 'BANDWIDTH_MBPS=20')
    assert third.returncode == 0, third.stderr
    assert json.loads((results / 'hardware_lut_complete.json').read_text())['bandwidth']['bandwidth_mbps'] == 20
    assert 'results/lut_server.json is up to date' in third.stderr


@pytest.mark.parametrize('arguments', [['--domains', '10'], ['--frobnicate'], ['--jobs', 'many'],
                                       ['--set', 'EPSILON=lots'], ['--set', 'EPSILN=0.1']])
def test_a_bad_argument_ends_before_any_work_with_status_2(arguments):
    found = run(ROOT, *arguments)
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1 and 'error' in found.stderr
