"""Odd surroundings: output in other encodings, other folders, limited processors."""
from __future__ import annotations

import os

import pytest
from test_cli import run_python

SAYS = '''
import sys
import cli

def main(argv):
    print('domain 0: α = 1')
    cli.say('σ=0.20, \\udcff in a file name')
    print('domain 1: α = 2')

cli.run(main)
'''


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


def test_a_step_whose_output_is_latin_1(tmp_path):
    status, _, err = run_python('roofline_measure.py', '--tier', 'client', '--set', f'RESULTS_DIR={tmp_path}α',
                                'DEVICE_PROFILE=jetson-tx2', PYTHONIOENCODING='latin-1')
    assert (status, err) == (0, '') and os.listdir(f'{tmp_path}α') == ['roofline_client.json']
