"""Networks of torchvision as chains of units: cut exactly where one tensor alone crosses the graph; the chain computes
what the network computes, whatever the cut; what does not exist, fit or travel is refused in one line."""
from __future__ import annotations

import os
import sys
from typing import List, Set

import numpy as np
import pytest
import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import images, relative_error
from random_cases import randomise
from torch.utils.flop_counter import FlopCounterMode

from config import UserError
from hyper_repvgg import create_network, deploy
from network import graph_network
from network.graph_network import GraphNetwork, module_of, segments_of, without_in_place
from network.outline import outline_of
from tier.part import empty_unit, load_unit, pack_unit, units_of

models = pytest.importorskip('torchvision.models')
SMALL = ('squeezenet1_1', 'mobilenet_v3_small', 'resnet18')


class RandomGraph(nn.Module):
    """Operators on maps [B, 4, S, S], each of which takes one or two values from before, some of them in place."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) if kind == 'conv' else nn.ReLU(inplace=True)
                                    for kind, _ in plan)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        values = [x * 1]
        for layer, (kind, sources) in zip(self.layers, self.plan):
            first, second = (values[source % len(values)] for source in sources)
            if kind == 'conv':
                values.append(layer(first))
            elif kind == 'relu':
                values.append(layer(first * 2))
            elif kind == 'scaled':
                values.append(first * self.scale)
            else:
                total = first + 1
                total += second
                values.append(total)
        return values[-1].mean(dim=(2, 3))


plans = st.lists(st.tuples(st.sampled_from(['conv', 'relu', 'add', 'scaled']),
                           st.tuples(st.integers(-3, 40), st.integers(-3, 40))), min_size=1, max_size=9)


def articulations(graph: torch.fx.Graph) -> List[str]:
    """By definition: the nodes without which nothing of the image reaches the logits, in order."""
    answer = list(graph.nodes)[-1].args[0]

    def reached(without) -> Set[torch.fx.Node]:
        found = {node for node in graph.nodes if node.op == 'placeholder'}
        for node in graph.nodes:
            if node is not without and found.intersection(node.all_input_nodes):
                found.add(node)
        return found

    whole = reached(None)
    return [node.name for node in graph.nodes if node in whole and node.op not in ('placeholder', 'output')
            and node is not answer and answer not in reached(node)]


@given(plans, st.integers(0, 99))
@settings(max_examples=60)
def test_a_graph_is_cut_where_everything_passes_through_one_node(plan, seed):
    torch.manual_seed(seed)
    model = RandomGraph(plan).eval()
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        expected = model(x.clone())
    traced = without_in_place(torch.fx.symbolic_trace(model))
    traced.graph.eliminate_dead_code()
    segments = segments_of(traced.graph, frozenset(node.name for node in traced.graph.nodes))
    assert [segment.name for segment in segments[:-1]] == articulations(traced.graph)
    z = x
    with torch.no_grad():
        for segment in segments:
            before = z.clone()
            result = module_of(traced, segment)(z)
            assert torch.equal(z, before)  # whoever keeps what crossed a cut has it unchanged
            z = result
    assert torch.equal(z, expected)


def test_operators_in_place_become_ordinary_ones():
    class InPlace(nn.Module):
        def forward(self, x):
            y = F.relu(x, inplace=True)
            y.add_(1)
            y *= 2
            return y

    traced = without_in_place(torch.fx.symbolic_trace(InPlace()))
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(traced(x), torch.tensor([2.0, 6.0])) and torch.equal(x, torch.tensor([-1.0, 2.0]))


def saved(folder, name: str, seed: int):
    """(torchvision's network with random weights, a file of them)."""
    theirs = randomise(models.get_model(name, weights=None, num_classes=10), seed)
    path = os.path.join(str(folder), 'weights.pt')
    torch.save({'model': {f'module.{key}': value for key, value in theirs.state_dict().items()}}, path)
    return theirs, path


@pytest.mark.parametrize('name', SMALL)
def test_the_chain_computes_what_torchvisions_network_computes(name, tmp_path):
    theirs, path = saved(tmp_path, name, 1)
    ours = create_network(path, f'torchvision:{name}', 10)
    x, network, n = images(2, 64), deploy(ours), len(ours.blocks)
    with torch.inference_mode():
        expected = theirs(x)
        for split in (0, 1, 2, n // 2, n - 1, n):
            z = network.head(x, split)
            assert relative_error(network.tail(z, split), expected) < 1e-5
            assert split in (0, n) or tuple(z.shape[1:]) == outline_of(ours.model_name, 10, 64).cut_shape(split + 1)
        assert relative_error(ours(x), expected) < 1e-5


@pytest.mark.parametrize('name', SMALL)
def test_a_device_that_knows_the_name_and_gets_the_weights_computes_the_same(name):
    ours = randomise(create_network(None, f'torchvision:{name}', 10), 2)
    x = z = images(2, 64)
    with torch.inference_mode():
        for index, unit in enumerate(units_of(ours)):
            here = empty_unit(ours.model_name, 10, index)
            load_unit(here, pack_unit(unit))
            z = here(z)
        assert torch.equal(z, ours(x))


@pytest.mark.parametrize('name', SMALL)
def test_the_work_is_that_of_the_whole_network(name):
    with torch.device('meta'):
        theirs = models.get_model(name, weights=None, num_classes=10).eval()
    with FlopCounterMode(display=False) as counter:
        theirs(torch.empty(1, 3, 64, 64, device='meta'))
    blocks = outline_of(f'torchvision:{name}', 10, 64).blocks
    assert sum(shape.flops for shape in blocks) == counter.get_total_flops()
    assert sum(shape.weight_bytes for shape in blocks) == 4 * sum(
        value.numel() for value in theirs.state_dict().values() if value.is_floating_point())
    for before, shape in zip(blocks, blocks[1:]):  # what enters and what leaves is there at the same time
        assert shape.activation_bytes >= 4 * (np.prod(before.out_shape) + np.prod(shape.out_shape))
        assert shape.moved_bytes >= shape.weight_bytes + 4 * np.prod(shape.out_shape)


def test_there_is_one_alpha_and_one_gamma():
    ours = create_network(None, 'torchvision:squeezenet1_1', 10)
    alpha = ours.alpha_array()
    assert (alpha[:, 0] == 1).all() and np.isnan(alpha[:, 1:]).all()
    ours.set_alpha_array(alpha)
    for wrong in (np.where(np.isnan(alpha), alpha, 0.5), np.ones_like(alpha)):
        with pytest.raises(ValueError):
            ours.set_alpha_array(wrong)
    with pytest.raises(ValueError):
        deploy(ours, [1] * len(ours.blocks))


# --- refusals -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['resnet500', 'get_model', 'list_models', 'os.system', '', 'detection.fcos'])
def test_only_classifiers_are_built(name):
    with pytest.raises(UserError, match='torchvision has no classifier'):
        GraphNetwork(f'torchvision:{name}', 10)


def test_without_torchvision_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision.models', None)
    with pytest.raises(UserError, match='need torchvision here: pip install torchvision'):
        graph_network.traced('torchvision:resnet18', 10)


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path):
    _, path = saved(tmp_path, 'squeezenet1_1', 3)
    ours = create_network(None, 'torchvision:resnet18', 10)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UserError, match='does not fit the model'):
        ours.load_weights(path)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_images_that_are_too_small_are_refused_in_one_line():
    with pytest.raises(UserError, match='cannot run images of INPUT_SIZE=8: .') as caught:
        outline_of('torchvision:squeezenet1_1', 10, 8)
    assert '\n' not in str(caught.value)
