"""Recovery where not all channels of the cut are sent: what is trained, what it wins, and when it is tried."""
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from client_process import random_channels, random_model
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from random_cases import whole_table
from search_cases import made_problem, problem_of, slow_client_table, with_settings

from costs.cost_model import Configuration
from hyper_repvgg import deploy
from network.alpha import mask_of, unpruned_alpha
from search import recovery
from search.cut_channels import WithoutChannels
from search.recovery import Recovery
from search.state import EvaluatedNetwork
from search.wire_loss import WireLoss, classified_right

NARROW = with_settings(WIRE_FORMATS=('float32', 'uint4@0.25', 'uint4@0.5'), RECOVERY_STEPS=16, BANDWIDTH_MBPS=1.0)
PROBLEM = made_problem(whole_table(NARROW, 1), NARROW, unpruned_alpha(slow_client_table().n_branches), 0.9)


@pytest.mark.parametrize('split', [1, 4, 10])
def test_what_is_trained_is_the_network_with_its_channels_missing(split):
    """Outputs are those of the folded network; gradients those of finite differences."""
    model = random_model(split, torch.float64)
    channels = random_channels(split, split, 'float32@0.5')
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found, logits = WithoutChannels(model, split, channels), torch.randn(3, 10, dtype=torch.float64)

    def value() -> torch.Tensor:
        return (found(x) * logits).sum()

    with torch.no_grad():
        network = deploy(model)
        wanted = network.tail(channels.restore(channels.take(network.head(x, split))), split)
    torch.testing.assert_close(found(x), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    gradients, alpha, step = torch.autograd.grad(value(), model.alphas()), model.alpha_array(), 1e-6
    for k in {0, split - 1, split, 10}:
        for branch in np.flatnonzero(np.nan_to_num(alpha[k])):
            ends = []
            for sign in (1, -1):
                changed = alpha.copy()
                changed[k, branch] += sign * step
                model.set_alpha_array(changed)
                ends.append(value().item())
            model.set_alpha_array(alpha)
            scale = max(float(gradient.abs().max()) for gradient in gradients)
            assert abs(float(gradients[k][branch]) - (ends[0] - ends[1]) / (2 * step)) < 1e-4 * scale


@pytest.mark.parametrize('split', [4, 8])
def test_a_recovery_at_the_cut_wins_and_says_what_its_network_is_worth(split):
    problem, wire = problem_of(NARROW), 'uint4@0.25'
    found, measured = Recovery(problem), WireLoss(problem.model, problem.val, NARROW, choice=problem.channel_choice)
    whole = found.measure(problem.unpruned)
    before = dataclasses.replace(whole, formats=(wire,), accuracy=measured.accuracy(whole.alpha, split, wire,
                                                                                  whole.accuracy))
    best = found.train_at_cut(before, split, wire, measured)
    assert best.accuracy > before.accuracy + 0.02 and best.recovered and best.formats == (wire,)
    assert mask_of(best.alpha) == mask_of(before.alpha)
    chosen = Configuration(best.alpha, (), split, wire, problem.channel_choice.at(best.alpha, split, wire))
    assert best.accuracy == classified_right(problem.model, chosen, problem.val, NARROW).mean()
    assert best.lossless_accuracy == found.measure(best.alpha).accuracy
    again = Recovery(problem).train_at_cut(before, split, wire, measured)
    np.testing.assert_array_equal(again.alpha, best.alpha)  # whatever was trained in between


@hypothesis_settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.3, 0.9), st.floats(0.3, 0.9)), min_size=2, max_size=2), st.booleans(),
       st.sampled_from([-9.0, 0.5, 1.0, math.inf]))
def test_the_cut_that_promises_most_is_recovered_where_that_may_lower_J_and_kept_where_it_does(drawn, recalibrated,
                                                                                                   J_to_beat):
    """Two formats with some channels, each with an accuracy as it is and after a recovery."""
    problem = PROBLEM
    found, asked = Recovery(problem), []
    known = dict(zip(('uint4@0.25', 'uint4@0.5'), drawn))
    network = EvaluatedNetwork(problem.unpruned, 0.9, 0.9, recalibrated=recalibrated)

    def train_at_cut(option: EvaluatedNetwork, split: int, wire: str, measured: WireLoss) -> EvaluatedNetwork:
        asked.append(option)
        assert option.formats == (wire,) and split == problem.times.solve(option.alpha, option.formats).split
        return dataclasses.replace(option, accuracy=max(option.accuracy, known[wire][1]), recovered=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WireLoss, 'accuracy', lambda self, alpha, split, wire, lossless, recalibrated:
                      known[wire][0] if wire in known else lossless)
        patch.setattr(found, 'train_at_cut', train_at_cut)
        patch.setattr(type(problem), 'statistics_for', lambda self, alpha: (None, 0))
        sent = found.on_the_wire(network, J_to_beat)
    as_it_is = [dataclasses.replace(network, formats=formats, accuracy=known.get(formats[0], (0.9,))[0])
                for formats in problem.times.formats]
    hoped = {option.formats: problem.J_of(dataclasses.replace(option, accuracy=option.accuracy + (
        0.9 - option.accuracy) * recovery.WON_BACK)) for option in as_it_is[1:]}
    lowest = min(map(problem.J_of, as_it_is))
    assert len(asked) == (not recalibrated and min(hoped.values()) < min(lowest, J_to_beat))
    if asked:
        assert hoped[asked[0].formats] == min(hoped.values())
        lowest = min(lowest, problem.J_of(dataclasses.replace(asked[0], accuracy=max(
            asked[0].accuracy, known[asked[0].formats[0]][1]))))
    assert problem.J_of(sent) == lowest
