"""What recovery rests on: exact gradients of α, and BatchNorm statistics."""
from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import whole_table

import config
from config import UserError
from costs.cost_model import Configuration
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGGBlock, create_hyper_repvgg, deploy
from network import batchnorm
from network.alpha import surviving_branches, unpruned_alpha
from network.gammas import unfused_gamma
from network.shapes import BlockShape
from progressive_pruning import JointSearch
from search import alpha_training, joint_result
from search.frontier_search import FrontierSearch
from throughput_optimizer import solve_exact


def random_block(generator: np.random.Generator, dtype: torch.dtype) -> HyperRepVGGBlock:
    """Any shape that a model may have, with random weights and α, some of it pruned, some of it nearly 0."""
    groups, stride = int(generator.choice([1, 2, 4])), int(generator.choice([1, 2]))
    same = bool(generator.random() < 0.7)
    width = 8 * int(generator.integers(1, 3))
    shape = BlockShape(width, width if same else 2 * width, 8, stride, groups, same and stride == 1,
                       width // 2 if generator.random() < 0.3 else 0)
    block = HyperRepVGGBlock(shape)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3), module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias)
    alpha = generator.choice([1.0, -0.7, 1e-3, 0.0], block.n_branches, p=[0.4, 0.2, 0.2, 0.2])
    alpha *= generator.uniform(0.5, 1.5, block.n_branches)
    if not alpha.any():
        alpha[generator.integers(block.n_branches)] = 1.0
    with torch.no_grad():
        block.alpha.copy_(torch.as_tensor(alpha))
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name == 'alpha')
    return block.eval().to(dtype)


def plain(block: HyperRepVGGBlock, x: torch.Tensor) -> torch.Tensor:
    """The block as section 4 writes it: convolution, BatchNorm, α, sum, SE, ReLU."""
    return torch.relu(block.se(sum(a * branch(x) for a, branch in zip(block.alpha, block.branches()) if a != 0)))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@hypothesis_settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1))
def test_a_block_as_one_convolution_has_the_output_and_gradients_of_its_branches(dtype, tolerance, seed):
    torch.manual_seed(seed)
    block = random_block(np.random.default_rng(seed), dtype)
    few_or_many = 1 if seed % 3 == 0 else 12  # images: both ways of running a block
    x = torch.randn(few_or_many, block.shape.in_channels, 8, 8, dtype=dtype, requires_grad=True)
    towards = torch.randn_like(plain(block, x).detach())
    found, wanted = [], []
    for results, run in ((found, block), (wanted, lambda x: plain(block, x))):
        y = run(x)
        results += [y.detach(), *torch.autograd.grad((y * towards).sum(), (x, block.alpha))]
    for value, right in zip(found, wanted):
        assert float((value - right).abs().max()) <= tolerance * max(1.0, float(right.abs().max()))
    assert (found[2][block.alpha == 0] == 0).all()  # what is pruned stays pruned


# --- BatchNorm statistics ------------------------------------------------------------------------------

SETTINGS = config.load(('LOOKS=8', 'RECOVERY_STEPS=2', 'MAX_PRUNING_ROUNDS=2', 'RECALIBRATE_BN=1',
                        'RECALIBRATION_IMAGES=64', 'ACTIVATION_CACHE_MB=0'), environ={})  # no memory: exact resumption


def random_images(seed: int, count: int = 64) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
                    torch.randint(0, 10, (count,), generator=generator))


def trained_model():
    return create_hyper_repvgg(SETTINGS.WEIGHT_PATH_SERVER, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)


def random_pruning(model, seed: int) -> np.ndarray:
    """α in which about a third of the branches is gone."""
    rng, alpha = np.random.default_rng(seed), unpruned_alpha([block.n_branches == 3 for block in model.blocks])
    for row in alpha:
        present = np.flatnonzero(~np.isnan(row))
        row[rng.permutation(present)[:rng.integers(0, len(present))]] = 0
    return alpha * rng.uniform(0.8, 1.2, alpha.shape)


def moments_after_batchnorm(model, data: ImageSet):
    """Mean and standard deviation of every BatchNorm's output in the plain form of the network, {name: (mean, sd)}."""
    found, x = {}, (data.images.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        x = model.stage0(x)
        for name, block in zip(model.block_names, model.blocks):
            outputs = [branch(x) for branch in block.branches()]
            for branch, z in enumerate(outputs):
                found[name, branch] = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
            x = torch.relu(sum(a * z for a, z in zip(block.alpha, outputs)))
    return found


@pytest.mark.parametrize('seed', range(4))
def test_recalibrated_branches_give_out_what_they_do_in_the_unpruned_network(seed):
    model, data = trained_model(), random_images(seed)
    unpruned, pruned = model.alpha_array(), random_pruning(trained_model(), seed)
    wanted, own = moments_after_batchnorm(model, data), model.batchnorm()
    model.set_alpha_array(pruned)
    before = moments_after_batchnorm(model, data)
    batchnorm.recalibrate(model, unpruned, data, SETTINGS, seed)
    found = moments_after_batchnorm(model, data)
    off_before = off_after = 0.0
    for k, name in enumerate(model.block_names):
        for branch in np.flatnonzero(surviving_branches(pruned)[k]):
            off_before += float((before[name, branch][0] - wanted[name, branch][0]).abs().median())
            for a, b in zip(found[name, branch], wanted[name, branch]):
                off_after += float((a - b).abs().median())
    assert off_after < 0.02 * off_before
    model.set_batchnorm(own)
    model.set_alpha_array(unpruned)
    batchnorm.recalibrate(model, unpruned, data, SETTINGS, seed)
    np.testing.assert_allclose(model.batchnorm(), own, rtol=1e-4, atol=1e-5)  # nothing pruned: nothing changes


def test_recalibration_ignores_labels_and_batches_and_leaves_gamma_without_effect():
    model, data = trained_model(), random_images(1, 96)
    unpruned, pruned, own = model.alpha_array(), random_pruning(model, 7), model.batchnorm()
    model.set_alpha_array(pruned)
    results = []
    for images, size in ((data, 64), (ImageSet(data.images, data.labels.flip(0)), 64), (data, 17)):
        model.set_batchnorm(own)
        batchnorm.recalibrate(model, unpruned, images, dataclasses.replace(SETTINGS, BATCH_SIZE=size), 3)
        results.append(model.batchnorm())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], rtol=1e-4, atol=1e-5)
    assert np.abs(results[0] - own).max() > 1e-3
    model.set_batchnorm(results[0])
    x = (data.images[:8].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        logits = [deploy(model)(x), deploy(model, [unfused_gamma(tuple(row)) for row in surviving_branches(pruned)])(x),
                  model(x)]
    for other in logits[1:]:
        assert float((other - logits[0]).abs().max()) <= 1e-4 * float(logits[0].abs().max())


def recalibrating_search(search_type=JointSearch):
    """A search in which some networks are better with re-estimated statistics: its own statistics are off."""
    settings = dataclasses.replace(SETTINGS, EPSILON=0.1)
    table, model = whole_table(settings, seed=3), trained_model()
    whole = (load_domain(settings, 6, split) for split in ('train', 'val'))
    train, val = (ImageSet(data.images[:96], data.labels[:96]) for data in whole)
    alpha = model.alpha_array()
    T_ref = solve_exact(table, surviving_branches(alpha), settings).times.T_eff_ms
    ranking = [(k, b) for k in range(table.n_blocks) for b in range(3) if not np.isnan(alpha[k, b])]
    reference = alpha_training.accuracy(model, val, settings)
    return search_type(model, table, train, val, settings, 6, alpha, reference, T_ref, ranking), table, settings


class Killed(Exception):
    """Stands for a kill between two rounds."""


def test_a_recalibrating_search_is_never_worse_for_it_and_survives_kills(tmp_path):
    torch.set_num_threads(1)
    search, table, settings = recalibrating_search()
    settings = dataclasses.replace(settings, RESULTS_DIR=str(tmp_path))
    own = search.model.batchnorm()
    undisturbed = search.run(search.start(), lambda state: None)
    np.testing.assert_array_equal(search.model.batchnorm(), own)
    assert any(judgement.recalibrated for judgement in undisturbed.judged.values())
    for judgement in (judged for judged in undisturbed.judged.values() if not judged.estimated):
        with_and_without = []
        search.model.set_alpha_array(judgement.alpha)
        with_and_without.append(alpha_training.accuracy(search.model, search.val, settings))
        search.model.set_batchnorm(search.statistics_for(judgement.alpha)[0])
        with_and_without.append(alpha_training.accuracy(search.model, search.val, settings))
        search.model.set_batchnorm(own)
        assert judgement.accuracy == with_and_without[judgement.recalibrated]
        if judgement.recalibrated:
            assert judgement.accuracy > with_and_without[0]

    def save_and_die(state):
        joint_result.save_state('joint_state', state, 6, table, settings, 'inputs', 1.0)
        raise Killed

    for _ in range(200):
        saved = joint_result.load_state('joint_state', 6, table, settings, 'inputs')
        again = recalibrating_search()[0]
        state = saved[0] if saved else again.start()
        if state.finished:
            break
        with pytest.raises(Killed):
            again.run(state, save_and_die)
    np.testing.assert_array_equal(state.alpha, undisturbed.alpha)
    assert (state.accuracy, state.recalibrated, state.curve, state.looks) == (
        undisturbed.accuracy, undisturbed.recalibrated, undisturbed.curve, undisturbed.looks)
    assert state.block_evaluations == undisturbed.block_evaluations
    assert state.trained_block_images == undisturbed.trained_block_images


def test_every_point_of_a_recalibrating_search_has_the_accuracy_that_its_network_has():
    torch.set_num_threads(1)
    search, _, settings = recalibrating_search(FrontierSearch)
    state = search.run(search.start(), lambda state: None)
    points = [point for points in search.frontiers(state).values() for point in points]
    state.judged = {choice: found for choice, found in state.judged.items() if found.recalibrated}  # or others may win
    state.looks = {}
    points += [point for points in search.frontiers(state).values() for point in points]
    assert any(point.recalibrated for point in points)
    for point in points:
        alpha = point.configuration.alpha
        statistics = search.statistics_for(alpha)[0] if point.recalibrated else None
        search.model.set_alpha_array(alpha)
        with batchnorm.using(search.model, statistics):
            assert alpha_training.accuracy(search.model, search.val, settings) == point.accuracy


def test_statistics_lie_beside_the_result_and_others_are_refused(tmp_path):
    settings = dataclasses.replace(SETTINGS, RESULTS_DIR=str(tmp_path))
    table, own = whole_table(settings, seed=3), trained_model().batchnorm()
    alpha = unpruned_alpha(table.has_identity)
    solution = solve_exact(table, surviving_branches(alpha), settings)
    result = joint_result.JointResult(
        6, 'name', 'pseudo', table.block_names, Configuration(alpha, solution.gamma, solution.split, solution.wire),
        joint_result.AccuracyReport(1.0, 1.0, 1.0, 10, (0.7, 1.0), 1.0, 1.0), 0.02, 0.0, 0.0, solution.times, {}, [],
        None, 0, 1.0, 1, batchnorm=own)
    path = joint_result.save('joint', result, settings, 'inputs')
    np.testing.assert_array_equal(joint_result.load(6, table, settings).batchnorm, own)
    file = os.path.join(os.path.dirname(path), 'domain_6_joint_batchnorm.npz')
    np.savez_compressed(file, statistics=own + 1)
    with pytest.raises(UserError, match='does not hold the BatchNorm statistics'):
        joint_result.load(6, table, settings)
    for damage in (lambda: open(file, 'wb').write(b'PK'), lambda: os.unlink(file)):
        damage()
        with pytest.raises(UserError, match='missing or damaged'):
            joint_result.load(6, table, settings)
    joint_result.save('joint', result, settings, 'inputs')
    joint_result.save('joint', dataclasses.replace(result, batchnorm=None), settings, 'inputs')
    assert joint_result.load(6, table, settings).batchnorm is None and not os.path.exists(file)
