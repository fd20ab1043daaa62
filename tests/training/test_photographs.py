"""Claims about training on any images: a kill changes nothing, held-out images are not learnt from, half is enough."""
from __future__ import annotations

import dataclasses
import json
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from image_folders import class_tree

import config
import train_base_model
from config import UserError
from domains import trained_images
from domains.image_sources import open_source
from domains.partition import load_partition
from hyper_repvgg import create_hyper_repvgg
from network.checkpoints import read_checkpoint
from pipeline import fingerprints, kinds, writing
from repvgg import RepVGG
from steps import base_model_report
from training import augmentation, branches, photographs

RECIPE = photographs.Recipe(epochs=2, frozen_epochs=2, batch_size=24)


class Killed(BaseException):
    """Nothing catches it."""


def settings_of(tmp_path, *overrides) -> config.Settings:
    return config.load(('DATASET=generated', 'NUM_CLASSES=2', 'INPUT_SIZE=16', 'NUM_DOMAINS=1',
                        f'RESULTS_DIR={tmp_path}', *overrides), {})


def trained(tmp_path, monkeypatch=None, kill_at=(), recipe=RECIPE) -> dict:
    """The weights of a training that was killed at these steps of optimisation, counted through all its runs."""
    settings = settings_of(tmp_path)
    path, steps = kinds.weights_to_write(settings), [0]
    if monkeypatch is not None:
        update = photographs.Training.update_average

        def killed_sometimes(self, *arguments):
            steps[0] += 1
            if steps[0] in kill_at:
                raise Killed
            update(self, *arguments)
        monkeypatch.setattr(photographs.Training, 'update_average', killed_sometimes)
        monkeypatch.setattr(photographs, 'SAVE_EVERY_S', 0.0)
    for _ in range(1 + len(kill_at)):
        try:
            photographs.train_and_save(path, recipe, settings)
            return read_checkpoint(path)
        except Killed:
            assert not os.path.exists(path)
    raise AssertionError('never finished')


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> dict:
    return trained(tmp_path_factory.mktemp('undisturbed'))


def test_a_training_that_is_killed_three_times_ends_with_the_same_network(tmp_path, monkeypatch, undisturbed):
    kill_at = sorted(np.random.default_rng().choice(np.arange(1, 16), 3, replace=False).tolist())
    assert equal(trained(tmp_path, monkeypatch, kill_at), undisturbed), kill_at


def test_another_seed_trains_another_network(tmp_path, undisturbed):
    assert not equal(trained(tmp_path, recipe=dataclasses.replace(RECIPE, seed=1)), undisturbed)


def test_a_half_done_training_with_another_recipe_is_refused_by_name(tmp_path, monkeypatch):
    settings = settings_of(tmp_path)
    path = kinds.weights_to_write(settings)
    photographs.train_and_save(path, dataclasses.replace(RECIPE, epochs=1, frozen_epochs=0), settings)
    with pytest.raises(UserError, match=r'model.training.pt: is a half-done training with epochs=1 \(now 2\)'):
        photographs.train_and_save(path, RECIPE, settings)
    with open(photographs.progress_file(path), 'wb') as stream:
        stream.write(b'PK damaged')
    with pytest.raises(UserError, match='base_model.training.pt: cannot be read'):
        photographs.train_and_save(path, RECIPE, settings)
    photographs.forget_progress(path)
    assert not os.path.exists(photographs.progress_file(path))


def test_every_image_learnt_from_is_a_training_image_that_is_not_held_out(tmp_path, monkeypatch):
    class_tree(tmp_path / 'images' / 'train', each=30)
    class_tree(tmp_path / 'images' / 'val', each=12, first_seed=50_000)
    settings = settings_of(tmp_path / 'results', 'DATASET=imagefolder', f'DATA_PATH={tmp_path}/images')
    source, read = open_source(settings), set()
    pool = load_partition(source, settings).pools['train']
    in_dataset = augmentation.AugmentedImages.__getitem__
    monkeypatch.setattr(augmentation.AugmentedImages, '__getitem__',
                        lambda self, key: read.add(key[1]) or in_dataset(self, key))
    photographs.train_and_save(kinds.weights_to_write(settings), dataclasses.replace(RECIPE, batch_size=8), settings)
    assert read <= set(pool) - set(pool[::photographs.HELD_OUT_EVERY]) and len(pool) == 60 and len(read) > 50


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_that_comes_later_draws_what_it_would_have_drawn_anyway(count, batch_size, seed, first):
    pool = np.arange(count) * 3
    everything = list(augmentation.keys_of(pool, batch_size, range(4), seed))
    left = list(augmentation.keys_of(pool, batch_size, range(first, 4), seed))
    assert left == everything[len(everything) - len(left):]
    for number in range(4):
        drawn = [index for batch in everything for epoch, index, _ in batch if epoch == number]
        assert len(set(drawn)) == len(drawn) == count // batch_size * batch_size and set(drawn) <= set(pool)


def test_what_training_makes_of_an_image_depends_on_seed_epoch_and_image_alone(tmp_path):
    source = open_source(settings_of(tmp_path, 'INPUT_SIZE=24'))
    dataset = augmentation.AugmentedImages(source, 16, augmentation.Crops())
    before = torch.get_rng_state()
    first = [dataset[number, index, 0][0] for number in range(3) for index in range(3)]
    torch.rand(5)
    again = [dataset[number, index, 0][0] for number in range(3) for index in range(3)]
    assert all(map(torch.equal, first, again)) and first[0].shape == (3, 16, 16) and first[0].dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in first}) == 9
    torch.set_rng_state(before)
    expected = torch.rand(1)
    torch.set_rng_state(before)
    dataset[0, 0, 0]
    assert torch.equal(torch.rand(1), expected)


def test_with_all_branches_the_frozen_pass_computes_what_the_network_computes():
    network, x = RepVGG('RepVGG-Micro', 3).double(), torch.randn(4, 3, 16, 16).double()
    branches.estimate_statistics(network, [x])
    some = branches.random_branches(network, 0.8, 0.3, np.random.default_rng())
    with torch.no_grad():
        whole, part = branches.forward_frozen(network, x, [branches.every_branch(network), some])
        assert torch.allclose(whole, network(x), atol=1e-9)
        assert torch.allclose(part, branches.forward_with(network, x, some), atol=1e-9)


def test_half_precision_fits_the_network_and_a_classifier_of_other_classes_is_replaced(tmp_path):
    settings = settings_of(tmp_path)
    path = str(tmp_path / 'half.pt')
    none = dataclasses.replace(RECIPE, epochs=1, frozen_epochs=0)
    photographs.train_and_save(path, none, settings, half=True)
    full = sum(4 * value.numel() for value in RepVGG('RepVGG-Micro', 2).state_dict().values())
    assert os.path.getsize(path) < 0.6 * full
    assert create_hyper_repvgg(path, 'RepVGG-Micro', 2).linear.weight.dtype == torch.float32
    network = RepVGG('RepVGG-Micro', 7)
    assert not photographs.load_for_fine_tuning(network, path) and network.linear.out_features == 7
    assert torch.equal(network.stage1[0].rbr_dense.conv.weight,
                       read_checkpoint(path)['stage1.0.rbr_dense.conv.weight'].float())
    assert photographs.load_for_fine_tuning(RepVGG('RepVGG-Micro', 2), path)
    with pytest.raises(UserError, match='half.pt: does not fit the model'):
        photographs.load_for_fine_tuning(RepVGG('RepVGG-A0', 2), path)


def test_the_smoke_run_trains_and_reports_a_network_that_has_learnt(tmp_path, capsys):
    train_base_model.main(['--smoke', '--set', f'RESULTS_DIR={tmp_path}'])
    with open(tmp_path / 'base_model.json', encoding='utf-8') as stream:
        report = json.load(stream)
    assert report['clean']['val']['accuracy'] > 0.5  # of 4 classes
    assert sorted(os.listdir(tmp_path)) == ['base_model.json', 'base_model.pt', 'partition_info.json']
    assert [entry['phase'] for entry in report['history']] == [1, 1, 2]
    assert 'held-out accuracy' in capsys.readouterr().err


def test_fine_tuning_knows_what_the_first_weights_were_trained_on(tmp_path, monkeypatch, undisturbed):
    """It is refused where it would be tested on such images, and the report says what it began with."""
    settings = settings_of(tmp_path, 'NUM_WORKERS=0')
    source, first, last = open_source(settings), str(tmp_path / 'first.pt'), kinds.weights_to_write(settings)
    pool = load_partition(source, settings).pools['train']
    monkeypatch.setattr(base_model_report, 'measure', lambda given: {})
    for seen in (np.arange(len(source)), pool):
        torch.save(undisturbed, first)
        report = {'weights_sha256': fingerprints.content_hash(first), 'wall_s': 3.0, 'recipe': {'lr': 0.5},
                  'training_pool': trained_images.to_json(source, seen, settings)}
        writing.write(kinds.report_beside(first), report, {})
        if len(seen) > len(pool):
            with pytest.raises(UserError, match=rf'first.pt was trained on {len(source) - len(pool)} images of .* not '
                                                'training images now'):
                photographs.check_unseen(first, source, pool)
    photographs.check_unseen(first, source, pool)
    torch.save(undisturbed, last)
    found, _ = base_model_report.write(settings, RECIPE, 1.0, [], first)
    assert found['began_with'] == {name: report[name] for name in ('wall_s', 'recipe', 'weights_sha256')}


@pytest.mark.parametrize('flags', [['--epochs', '3'], ['--half'], ['--from', 'x.pt'], ['--recipe', 'lr=1']])
def test_the_digits_have_a_recipe_of_their_own(flags):
    with pytest.raises(UserError, match='built-in digits have a recipe of their own'):
        train_base_model.main(flags)


@pytest.mark.parametrize('item', ['lr', 'speed=3', 'lr=fast', 'lr=nan', 'lr=-1', 'lr=inf', 'flip=1.1', 'epochs=-1',
                                  'epochs=1.5', 'batch_size=0'])
def test_a_change_of_the_recipe_that_means_nothing_is_one_line(item):
    with pytest.raises(UserError, match=re.escape(f'--recipe {item!r}: ')):
        photographs.changed(RECIPE, ['flip=0', item])


def test_a_change_of_the_recipe_is_taken():
    assert photographs.changed(RECIPE, ['lr=0.3', 'epochs=7']) == dataclasses.replace(RECIPE, lr=0.3, epochs=7)


def test_the_second_phase_alone_leaves_batchnorm_as_it_was_given(tmp_path, undisturbed):
    settings = settings_of(tmp_path)
    path, given = kinds.weights_to_write(settings), str(tmp_path / 'given.pt')
    torch.save(undisturbed, given)
    only_second = dataclasses.replace(RECIPE, epochs=0, frozen_epochs=1)
    with pytest.raises(UserError, match='needs weights to begin with'):
        photographs.train_and_save(path, only_second, settings)
    photographs.train_and_save(path, only_second, settings, start_from=given)
    found = read_checkpoint(path)
    for name, value in found.items():
        if 'running' in name:
            assert torch.equal(value, undisturbed[name]), name
    assert not torch.equal(found['linear.weight'], undisturbed['linear.weight'])
