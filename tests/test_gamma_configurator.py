"""γ never changes what a block computes, only how: the table, validity, and the plans that run it."""
from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cases import blocks, branch_scales, randomise, seeds, surviving_arrays

from config import UserError
from gamma_configurator import BlockPlan, FoldedPath, build_plan
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from hyper_repvgg import HyperRepVGGBlock
from network.gammas import GAMMAS, fused_gamma, gamma_by_id, unfused_gamma
from network.shapes import BRANCHES, BlockShape


@st.composite
def block_cases(draw):
    """A block, its α, and images of any size (also 1 pixel, also not square): float64."""
    block = draw(blocks())
    alpha = draw(branch_scales(block.n_branches))
    size = (draw(st.integers(1, 3)), block.shape.in_channels, draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    x = torch.randn(*size, generator=torch.Generator().manual_seed(draw(seeds)), dtype=torch.float64)
    return block, alpha, x


def alive(alpha: torch.Tensor):
    """Surviving branches of α [2 or 3], as three flags."""
    return tuple(b < alpha.numel() and bool(alpha[b] != 0) for b in range(len(BRANCHES)))


def run(block, alpha, gamma, x) -> torch.Tensor:
    with torch.no_grad():
        return build_plan(block, alpha, gamma)(x)


@given(block_cases())
def test_every_valid_gamma_computes_the_formula_of_the_specification(case):
    block, alpha, x = case
    before_relu = oracles.block_before_relu(block, alpha.tolist(), x.numpy())
    expected, scale = np.maximum(before_relu, 0), np.abs(before_relu).max()
    found = {gamma: run(block, alpha, gamma, x).numpy() for gamma in oracles.valid_gammas(alive(alpha))}
    assert found
    for gamma, y in found.items():
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10 * scale, err_msg=f'γ {gamma}')


@given(block_cases())
def test_in_single_precision_every_valid_gamma_agrees_to_1e_4(case):
    block, alpha, x = case
    before_relu = oracles.block_before_relu(block, alpha.tolist(), x.numpy())
    single = block.float()
    for gamma in oracles.valid_gammas(alive(alpha)):
        y = run(single, alpha.float(), gamma, x.float())
        assert y.dtype == torch.float32
        np.testing.assert_allclose(y.numpy(), np.maximum(before_relu, 0), rtol=0,
                                   atol=1e-4 * max(1e-2, np.abs(before_relu).max()), err_msg=f'γ {gamma}')


@given(block_cases())
def test_the_form_that_trains_computes_the_same_formula(case):
    block, alpha, x = case
    with torch.no_grad():
        block.alpha.copy_(alpha)
    before_relu = oracles.block_before_relu(block, alpha.tolist(), x.numpy())
    np.testing.assert_allclose(block(x).detach().numpy(), np.maximum(before_relu, 0), rtol=0,
                               atol=1e-10 * np.abs(before_relu).max())


@given(block_cases())
def test_a_gamma_that_runs_other_branches_than_the_surviving_ones_is_refused(case):
    block, alpha, _ = case
    for gamma in set(range(14)) - set(oracles.valid_gammas(alive(alpha))):
        with pytest.raises(ValueError, match=f'γ {gamma} '):
            build_plan(block, alpha, gamma)


@pytest.mark.parametrize('gamma', [14, -1, 3.0, '3', None])
def test_a_gamma_that_does_not_exist_is_one_line_that_names_it(gamma):
    with pytest.raises(UserError, match=r'lut.json: there is no γ .*0 to 13') as caught:
        gamma_by_id(gamma, 'lut.json')
    assert repr(gamma) in str(caught.value) and '\n' not in str(caught.value)


def test_the_table_is_that_of_the_specification():
    assert [gamma.id for gamma in GAMMAS] == sorted(oracles.GAMMA_TABLE)
    for gamma in GAMMAS:
        name, paths = oracles.GAMMA_TABLE[gamma.id]
        assert gamma.name == name
        assert [{BRANCHES[b] for b in path} for path in gamma.paths] == [set(path) for path in paths]
        assert gamma.n_streams == len(paths)
        assert gamma.folded == (not name.startswith('PARA_'))  # 'fusion: none' is said of these only


@given(st.lists(st.booleans(), min_size=1, max_size=6).flatmap(surviving_arrays))
def test_the_mask_is_what_brute_force_says(surviving):
    expected = [[gamma in oracles.valid_gammas(row) for gamma in range(14)] for row in surviving]
    np.testing.assert_array_equal(build_gamma_mask(surviving), expected)


@given(st.lists(st.booleans(), min_size=1, max_size=6).flatmap(surviving_arrays), st.data())
def test_a_block_without_branches_is_refused(surviving, data):
    surviving[data.draw(st.integers(0, len(surviving) - 1))] = False
    with pytest.raises(ValueError, match='at least one branch'):
        build_gamma_mask(surviving)


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_block_can_run_a_gamma_if_some_pruning_makes_it_valid(has_identity):
    every = [(d, o, i) for d in (0, 1) for o in (0, 1) for i in (0, 1)]
    expected = [[any(gamma in oracles.valid_gammas(s) for s in every if has or not s[2]) for gamma in range(14)]
                for has in has_identity]
    np.testing.assert_array_equal(runnable_gammas(2 + np.array(has_identity)), expected)


@pytest.mark.parametrize('surviving', [(d, o, i) for d in (True, False) for o in (True, False)
                                       for i in (True, False) if d or o or i])
def test_fused_is_one_operator_and_unfused_is_one_a_branch(surviving):
    fused, unfused = fused_gamma(surviving), unfused_gamma(surviving)
    assert {fused, unfused} <= set(oracles.valid_gammas(surviving))
    assert len(oracles.GAMMA_TABLE[fused][1]) == 1
    assert len(oracles.GAMMA_TABLE[unfused][1]) == sum(surviving)


@pytest.mark.parametrize('gamma', range(14))
@pytest.mark.parametrize('groups', [1, 2])
def test_each_path_is_one_operator_no_larger_than_its_branches_need(gamma, groups):
    block = randomise(HyperRepVGGBlock(BlockShape(4, 4, 8, 1, groups, True, 0)), seed=gamma)
    paths = oracles.GAMMA_TABLE[gamma][1]
    alpha = torch.tensor([float(any(b in path for path in paths)) for b in oracles.BRANCH_NAMES])
    plan = build_plan(block, alpha, gamma)
    assert len(plan.paths) == len(paths)
    for built, path in zip(plan.paths, paths):
        size = 3 if 'dense' in path else 1
        if path == ('identity',):
            assert built.kernel is None if not isinstance(built, FoldedPath) else built.is_affine
        else:
            assert built.kernel.shape == (4, 4 // groups, size, size)


@given(block_cases(), st.data())
def test_a_plan_changes_neither_its_input_nor_the_block_and_does_not_follow_later_changes(case, data):
    block, alpha, x = case
    gamma = data.draw(st.sampled_from(oracles.valid_gammas(alive(alpha))))
    kept, before = x.clone(), {name: value.clone() for name, value in block.state_dict().items()}
    plan = build_plan(block, alpha, gamma)
    with torch.no_grad():
        first = plan(x)
        assert torch.equal(x, kept)
        assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())
        for branch in block.branches():
            for value in branch.state_dict().values():
                value.mul_(2)
        alpha.mul_(3)
        assert torch.equal(plan(x), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@settings(deadline=None)
@given(block_cases())
def test_on_a_gpu_paths_on_streams_of_their_own_compute_the_same(case):
    block, alpha, x = case
    before_relu = oracles.block_before_relu(block, alpha.tolist(), x.numpy())
    on_gpu = block.cuda()
    for gamma in oracles.valid_gammas(alive(alpha)):
        with torch.no_grad():
            plan: BlockPlan = build_plan(on_gpu, alpha.cuda(), gamma)
            ys = [plan(x.cuda()).cpu().numpy() for _ in range(3)]
        for y in ys:
            np.testing.assert_allclose(y, np.maximum(before_relu, 0), rtol=0,
                                       atol=1e-10 * np.abs(before_relu).max(), err_msg=f'γ {gamma}')
