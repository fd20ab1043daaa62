"""Step 5 and the baselines take only results that belong together: the same settings, the same table."""
from __future__ import annotations

import json
import os
import shutil

import pytest
from made_results import make_result, make_table, save_domain
from table_files import content_of, write_text

import config
import lut_manager
import step2_initial_throughput_opt as step2
import step5_visualize_results as step5
from config import Settings, UserError
from pipeline import fingerprints, kinds
from search import result_file

FEW_STEPS = 'THROUGHPUT_OPTIM_STEPS=1'


@pytest.fixture(autouse=True)
def without_images(monkeypatch):
    """Step 2 compares no image formats here: that takes a second."""
    from steps import unpruned
    monkeypatch.setattr(unpruned, 'image_formats_of', lambda table, settings: {})


def refused(work) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


def results(folder: str) -> Settings:
    """Settings under which a table, step 2's result and one domain's result lie in this folder."""
    settings = config.load((f'RESULTS_DIR={folder}', FEW_STEPS), {})
    table = make_table(settings)
    lut_manager.save(table, settings)
    step2.main(['--set', f'RESULTS_DIR={folder}', FEW_STEPS])
    save_domain(table, settings, 0)
    return settings


@pytest.mark.parametrize('overrides', [['EPSILON=0.005'], ['SEED=7'], ['EPSILON=0.005', 'SEED=7'], ['OMEGA=1'],
                                       ['BANDWIDTH_MBPS=20'], ['PICK=knee'], ['ALPHA_LR=0.5'], ['CLIENTS=4'],
                                       ['SERVER_WORKERS=2'], ['LINK_SHARED=1']])
def test_step_5_summarises_no_results_of_other_settings(tmp_path, overrides):
    results(str(tmp_path))
    said = refused(lambda: step5.main(['--set', f'RESULTS_DIR={tmp_path}', FEW_STEPS, *overrides]))
    for override in overrides:
        name = override.split('=')[0]
        assert f'{name}=' in said and 'make it again with `python ' in said
    assert not os.path.exists(str(tmp_path / 'visualization'))


def test_step_5_summarises_no_results_of_another_table(tmp_path):
    settings = results(str(tmp_path))
    path = shutil.copy(kinds.path_of('lut', settings), str(tmp_path / 'other.json'))
    content = content_of(path)
    content['stem']['T_server'] *= 2
    write_text(path, json.dumps(content))
    said = refused(lambda: step5.main(['--lut_file', path, '--set', f'RESULTS_DIR={tmp_path}', FEW_STEPS]))
    assert f'was made with another {path}' in said
    os.unlink(kinds.path_of('step2', settings))
    said = refused(lambda: step5.main(['--lut_file', path, '--set', f'RESULTS_DIR={tmp_path}', FEW_STEPS]))
    assert 'domain_0_joint.json: was made with another' in said


def test_the_sequential_baseline_of_another_table_is_not_taken_over(tmp_path):
    settings = config.load((f'RESULTS_DIR={tmp_path}',), {})
    table = make_table(settings)
    path = lut_manager.save(table, settings)
    other = shutil.copy(path, str(tmp_path / 'other.json'))
    content = content_of(other)
    content['stem']['T_server'] *= 2
    write_text(other, json.dumps(content))
    inputs = fingerprints.inputs_of('sequential', settings, 0, lut=other)
    result_file.save('sequential', make_result(table, settings, 0), settings, inputs, lut_file=other)
    assert result_file.sequential_baseline(0, table, settings) is None
    assert result_file.sequential_baseline(0, table, settings, other) is not None
