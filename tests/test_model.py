"""The model of section 4: all variants, checkpoints of others, folding, splitting, and files that do not fit."""
from __future__ import annotations

import io
import os
import pickle
import re
from typing import Dict

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import oracles
from config import UserError
from gamma_configurator import gamma_by_id
from hyper_repvgg import (HyperRepVGG, alpha_by_block, alpha_from_blocks, create_hyper_repvgg, deploy,
                          surviving_branches, unpruned_alpha)
from random_cases import pruned_models, randomise, seeds, thin
from repvgg import ARCHITECTURES, RepVGG, architecture, block_names, block_shapes

PAPER = list(oracles.PAPER_VARIANTS)
# Parameters of the deployed networks in millions, as the authors publish them (github.com/DingXiaoH/RepVGG)
PUBLISHED_MILLIONS = {
    'RepVGG-A0': 8.30, 'RepVGG-A1': 12.78, 'RepVGG-A2': 25.49, 'RepVGG-B0': 14.33, 'RepVGG-B1': 51.82,
    'RepVGG-B1g2': 41.36, 'RepVGG-B1g4': 36.12, 'RepVGG-B2': 80.31, 'RepVGG-B2g4': 55.77, 'RepVGG-B3': 110.96,
    'RepVGG-B3g4': 75.62}

loads = pytest.mark.skipif(not checkpoint._can_load_safely(), reason='this PyTorch cannot load without executing')
has_meta = pytest.mark.skipif(not hasattr(torch, 'compile'), reason='before PyTorch 2 a device is no context')


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def images(n: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def saved(folder, content, **options) -> str:
    path = os.path.join(str(folder), 'weights.pt')
    torch.save(content, path, **options)
    return path


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


# --- weights of others ----------------------------------------------------------------------------------

@loads
@pytest.mark.parametrize('name', PAPER)
def test_weights_of_the_authors_give_the_authors_logits(name, tmp_path):
    authors = randomise(oracles.PaperRepVGG(name, 17, thinner=4), seed=len(name))
    with thin(name):
        ours = create_hyper_repvgg(saved(tmp_path, authors.state_dict()), name, 17)
    x = images(2, 64)
    with torch.no_grad():
        expected = authors(x)
        assert relative_error(ours(x), expected) < 1e-4
        assert relative_error(deploy(ours)(x), expected) < 1e-4


@loads
@pytest.mark.parametrize('name', ['RepVGG-A0'])
def test_weights_of_the_authors_fit_at_full_width(name, tmp_path):
    authors = randomise(oracles.PaperRepVGG(name), seed=1)
    ours = create_hyper_repvgg(saved(tmp_path, authors.state_dict()), name)
    x = images(1, 64)
    with torch.no_grad():
        expected = authors(x)
        assert relative_error(ours(x), expected) < 1e-4
        assert relative_error(deploy(ours)(x), expected) < 1e-4


@loads
@given(st.sampled_from(['RepVGG-A0', 'RepVGG-B1g2', 'RepVGG-D2se']), st.integers(1, 70), st.integers(1, 12), seeds)
@settings(max_examples=8)
def test_any_input_size_and_class_count_give_the_authors_logits(tmp_path_factory, name, size, num_classes, seed):
    authors = randomise(oracles.PaperRepVGG(name, num_classes, thinner=4), seed)
    with thin(name):
        ours = create_hyper_repvgg(saved(tmp_path_factory.mktemp('w'), authors.state_dict()), name, num_classes)
    x = images(2, size, seed)
    with torch.no_grad():
        expected, found = authors.double()(x.double()), ours.double()(x.double())
    assert found.shape == (2, num_classes)
    assert relative_error(found, expected) < 1e-9


@loads
@pytest.mark.parametrize('name', ['repvgg_a0', 'repvgg_a1', 'repvgg_a2', 'repvgg_b0'])
def test_weights_of_timm_give_timms_logits(name, tmp_path):
    timm = pytest.importorskip('timm')
    theirs = randomise(timm.create_model(name), seed=3)
    ours = create_hyper_repvgg(saved(tmp_path, theirs.state_dict()), name)
    x = images(1, 64)
    with torch.no_grad():
        expected = theirs(x)
        assert relative_error(ours(x), expected) < 1e-4
        assert relative_error(deploy(ours)(x), expected) < 1e-4


@loads
def test_weights_of_one_of_timms_large_models_give_timms_logits(tmp_path):
    """One of seven a run, drawn: all of them would take half a minute."""
    large = ['repvgg_b1', 'repvgg_b1g4', 'repvgg_b2', 'repvgg_b2g4', 'repvgg_b3', 'repvgg_b3g4', 'repvgg_d2se']
    test_weights_of_timm_give_timms_logits(large[np.random.default_rng().integers(len(large))], tmp_path)


@has_meta
def test_the_names_and_shapes_of_all_of_timms_models_fit():
    timm = pytest.importorskip('timm')
    names = timm.list_models('repvgg*')
    assert len(names) >= 11
    for name in names:
        with torch.device('meta'):
            theirs, ours = timm.create_model(name).state_dict(), RepVGG(name).state_dict()
        renamed = checkpoint.normalise_keys(theirs)
        assert {key: v.shape for key, v in renamed.items()} == {key: v.shape for key, v in ours.items()}, name


def micro_state(seed: int = 0) -> Dict[str, torch.Tensor]:
    return randomise(RepVGG('RepVGG-Micro', 10), seed).state_dict()


@loads
@pytest.mark.parametrize('wrap', [
    lambda state: state,
    lambda state: {'state_dict': state},
    lambda state: {'model': state},
    lambda state: {'state_dict': state, 'epoch': 3, 'best_acc1': 70.5},
    lambda state: {f'module.{name}': value for name, value in state.items()},
    lambda state: {'state_dict': {f'module.{name}': value for name, value in state.items()}},
    lambda state: {name: value for name, value in state.items() if not name.endswith('num_batches_tracked')},
    lambda state: {name: value.double() if value.is_floating_point() else value for name, value in state.items()},
], ids=['bare', 'state_dict', 'model', 'with more', 'module.', 'state_dict and module.', 'old torch', 'double'])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_may_be_wrapped(wrap, zipped, tmp_path):
    state = micro_state()
    path = saved(tmp_path, wrap(state), _use_new_zipfile_serialization=zipped)
    loaded = create_hyper_repvgg(path, 'RepVGG-Micro', 10).state_dict()
    for name, value in state.items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(loaded[name], value), name


@loads
def test_loading_drops_what_was_folded_from_earlier_weights(tmp_path):
    model, x = create_hyper_repvgg(None, 'RepVGG-Micro', 10), images(1, 32)
    with torch.no_grad():
        model(x)
        checkpoint.load_checkpoint(model, saved(tmp_path, micro_state(5)))
        expected = randomise(RepVGG('RepVGG-Micro', 10), 5)(x)
        assert relative_error(model(x), expected) < 1e-4


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
    np.testing.assert_array_equal(model.alpha_array(), unpruned_alpha([b.n_branches == 3 for b in model.blocks]))
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


# --- files that do not fit ----------------------------------------------------------------------------------

def refusal(path: str, name: str = 'RepVGG-Micro', num_classes: int = 10) -> str:
    """The one line with which loading is refused; the model is left as it was."""
    model = create_hyper_repvgg(None, name, num_classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        checkpoint.load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and '\n' not in message and '\x1b' not in message and len(message) < 1000
    return message


@loads
@pytest.mark.parametrize('name, num_classes, named', [
    ('RepVGG-Micro', 11, r'linear.weight is \(10, 128\), not \(11, 128\)'),
    ('RepVGG-A0', 10, r'stage2.0.rbr_dense.conv.weight is .* not|stage3.* is missing'),
])
def test_a_checkpoint_of_another_architecture_is_refused_by_what_differs(name, num_classes, named, tmp_path):
    assert re.search(named, refusal(saved(tmp_path, micro_state()), name, num_classes))


@loads
@given(st.data())
@settings(max_examples=15)
def test_a_missing_extra_or_misshapen_tensor_is_named(tmp_path_factory, data):
    state = micro_state()
    name = data.draw(st.sampled_from([n for n in state if not n.endswith('num_batches_tracked')]))
    change = data.draw(st.sampled_from(['missing', 'not part of the model', 'is (7,), not']))
    if change == 'missing':
        del state[name]
    elif change == 'is (7,), not':
        state[name] = torch.zeros(7)
    else:
        name += '.more'
        state[name] = torch.zeros(7)
    message = refusal(saved(tmp_path_factory.mktemp('w'), state))
    assert f'{name} ' in message and change in message


@loads
@given(st.data())
@settings(max_examples=15)
def test_nan_infinity_and_negative_variance_are_named(tmp_path_factory, data):
    state = {name: value.clone() for name, value in micro_state().items()}
    name = data.draw(st.sampled_from([n for n in state if not n.endswith('num_batches_tracked')]))
    values = [float('nan'), float('inf'), -float('inf')] + ([-0.5] if name.endswith('running_var') else [])
    state[name].view(-1)[data.draw(st.integers(0, state[name].numel() - 1))] = data.draw(st.sampled_from(values))
    assert name in refusal(saved(tmp_path_factory.mktemp('w'), state))


@loads
@given(st.floats(0, 1, exclude_max=True), st.booleans())
@settings(max_examples=15)
def test_a_truncated_file_is_refused_as_unreadable(tmp_path_factory, share, zipped):
    path = saved(tmp_path_factory.mktemp('w'), micro_state(), _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * os.path.getsize(path)))
    assert 'is not a readable checkpoint' in refusal(path)


@loads
@pytest.mark.parametrize('content', [b'', b'\n', b'{"stage0": 1}', b'PK\x03\x04', os.urandom(4096),
                                     pickle.dumps({'a': 1}, protocol=5)], ids=range(6))
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = os.path.join(str(tmp_path), 'weights.pt')
    with open(path, 'wb') as stream:
        stream.write(content)
    refusal(path)


@loads
@pytest.mark.parametrize('content', [
    torch.ones(3), [torch.ones(3)], {0: torch.ones(3)}, {'linear.bias': [1.0, 2.0]}, {}, {'state_dict': {}}, None, 3,
    {'state_dict': 'stage0'},
], ids=range(9))
def test_something_else_than_a_state_dict_is_refused(content, tmp_path):
    refusal(saved(tmp_path, content))


@loads
@pytest.mark.parametrize('odd', [lambda t: t.to_sparse(), lambda t: t.to(torch.complex64), lambda t: t.to('meta')],
                         ids=['sparse', 'complex', 'meta'])
def test_a_tensor_that_is_not_ordinary_numbers_is_named(odd, tmp_path):
    state = micro_state()
    state['linear.weight'] = odd(state['linear.weight'])
    assert 'linear.weight is' in refusal(saved(tmp_path, state))


@pytest.mark.parametrize('path', ['no/such/file.pt', os.path.dirname(__file__)])
def test_a_missing_file_or_a_folder_is_refused(path):
    assert 'no such weights file' in refusal(path)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def torch_zip(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def torch_legacy(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize('written', [torch_zip, torch_legacy, pickle.dumps], ids=['zip', 'legacy', 'pickle'])
@pytest.mark.parametrize('place', [lambda trap: trap, lambda trap: {**micro_state(), 'more': trap},
                                   lambda trap: {'state_dict': micro_state(), 'args': [trap]}],
                         ids=['alone', 'among weights', 'beside weights'])
def test_a_file_that_would_execute_code_does_not(written, place, tmp_path):
    folder, path = str(tmp_path / 'sprung'), str(tmp_path / 'weights.pt')
    content = written(place(Trap(folder)))
    with open(path, 'wb') as stream:
        stream.write(content)
    refusal(path)
    assert not os.path.exists(folder)
    if written is pickle.dumps:
        pickle.loads(content)
    else:  # the trap is a real one
        torch.load(io.BytesIO(content), **({'weights_only': False} if checkpoint._can_load_safely() else {}))
    assert os.path.isdir(folder)


@loads
def test_a_whole_pickled_model_is_refused_with_the_class_that_it_would_run(tmp_path):
    message = refusal(saved(tmp_path, nn.Sequential(nn.Linear(2, 2))))
    assert 'could execute code' in message and 'torch.nn.modules.container.Sequential' in message


def test_a_pytorch_that_cannot_load_safely_does_not_load_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, '_can_load_safely', lambda: False)
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('loaded'))
    assert 'without executing code' in refusal(saved(tmp_path, micro_state()))
