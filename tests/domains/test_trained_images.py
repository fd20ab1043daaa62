"""Claims about the images that weights were trained on: they never measure the weights, whatever the partition."""
from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from image_folders import class_tree

import config
import create_noniid_partition
from config import UserError
from domain_dataset import load_clean, load_domain
from domains import trained_images
from domains.division import SUBSETS, subset_pools
from domains.image_sources import open_source
from domains.partition import load_partition, make_partition
from hyper_repvgg import create_hyper_repvgg, deploy
from network.inputs import normalise, predict
from pipeline import fingerprints, kinds
from search import result_warnings
from steps import base_model_report, base_model_training

SHIPPED = os.path.join(config.ROOT, config.Settings.WEIGHT_PATH_SERVER)


def settings_of(tmp_path, **overrides) -> config.Settings:
    return config.Settings(**{'DATA_PATH': os.path.join(config.ROOT, 'data'), 'WEIGHT_PATH_SERVER': SHIPPED,
                              'PARTITION_FILE': str(tmp_path / 'partition_info.json'), **overrides})


def seen_by_shipped() -> set:
    with open(os.path.splitext(SHIPPED)[0] + '.json', encoding='utf-8') as stream:
        return set(json.load(stream)['training_pool']['indices'])


@pytest.mark.parametrize('overrides', [{}, {'SEED': 1}, {'TRAIN_FRACTION': 0.3}, {'SEED': 7, 'TRAIN_FRACTION': 0.55}])
def test_under_any_partition_the_shipped_weights_are_measured_on_images_that_they_have_not_seen(overrides, tmp_path):
    settings = settings_of(tmp_path, **overrides)
    source = open_source(settings)
    pools, seen = make_partition(source, settings).pools, seen_by_shipped()
    assert len(seen) == 2500 and seen <= set(pools['train'])
    assert sorted(np.concatenate(list(pools.values()))) == list(range(5000))
    for subset in SUBSETS[1:]:
        assert np.ptp(np.bincount(source.labels[pools[subset]])) <= 4  # stratified
    if overrides == {'SEED': 1}:
        network = deploy(create_hyper_repvgg(SHIPPED, settings.MODEL_NAME, settings.NUM_CLASSES))
        test = load_clean(settings, 'test')
        inputs = normalise(test.images, settings.NORM_MEAN, settings.NORM_STD)
        wrong = int((predict(network, inputs, 250) != test.labels).sum())
        assert wrong / len(test) > 0.01  # 0.5 % of the images that it has seen, 1.6 % of the others


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(40, 80), min_size=1, max_size=12), st.floats(0, 0.6), st.integers(0, 5))
def test_training_on_a_partitions_training_images_gives_the_same_partition_again(class_counts, share, seed):
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    everything, settings = np.arange(len(labels)), config.Settings(SEED=seed)
    seen = np.random.default_rng(seed).random(len(labels)) < share
    pools = subset_pools(labels, everything, settings, seen)
    assert set(everything[seen]) <= set(pools['train'])
    again = subset_pools(labels, everything, settings, np.isin(everything, pools['train']))
    assert all(np.array_equal(pools[subset], again[subset]) for subset in SUBSETS)


def test_a_partition_that_tests_on_training_images_is_refused_by_name(tmp_path):
    settings = settings_of(tmp_path, SEED=1)
    load_clean(settings_of(tmp_path, SEED=1, WEIGHT_PATH_SERVER=''), 'test')  # made for other weights
    with pytest.raises(UserError, match=r'val images are training images of .*\.pt; make it again with `python'):
        load_domain(settings, 0, 'train')


def copied_weights(tmp_path, **training_pool) -> str:
    """The shipped weights under another path, with a report that names other training images."""
    path = str(tmp_path / 'weights.pt')
    shutil.copy(SHIPPED, path)
    with open(os.path.splitext(SHIPPED)[0] + '.json', encoding='utf-8') as stream:
        report = json.load(stream)
    report['training_pool'].update(training_pool)
    (tmp_path / 'weights.json').write_text(json.dumps(report), encoding='utf-8')
    return path


def test_weights_that_have_seen_a_whole_class_are_refused(tmp_path):
    labels = open_source(settings_of(tmp_path)).labels
    weights = copied_weights(tmp_path, indices=np.flatnonzero(labels == 3).tolist())
    with pytest.raises(UserError, match='trained on every image of class 3'):
        load_clean(settings_of(tmp_path, WEIGHT_PATH_SERVER=weights), 'val')


def test_a_rare_class_that_falls_into_the_training_pool_by_chance_is_not_held_against_the_weights(tmp_path):
    class_tree(tmp_path / 'images', ('cat', 'dog'), each=60)
    class_tree(tmp_path / 'images', ('elk',), each=4, first_seed=90_000)
    settings = settings_of(tmp_path, DATASET='imagefolder', DATA_PATH=str(tmp_path / 'images'), NUM_CLASSES=3,
                           NUM_DOMAINS=1, TRAIN_FRACTION=0.9, VAL_FRACTION=0.04, CAL_FRACTION=0.03)
    source = open_source(settings)
    train = np.union1d(make_partition(source, settings).pools['train'], np.flatnonzero(source.labels == 2))
    weights = copied_weights(tmp_path, **trained_images.to_json(source, train, settings))
    settings = dataclasses.replace(settings, WEIGHT_PATH_SERVER=weights)
    assert set(train) <= set(make_partition(source, settings).pools['train'])


def unknown(settings) -> list:
    return [line for line in result_warnings.of_settings(settings) if 'cannot check' in line]


def test_of_weights_without_a_report_it_is_said_once_that_nothing_can_be_checked(tmp_path, capsys):
    weights = copied_weights(tmp_path)
    settings = settings_of(tmp_path, WEIGHT_PATH_SERVER=weights)
    assert unknown(settings) == []
    (tmp_path / 'weights.pt').write_bytes(b'other weights')
    assert len(unknown(settings)) == 1 and 'belongs to other weights' in unknown(settings)[0]
    (tmp_path / 'weights.json').unlink()
    arguments = [f'{name}={getattr(settings, name)}' for name in ('DATA_PATH', 'PARTITION_FILE', 'WEIGHT_PATH_SERVER')]
    for flags in ([], ['--if_changed']):
        create_noniid_partition.main([*flags, '--set', *arguments])
        said = capsys.readouterr().err
        assert said.count('cannot check whether weights.pt was trained on') == 1 and 'no weights.json' in said
    load_domain(settings, 0, 'val')
    assert capsys.readouterr().err == ''  # as in a worker process


def test_images_in_folders_are_known_again_in_another_folder_and_under_another_name(tmp_path):
    class_tree(tmp_path / 'images', each=30)
    folder = dict(DATASET='imagefolder', DATA_PATH=str(tmp_path / 'images'), NUM_CLASSES=2, NUM_DOMAINS=2)
    settings = settings_of(tmp_path, **folder)
    source = open_source(settings)
    train = load_partition(source, settings).pools['train']
    pool = trained_images.to_json(source, train, settings)
    os.rename(tmp_path / 'images', tmp_path / 'renamed')
    for path in sorted((tmp_path / 'renamed').glob('*/*.png')):
        path.rename(path.with_name(f'image_{path.name}'))
    weights = copied_weights(tmp_path, **pool)
    moved = settings_of(tmp_path, **{**folder, 'DATA_PATH': str(tmp_path / 'renamed'), 'SEED': 3,
                                     'PARTITION_FILE': str(tmp_path / 'other.json'), 'WEIGHT_PATH_SERVER': weights})
    now = open_source(moved)
    pools = make_partition(now, moved).pools
    assert set(pool['digests']) == set(now.digests[pools['train']]) and unknown(moved) == []


def test_train_and_val_folders_refuse_weights_that_have_seen_val(tmp_path):
    for number, part in enumerate(('train', 'val')):
        class_tree(tmp_path / 'images' / part, first_seed=10_000 * number)
    folder = dict(DATASET='imagefolder', DATA_PATH=str(tmp_path / 'images'), NUM_CLASSES=2, NUM_DOMAINS=2)
    source = open_source(settings_of(tmp_path, **folder))
    pool = trained_images.to_json(source, np.flatnonzero(source.held_out)[:3], settings_of(tmp_path, **folder))
    settings = settings_of(tmp_path, **folder, WEIGHT_PATH_SERVER=copied_weights(tmp_path, **pool))
    with pytest.raises(UserError, match='trained on 3 held-out images.*val/cat/00.png'):
        make_partition(source, settings)


def test_training_writes_its_pool_and_the_partition_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model_report, 'measure', lambda settings: {})
    weights = copied_weights(tmp_path)  # of another training; they are replaced
    settings = settings_of(tmp_path, SEED=1, TRAIN_FRACTION=0.55, WEIGHT_PATH_SERVER=weights)
    create_noniid_partition.main(['--set', *(f'{name}={getattr(settings, name)}' for name in (
        'SEED', 'TRAIN_FRACTION', 'DATA_PATH', 'PARTITION_FILE', 'WEIGHT_PATH_SERVER'))])
    content = fingerprints.content_hash(settings.PARTITION_FILE)
    recipe = base_model_training.Recipe(first_epochs=0, second_epochs=0, statistics_batches=1)
    seconds = base_model_training.train_and_save(weights, recipe, settings)
    base_model_report.write(settings, recipe, seconds)
    pool, why = trained_images.read(settings)
    source = open_source(settings)
    assert why == '' and np.array_equal(pool.indices, load_partition(source, settings).pools['train'])
    made_again = make_partition(source, settings)
    assert np.array_equal(made_again.pools['train'], pool.indices)
    create_noniid_partition.main(['--set', *(f'{name}={getattr(settings, name)}' for name in (
        'SEED', 'TRAIN_FRACTION', 'DATA_PATH', 'PARTITION_FILE', 'WEIGHT_PATH_SERVER'))])
    assert fingerprints.content_hash(settings.PARTITION_FILE) == content
    base_model_report.write(settings, recipe, None)  # --report_only keeps what the training wrote
    assert np.array_equal(trained_images.read(settings)[0].indices, pool.indices)
    assert kinds.path_of('base_model', settings) == str(tmp_path / 'weights.json')
