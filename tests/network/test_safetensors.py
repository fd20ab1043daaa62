"""Weights in the safetensors format: the same network as from .pt, also where PyTorch cannot load safely; what is
damaged or hostile is refused, and where the package is missing a line says so."""
from __future__ import annotations

import json
import os
import struct
import sys
from typing import Dict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import images, relative_error
from random_cases import randomise

from config import UserError, load
from hyper_repvgg import create_hyper_repvgg
from network import checkpoints
from repvgg import RepVGG
from tier import worker
from tier.part import pack_unit, units_of
from tier.tasks import Tasks
from wire.blobs import BlobStore, hash_of

pytest.importorskip('safetensors')
TYPES = {torch.float32: 'F32', torch.float16: 'F16', torch.float64: 'F64', torch.int64: 'I64'}


def state_of(seed: int) -> Dict[str, torch.Tensor]:
    return randomise(RepVGG('RepVGG-Micro', 10), seed).state_dict()


def laid_out(state: Dict[str, torch.Tensor]) -> bytes:
    """The bytes of a file as the format's description says: length of the header, header, data."""
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for name, value in state.items():
        raw = value.numpy().tobytes()
        header[name] = {'dtype': TYPES[value.dtype], 'shape': list(value.shape),
                        'data_offsets': [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def written(folder, content: bytes) -> str:
    path = os.path.join(str(folder), 'model.safetensors')
    with open(path, 'wb') as stream:
        stream.write(content)
    return path


def refusal(path: str) -> str:
    """The one line with which loading is refused; the model is left as it was."""
    model = create_hyper_repvgg(None, 'RepVGG-Micro', 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        checkpoints.load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(caught.value).startswith(f'{path}: ') and '\n' not in str(caught.value)
    return str(caught.value)


@given(st.integers(0, 99), st.sampled_from(['', 'module.']), st.sampled_from(list(TYPES)[:3]))
@settings(max_examples=10)
def test_the_weights_are_those_that_the_file_holds(tmp_path_factory, seed, prefix, dtype):
    state = {prefix + name: value.to(dtype) if value.is_floating_point() else value
             for name, value in state_of(seed).items()}
    path = written(tmp_path_factory.mktemp('w'), laid_out(state))
    loaded = create_hyper_repvgg(path, 'RepVGG-Micro', 10).state_dict()
    for name, value in state.items():
        assert name.endswith('num_batches_tracked') or torch.equal(loaded[name[len(prefix):]], value.float()), name


@pytest.mark.parametrize('name', ['repvgg_a0', 'repvgg_b1g4'])
def test_a_file_as_timm_saves_it_gives_timms_logits(name, tmp_path):
    timm, library = pytest.importorskip('timm'), pytest.importorskip('safetensors.torch')
    theirs, path = randomise(timm.create_model(name), seed=3), str(tmp_path / 'model.safetensors')
    library.save_file(theirs.state_dict(), path)
    with torch.no_grad():
        assert relative_error(create_hyper_repvgg(path, name)(images(1, 64)), theirs(images(1, 64))) < 1e-4


def test_bfloat16_is_read_without_loss(tmp_path):
    library = pytest.importorskip('safetensors.torch')
    state = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state_of(1).items()}
    path = str(tmp_path / 'model.safetensors')
    library.save_file(state, path)
    loaded = create_hyper_repvgg(path, 'RepVGG-Micro', 10).state_dict()
    assert torch.equal(loaded['linear.weight'], state['linear.weight'].float())


def test_a_pytorch_that_cannot_load_safely_reads_weights_of_the_device(tmp_path, monkeypatch):
    """WEIGHT_PATH_CLIENT on a device with PyTorch 1.10: its cache then holds every unit that the server would send."""
    monkeypatch.setattr(checkpoints, '_can_load_safely', lambda: False)
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: pytest.fail('loaded'))
    path = written(tmp_path, laid_out(state_of(5)))
    tasks = Tasks(torch.device('cpu'), 1, BlobStore(str(tmp_path / 'cache'), 1 << 30))
    worker.preload(path, load(('MODEL_NAME=RepVGG-Micro', 'NUM_CLASSES=10'), {}), tasks)
    for unit in units_of(randomise(RepVGG('RepVGG-Micro', 10), 5)):
        assert tasks.store.has(hash_of(pack_unit(unit)))


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=15)
def test_a_truncated_file_is_refused(tmp_path_factory, share):
    content = laid_out(state_of(0))
    path = written(tmp_path_factory.mktemp('w'), content[:int(share * len(content))])
    assert 'is not a readable checkpoint' in refusal(path)


def changed(change) -> bytes:
    content = laid_out({'linear.bias': torch.zeros(10)})
    length = struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8:8 + length])
    change(header['linear.bias'])
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + content[8 + length:]


@pytest.mark.parametrize('content', [
    b'', b'\0' * 8, os.urandom(4096), struct.pack('<Q', 1 << 62) + b'{}', struct.pack('<Q', 2) + b'[]',
    changed(lambda entry: entry.update(data_offsets=[0, 1 << 40])),
    changed(lambda entry: entry.update(data_offsets=[40, 0])),
    changed(lambda entry: entry.update(shape=[1 << 40])), changed(lambda entry: entry.update(shape=[-10])),
    changed(lambda entry: entry.update(dtype='F31')), laid_out({'linear.bias': torch.zeros(10)}) + b'more',
], ids=range(11))
def test_a_file_whose_header_lies_is_refused(content, tmp_path):
    assert 'is not a readable checkpoint' in refusal(written(tmp_path, content))


def test_a_file_that_does_not_fit_is_refused_by_what_differs(tmp_path):
    state = state_of(0)
    del state['linear.bias']
    assert 'linear.bias is missing' in refusal(written(tmp_path, laid_out(state)))


def test_without_the_package_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    assert refusal(written(tmp_path, laid_out(state_of(0)))).endswith('need safetensors here: pip install safetensors')
