"""The hardware table: what is measured, what the numbers mean, and what its file holds."""
from __future__ import annotations

import statistics

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cases import seeds, tier_costs, whole_table
from table_files import ROOFLINE, assert_same, content_of, settings_in

import lut_manager
from config import Settings
from costs import work
from costs.cost_model import TIERS, Link
from hyper_repvgg import create_hyper_repvgg, deploy
from network.outline import outline_for
from network.shapes import architecture, block_shapes
from tier import block_timing

# --- round trips ----------------------------------------------------------------------------------------

@given(seeds, st.sampled_from(['RepVGG-Micro', 'RepVGG-A0', 'RepVGG-D2se']), st.sampled_from([1, 32, 97, 224]),
       st.integers(1, 1000), st.floats(0.001, 1e5), st.floats(0, 1e4))
@settings(max_examples=25)
def test_a_table_is_read_back_as_it_was_written(tmp_path_factory, seed, model, size, num_classes, mbps, rtt_ms):
    chosen = settings_in(tmp_path_factory.mktemp('r'), MODEL_NAME=model, INPUT_SIZE=size, NUM_CLASSES=num_classes,
                         BANDWIDTH_MBPS=mbps, RTT_MS=rtt_ms)
    table = whole_table(chosen, seed)
    path = lut_manager.save(table, chosen)
    assert_same(lut_manager.read(path, chosen), table)


@given(seeds, st.sampled_from(TIERS))
@settings(max_examples=10)
def test_one_tiers_times_are_read_back_as_they_were_written(tmp_path_factory, seed, tier):
    chosen = settings_in(tmp_path_factory.mktemp('r'))
    costs = tier_costs(tier, chosen, seed, {'name': 'board', 'simulated': False})
    assert_same(lut_manager.load_tier(tier, chosen, lut_manager.save_tier(costs, chosen)), costs)


def test_a_measured_link_and_measured_encodings_survive_as_well(tmp_path):
    chosen = settings_in(tmp_path, WIRE_FORMATS=('uint8+zlib',))
    rng = np.random.default_rng(0)
    table = whole_table(chosen)
    n = table.n_blocks
    wire = lut_manager.WireCosts({'float32': table.block_bytes['float32'], 'uint8+zlib': rng.integers(1, 999, n)},
                                 {'uint8+zlib': {tier: rng.uniform(0, 1, (n, 2)) for tier in TIERS}})
    table = lut_manager.merge(tier_costs('server', chosen, 1, {}), tier_costs('client', chosen, 2, {}), chosen,
                              Link(33.3, 4.4, measured=True), wire)
    assert_same(lut_manager.read(lut_manager.save(table, chosen), chosen), table)


def test_the_file_has_every_field_of_the_specification(tmp_path):
    chosen = settings_in(tmp_path)
    table = whole_table(chosen)
    content = content_of(lut_manager.save(table, chosen))
    names = list(table.block_names)
    assert content['schema_version'] == 1
    metadata = content['metadata']
    assert (metadata['model'], metadata['num_classes'], metadata['input_shape'], metadata['batch_size']) == (
        'RepVGG-Micro', 10, [3, 32, 32], 1)
    assert {'name', 'simulated'} <= set(metadata['server']) and metadata['client']['profile'] == 'edge-cpu'
    assert {'created', 'software', 'seed', 'config'} <= set(metadata)
    assert content['block_names'] == names and set(content['has_identity']) == set(names)
    for key in ('T_server', 'T_client', 'FLOPs', 'Bytes', 'Intensity'):
        assert list(content[key]) == names and all(len(row) == 14 for row in content[key].values())
        for name, row in content[key].items():
            for gamma, value in enumerate(row):
                needs_identity = 'identity' in str(oracles.GAMMA_TABLE[gamma][1])
                assert (value is None) == (needs_identity and not content['has_identity'][name])
    for name in names:
        for flops, n_bytes, intensity in zip(*(content[key][name] for key in ('FLOPs', 'Bytes', 'Intensity'))):
            assert intensity is None or intensity == pytest.approx(flops / n_bytes)
    assert all(set(content[end]) == {'T_server', 'T_client', 'FLOPs', 'Bytes'} for end in ('stem', 'classifier'))
    assert content['N_stream'] == [len(paths) for _, paths in oracles.GAMMA_TABLE.values()]
    assert list(content['Comm_size']) == ['input', *names, 'logits']
    assert set(content['bandwidth']) == {'bandwidth_mbps', 'rtt_ms', 'measured'}
    for tier in TIERS:
        roofline = content['roofline'][tier]
        assert roofline['i_knee'] == pytest.approx(roofline['peak_gflops'] / roofline['bandwidth_gbs'])


# --- what the numbers mean ----------------------------------------------------------------------------------

@pytest.mark.parametrize('model, size', [('RepVGG-Micro', 32), ('RepVGG-Micro', 7), ('RepVGG-A0', 33)])
def test_sizes_are_those_of_what_the_network_sends(model, size):
    chosen = Settings(MODEL_NAME=model, INPUT_SIZE=size)
    table = whole_table(chosen)
    network = deploy(create_hyper_repvgg(None, model, chosen.NUM_CLASSES))
    with torch.inference_mode():
        sent = [network.head(torch.rand(1, 3, size, size), split) for split in range(table.n_blocks + 1)]
    sizes = [4 * feature_map.numel() for feature_map in sent]
    sizes[0] //= 4  # the image travels as uint8
    np.testing.assert_array_equal(table.cut_bytes('float32'), sizes)


@pytest.mark.parametrize('model, size', [('RepVGG-Micro', 32), ('RepVGG-B1g4', 32), ('RepVGG-D2se', 32)])
def test_flops_are_the_convolutions_that_pytorch_counts_and_little_more(model, size):
    counter = pytest.importorskip('torch.utils.flop_counter')
    from gamma_configurator import build_plan
    from hyper_repvgg import HyperRepVGGBlock
    shapes = block_shapes(architecture(model), size)[1]
    for shape in list(dict.fromkeys(shapes))[:4]:
        x = torch.empty(1, shape.in_channels, shape.in_size, shape.in_size)
        block = HyperRepVGGBlock(shape)
        n_out = shape.out_channels * shape.out_size ** 2
        for gamma, (_, paths) in oracles.GAMMA_TABLE.items():
            alive = {branch for path in paths for branch in path}
            if 'identity' in alive and not shape.has_identity:
                continue
            alpha = torch.tensor([float(branch in alive) for branch in oracles.BRANCH_NAMES])
            with counter.FlopCounterMode(display=False) as counted, torch.no_grad():
                build_plan(block, alpha, gamma)(x)
            rest = work.block_work(shape, gamma).flops - counted.get_total_flops()
            # biases or BatchNorms, sums of paths, SE's mean and product: a few operations an output
            assert 0 <= rest <= (4 * len(paths) + len(paths) - 1 + (2 if shape.se_channels else 0)) * n_out


@pytest.mark.parametrize('model', ['RepVGG-Micro', 'RepVGG-B1g4'])
def test_bytes_are_each_paths_input_weights_and_output(model):
    for shape in block_shapes(architecture(model), 32)[1]:
        x, y = shape.in_channels * shape.in_size ** 2, shape.out_channels * shape.out_size ** 2
        for gamma, (_, paths) in oracles.GAMMA_TABLE.items():
            expected = 0
            for path in paths:
                if path == ('identity',):
                    weights = 2 * shape.out_channels
                else:
                    taps = 9 if 'dense' in path else 1
                    weights = taps * shape.in_channels * shape.out_channels // shape.groups + shape.out_channels
                expected += 4 * (x + weights + y)
            assert work.block_work(shape, gamma).n_bytes == expected


# --- measuring ------------------------------------------------------------------------------------------------

def test_a_measured_table_has_a_number_exactly_where_a_block_can_run_the_gamma(tmp_path):
    chosen = settings_in(tmp_path)
    costs = lut_manager.measure_tier('server', chosen, ROOFLINE)
    assert costs.info['simulated'] is False and costs.info['name']
    has_identity = outline_for(chosen).has_identity
    assert costs.block_ms.shape == (len(has_identity), 14)
    for row, spread, has in zip(costs.block_ms, costs.block_iqr_ms, has_identity):
        for gamma, (_, paths) in oracles.GAMMA_TABLE.items():
            runs = has or 'identity' not in {branch for path in paths for branch in path}
            assert np.isfinite(row[gamma]) == np.isfinite(spread[gamma]) == runs
            assert not runs or (row[gamma] > 0 and spread[gamma] >= 0)
    assert costs.stem_ms > 0 and costs.classifier_ms > 0
    assert_same(lut_manager.load_tier('server', chosen, lut_manager.save_tier(costs, chosen)), costs)


@pytest.mark.parametrize('profile', ['edge-cpu', 'jetson-tx2'])
def test_a_simulated_client_says_so(profile, tmp_path):
    chosen = settings_in(tmp_path, DEVICE_PROFILE=profile)
    costs = lut_manager.simulate_client(chosen, ROOFLINE)
    assert costs.info['simulated'] is True and costs.info['profile'] == profile
    path = lut_manager.save_tier(costs, chosen)
    assert content_of(path)['metadata']['client']['simulated'] is True
    table = lut_manager.merge(tier_costs('server', chosen, 1, {'simulated': False}), costs, chosen)
    assert content_of(lut_manager.save(table, chosen))['metadata']['client']['simulated'] is True


@given(st.sampled_from(['RepVGG-Micro', 'RepVGG-A0']), st.integers(1, 3))
@settings(max_examples=4)
def test_every_round_of_visits_runs_every_block_under_every_gamma_that_it_can_run(model, rounds):
    network = create_hyper_repvgg(None, model, 10)
    counts = block_timing.branch_counts(network)
    visits = list(block_timing.latin_visits(counts, rounds))
    assert len(visits) == 14 * rounds
    for k, block in enumerate(network.blocks):
        can_run = {gamma for gamma, (_, paths) in oracles.GAMMA_TABLE.items()
                   if block.rbr_identity is not None or 'identity' not in str(paths)}
        for start in range(0, len(visits), 14):
            assert {visit[k] for visit in visits[start:start + 14]} == can_run
    assert visits == list(block_timing.latin_visits(counts, rounds))
    before = {tuple(visit[:2]) for visit in visits}
    assert len(before) > 7  # neighbours do not go through the table in step


def test_a_visit_runs_each_block_with_exactly_the_branches_of_its_gamma():
    model = create_hyper_repvgg(None, 'RepVGG-Micro', 10)
    for gamma in block_timing.latin_visits(block_timing.branch_counts(model), 1):
        network = block_timing.assign(model, gamma)
        for plan, g, row in zip(network.blocks, gamma, model.alpha_array()):
            paths = oracles.GAMMA_TABLE[g][1]
            assert len(plan.paths) == len(paths)
            kept = {branch for branch, value in zip(oracles.BRANCH_NAMES, row) if value == 1}
            assert kept == {branch for path in paths for branch in path}


@given(st.lists(st.lists(st.floats(0.001, 1e3), min_size=5, max_size=5), min_size=1, max_size=9))
def test_an_entry_is_the_median_of_its_visits(rows):
    samples = block_timing.BlockSamples(3)
    for row in rows:  # stem, three blocks, classifier
        samples.add([0, 1, 13], np.array([row]))
    timing = samples.timing()
    for k, gamma in enumerate([0, 1, 13]):
        assert timing.block_ms[k, gamma] == pytest.approx(statistics.median(row[k + 1] for row in rows))
    assert timing.stem_ms == pytest.approx(statistics.median(row[0] for row in rows))
    assert timing.classifier_ms == pytest.approx(statistics.median(row[-1] for row in rows))
    assert timing.n_samples == len(rows)
    assert np.isfinite(timing.block_ms).sum() == 3


def test_intervals_between_marks_add_up_to_the_whole_pass():
    network = block_timing.assign(create_hyper_repvgg(None, 'RepVGG-Micro', 10), [4] * 11)
    marked = block_timing.MarkedNetwork(network, torch.device('cpu'))
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(marked(x), network(x))  # marking changes nothing
    intervals = marked.intervals_ms()
    assert intervals.shape == (1, 13) and (intervals > 0).all()
    assert intervals.sum() == pytest.approx(1000 * (marked.passes[0][-1] - marked.passes[0][0]))


# --- disturbed cells ----------------------------------------------------------------------------------------------

class MadeMachine:
    """Answers at once with times of its own: 1 ms a block, unless `disturbed(call, visit)` says otherwise."""

    def __init__(self, n_blocks: int, disturb) -> None:
        self.n_blocks, self.disturb, self.asked = n_blocks, disturb, []

    def visits(self, gammas, progress):
        ms = np.ones((len(gammas), 3, self.n_blocks + 2))
        for visit, gamma in enumerate(gammas):
            progress(visit)
            for k, g in enumerate(gamma):
                ms[visit, :, k + 1] = 8.6 + 0.1 * k + 0.01 * g
                self.disturb(len(self.asked), k, g, ms[visit, :, k + 1])
        self.asked.append([tuple(gamma) for gamma in gammas])
        return ms

    def parts(self, parts):
        return np.ones((len(parts), 3))


def measured_with(disturb, model: str = 'RepVGG-Micro', rounds: int = 2):
    chosen = Settings(MODEL_NAME=model)
    counts = outline_for(chosen).n_branches
    machine = MadeMachine(len(counts), disturb)
    return machine, block_timing.time_network(machine, counts, lut_manager.same_work(chosen), rounds)


@pytest.mark.parametrize('cell', [(1, 13), (0, 0), (3, 4), (9, 1)])
def test_a_disturbed_cell_is_found_by_others_of_the_same_work_and_timed_again(cell):
    def disturb(call, k, g, ms):
        if (k, g) == cell and call < 2:  # in both rounds
            ms[:] = 32.0

    machine, timing = measured_with(disturb)
    assert timing.n_timed_again == 1 and len(machine.asked) == 3
    assert timing.block_ms[cell] == pytest.approx(8.6 + 0.1 * cell[0] + 0.01 * cell[1])
    assert all(gamma[cell[0]] == cell[1] for gamma in machine.asked[2])  # nothing else needs it


def test_a_disturbance_that_comes_and_goes_is_found_in_the_cells_own_timings():
    alone = np.argwhere([[np.sum(row == lut_manager.same_work(Settings())) == 1 and row >= 0 for row in rows]
                         for rows in lut_manager.same_work(Settings())])
    cell = tuple(alone[0])  # nothing to compare it with

    def disturb(call, k, g, ms):
        if (k, g) == cell and call < 2:
            ms[1:] *= 1 + 3 * (call == 1)

    machine, timing = measured_with(disturb)
    assert timing.n_timed_again == 1 and timing.block_ms[cell] == pytest.approx(8.6 + 0.1 * cell[0] + 0.01 * cell[1])


def test_what_is_slow_again_is_slow_and_nothing_is_timed_for_ever():
    def disturb(call, k, g, ms):
        if (k, g) == (1, 13):
            ms[:] = 32.0

    machine, timing = measured_with(disturb)
    assert len(machine.asked) == 3 and timing.block_ms[1, 13] == 32.0


def test_an_undisturbed_table_is_timed_once():
    machine, timing = measured_with(lambda *arguments: None)
    assert len(machine.asked) == 2 and timing.n_timed_again == 0 and len(timing.parts) == 12


def test_cells_of_the_same_work_are_those_that_run_the_same_kernels_on_the_same_shapes():
    numbers = lut_manager.same_work(Settings(MODEL_NAME='RepVGG-A0', INPUT_SIZE=224))
    assert len({numbers[1, g] for g in (0, 4, 6, 13)}) == 1 and numbers[1, 1] == numbers[1, 8] != numbers[1, 2]
    shapes = block_shapes(architecture('RepVGG-A0'), 224)[1]
    same = [k for k, shape in enumerate(shapes) if shape == shapes[8]]
    assert len(same) > 3 and len({numbers[k, 9] for k in same}) == 1
    assert (numbers[0, [2, 9, 13]] == -1).all()


def test_parts_are_timed_in_nine_rounds_spread_over_all_of_them_or_in_each():
    assert [sum(block_timing.times_parts(i, rounds) for i in range(rounds)) for rounds in (1, 5, 9, 21, 40)] == [
        1, 5, 9, 9, 9]
    assert block_timing.times_parts(0, 21) and any(block_timing.times_parts(i, 21) for i in (18, 19, 20))
