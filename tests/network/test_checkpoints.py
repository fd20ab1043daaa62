"""Weights: the authors' and timm's files give their logits; a file that does not fit or would run code is refused."""
from __future__ import annotations

import io
import os
import pickle
import zipfile
import re
from typing import Dict

import numpy as np
import oracles
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import PAPER, has_meta, images, relative_error
from random_cases import randomise, seeds, thin

from config import UserError
from hyper_repvgg import create_hyper_repvgg, deploy
from network import checkpoints
from repvgg import RepVGG

loads = pytest.mark.skipif(not checkpoints._can_load_safely(), reason='this PyTorch cannot load without executing')


def saved(folder, content, **options) -> str:
    path = os.path.join(str(folder), 'weights.pt')
    torch.save(content, path, **options)
    return path


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
        renamed = checkpoints.normalise_keys(theirs)
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
    lambda state: {f'module.module.{name}': value for name, value in state.items()},
    lambda state: {'state_dict': {f'model.{name}': value for name, value in state.items()}},
    lambda state: {f'_orig_mod.module.{name}': value for name, value in state.items()},
    lambda state: {'model_ema': state},
    lambda state: {'state_dict': {f'module.{name}': 0 * value for name, value in state.items()},
                   'state_dict_ema': {f'module.{name}': value for name, value in state.items()}},
    lambda state: {name: value for name, value in state.items() if not name.endswith('num_batches_tracked')},
    lambda state: {name: value.double() if value.is_floating_point() else value for name, value in state.items()},
], ids=['bare', 'state_dict', 'model', 'with more', 'module.', 'state_dict and module.',
        'module.module.', 'model.', 'compiled', 'model_ema', 'averaged beside raw', 'old torch', 'double'])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_may_be_wrapped(wrap, zipped, tmp_path):
    state = micro_state()
    path = saved(tmp_path, wrap(state), _use_new_zipfile_serialization=zipped)
    loaded = create_hyper_repvgg(path, 'RepVGG-Micro', 10).state_dict()
    for name, value in state.items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(loaded[name], value), name


@loads
def test_the_entry_that_is_taken_is_said_where_there_is_a_choice(tmp_path, capsys):
    state = micro_state()
    path = saved(tmp_path, {'state_dict': {name: value + 1 for name, value in state.items()}, 'state_dict_ema': state})
    for _ in range(2):  # as for many domains
        create_hyper_repvgg(path, 'RepVGG-Micro', 10)
    said = f"{path}: took the weights in its entry 'state_dict_ema', not those in 'state_dict'\n"
    assert capsys.readouterr().err == said
    create_hyper_repvgg(saved(tmp_path, {'state_dict': state}), 'RepVGG-Micro', 10)
    assert capsys.readouterr().err == ''


@loads
def test_loading_drops_what_was_folded_from_earlier_weights(tmp_path):
    model, x = create_hyper_repvgg(None, 'RepVGG-Micro', 10), images(1, 32)
    with torch.no_grad():
        model(x)
        checkpoints.load_checkpoint(model, saved(tmp_path, micro_state(5)))
        expected = randomise(RepVGG('RepVGG-Micro', 10), 5)(x)
        assert relative_error(model(x), expected) < 1e-4


# --- files that do not fit ----------------------------------------------------------------------------------

def refusal(path: str, name: str = 'RepVGG-Micro', num_classes: int = 10) -> str:
    """The one line with which loading is refused; the model is left as it was."""
    model = create_hyper_repvgg(None, name, num_classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        checkpoints.load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and '\n' not in message and '\x1b' not in message and len(message) < 1000
    return message


@loads
@pytest.mark.parametrize('name, num_classes, named', [
    ('RepVGG-Micro', 11, r'linear.weight is \(10, 128\), not \(11, 128\)'),
    ('RepVGG-A0', 10, r'stage2.0.rbr_dense.conv.weight is .* not|stage3.* missing'),
])
def test_a_checkpoint_of_another_architecture_is_refused_by_what_differs(name, num_classes, named, tmp_path):
    assert re.search(named, refusal(saved(tmp_path, micro_state()), name, num_classes))


@loads
def test_all_sorts_of_what_differs_are_named(tmp_path):
    state = micro_state()
    for name in [name for name in state if name.startswith('stage3.')]:
        state[name.replace('stage3.', 'features.3.')] = state.pop(name)
    state['stage1.0.rbr_1x1.conv.weight'] = torch.zeros(7)
    message = refusal(saved(tmp_path, state))
    for wanted in (r'stage3\.0\.\S+, .* and \d+ more are missing;',
                   r'features\.3\.\S+, .* more are not part of the model;',
                   r'stage1\.0\.rbr_1x1\.conv\.weight is \(7,\), not \('):
        assert re.search(wanted, message), message


@loads
@pytest.mark.parametrize('fused', ['stage{}.rbr_reparam.{}', 'module.stages.{}.reparam_conv.{}'])
def test_fused_weights_are_refused_with_the_reason(fused, tmp_path):
    state = {fused.format('1.0', part): torch.zeros(32) for part in ('weight', 'bias')}
    assert 'fused weights for deployment' in refusal(saved(tmp_path, state))


@loads
def test_weights_for_another_number_of_classes_say_which(tmp_path):
    message = refusal(saved(tmp_path, micro_state()), num_classes=1000)
    assert 'classifies 10 classes, NUM_CLASSES is 1000' in message and 'set NUM_CLASSES=10,' in message


@loads
def test_a_file_of_two_networks_is_refused(tmp_path):
    state = micro_state()
    assert 'more than once' in refusal(saved(tmp_path, {**state, 'module.linear.bias': state['linear.bias']}))


@loads
def test_a_checkpoint_inside_itself_is_refused(tmp_path):
    content = {'epoch': 3}
    content['model'] = content
    assert 'holds no state dict' in refusal(saved(tmp_path, content))


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
        torch.load(io.BytesIO(content), **({'weights_only': False} if checkpoints._can_load_safely() else {}))
    assert os.path.isdir(folder)


@loads
def test_a_whole_pickled_model_is_refused_with_the_class_that_it_would_run(tmp_path):
    message = refusal(saved(tmp_path, nn.Sequential(nn.Linear(2, 2))))
    assert 'could execute code' in message and 'torch.nn.modules.container.Sequential' in message


def test_a_pytorch_that_cannot_load_safely_does_not_load_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, '_can_load_safely', lambda: False)
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('loaded'))
    assert 'without executing code' in refusal(saved(tmp_path, micro_state()))


@loads
@pytest.mark.parametrize('odd', [
    lambda value: value.to(torch.int8), lambda value: value.bool(), lambda value: value.to(torch.complex64),
    lambda value: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    lambda value: value.to(getattr(torch, 'float8_e4m3fn', torch.int8))])
def test_weights_of_a_type_that_loses_them_are_refused(odd, tmp_path):
    name = 'stage1.0.rbr_dense.conv.weight'
    state = micro_state()
    assert name in refusal(saved(tmp_path, {**state, name: odd(state[name])}))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = str(tmp_path / 'weights.pt')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('weights/data/0', bytes(10 << 20))
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('loaded'))
    assert 'unpack to 10485760' in refusal(path)
