"""Recovery: exact gradients of α, BatchNorm statistics, the best of what a training meets, and the loss of the wire."""
from __future__ import annotations

import dataclasses
from typing import List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import whole_table
from search_cases import (
    assert_same_networks,
    killed_after_every_round,
    made_problem,
    problem_of,
    random_mask,
    slow_client_table,
    trained_model,
    training_form_logits,
    with_settings,
)

from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGGBlock, deploy
from network import batchnorm
from network.alpha import mask_of, pruned, surviving_branches, unpruned_alpha
from network.gammas import unfused_gamma
from network.shapes import BlockShape
from search import alpha_training, recovery
from search.frontier import frontiers_of
from search.recovery import Recovery
from search.state import EvaluatedNetwork
from search.wire_loss import through_wire
from steps.joint import search_of


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

SETTINGS = with_settings(MAX_EVALUATIONS=10, RECOVERY_STEPS=2, RECALIBRATE_BN=True, RECALIBRATION_IMAGES=64)


def random_images(seed: int, count: int = 64) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
                    torch.randint(0, 10, (count,), generator=generator))


def random_pruning(model, seed: int) -> np.ndarray:
    """α in which about a third of the branches is gone."""
    rng, alpha = np.random.default_rng(seed), unpruned_alpha([block.n_branches for block in model.blocks])
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
    unpruned, without = model.alpha_array(), random_pruning(trained_model(), seed)
    wanted, own = moments_after_batchnorm(model, data), model.batchnorm()
    model.set_alpha_array(without)
    before = moments_after_batchnorm(model, data)
    batchnorm.recalibrate(model, unpruned, alpha_training.recalibration_batches(data, SETTINGS, seed))
    found = moments_after_batchnorm(model, data)
    off_before = off_after = 0.0
    for k, name in enumerate(model.block_names):
        for branch in np.flatnonzero(surviving_branches(without)[k]):
            off_before += float((before[name, branch][0] - wanted[name, branch][0]).abs().median())
            for a, b in zip(found[name, branch], wanted[name, branch]):
                off_after += float((a - b).abs().median())
    assert off_after < 0.02 * off_before
    model.set_batchnorm(own)
    model.set_alpha_array(unpruned)
    batchnorm.recalibrate(model, unpruned, alpha_training.recalibration_batches(data, SETTINGS, seed))
    np.testing.assert_allclose(model.batchnorm(), own, rtol=1e-4, atol=1e-5)  # nothing pruned: nothing changes


def test_recalibration_ignores_labels_and_batches_and_leaves_gamma_without_effect():
    model, data = trained_model(), random_images(1, 96)
    unpruned, without, own = model.alpha_array(), random_pruning(model, 7), model.batchnorm()
    model.set_alpha_array(without)
    results = []
    for images, size in ((data, 64), (ImageSet(data.images, data.labels.flip(0)), 64), (data, 17)):
        model.set_batchnorm(own)
        settings = dataclasses.replace(SETTINGS, BATCH_SIZE=size)
        batchnorm.recalibrate(model, unpruned, alpha_training.recalibration_batches(images, settings, 3))
        results.append(model.batchnorm())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], rtol=1e-4, atol=1e-5)
    assert np.abs(results[0] - own).max() > 1e-3
    model.set_batchnorm(results[0])
    x = (data.images[:8].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        unfused = [unfused_gamma(tuple(row)) for row in surviving_branches(without)]
        logits = [deploy(model)(x), deploy(model, unfused)(x), model(x)]
    for other in logits[1:]:
        assert float((other - logits[0]).abs().max()) <= 1e-4 * float(logits[0].abs().max())


# --- training -------------------------------------------------------------------------------------------------

BEFORE = EvaluatedNetwork(np.ones((2, 3)), 0.5, 0.5)


class MadeUpModel:
    """Holds α."""

    def set_alpha_array(self, alpha: np.ndarray) -> None:
        self.alpha = alpha

    def alpha_array(self) -> np.ndarray:
        return self.alpha


class MadeUpRecovery(Recovery):
    """A recovery whose validations are given; it notes the steps at which it is asked for one."""

    def __init__(self, accuracies: List[float], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = with_settings(RECOVERY_STEPS=steps, RECOVERY_BATCH_SIZE=8)
        table = slow_client_table()
        problem = made_problem(table, settings, unpruned_alpha(table.n_branches), 0.9)
        images = ImageSet(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.zeros(20, dtype=torch.long))
        super().__init__(dataclasses.replace(problem, model=MadeUpModel(), train=images))
        self.accuracies, self.steps, self.asked = list(accuracies), 0, []
        monkeypatch.setattr(alpha_training, 'train_alpha', self.run_steps)

    def run_steps(self, model, data, settings, steps, learning_rate, seed, stop, batch_size) -> None:
        for self.steps in range(1, steps + 1):
            if stop(self.steps):
                break

    def measure(self, alpha: np.ndarray) -> EvaluatedNetwork:
        self.asked.append(self.steps)
        accuracy = self.accuracies[len(self.asked) - 1]
        return EvaluatedNetwork(alpha, accuracy, accuracy)


@given(st.lists(st.sampled_from([0.3, 0.5, 0.6, 0.7]), min_size=4, max_size=4), st.integers(0, 50))
def test_a_training_keeps_the_best_of_what_it_met_and_ends_after_two_validations_without_a_better_one(accuracies,
                                                                                                      steps):
    with pytest.MonkeyPatch.context() as patch:
        made = MadeUpRecovery(accuracies, steps, patch)
        alpha = unpruned_alpha(made.problem.table.n_branches)
        best = made.train(alpha, seed=1, before=BEFORE)
    count, seen = len(made.asked), [BEFORE.accuracy, *accuracies[:len(made.asked)]]
    assert best.accuracy == max(seen)
    assert (best is BEFORE) == (max(seen) == BEFORE.accuracy) == (not best.recovered)  # it wins ties
    assert count <= min(steps, recovery.VALIDATIONS)
    if steps >= recovery.VALIDATIONS ** 2:
        assert np.diff([0, *made.asked]).max() - np.diff([0, *made.asked]).min() <= recovery.VALIDATIONS
    first_best = seen.index(max(seen))
    ended_early = made.steps < steps
    assert (made.asked or [0])[-1] == made.steps  # nothing is trained that is not validated
    assert len(seen) - 1 - first_best <= recovery.PATIENCE
    assert not ended_early or len(seen) - 1 - first_best == recovery.PATIENCE
    assert made.work.trained_block_images == made.steps * 8 * len(alpha)


@given(st.sampled_from([0.4, 0.5, 0.6, 0.7]), st.sampled_from([0.4, 0.6, 0.7]))
def test_statistics_are_reestimated_for_what_training_found_and_kept_where_they_help(trained, with_statistics):
    with pytest.MonkeyPatch.context() as patch:
        made = MadeUpRecovery([trained, 0.0, 0.0], 16, patch)
        made.problem = dataclasses.replace(made.problem, settings=dataclasses.replace(made.problem.settings,
                                                                                     RECALIBRATE_BN=True))
        asked = []

        def recalibrated(alpha: np.ndarray) -> EvaluatedNetwork:
            asked.append(alpha)
            return EvaluatedNetwork(alpha, with_statistics, with_statistics, None, True, recalibrated=True)

        patch.setattr(made, 'recalibrated', recalibrated)
        best = made.train(unpruned_alpha(made.problem.table.n_branches), seed=1, before=BEFORE)
    assert best.accuracy == max(BEFORE.accuracy, trained, with_statistics if trained > BEFORE.accuracy else 0)
    assert best.recalibrated == (trained > BEFORE.accuracy and with_statistics > trained)
    assert len(asked) == (trained > BEFORE.accuracy)


@pytest.fixture(scope='module')
def problem():
    """The built-in network on a few images, for trainings of a few steps."""
    return problem_of(with_settings(RECOVERY_STEPS=8, RECOVERY_BATCH_SIZE=24))


@pytest.mark.parametrize('seed', range(3))
def test_a_real_training_changes_what_survives_and_nothing_else_and_says_what_it_found(problem, seed):
    mask = random_mask(mask_of(problem.unpruned), np.random.default_rng(seed), share=0.2)
    start, found = pruned(problem.unpruned, mask), Recovery(problem)
    before = found.measure(start)
    assert found.work.block_evaluations == len(start) * len(problem.val)
    after = found.train(start, seed, EvaluatedNetwork(start, -1.0, -1.0))
    assert mask_of(after.alpha) == mask and not np.array_equal(after.alpha, start, equal_nan=True)
    for network in (before, after):
        logits = training_form_logits(problem.model, network.alpha, problem.val.images)
        plain = float((logits.argmax(1) == problem.val.labels).float().mean())
        assert network.accuracy == network.lossless_accuracy
        assert network.accuracy == pytest.approx(plain, abs=1.5 / len(problem.val))  # float32 ties may fall either way
    again = Recovery(problem)
    np.testing.assert_array_equal(again.train(start, seed, EvaluatedNetwork(start, -1.0, -1.0)).alpha, after.alpha)
    trained = found.work.trained_block_images
    assert 0 < trained == again.work.trained_block_images <= len(start) * 8 * 24
    assert Recovery(problem).train(start, seed, EvaluatedNetwork(start, 1.0, 1.0)).alpha is start


def test_without_steps_a_recovery_leaves_what_was_there_before(problem):
    found = Recovery(dataclasses.replace(problem, settings=with_settings(RECOVERY_STEPS=0)))
    before = EvaluatedNetwork(problem.unpruned, 0.0, 0.0)
    assert found.train(problem.unpruned, 1, before) is before
    assert found.work == Recovery(problem).work


# --- behind the wire ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('formats', [('float32',), ('float32', 'float32+zlib')])
def test_formats_without_loss_cost_nothing(formats):
    settings = with_settings(WIRE_FORMATS=formats)
    table = slow_client_table(settings=settings)
    table = dataclasses.replace(table, block_bytes={wire: table.block_bytes['float32'] for wire in formats})
    found = Recovery(made_problem(table, settings, unpruned_alpha(table.n_branches), 0.9))
    network = EvaluatedNetwork(unpruned_alpha(table.n_branches), 0.9, 0.9)
    assert found.on_the_wire(network) is network and found.work == Recovery(found.problem).work


@pytest.mark.parametrize('seed', range(3))
def test_a_network_goes_over_the_wire_with_the_lowest_J_and_the_accuracy_that_this_leaves(seed):
    settings = with_settings(WIRE_FORMATS=('float32', 'uint8', 'float16'), EPSILON=0.0, BANDWIDTH_MBPS=2.0)
    problem = problem_of(settings, whole_table(settings, seed), n_val=60)
    found = Recovery(problem)
    alpha = pruned(problem.unpruned, random_mask(mask_of(problem.unpruned), np.random.default_rng(seed), 0.1))
    network = found.measure(alpha)
    before = found.work.block_evaluations
    sent = found.on_the_wire(network)
    assert sent.lossless_accuracy == network.accuracy and sent.alpha is alpha and sent.formats in problem.times.formats
    values = {}
    for formats in problem.times.formats:
        at = problem.times.solve(alpha, formats)
        problem.model.set_alpha_array(alpha)
        correct = alpha_training.count_correct(through_wire(deploy(problem.model), at.split, at.wire), problem.val,
                                               settings)
        values[formats] = problem.goal.J(at.times.T_eff_ms, correct / len(problem.val))
        if formats == sent.formats:
            assert sent.accuracy == correct / len(problem.val)
    assert problem.J_of(sent) == pytest.approx(min(values.values())) == values[sent.formats]
    assert 0 < found.work.block_evaluations - before <= 2 * len(alpha) * len(problem.val)


# --- a search with re-estimated statistics ------------------------------------------------------------------

def recalibrating_problem(**changes):
    """A problem in which some networks are better with re-estimated statistics and some without."""
    return problem_of(dataclasses.replace(SETTINGS, EPSILON=0.1, **changes), domain=6)


def accuracies_with_and_without(problem, network: EvaluatedNetwork) -> Tuple[float, float]:
    """Without and with re-estimated statistics."""
    own, found = problem.model.batchnorm(), []
    problem.model.set_alpha_array(network.alpha)
    found.append(alpha_training.accuracy(problem.model, problem.val, problem.settings))
    statistics, _ = problem.statistics_for(network.alpha)
    with batchnorm.using(problem.model, statistics):
        found.append(alpha_training.accuracy(problem.model, problem.val, problem.settings))
    np.testing.assert_array_equal(problem.model.batchnorm(), own)
    return tuple(found)


def test_a_recalibrating_search_is_never_worse_for_it_and_survives_kills(tmp_path):
    problem = recalibrating_problem(RESULTS_DIR=str(tmp_path))
    own, search = problem.model.batchnorm(), search_of(problem)
    undisturbed = search.run(search.start(), lambda state: None)
    np.testing.assert_array_equal(problem.model.batchnorm(), own)
    assert {network.recalibrated for network in undisturbed.recovered.values()} == {False, True}
    for network in undisturbed.recovered.values():
        without, with_statistics = accuracies_with_and_without(problem, network)
        assert network.accuracy == (with_statistics if network.recalibrated else without)
        assert not network.recalibrated or network.accuracy > without
        assert not network.recovered or network.accuracy >= max(without, with_statistics)
    state = killed_after_every_round(lambda: search_of(recalibrating_problem(RESULTS_DIR=str(tmp_path))),
                                     problem.table, problem.settings)
    assert_same_networks(state, undisturbed)
    assert state.work.trained_block_images == undisturbed.work.trained_block_images


def test_every_point_of_a_recalibrating_search_has_the_accuracy_that_its_network_has():
    problem = recalibrating_problem()
    search = search_of(problem)
    state = search.run(search.start(), lambda state: None)
    points = [point for points in frontiers_of(problem, state).values() for point in points]
    state.recovered = {mask: network for mask, network in state.recovered.items() if network.recalibrated}
    state.best, state.measured = next(iter(state.recovered.values())), {}  # or others may win
    points += [point for points in frontiers_of(problem, state).values() for point in points]
    assert any(point.recalibrated for point in points)
    for point in points:
        network = EvaluatedNetwork(point.configuration.alpha, point.accuracy, point.accuracy)
        assert accuracies_with_and_without(problem, network)[point.recalibrated] == point.accuracy
