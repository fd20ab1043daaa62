"""Step 5 draws what is there, refuses what does not fit in one line, and leaves nothing half-written."""
from __future__ import annotations

import contextlib
import io
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from made_results import make_table, save_domain

import config
import lut_manager
import step5_visualize_results as step5
from config import UserError
from costs.cost_model import scenario_of, times
from pipeline import kinds, writing
from report import pictures
from report import summary as result_summary
from search import result_file
from steps import unpruned

FEW_STEPS = 'THROUGHPUT_OPTIM_STEPS=3'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A results folder with table, step 2 and domains 0 and 3; and what the script printed about it."""
    folder = str(tmp_path_factory.mktemp('results'))
    settings = config.load((f'RESULTS_DIR={folder}', FEW_STEPS), {})
    table = make_table(settings)
    lut_manager.save(table, settings)
    writing.write(kinds.path_of('step2', settings), unpruned.optimise(table, settings),
                     writing.make_metadata(settings, 'step2', ''))
    save_domain(table, settings, 0)
    save_domain(table, settings, 3, sequential=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch('report.style.DPI', 30):
        step5.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS])
    return folder, settings, table, printed.getvalue()


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the inputs without the pictures, to damage."""
    copy = str(tmp_path / 'results')
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns('visualization'))
    return copy


def change(path, field, value):
    """Set one field, such as 'gamma.stage1.0' given as a tuple of keys, of a JSON file."""
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    node = content
    for key in field[:-1]:
        node = node[key]
    node[field[-1]] = value
    with open(path, 'w', encoding='utf-8') as stream:
        json.dump(content, stream)


def refusal(folder, *settings):
    """The error of step 5 on a folder; nothing may have been written."""
    with pytest.raises(UserError) as caught:
        step5.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS, *settings])
    assert not os.path.exists(os.path.join(folder, 'visualization'))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_subset_of_domains_gives_every_picture_twice_and_no_leftovers(finished):
    written = sorted(os.listdir(os.path.join(finished[0], 'visualization')))
    names = ['accuracy_throughput_curve', 'accuracy_teff_curve', 'rate_by_clients', 'domain_comparison', 'lut_heatmap',
             'split_times', 'domain_0_configuration', 'domain_3_configuration']
    assert written == sorted([f'{name}.{kind}' for name in names for kind in ('pdf', 'png')]
                             + ['summary.txt', 'summary.json'])
    for name in written:
        with open(os.path.join(finished[0], 'visualization', name), 'rb') as stream:
            start = stream.read(8)
        assert not name.endswith('.png') or start == b'\x89PNG\r\n\x1a\n'
        assert not name.endswith('.pdf') or start.startswith(b'%PDF')


def test_the_summary_holds_the_means_of_the_domains(finished):
    folder, settings, table, printed = finished
    results = [result_file.load(domain, table, settings) for domain in (0, 3)]
    expected = np.mean([r.times.T_eff_ms / r.baselines['step2'].times.T_eff_ms - 1 for r in results])
    with open(os.path.join(folder, 'visualization', 'summary.json'), encoding='utf-8') as stream:
        summary = json.load(stream)
    assert summary['mean']['T_eff_change'] == pytest.approx(expected)
    assert summary['mean']['accuracy_loss'] == pytest.approx(0.005)
    assert summary['mean_sequential']['accuracy_loss'] == pytest.approx(0.01)
    assert f'{100 * expected:+.1f}%' in printed and 'simulated' in printed
    with open(os.path.join(folder, 'visualization', 'summary.txt'), encoding='utf-8') as stream:
        assert printed.startswith(stream.read())


def test_it_says_when_one_tier_alone_is_better(finished):
    _, settings, table, printed = finished
    results = [result_file.load(domain, table, settings) for domain in (0, 3)]
    pays = [min(r.baselines[name].times.T_eff_ms for name in ('all_client', 'all_client_pruned')) > r.times.T_eff_ms
            for r in results]  # images stay on the device: LAMBDA_MIN is 1
    assert ('splitting pays' in printed) == any(pays)
    assert ('splitting does not pay' in printed) == (not all(pays))


def test_if_changed_draws_again_only_for_other_content_or_a_lost_picture(folder, capsys, monkeypatch):
    drawn = []

    def write_all(folder, made):
        drawn.append(sorted(made))
        for name in made:
            for suffix in ('pdf', 'png'):
                open(os.path.join(folder, f'{name}.{suffix}'), 'w').close()

    monkeypatch.setattr(pictures, 'write_all', write_all)
    arguments = ['--if_changed', '--set', f'RESULTS_DIR={folder}', FEW_STEPS]
    step5.main(arguments)
    step5.main(arguments)
    assert len(drawn) == 1 and 'up to date' in capsys.readouterr().err
    os.unlink(os.path.join(folder, 'visualization', 'split_times.png'))
    step5.main(arguments)
    assert len(drawn) == 2
    os.unlink(os.path.join(folder, 'joint_optimization', 'domain_0_joint.json'))
    step5.main(arguments)
    assert len(drawn) == 3 and 'domain_0_configuration' not in drawn[2]


def test_without_any_domain_it_names_the_command_that_makes_one(folder):
    shutil.rmtree(os.path.join(folder, 'joint_optimization'))
    assert 'python step_3_joint.py --domain_id 0' in refusal(folder)


@pytest.mark.parametrize('name, field, value, expected', [
    ('domain_0_joint.json', ('gamma', 'stage1.1'), 14, 'there is no γ 14'),
    ('domain_0_joint.json', ('gamma', 'stage1.0'), 0, 'γ 0 does not run exactly'),
    ('domain_3_joint.json', ('lambda',), 12, 'lambda is 12'),
    ('domain_3_joint.json', ('metadata', 'model'), 'RepVGG-B3', 'RepVGG-B3'),
    ('domain_3_joint.json', ('schema_version',), 2, 'schema_version 2'),
    ('domain_0_joint.json', ('curve',), [], "'curve' is empty"),
    ('domain_0_joint.json', ('accuracy', 'final'), 88.5, '88.5 is above 1'),
    ('domain_0_joint.json', ('T_cyc_ms',), 0, 'above 0'),
    ('domain_0_joint.json', ('frontier',), {}, 'has no frontier'),
    ('domain_0_joint.json', ('frontier', 'T_eff', 0, 'T_cyc_ms'), 0, 'above 0'),
    ('domain_0_joint.json', ('frontier', 'latency', 0, 'gamma', 'stage1.1'), 15, 'latency[0]: block stage1.1'),
    ('domain_0_joint.json', ('pick', 'rule'), 'luck', 'no known rule of picking'),
    ('domain_0_joint.json', ('baselines',), {}, "'baselines.step2' is missing"),
    ('../initial_throughput_config.json', ('per_split',), [], 'per_split'),
    ('../initial_throughput_config.json', ('optimal_lambda',), 99, 'optimal_lambda 99'),
    ('../initial_throughput_config.json', ('head_tier',), 'cloud', 'cloud'),
    ('../hardware_lut_complete.json', ('T_client', 'stage1.0'), [1.0], 'T_client'),
])
def test_a_file_that_does_not_fit_is_refused_in_one_line(folder, name, field, value, expected):
    path = os.path.normpath(os.path.join(folder, 'joint_optimization', name))
    change(path, field, value)
    message = refusal(folder)
    assert os.path.basename(path) in message and expected in message


def test_a_damaged_file_ends_the_script_with_one_line_and_status_2(folder):
    path = os.path.join(folder, 'joint_optimization', 'domain_3_joint.json')
    with open(path, 'r+', encoding='utf-8') as stream:
        stream.truncate(200)
    done = subprocess.run([sys.executable, 'step5_visualize_results.py', '--set', f'RESULTS_DIR={folder}', FEW_STEPS],
                          cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and 'domain_3_joint.json' in done.stderr and 'Traceback' not in done.stderr
    assert not os.path.exists(os.path.join(folder, 'visualization'))


def test_results_of_another_table_are_named_and_not_drawn_on_this_one(folder, finished, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'write_all', lambda folder, made: drawn.extend(made))
    settings = config.load((f'RESULTS_DIR={folder}', FEW_STEPS), {})
    save_domain(make_table(settings, seed=1), settings, 3)
    step5.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS])
    assert 'domain_3_configuration' not in drawn and 'domain_0_configuration' in drawn
    printed = capsys.readouterr().out
    assert 'times of domain 3 do not follow' in printed and 'different tables or settings' in printed


def test_more_than_two_domains_get_a_large_and_a_small_picture_of_each_axis(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'write_all', lambda folder, made: drawn.extend(made))
    settings = config.load((f'RESULTS_DIR={folder}', FEW_STEPS), {})
    save_domain(lut_manager.load(kinds.path_of('lut', settings), settings), settings, 7)
    step5.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS])
    expected = {f'accuracy_{axis}_{kind}' for axis in ('throughput', 'teff') for kind in ('curve', 'all_domains')}
    assert expected <= set(drawn)


def test_without_step_2_only_its_picture_is_left_out(folder, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'write_all', lambda folder, made: drawn.extend(made))
    os.unlink(os.path.join(folder, 'initial_throughput_config.json'))
    step5.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS])
    assert 'split_times' not in drawn and 'accuracy_throughput_curve' in drawn
    assert 'step2_initial_throughput_opt.py' in capsys.readouterr().err


def test_change_is_zero_for_the_unpruned_network(finished):
    _, settings, table, _ = finished
    result = result_file.load(0, table, settings)
    same = result_summary.change(result, 'step2')
    assert same.T_eff_change == 0 and same.throughput_change == 0
    assert result_summary.fits(result, table, settings) and not result_summary.fits(
        result, table, dataclasses.replace(settings, HEAD_TIER='server'))
    assert times(table, result.configuration, scenario_of(settings, table)) == result.times
