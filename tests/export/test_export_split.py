"""Exported heads and tails compute what the project computes, under the γ that was chosen; nothing else is written."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from client_process import N, SETTINGS, batch, random_model
from fleets import made_settings, table_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_results import random_configuration
from random_cases import randomise

import config
import export_split
from config import UserError
from domain_dataset import load_domain
from export import as_onnx, as_torchscript, check, run
from export.boundary import image_spec, logits_spec, sent_specs, wire_in_graph
from export.chosen import ChosenSplit, Point, split_of
from hyper_repvgg import create_hyper_repvgg, deploy
from network import shapes
from network.alpha import unpruned_alpha
from network.gammas import GAMMAS
from network.inputs import normalise, predict
from remote.client import folded_specs
from search import result_file, wire_loss
from search.domain_inputs import load_alphas
from search.domain_search import solve_unpruned
from tier.part import part_of

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
BUILDERS = {'onnx': as_onnx, 'torchscript': as_torchscript}


def random_split(seed, split, wire, settings=SETTINGS):
    """A random network, cut and configured at random."""
    model = random_model(seed)
    configuration = random_configuration(table_of(settings), np.random.default_rng(seed), split, wire)
    return split_of(model, Point('result', configuration, 0.9, 100, 'test', None), settings), configuration, model


@hypothesis_settings(max_examples=12)
@given(st.integers(0, 10 ** 6), st.integers(0, N), st.sampled_from(['float32', 'float16', 'uint8', 'uint8+zlib']),
       st.sampled_from(['onnx', 'torchscript']))
def test_every_split_wire_format_and_gamma_gives_the_classes_of_the_network(seed, split, wire, file_format):
    chosen, configuration, model = random_split(seed, split, wire)
    images, _ = batch(seed, 6)
    builder = BUILDERS[file_format]
    found = check.check(chosen, builder.head_bytes(chosen), builder.tail_bytes(chosen), file_format, images)
    model.set_alpha_array(configuration.alpha)
    network = wire_loss.through_wire(deploy(model, configuration.gamma), split, wire)
    inputs = normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    assert torch.equal(found.classes, predict(network, inputs, 6))


@pytest.mark.parametrize('name', ['RepVGG-D2se', 'RepVGG-B1g4'])
def test_squeeze_and_excitation_and_groups(name, monkeypatch):
    settings = dataclasses.replace(SETTINGS, MODEL_NAME='RepVGG-Micro')
    micro = dataclasses.replace(shapes.ARCHITECTURES['RepVGG-Micro'], grouped=shapes.ARCHITECTURES[name].grouped,
                                use_se=shapes.ARCHITECTURES[name].use_se)
    monkeypatch.setitem(shapes.ARCHITECTURES, 'RepVGG-Micro', micro)
    model = randomise(create_hyper_repvgg(None, 'RepVGG-Micro', 10), 3)
    configuration = random_configuration(table_of(settings), np.random.default_rng(5), 4, 'float32')
    chosen = split_of(model, Point('result', configuration, 0.9, 100, 'test', None), settings)
    check.check(chosen, as_onnx.head_bytes(chosen), as_onnx.tail_bytes(chosen), 'onnx', batch(1, 4)[0])


def test_a_gamma_is_written_as_it_is_executed():
    """A fused path is one convolution; an unfused branch keeps its BatchNorm."""
    chosen, configuration, _ = random_split(7, 6, 'uint8')
    nodes = [node for data in (as_onnx.head_bytes(chosen), as_onnx.tail_bytes(chosen))
             for node in onnx.load_from_string(data).graph.node]
    for name, gamma in zip(table_of(SETTINGS).block_names, (GAMMAS[g] for g in configuration.gamma)):
        of_block = [node.op_type for node in nodes if node.name.startswith(f'{name}/')]
        affine = [path for path in gamma.paths if path == (2,)]
        assert of_block.count('Conv') == len(gamma.paths) - len(affine)
        assert of_block.count('BatchNormalization') == (len(affine) if gamma.folded else len(gamma.paths))
        assert of_block.count('Add') == len(gamma.paths) - 1 and of_block.count('Relu') == 1


@pytest.mark.parametrize('file_format', ['onnx', 'torchscript'])
@pytest.mark.parametrize('wire', ['float32', 'uint8'])
def test_a_file_that_computes_something_else_is_found(file_format, wire):
    chosen, _, _ = random_split(3, 5, wire)
    other, _, _ = random_split(4, 5, wire)
    right, wrong = ([builder.head_bytes(one), builder.tail_bytes(one)] for builder in [BUILDERS[file_format]]
                    for one in (chosen, other))
    images, _ = batch(0, 4)
    check.check(chosen, *right, file_format, images)
    for head, tail, part in ((wrong[0], right[1], 'head'), (right[0], wrong[1], 'tail')):
        with pytest.raises(check.NotEqual, match=f'the exported {part} differs from PyTorch'):
            check.check(chosen, head, tail, file_format, images)


class Residual(torch.nn.Module):
    """A block that is none of RepVGG's."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)) + x)


class Classifier(torch.nn.Module):
    """Mean and linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(x.mean(dim=(2, 3)))


@pytest.mark.parametrize('file_format', ['onnx', 'torchscript'])
@pytest.mark.parametrize('wire', ['float32', 'float16', 'uint8'])
def test_modules_of_any_network_can_be_exported(file_format, wire):
    head = [('stem', torch.nn.Conv2d(3, 8, 3, padding=1)), ('residual', randomise(Residual(), 1))]
    sent = sent_specs(wire, (8, 32, 32), False)
    chosen = ChosenSplit(head, [('classifier', Classifier())], wire, image_spec(32), sent, logits_spec(10),
                         SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    builder = BUILDERS[file_format]
    check.check(chosen, builder.head_bytes(chosen), builder.tail_bytes(chosen), file_format, batch(0, 5)[0])


def test_a_format_that_cannot_be_part_of_a_graph_is_refused():
    with pytest.raises(UserError, match='wire format uint8@0.5 cannot be part of an exported graph'):
        wire_in_graph('uint8@0.5', 3, 11)
    with pytest.raises(UserError, match='wire format uint4 cannot be part of an exported graph'):
        wire_in_graph('uint4', 3, 11)
    assert wire_in_graph('uint4', 0, 11) == wire_in_graph('uint4', 11, 11) == 'as_computed'


# --- the command --------------------------------------------------------------------------------------------

def exported(folder):
    """Settings with a made-up result of domain 3, which was exported to `folder`/out."""
    settings = made_settings(folder, 3)
    export_split.main(['--domain_id', '3', '--out', os.path.join(folder, 'out'), '--set', f'RESULTS_DIR={folder}',
                       'CLIENTS=1'])
    with open(os.path.join(folder, 'out', 'manifest.json'), encoding='utf-8') as stream:
        return settings, json.load(stream)


def test_the_example_gives_the_projects_classes_over_a_socket(tmp_path):
    settings, manifest = exported(tmp_path)
    out = os.path.join(tmp_path, 'out')
    for entry in manifest['files'].values():
        with open(os.path.join(out, entry['file']), 'rb') as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == entry['sha256']
    images = load_domain(settings, 3, 'test').images[:20]
    np.save(tmp_path / 'images.npy', images.numpy())
    example = [sys.executable, os.path.join(config.ROOT, 'examples', 'run_exported.py'), out]
    server = subprocess.Popen([*example, '--serve', '0'], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        port = server.stdout.readline().split()[-1]
        said = subprocess.run([*example, '--connect', f'127.0.0.1:{port}', '--images', str(tmp_path / 'images.npy')],
                              stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path).stdout
    finally:
        server.kill()
        server.wait()
    result = result_file.load(3, table_of(settings), settings)
    assert manifest['lambda'] == result.configuration.split and manifest['wire'] == result.configuration.wire
    assert manifest['expected_accuracy']['value'] == result.accuracy.final
    model = run.base_model(settings)
    model.set_alpha_array(result.configuration.alpha)
    network = deploy(model, result.configuration.gamma)
    wanted = predict(network, normalise(images, settings.NORM_MEAN, settings.NORM_STD), 20).tolist()
    assert [line.split()[:2] for line in said.splitlines()] == [[str(i), str(label)] for i, label in enumerate(wanted)]


def test_the_unpruned_network_is_exported_as_step_2_splits_it(tmp_path):
    """The network that the result is compared with: the better α, no branch less, the γ and λ of step 2."""
    settings = made_settings(tmp_path, 3)
    export_split.main(['--domain_id', '3', '--out', str(tmp_path / 'out'), '--point', 'unpruned', '--set',
                       f'RESULTS_DIR={tmp_path}', 'CLIENTS=1'])
    with open(tmp_path / 'out' / 'manifest.json', encoding='utf-8') as stream:
        manifest = json.load(stream)
    table = table_of(settings)
    wanted, model = solve_unpruned(table, settings), run.base_model(settings)
    assert manifest['point'] == 'unpruned' and manifest['lambda'] == wanted.split
    assert tuple(manifest['gamma'].values()) == wanted.gamma
    assert manifest['expected_accuracy']['value'] == result_file.load(3, table, settings).baselines['step2'].accuracy
    val = load_domain(settings, 3, 'val')
    inputs, logits = normalise(val.images, settings.NORM_MEAN, settings.NORM_STD), []
    for alpha in (load_alphas(settings)['3'].alpha, unpruned_alpha(table.n_branches)):
        model.set_alpha_array(alpha)
        with torch.no_grad():
            logits.append(deploy(model)(inputs))
    best = max(logits, key=lambda found: int((found.argmax(dim=1) == val.labels).sum()))
    known = np.load(tmp_path / 'out' / 'check_images.npz')
    np.testing.assert_allclose(known['logits'], best[:len(known['logits'])].numpy(), rtol=1e-3, atol=1e-3)


def test_another_export_into_the_same_folder_leaves_no_file_of_the_first(tmp_path, monkeypatch):
    exported(tmp_path)
    for name in ('onnx', 'onnxruntime'):  # TorchScript needs neither
        monkeypatch.setitem(sys.modules, name, None)
    export_split.main(['--domain_id', '3', '--out', os.path.join(tmp_path, 'out'), '--format', 'torchscript', '--point',
                       'frontier.latency[0]', '--set', f'RESULTS_DIR={tmp_path}', 'CLIENTS=1'])
    assert sorted(os.listdir(tmp_path / 'out')) == ['check_images.npz', 'head.pt', 'manifest.json', 'tail.pt']


def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch):
    made_settings(tmp_path, 3)
    out = tmp_path / 'out'
    command = ['--domain_id', '3', '--out', str(out)]
    changed = ['--set', f'RESULTS_DIR={tmp_path}', 'CLIENTS=1']
    with pytest.raises(UserError, match=r"T_eff\[9\]: there are result, unpruned and frontier\.T_eff\[0\] to"):
        export_split.main([*command, '--point', 'frontier.T_eff[9]', *changed])
    with pytest.raises(UserError, match='domain_4_joint.json: no such file'):
        export_split.main(['--domain_id', '4', '--out', str(out), *changed])
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match='pip install onnx onnxruntime'):
        export_split.main([*command, *changed])
    monkeypatch.undo()
    monkeypatch.setattr(check, 'TOLERANCE', -1.0)
    with pytest.raises(UserError, match='differs from PyTorch'):
        export_split.main([*command, *changed])
    assert not out.exists() or os.listdir(out) == []
    out.mkdir(exist_ok=True)
    (out / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='holds files that are no exported split'):
        export_split.main([*command, *changed])
    assert os.listdir(out) == ['notes.txt']


# --- the engine ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(3))
def test_a_part_in_onnxruntime_gives_what_it_gives_in_pytorch(seed):
    """Any units of it, images and feature maps, one and several at a time."""
    model = random_model(seed)
    chosen = random_configuration(table_of(SETTINGS), np.random.default_rng(seed), 4, 'float32')
    spec = folded_specs(chosen.alpha, chosen.gamma, (0, N + 2), SETTINGS)
    by_torch, by_onnx = (part_of(model, dataclasses.replace(spec, engine=engine), torch.device('cpu'))
                         for engine in ('torch', 'onnxruntime'))
    images, _ = batch(seed, 3)
    with torch.no_grad():
        for first, last in ((0, N + 2), (0, 1), (0, 5)):
            found, wanted = by_onnx(images, first, last), by_torch(images, first, last)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        z = by_torch(images[:1], 0, 5)
        for last in (6, N + 2):
            torch.testing.assert_close(by_onnx(z, 5, last), by_torch(z, 5, last), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match='on the CPU'):
        part_of(model, dataclasses.replace(spec, engine='onnxruntime', dtype='float64'), torch.device('cpu'))
