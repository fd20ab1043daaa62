"""int8: what is quantised, what stays in float, where the ranges come from, and what the manifest promises."""
from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from client_process import SETTINGS, N, batch, random_model
from fleets import made_settings, table_of
from made_results import random_configuration

import domain_dataset
import export_split
from config import UserError
from domain_dataset import load_domain
from export import as_onnx, int8, run
from export.chosen import Point, split_of
from network.gammas import GAMMAS

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime.quantization')


def chosen_split(seed=3, split=5, wire='uint8'):
    """A random network, cut, every block fused."""
    configuration = random_configuration(table_of(SETTINGS), np.random.default_rng(seed), split, wire)
    point = int8.fused(Point('result', configuration, 0.9, 100, 'test', None))
    return split_of(random_model(seed), point, SETTINGS), point.configuration


def in_int8(graph):
    """The units of a graph whose convolutions or matrices have int8 weights."""
    model = onnx.load_from_string(graph)
    made_by = {output: node for node in model.graph.node for output in node.output}
    return {node.name.partition('/')[0] for node in model.graph.node if node.op_type in int8.QUANTISED
            and made_by.get(node.input[1]) is not None and made_by[node.input[1]].op_type == 'DequantizeLinear'}


@pytest.mark.parametrize('wire', ['float32', 'uint8'])
def test_all_convolutions_are_quantised_but_those_of_the_units_that_are_kept(wire):
    chosen, configuration = chosen_split(wire=wire)
    parts = {'head': as_onnx.head_bytes(chosen), 'tail': as_onnx.tail_bytes(chosen)}
    images, _ = batch(1, 40)
    names = table_of(SETTINGS).block_names
    with_kernel = {'stem', 'classifier', *(name for name, gamma in zip(names, configuration.gamma)
                                           if GAMMAS[gamma].paths != ((2,),))}
    assert all(GAMMAS[gamma].n_streams == 1 for gamma in configuration.gamma)
    wanted = int8.logits_of(parts, images)
    errors = []
    for kept in ((), ('stem', names[7], 'classifier')):
        found = int8.quantised_parts(chosen, parts, images, kept)
        assert in_int8(found['head']) | in_int8(found['tail']) == with_kernel - set(kept)
        errors.append(float((int8.logits_of(found, images) - wanted).abs().max() / wanted.abs().max()))
    assert 0 < errors[0] < 0.5 and 0 < errors[1] < 0.5
    everything = int8.quantised_parts(chosen, parts, images, ('stem', *names, 'classifier'))
    torch.testing.assert_close(int8.logits_of(everything, images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('split', [0, N])
def test_a_split_with_one_part_is_quantised_too(split):
    chosen, _ = chosen_split(split=split, wire='float32')
    parts = {'head': as_onnx.head_bytes(chosen), 'tail': as_onnx.tail_bytes(chosen)}
    images, _ = batch(2, 20)
    found = int8.quantised_parts(chosen, parts, images, ())
    assert [data is None for data in found.values()] == [data is None for data in parts.values()]
    assert int8.logits_of(found, images).shape == (20, 10)


def test_the_command_measures_the_files_on_test_images_and_takes_ranges_from_training_images(tmp_path, monkeypatch):
    settings = made_settings(tmp_path, 3)
    asked = []
    monkeypatch.setattr(run, 'load_domain', lambda *arguments: asked.append(arguments[2]) or load_domain(*arguments))
    export_split.main(['--domain_id', '3', '--out', str(tmp_path / 'out'), '--int8', '--keep_float', 'stage1.0, stem',
                       '--set', f'RESULTS_DIR={tmp_path}', 'CLIENTS=1'])
    assert asked == ['val', 'train', 'test']
    with open(tmp_path / 'out' / 'manifest.json', encoding='utf-8') as stream:
        manifest = json.load(stream)
    assert manifest['int8']['in_float'] == ['stage1.0', 'stem']
    parts = {}
    for name in ('head', 'tail'):
        with open(os.path.join(tmp_path, 'out', manifest['files'][name]['file']), 'rb') as stream:
            parts[name] = stream.read()
    test = domain_dataset.load_domain(settings, 3, 'test')
    right = (int8.logits_of(parts, test.images).argmax(dim=1) == test.labels).float().mean()
    low, high = manifest['expected_accuracy']['ci95']
    assert manifest['expected_accuracy']['value'] == pytest.approx(float(right)) and low < right < high
    assert manifest['int8']['same_class_as_float']['subset'] == 'val'


@pytest.mark.parametrize('flags, words', [
    (['--int8', '--format', 'torchscript'], '--int8 needs --format onnx'),
    (['--keep_float', 'stem'], 'give both'),
    (['--int8', '--keep_float', 'stage9.0'], '--keep_float stage9.0: the units are stem, stage1.0')])
def test_mistakes_are_one_line_and_write_nothing(tmp_path, flags, words):
    made_settings(tmp_path, 3)
    with pytest.raises(UserError, match=words):
        export_split.main(['--domain_id', '3', '--out', str(tmp_path / 'out'), *flags, '--set',
                           f'RESULTS_DIR={tmp_path}', 'CLIENTS=1'])
    assert not os.path.exists(tmp_path / 'out') or os.listdir(tmp_path / 'out') == []
