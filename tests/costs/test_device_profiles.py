"""Device profiles: what a user's file may say, and what the kernel model claims about latencies."""
from __future__ import annotations

import dataclasses
import json
import math
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import calibrate_device_profile as calibration
from config import Settings, UserError
from costs import device_profiles
from costs.device_profiles import (
    KernelProfile,
    MeasuredProfile,
    kernel_ms,
    kernels_of,
    load_profile,
    pipeline_ms,
    predict_block_ms,
    predict_classifier_ms,
    predict_stem_ms,
)
from network.gammas import FUSED, GAMMAS, UNFUSED
from network.shapes import ARCHITECTURES, DENSE, IDENTITY, ONE, BlockShape, architecture, block_names, block_shapes
from pipeline import writing

BOARD = {'schema_version': 1, 'kind': 'kernel-model', 'name': 'my board',
         'peak_gflops': 200, 'bandwidth_gbs': 12.5, 'launch_ms': 0.05, 'sync_ms': 0.1}
SLOWER_HERE = {'schema_version': 1, 'kind': 'measured', 'name': 'my phone', 'slowdown': 2.5, 'threads': 2}
TX2 = load_profile('jetson-tx2')


@st.composite
def shapes(draw):
    """Blocks of any width, resolution, stride and group count, with and without identity and SE."""
    groups = draw(st.sampled_from([1, 2, 4]))
    widths = st.integers(1, 160).map(lambda n: 4 * n)
    width, stride = draw(widths), draw(st.sampled_from([1, 2]))
    in_width = draw(st.one_of(st.just(width), widths))
    squeezed = draw(st.sampled_from([0, max(1, width // 16)]))
    return BlockShape(in_width, width, draw(st.integers(1, 256)), stride, groups,
                      in_width == width and stride == 1, squeezed)


@st.composite
def kernel_profiles(draw):
    """Devices of every speed."""
    rate, pixels, ms = st.floats(0.01, 4), st.floats(0, 2000), st.floats(0, 2)
    return KernelProfile('drawn', draw(st.floats(1, 1e5)), draw(st.floats(0.1, 5e3)), draw(ms), draw(ms), draw(rate),
                         draw(rate), draw(pixels), draw(rate), draw(pixels), draw(rate),
                         draw(st.sampled_from(device_profiles.IDENTITY_ALONE)))


# --- the kernel model -------------------------------------------------------------------------------

@given(shapes(), kernel_profiles())
def test_a_latency_is_missing_exactly_where_gamma_needs_an_identity_that_the_block_has_not(shape, profile):
    latency = predict_block_ms(profile, shape)
    assert latency.shape == (14,) and latency.dtype == np.float64
    for gamma in GAMMAS:
        if IDENTITY in gamma.branches and not shape.has_identity:
            assert math.isnan(latency[gamma.id])
        else:
            assert math.isfinite(latency[gamma.id]) and latency[gamma.id] > 0


@given(shapes(), kernel_profiles())
def test_for_every_set_of_branches_fusing_all_is_never_slower_than_fusing_some_or_none(shape, profile):
    latency = predict_block_ms(profile, shape)
    for gamma in GAMMAS:
        if math.isfinite(latency[gamma.id]):
            assert latency[FUSED[gamma.branches]] <= latency[gamma.id] * (1 + 1e-12)
            # fusing some: never more work on the device, but a slow kernel may be launched later than without fusing
            late = profile.launch_ms * (len(kernels_of(shape, gamma.id, profile.identity_alone)) - 1)
            assert latency[gamma.id] <= latency[UNFUSED[gamma.branches]] * (1 + 1e-12) + late


def test_fusing_some_branches_can_be_slower_than_fusing_none_where_that_delays_a_slow_kernel():
    profile = KernelProfile('slow 1x1', peak_gflops=1, bandwidth_gbs=1, sync_ms=0, launch_ms=1, memory_rate=1,
                            winograd_rate=1, winograd_half_pixels=0, direct_rate=1, direct_half_pixels=0,
                            pointwise_rate=0.03125)
    latency = predict_block_ms(profile, BlockShape(96, 96, 3, 1, 1, True, 0))
    part_1i_3 = next(gamma for gamma in GAMMAS if gamma.paths == ((ONE, IDENTITY), (DENSE,)))
    assert latency[UNFUSED[part_1i_3.branches]] < latency[part_1i_3.id]


@given(shapes(), kernel_profiles(), st.integers(1, 4), st.integers(0, 64))
def test_more_channels_or_pixels_or_fewer_groups_are_never_faster(shape, profile, times, pixels):
    wider_out = shape._replace(in_channels=shape.in_channels * (times if shape.has_identity else 1),
                               out_channels=shape.out_channels * times)
    wider_in = shape._replace(in_channels=shape.in_channels * times)._replace(has_identity=False)
    for larger, base in ((wider_out, shape), (wider_in, shape._replace(has_identity=False)),
                         (shape._replace(in_size=shape.in_size + pixels), shape), (shape._replace(groups=1), shape)):
        small, large = predict_block_ms(profile, base), predict_block_ms(profile, larger)
        runs = np.isfinite(small)
        assert (small[runs] <= large[runs] * (1 + 1e-12)).all()


@given(shapes(), kernel_profiles(), st.sampled_from([g.id for g in GAMMAS if IDENTITY not in g.branches]))
def test_a_block_takes_the_longest_chain_of_launches_followed_by_device_work(shape, profile, gamma):
    """An oracle by another route: the wait ends at some kernel i, launched after i others, and nothing stalls later."""
    kernels = kernels_of(shape, gamma)
    work = [kernel_ms(profile, kernel) for kernel in kernels]
    chains = [(i + 1) * profile.launch_ms + sum(work[i:]) for i in range(len(kernels))]
    assert pipeline_ms(profile, kernels) == pytest.approx(max(chains) + profile.sync_ms, rel=1e-9)


@given(shapes())
def test_a_path_is_one_convolution_or_affine_and_its_bias_or_batchnorm(shape):
    n_se = 8 if shape.se_channels else 0
    for gamma in GAMMAS:
        kinds = [kernel.kind for kernel in kernels_of(shape, gamma.id)]
        convolutions = len([path for path in gamma.paths if path != (IDENTITY,)])
        # one BatchNorm, bias or affine a path; one sum a further path; SE; ReLU
        assert len(kinds) == convolutions + 2 * len(gamma.paths) - 1 + n_se + 1
        dense = 'winograd' if shape.stride == 1 else 'direct'
        assert kinds.count(dense) == (DENSE in gamma.branches)
        assert kinds.count('pointwise') == convolutions - kinds.count(dense) + (2 if n_se else 0)


@pytest.mark.parametrize('model', sorted(ARCHITECTURES))
@pytest.mark.parametrize('size', [32, 224])
def test_the_tx2_profile_covers_every_model(model, size):
    arch = architecture(model)
    stem, blocks = block_shapes(arch, size)
    fused = [predict_block_ms(TX2, shape)[13 if shape.has_identity else 4] for shape in blocks]
    assert 0.5 < min(fused) and max(fused) < 60
    assert 0.5 < predict_stem_ms(TX2, stem) < 60
    assert 0.3 < predict_classifier_ms(TX2, arch.channels[4], 1000, blocks[-1].out_size) < 5


def test_on_the_tx2_only_a_block_without_its_3x3_saves_time():
    _, blocks = block_shapes(architecture('RepVGG-B3'), 224)
    for shape in blocks[:-1]:
        latency = predict_block_ms(TX2, shape)
        assert latency[FUSED[frozenset({DENSE, ONE})]] == latency[FUSED[frozenset({DENSE})]]
        assert 1.9 * latency[FUSED[frozenset({ONE})]] < latency[FUSED[frozenset({DENSE})]]


def test_on_the_tx2_nothing_is_won_by_pruning_a_network_as_small_as_the_built_in_one():
    _, blocks = block_shapes(architecture('RepVGG-Micro'), 32)
    for shape in blocks:
        latency = predict_block_ms(TX2, shape)
        assert latency[0] < 1.15 * latency[1] and latency[0] < 1.2


def test_the_tx2_profile_predicts_round_values_of_b3():
    shapes_of = dict(zip(block_names(architecture('RepVGG-B3')), block_shapes(architecture('RepVGG-B3'), 224)[1]))
    for block, gamma, about_ms in (('stage1.1', 0, 4.4), ('stage1.1', 9, 6.2), ('stage2.1', 1, 1.6),
                                   ('stage3.0', 4, 7.2), ('stage3.1', 2, 1.6), ('stage3.1', 13, 6.6)):
        assert predict_block_ms(TX2, shapes_of[block])[gamma] == pytest.approx(about_ms, rel=0.15)


# --- files ------------------------------------------------------------------------------------------

def written(folder, content):
    path = os.path.join(str(folder), 'board.json')
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(content if isinstance(content, str) else json.dumps(content))
    return path


def test_edge_cpu_is_this_machine_slowed_down():
    profile = load_profile('edge-cpu')
    assert isinstance(profile, MeasuredProfile) and profile.kind == 'measured' and profile.threads == 1
    assert profile.slowdown == Settings().EDGE_CPU_SLOWDOWN
    assert device_profiles.profile_path('edge-cpu') == ''


def test_a_kernel_model_of_a_few_lines_works_and_takes_the_rest_from_the_tx2(tmp_path):
    profile = load_profile(written(tmp_path, BOARD))
    assert isinstance(profile, KernelProfile) and profile.kind == 'kernel-model'
    assert (profile.name, profile.peak_gflops, profile.bandwidth_gbs) == ('my board', 200, 12.5)
    assert profile.winograd_rate == TX2.winograd_rate and profile.identity_alone == 'affine'
    shape = BlockShape(64, 64, 56, 1, 1, True, 0)
    assert np.isfinite(predict_block_ms(profile, shape)).all()
    assert predict_block_ms(profile, shape)[2] < predict_block_ms(profile, shape)[1]  # an affine is less than a 1x1


def test_a_measured_profile_of_a_few_lines_works(tmp_path):
    profile = load_profile(written(tmp_path, SLOWER_HERE))
    assert (profile.kind, profile.name, profile.slowdown, profile.threads) == ('measured', 'my phone', 2.5, 2)
    assert load_profile(written(tmp_path, {k: v for k, v in SLOWER_HERE.items() if k != 'threads'})).threads == 1


def test_the_examples_of_the_documentation_work(tmp_path):
    with open(os.path.join(calibration.ROOT, 'docs', 'device_profiles.md'), encoding='utf-8') as stream:
        examples = re.findall(r'```json\n(.*?)```', stream.read(), re.S)
    assert [load_profile(written(tmp_path, example)).kind for example in examples] == ['measured', 'kernel-model']


@given(kernel_profiles())
def test_a_written_profile_reads_back_the_same(tmp_path_factory, profile):
    path = os.path.join(str(tmp_path_factory.mktemp('profile')), 'p.json')
    profile = dataclasses.replace(profile, source='a datasheet')
    writing.write(path, device_profiles.profile_fields(profile), {})
    assert load_profile(path) == profile


@pytest.mark.parametrize('field', [key for key in BOARD])
def test_a_missing_field_is_named(tmp_path, field):
    with pytest.raises(UserError, match=f"board.json: field '{field}' is missing"):
        load_profile(written(tmp_path, {k: v for k, v in BOARD.items() if k != field}))


@pytest.mark.parametrize('base, field, value', [
    *((BOARD, field, value) for field in ('peak_gflops', 'bandwidth_gbs', 'launch_ms', 'sync_ms', 'memory_rate',
                                          'winograd_half_pixels')
      for value in (-1, '3', None, True, [1], 10 ** 400)),
    *((SLOWER_HERE, 'slowdown', value) for value in (0, -2, 'fast')),
    *((SLOWER_HERE, 'threads', value) for value in (0, 1.5, -1, 1e9, '2')),
    (BOARD, 'peak_gflops', 0), (BOARD, 'pointwise_rate', 80), (BOARD, 'direct_rate', 0),
    (BOARD, 'identity_alone', 'conv3x3'), (BOARD, 'kind', 'kernels'), (BOARD, 'kind', 3), (BOARD, 'name', ' '),
    (BOARD, 'name', 'jetson-tx2'), (BOARD, 'schema_version', 2), (BOARD, 'schema_version', '1'),
    (BOARD, 'lanch_ms', 0.1), (BOARD, 'slowdown', 2), (SLOWER_HERE, 'peak_gflops', 2), (BOARD, 'source', 7),
])
def test_a_bad_value_is_one_line_that_names_the_field(tmp_path, base, field, value):
    with pytest.raises(UserError) as caught:
        load_profile(written(tmp_path, {**base, field: value}))
    assert f"field '{field}'" in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_is_refused(tmp_path, value):
    with pytest.raises(UserError, match='board.json: is not valid JSON .*is not a number'):
        load_profile(written(tmp_path, {**BOARD, 'peak_gflops': value}))


def test_a_misspelt_field_gets_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="'lanch_ms' is unknown: did you mean 'launch_ms'"):
        load_profile(written(tmp_path, {**BOARD, 'lanch_ms': 0.1}))


@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{"kind": }', '[' * 100000, '\udcff',
                                  '"' + 'x' * (2 << 20) + '"'], ids=range(8))
def test_a_damaged_file_is_refused_by_name(tmp_path, text):
    path = os.path.join(str(tmp_path), 'board.json')
    with open(path, 'wb') as stream:
        stream.write(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(UserError, match='board.json'):
        load_profile(path)


@pytest.mark.parametrize('name', ['jetson-tx3', '', '../jetson-tx2', 'nowhere.json', os.path.dirname(__file__)])
def test_an_unknown_profile_lists_the_choices(name):
    with pytest.raises(UserError, match='choose edge-cpu, jetson-tx2 or the path of a JSON file'):
        load_profile(name)


# --- calibration ------------------------------------------------------------------------------------

def test_the_fit_finds_a_device_from_its_latencies():
    device = dataclasses.replace(calibration.START, sync_ms=0.15, launch_ms=0.12, memory_rate=0.7,
                                 winograd_rate=1.1, winograd_half_pixels=60., direct_rate=0.4,
                                 direct_half_pixels=200., pointwise_rate=0.25)
    arch = architecture('RepVGG-B3')
    figures = [calibration.Figure(name, k, shape, gamma, float(latency))
               for k, (name, shape) in enumerate(zip(block_names(arch), block_shapes(arch, 224)[1]))
               if name.endswith(('.0', '.1'))
               for gamma, latency in enumerate(predict_block_ms(device, shape)) if math.isfinite(latency)]
    found = calibration.fit([figure for figure in figures if not figure.held_out])
    assert np.abs(calibration.relative_errors(found, figures)).max() < 0.01


def test_missing_figures_are_one_line(tmp_path):
    with pytest.raises(UserError, match='no such file; give the published TX2 latencies with --figures'):
        calibration.main(['--check', '--figures', os.path.join(str(tmp_path), 'none.json')])
    with pytest.raises(UserError, match='is not the file of published TX2 latencies'):
        calibration.main(['--check', '--figures', written(tmp_path, BOARD)])


@pytest.mark.skipif(not os.path.isfile(calibration.FIGURES),
                    reason='the published TX2 latencies are not beside the repository')
def test_the_committed_tx2_profile_predicts_held_out_figures():
    held_out = [figure for figure in calibration.read_figures(calibration.FIGURES) if figure.held_out]
    errors = np.abs(calibration.relative_errors(TX2, held_out))
    assert len(held_out) > 100
    assert np.median(errors) <= 0.10 and errors.max() <= 0.30


def test_a_byte_order_mark_in_front_changes_nothing(tmp_path):
    path = tmp_path / 'board.json'
    for encoding in ('utf-8', 'utf-8-sig'):
        path.write_text(json.dumps(BOARD), encoding=encoding)
        assert load_profile(str(path)).peak_gflops == 200
