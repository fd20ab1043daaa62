"""The model: all variants, training of α, folding and splitting."""
from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import PAPER, has_meta, images, relative_error
from random_cases import pruned_models, randomise, seeds

from config import UserError
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg, deploy
from network.alpha import alpha_by_block, alpha_from_blocks, surviving_branches, unpruned_alpha
from network.gammas import gamma_by_id
from network.shapes import ARCHITECTURES, architecture, block_names, block_shapes
from repvgg import RepVGG

# Parameters of the deployed networks in millions, as the authors publish them (github.com/DingXiaoH/RepVGG)
PUBLISHED_MILLIONS = {
    'RepVGG-A0': 8.30, 'RepVGG-A1': 12.78, 'RepVGG-A2': 25.49, 'RepVGG-B0': 14.33, 'RepVGG-B1': 51.82,
    'RepVGG-B1g2': 41.36, 'RepVGG-B1g4': 36.12, 'RepVGG-B2': 80.31, 'RepVGG-B2g4': 55.77, 'RepVGG-B3': 110.96,
    'RepVGG-B3g4': 75.62}


# --- the variants -------------------------------------------------------------------------------------

def test_there_are_the_14_variants_of_the_paper_and_the_built_in_one():
    assert set(ARCHITECTURES) == {*PAPER, 'RepVGG-Micro'} and len(PAPER) == 14


@pytest.mark.parametrize('name', PAPER)
def test_blocks_are_those_of_the_paper(name):
    depths = oracles.PAPER_VARIANTS[name][0]
    names = block_names(architecture(name))
    assert names == [f'stage{stage + 1}.{index}' for stage in range(4) for index in range(depths[stage])]
    assert len(names) == {'A': 21, 'B': 27, 'D': 47}[name[7]]


@has_meta
@pytest.mark.parametrize('name', PAPER)
def test_every_parameter_has_the_name_and_shape_of_the_authors_model(name):
    with torch.device('meta'):
        authors, ours = oracles.PaperRepVGG(name).state_dict(), RepVGG(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in authors.items()}


@pytest.mark.parametrize('name', sorted(PUBLISHED_MILLIONS))
def test_the_deployed_network_has_as_many_parameters_as_published(name):
    stem, shapes = block_shapes(architecture(name), 224)
    fused = sum(9 * s.in_channels // s.groups * s.out_channels + s.out_channels for s in [stem, *shapes])
    total = fused + shapes[-1].out_channels * 1000 + 1000
    assert int(total / 1e4) / 100 == PUBLISHED_MILLIONS[name]


def test_the_built_in_model_is_small():
    model = HyperRepVGG('RepVGG-Micro', 10)
    assert 8 <= len(model.blocks) <= 12
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6


@pytest.mark.parametrize('name, key', [('RepVGG-A0', 'RepVGG-A0'), ('repvgg_b1g4', 'RepVGG-B1g4'),
                                       ('d2se', 'RepVGG-D2se')])
def test_a_variant_is_found_whatever_its_spelling(name, key):
    assert architecture(name) == ARCHITECTURES[key]


@pytest.mark.parametrize('name', ['RepVGG-C0', 'resnet18', '', '-'])
def test_an_unknown_variant_is_one_line_that_lists_them(name):
    with pytest.raises(UserError, match='RepVGG-A0.*RepVGG-Micro') as caught:
        create_hyper_repvgg(None, name)
    assert '\n' not in str(caught.value)


# --- α, and nothing else, trains --------------------------------------------------------------------------

@given(pruned_models(), seeds)
@settings(max_examples=15)
def test_only_alpha_gets_gradients_and_batchnorm_stays_as_it_is(model, seed):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == \
        {f'{name}.alpha' for name in model.block_names}
    assert model.train() is model
    assert not any(part.training for part in model.modules())
    model(images(3, 16, seed, torch.float64)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.endswith('.alpha'), name
    for block in model.blocks:
        assert (block.alpha.grad[block.alpha == 0] == 0).all()  # what is pruned stays pruned
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_alpha_starts_at_one_everywhere():
    model = HyperRepVGG('RepVGG-B0', 3)
    np.testing.assert_array_equal(model.alpha_array(), unpruned_alpha([b.n_branches for b in model.blocks]))
    assert np.nanmin(model.alpha_array()) == np.nanmax(model.alpha_array()) == 1


def test_the_gradient_of_alpha_is_the_slope_of_the_loss():
    model = randomise(HyperRepVGG('RepVGG-Micro', 4).double(), 2)
    x = images(4, 16, 1, torch.float64)
    model(x).square().sum().backward()
    gradient, alpha, h = model.alphas()[5].grad.clone(), model.alpha_array(), 1e-6
    for b in range(len(gradient)):
        losses = []
        for sign in (1, -1):
            moved = alpha.copy()
            moved[5, b] += sign * h
            model.set_alpha_array(moved)
            losses.append(float(model(x).square().sum().detach()))
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(float(gradient[b]), rel=1e-5)


def test_a_model_first_used_in_inference_mode_can_still_be_trained():
    model, x = HyperRepVGG('RepVGG-Micro', 10), images(2, 16)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert all(alpha.grad is not None for alpha in model.alphas())


def test_a_model_moved_to_another_precision_computes_in_it():
    model, x = randomise(HyperRepVGG('RepVGG-Micro', 10), 4), images(2, 32)
    with torch.no_grad():
        single = model(x)
        double = model.double()(x.double())
    assert double.dtype == torch.float64
    assert 0 < relative_error(single.double(), double) < 1e-4


@given(pruned_models())
@settings(max_examples=10)
def test_alpha_survives_the_way_through_arrays_and_json(model):
    alpha, names = model.alpha_array(), model.block_names
    by_block = alpha_by_block(alpha, names)
    np.testing.assert_array_equal(alpha_from_blocks(by_block, names), alpha)
    for row, block, name in zip(alpha, model.blocks, names):
        assert (by_block[name]['identity'] is None) == (block.rbr_identity is None)
        assert {b for b, value in by_block[name].items() if value == 0.0} == \
            {b for b, value in zip(oracles.BRANCH_NAMES, row) if value == 0}
    model.set_alpha_array(alpha)
    np.testing.assert_array_equal(model.alpha_array(), alpha)


def test_an_alpha_array_that_does_not_fit_is_refused():
    model = HyperRepVGG('RepVGG-Micro', 10)
    alpha = model.alpha_array()
    with pytest.raises(ValueError, match='shape'):
        model.set_alpha_array(alpha[:-1])
    with pytest.raises(ValueError, match='exactly where'):
        model.set_alpha_array(np.nan_to_num(alpha))


# --- deployed and split -----------------------------------------------------------------------------------

@given(pruned_models(), st.integers(1, 33), st.data())
@settings(max_examples=25)
def test_the_deployed_network_equals_the_form_that_trains_under_any_gamma(model, size, data):
    x = images(2, size, dtype=torch.float64)
    gamma = [data.draw(st.sampled_from(oracles.valid_gammas(row))) for row in surviving_branches(model.alpha_array())]
    with torch.no_grad():
        expected = model(x)
        assert relative_error(deploy(model)(x), expected) < 1e-9
        assert relative_error(deploy(model, gamma)(x), expected) < 1e-9


@given(pruned_models(), st.integers(1, 33))
@settings(max_examples=10)
def test_head_and_tail_at_every_split_make_the_whole(model, size):
    network, x = deploy(model), images(2, size, dtype=torch.float64)
    n = len(network.blocks)
    with torch.no_grad():
        expected = network(x)
        for split in range(n + 1):
            sent = network.head(x, split)
            assert torch.equal(network.tail(sent, split), expected), split
            if split == 0:
                assert sent is x
            elif split == n:
                assert torch.equal(sent, expected)
            else:
                assert sent.shape[1] == model.blocks[split - 1].shape.out_channels


def test_deploying_takes_alpha_as_it_stands():
    model, x = randomise(HyperRepVGG('RepVGG-Micro', 10).double(), 1), images(2, 32, dtype=torch.float64)
    with torch.no_grad():
        network = deploy(model)
        first = network(x)
        alpha = model.alpha_array()
        alpha[3, 0] = 0
        model.set_alpha_array(alpha)
        assert torch.equal(network(x), first)
        assert relative_error(deploy(model)(x), model(x)) < 1e-9
        assert relative_error(deploy(model)(x), first) > 1e-3


def test_deploying_under_a_gamma_that_is_not_valid_is_refused():
    model = HyperRepVGG('RepVGG-Micro', 10)
    gamma = [13 if block.n_branches == 3 else 4 for block in model.blocks]
    deploy(model, gamma)
    for k in range(len(gamma)):
        with pytest.raises(ValueError, match=gamma_by_id(0).name):
            deploy(model, [*gamma[:k], 0, *gamma[k + 1:]])
