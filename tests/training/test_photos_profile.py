"""Claims about PROFILE=photos: its network ships, small and with its report; a run leaves the repository alone."""
from __future__ import annotations

import os

import pytest

import config
import train_base_model
from config import ROOT, UserError
from costs.checks import check_settings
from domains import trained_images
from hyper_repvgg import create_hyper_repvgg
from pipeline import documents, kinds

PROFILE = {'PROFILE': 'photos'}


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_network_ships_in_half_precision_with_what_it_was_trained_on():
    settings = config.load((), PROFILE)
    check_settings(settings)
    path = kinds.weights_file(settings)
    assert os.path.getsize(path) <= 16_000_000
    assert create_hyper_repvgg(path, settings.MODEL_NAME, settings.NUM_CLASSES).linear.out_features == 10
    pool, why = trained_images.read(settings)
    assert why == '' and len(pool.indices) == len(pool.digests) == 9469
    report = documents.read(kinds.report_on_weights(settings), '').content
    assert report['clean']['unseen']['n'] == 3925 and report['clean']['unseen']['accuracy'] > 0.88
    assert report['began_with']['recipe']['epochs'] == 100 and len(report['began_with']['began_with']['history']) > 150


def test_what_a_run_writes_lies_under_results_photos_and_the_shipped_network_stays():
    settings = config.load((), PROFILE)
    for kind in ('partition', 'alpha', 'importance_rankings', 'lut', 'joint', 'base_model'):
        assert kinds.path_of(kind, settings, 0).startswith('results_photos/'), kind
    assert kinds.weights_to_write(settings) == 'results_photos/base_model.pt'
    assert settings.CLIENTS == 8 and settings.INPUT_SIZE == 128
    shipped = settings.WEIGHT_PATH_SERVER
    for name in config.PROFILES:
        with pytest.raises(UserError, match='ships with the repository'):
            train_base_model.main(['--set', f'PROFILE={name}', 'RESULTS_DIR=results', f'WEIGHT_PATH_SERVER={shipped}',
                                   'SEED=3'])


def test_without_photographs_a_line_says_where_they_are_looked_for(tmp_path):
    with pytest.raises(UserError, match='DATA_PATH data/imagenette: no such folder; set DATA_PATH'):
        train_base_model.main(['--set', 'PROFILE=photos', f'RESULTS_DIR={tmp_path}'])
    assert os.listdir(str(tmp_path)) == []
