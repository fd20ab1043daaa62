"""The engine onnxruntime-int8: what it computes is what PyTorch computes with the same whole numbers."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from client_process import SETTINGS, N, batch, random_model, settings_of
from fleets import table_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_results import random_configuration

from config import INT8, UserError
from gamma_mask_builder import runnable_gammas
from hyper_repvgg import deploy
from network.gammas import GAMMAS, fused_gamma
from network.inputs import normalise
from remote.client import folded_specs
from remote.streaming import run_stream
from search.int8_loss import as_it_runs
from search.wire_loss import through_wire
from split_trainer import predict
from tier.block_timing import NetworkTiming, pooled
from tier.part import head_units, part_of, tail_units
from tier.rounding import grid_between, grids_of, int_kernel, peaks_of

EVERYWHERE = dataclasses.replace(SETTINGS, CLIENT_ENGINE=INT8, SERVER_ENGINE=INT8)


def int8_case(seed, split):
    """A random network with α in it, its configuration with the peaks that it was given, and images."""
    model, (images, _) = random_model(seed), batch(seed, 24)
    chosen = random_configuration(table_of(SETTINGS), np.random.default_rng(seed), split, 'float32')
    model.set_alpha_array(chosen.alpha)
    with torch.no_grad():
        peaks = peaks_of(deploy(model), normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD))
    return model, dataclasses.replace(chosen, peaks=tuple(peaks)), images


def rounded_logits(model, chosen, images, settings=EVERYWHERE):
    """By PyTorch, with the tiers of these settings in int8."""
    network = through_wire(as_it_runs(deploy(model), chosen, settings), chosen.split, chosen.wire)
    with torch.no_grad():
        return network(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD))


@given(st.floats(-50, 0), st.floats(0, 1e6), st.integers(0, 10 ** 6))
def test_a_grid_holds_zero_and_is_near_everything_between_its_ends(low, high, seed):
    grid = grid_between(low, high)
    x = torch.from_numpy(np.random.default_rng(seed).uniform(low, high, 200))
    assert 0 <= grid.zero_point <= 255 and grid.nearest(torch.zeros(1)).item() == 0
    assert (grid.nearest(x) - x).abs().max() <= 0.501 * grid.scale
    torch.testing.assert_close(grid.nearest(grid.nearest(x)), grid.nearest(x))


def test_kernels_are_whole_numbers_within_half_a_step_and_biases_fit_into_32_bits():
    for unit in deploy(random_model(4)).blocks:
        path, x = unit.paths[0], grid_between(0, 3.0)
        if path.is_affine:
            continue
        path.kernel[0], path.bias[0] = 0, 1e3  # a channel that is nearly all bias
        found = int_kernel(path, x)
        assert found.kernel.dtype == torch.int8 and found.bias.dtype == torch.int32
        assert ((found.kernel * found.scale[:, None, None, None] - path.kernel).abs() <=
                0.501 * found.scale[:, None, None, None]).all()
        torch.testing.assert_close(found.bias * found.scale * x.scale, path.bias, rtol=1e-3, atol=1e-3)


@hypothesis_settings(max_examples=6)
@given(st.integers(0, 10 ** 6), st.integers(0, N))
def test_onnxruntime_computes_what_pytorch_computes_with_the_same_numbers(seed, split):
    """Head and tail one after the other; a value on the edge between two steps may be rounded to either."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    model, chosen, images = int8_case(seed, split)
    x = images
    for units in (head_units(split, N), tail_units(split, N)):
        spec = folded_specs(chosen.alpha, chosen.gamma, units, SETTINGS, INT8, peaks=chosen.peaks)
        with torch.no_grad():
            x = part_of(model, spec, torch.device('cpu'))(x)
    wanted, exact = rounded_logits(model, chosen, images), rounded_logits(model, chosen, images, SETTINGS)
    error, loss = ((found - other).abs().mean() for found, other in ((x, wanted), (wanted, exact)))
    assert error < 0.2 * loss, 'it differs from int8 in PyTorch as float does'
    assert (x.argmax(dim=1) == wanted.argmax(dim=1)).float().mean() > 0.9


def test_every_gamma_of_the_same_branches_has_one_time_and_the_fused_one_is_chosen():
    rng = np.random.default_rng(0)
    runnable = runnable_gammas(np.array([3, 2, 3]))
    block_ms = np.where(runnable, rng.uniform(1, 2, (3, 14)), np.nan)
    found = pooled(NetworkTiming(block_ms, 0 * block_ms, 1.0, 1.0, 5)).block_ms
    assert (np.isfinite(found) == runnable).all()
    for k, row in enumerate(found):
        for gamma in GAMMAS:
            same = [other.id for other in GAMMAS if other.branches == gamma.branches]
            if runnable[k, gamma.id]:
                np.testing.assert_allclose(row[gamma.id], np.median(block_ms[k, same]), rtol=1e-6)
                assert min(same, key=lambda g: row[g]) == fused_gamma(tuple(b in gamma.branches for b in range(3)))


@pytest.mark.parametrize('tier', ['client', 'server'])
def test_only_the_tiers_whose_engine_it_is_are_rounded(tier):
    model, chosen, images = int8_case(3, 5)
    settings = dataclasses.replace(SETTINGS, **{f'{tier.upper()}_ENGINE': INT8})
    inputs = normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    network = as_it_runs(deploy(model), chosen, settings)
    grids = grids_of(chosen.peaks, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    with torch.no_grad():
        z, exact = network.head(inputs, 5), deploy(model).head(inputs, 5)
        on_grid = torch.allclose(z, grids[6].nearest(z), atol=1e-5)
        assert on_grid == (tier == 'client') and torch.equal(z, exact) == (tier == 'server')
        assert torch.equal(network.tail(exact, 5), deploy(model).tail(exact, 5)) == (tier == 'client')


@pytest.mark.parametrize('head_tier', ['client', 'server'])
def test_a_stream_through_a_device_in_int8_gives_the_classes_of_the_rounded_network(served, head_tier):
    pytest.importorskip('onnxruntime')
    model, chosen, images = int8_case(7, 4)
    settings = dataclasses.replace(settings_of(head_tier), CLIENT_ENGINE=INT8, SERVER_ENGINE=INT8)
    wanted = rounded_logits(model, chosen, images, settings).argmax(dim=1)
    _, predictions = run_stream(served[0], model, chosen, images, 24, settings)
    found = predict(model, chosen.gamma, 4, served[0], images, settings, peaks=chosen.peaks)
    assert found.tolist() == predictions and (found == wanted).float().mean() > 0.9
    with pytest.raises(UserError, match='needs the peaks'):
        predict(model, chosen.gamma, 4, served[0], images, settings)
