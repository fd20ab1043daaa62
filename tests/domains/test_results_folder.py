"""Another RESULTS_DIR holds all that a run writes; what ships with the repository is read where it is current."""
from __future__ import annotations

import os
import subprocess
from typing import List

import pytest
from image_folders import class_tree

import code1_train_and_record_weights as code1
import code2_calculate_flops_importance as code2
import config
import create_noniid_partition
import train_base_model
from config import Settings, UserError
from pipeline import fingerprints, kinds
from search import domain_inputs
from steps import base_model_training


def tracked() -> str:
    """What of the repository differs from the last commit, and how."""
    return subprocess.run(['git', 'diff', 'HEAD', '--stat'], cwd=config.ROOT, stdout=subprocess.PIPE, check=True,
                          text=True).stdout if os.path.exists(os.path.join(config.ROOT, '.git')) else ''


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(config.ROOT)


def files_in(folder) -> List[str]:
    return sorted(os.path.relpath(os.path.join(where, name), str(folder))
                  for where, _, names in os.walk(str(folder)) for name in names)


def test_other_data_under_another_folder_leaves_the_repository_as_it_is(tmp_path):
    before = tracked()
    class_tree(tmp_path / 'photos')
    results = tmp_path / 'results_photos'
    overrides = ['DATASET=imagefolder', f'DATA_PATH={tmp_path}/photos', 'NUM_CLASSES=2', 'NUM_DOMAINS=1',
                 'ALPHA_EPOCHS=0', f'RESULTS_DIR={results}']
    create_noniid_partition.main(['--set', *overrides])
    train_base_model.main(['--epochs', '1', '--set', *overrides])
    for script in (create_noniid_partition, code1, code2):
        script.main(['--if_changed', '--set', *overrides])
    task1, task2 = 'task1_trained_weights_RepVGG-Micro/', 'task2_importance_rankings_RepVGG-Micro/'
    assert files_in(results) == [
        'base_model.json', 'base_model.pt', 'partition_info.json', 'partition_info.png',
        *(task1 + name for name in ('hyper_weights_heatmap.png', 'trained_hyper_weights.json',
                                    'training_results.json')),
        *(task2 + name for name in ('branch_flops.json', 'importance_heatmap.png', 'importance_rankings.json',
                                    'importance_scores.json'))]
    settings = config.load(tuple(overrides), {})
    assert kinds.weights_file(settings) == f'{results}/base_model.pt'
    assert domain_inputs.base_model(settings).linear.out_features == 2
    assert list(domain_inputs.load_alphas(settings)) == ['0']
    assert tracked() == before


def test_what_ships_is_read_where_it_is_current_and_nothing_is_made(tmp_path, capsys):
    before, overrides = tracked(), [f'RESULTS_DIR={tmp_path}']
    for script in (create_noniid_partition, code1, code2):
        script.main(['--if_changed', '--set', *overrides])
    said = capsys.readouterr().err
    for place in (Settings.PARTITION_FILE, 'task1_trained_weights_RepVGG-Micro', 'task2_importance_rankings_'):
        assert place in said
    assert files_in(tmp_path) == [] and tracked() == before
    settings = config.load(tuple(overrides), {})
    assert len(domain_inputs.load_alphas(settings)) == 10
    assert kinds.weights_file(settings) == Settings.WEIGHT_PATH_SERVER
    other = config.load((*overrides, 'SEED=3'), {})
    for kind in ('partition', 'alpha', 'importance_rankings'):
        assert fingerprints.found_at(kind, other) == kinds.path_of(kind, other)
        assert kinds.path_of(kind, other).startswith(f'{tmp_path}/')


def test_files_that_the_user_names_are_as_named(tmp_path):
    settings = config.load((f'RESULTS_DIR={tmp_path}', 'PARTITION_FILE=mine.json', 'WEIGHT_PATH_SERVER=mine.pt'), {})
    assert kinds.path_of('partition', settings) == 'mine.json' and kinds.weights_to_write(settings) == 'mine.pt'
    assert kinds.path_of('base_model', settings) == kinds.report_on_weights(settings) == 'mine.json'
    assert kinds.path_of('partition', Settings(RESULTS_DIR='./results')) == Settings.PARTITION_FILE


@pytest.mark.parametrize('overrides', [['SEED=1'], ['DATASET=imagefolder', 'DATA_PATH=/photos'], ['NUM_CLASSES=5'],
                                       ['PARTITION_FILE=other.json']])
def test_the_shipped_weights_are_not_overwritten_by_a_training_on_other_data(overrides, monkeypatch):
    monkeypatch.setattr(base_model_training, 'train_and_save', lambda *rest: pytest.fail('trained'))
    for flags in ([], ['--report_only']):
        with pytest.raises(UserError, match='repvgg_micro_mnist5k.pt ships with the repository.*WEIGHT_PATH_SERVER or '
                                            'RESULTS_DIR') as caught:
            train_base_model.main([*flags, '--set', *overrides])
        assert '\n' not in str(caught.value) and overrides[0] in str(caught.value)
