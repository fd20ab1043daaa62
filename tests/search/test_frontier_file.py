"""The frontiers in step 3's file, what is picked from them without a new search, and what the wire format costs."""
from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from typing import Any, Dict, List

import numpy as np
import oracles
import pytest
import torch
from test_result_file import DOMAIN, Workspace, made_workspace, model_with, run_step3, without_times

import config
from config import UserError
from costs import cost_model
from costs.cost_model import Configuration
from hyper_repvgg import deploy
from network.alpha import surviving_branches
from pipeline import kinds, provenance
from search import domain_inputs, domain_search, frontier, result_file, state_file
from search.noninferiority import p_value
from search.wire_loss import WireLoss, through_wire
from throughput_optimizer import solve_exact
from wire import codec

LOSSLESS, LOSSY = 'float32', 'float32,uint8,float16,uint4@0.5'


@pytest.fixture(scope='module', params=[LOSSLESS, LOSSY])
def workspace(request, tmp_path_factory) -> Workspace:
    """A finished search, without and with wire formats that lose something."""
    before = os.getcwd()
    os.chdir(config.ROOT)
    yield made_workspace(str(tmp_path_factory.mktemp('frontier')), f'WIRE_FORMATS={request.param}', 'RECOVERY_STEPS=8')
    os.chdir(before)


def alpha_of(point: Dict[str, Any]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row.values()] for row in point['alpha'].values()])


def all_points(content: Dict[str, Any]) -> List[Dict[str, Any]]:
    return [point for points in content['frontier'].values() for point in points]


def right_through_wire(workspace: Workspace, point: Dict[str, Any], split_name: str) -> np.ndarray:
    """Run the configuration with its γ as two parts, the feature map quantised between them by numpy, channels that are
    not sent filled: which images it classifies correctly."""
    network = deploy(model_with(workspace, alpha_of(point)), list(point['gamma'].values()))
    images = domain_inputs.load_domain(workspace.settings(), DOMAIN, split_name)
    with torch.no_grad():
        z = network.head((images.images.float() / 255 - 0.5) / 0.5, point['lambda']).numpy()
        if point['wire'] == 'float16':
            z = z.astype(np.float16).astype(np.float32)
        elif point['wire'] != 'float32':
            steps = np.float32({'uint8': 255, 'uint4@0.5': 15}[point['wire']])
            low, high = z.min(axis=(2, 3), keepdims=True), z.max(axis=(2, 3), keepdims=True)
            step = np.maximum((high - low) / steps, np.finfo(np.float32).tiny)
            z = np.round((z - low) / step) * step + low
        assert (point['channels'] is not None) == ('@' in point['wire'])
        for channel in range(z.shape[1]) if point['channels'] else ():
            if channel not in point['channels']['sent']:
                z[:, channel] = point['channels']['fill'][channel]
        logits = network.tail(torch.from_numpy(z), point['lambda'])
    return (logits.argmax(dim=1) == images.labels).numpy()


def accuracy_through_wire(workspace: Workspace, point: Dict[str, Any], split_name: str = 'val') -> float:
    """The share of images that it classifies correctly."""
    return float(right_through_wire(workspace, point, split_name).mean())


def p_value_of(workspace: Workspace, point: Dict[str, Any]) -> float:
    """Of a loss of ε or more against the network behind A_ref, on calibration images."""
    settings = workspace.settings()
    images = domain_inputs.load_domain(settings, DOMAIN, 'calibration')
    model = domain_inputs.base_model(settings)
    alpha, _ = domain_inputs.reference_alpha(model, domain_inputs.load_domain(settings, DOMAIN, 'val'), DOMAIN,
                                             settings)
    with torch.no_grad():
        reference = model_with(workspace, alpha)((images.images.float() / 255 - 0.5) / 0.5).argmax(1) == images.labels
    reference, right = reference.numpy(), right_through_wire(workspace, point, 'calibration')
    return p_value((reference & ~right).sum(), (right & ~reference).sum(), len(images), settings.EPSILON)


# --- what the file says ---------------------------------------------------------------------------------

def test_no_point_of_a_frontier_beats_another_and_the_fastest_comes_first(workspace):
    assert len(workspace.content['frontier']['T_eff']) > 1
    for name, objective in frontier.OBJECTIVES.items():
        points = workspace.content['frontier'][name]
        assert points
        for faster, slower in zip(points, points[1:]):
            assert faster[objective] < slower[objective] and faster['accuracy'] < slower['accuracy']


def test_the_times_of_every_point_are_those_of_its_configuration(workspace):
    settings = workspace.settings()
    for point in all_points(workspace.content):
        configuration = Configuration(alpha_of(point), tuple(point['gamma'].values()), point['lambda'], point['wire'])
        found = cost_model.times(workspace.table, configuration, cost_model.scenario_of(settings, workspace.table))
        assert found.as_dict() == {name: point[name] for name in found.as_dict()}
        assert point['n_pruned'] == int((configuration.alpha == 0).sum())
        for gamma, row in zip(configuration.gamma, configuration.alpha):
            assert gamma in oracles.valid_gammas(np.nan_to_num(row) != 0)


def test_what_is_confirmed_is_within_the_constraint_and_no_network_of_a_frontier_has_a_lower_J(workspace):
    content, settings = workspace.content, workspace.settings()
    least = content['accuracy']['val_reference'] - settings.EPSILON

    def J(point: Dict[str, Any]) -> float:
        return point['T_eff_ms'] / content['baselines']['step2']['T_eff_ms'] - settings.MU * point['accuracy']

    tests = content['frontier']['tests']
    assert all(a['n_pruned'] < b['n_pruned'] and J(a) > J(b) for a, b in zip(tests, tests[1:]))
    assert all(point['accuracy'] >= least for point in tests)
    for point in content['frontier']['T_eff']:
        if point['accuracy'] >= least:
            assert J(point) >= min(J(test) for test in tests if test['n_pruned'] <= point['n_pruned'])


def test_gamma_lambda_and_wire_of_every_point_are_optimal_for_its_objective(workspace):
    for name, objective in (*frontier.OBJECTIVES.items(), (frontier.TESTS, 'T_eff_ms')):
        for point in workspace.content['frontier'][name]:
            best = solve_exact(workspace.table, surviving_branches(alpha_of(point)),
                               workspace.settings(f"WIRE_FORMATS={point['wire']}"), None, objective)
            assert point[objective] == pytest.approx(getattr(best.times, objective), rel=1e-12)


def test_the_accuracy_of_every_point_is_that_of_its_network_behind_its_wire(workspace):
    n_images = len(domain_inputs.load_domain(workspace.settings(), DOMAIN, 'val'))
    wires = set()
    for point in all_points(workspace.content):
        found = accuracy_through_wire(workspace, point)
        assert found == pytest.approx(point['accuracy'], abs=1.5 / n_images)  # float32 ties may fall either way
        wires.add(point['wire'])
    if workspace.settings().WIRE_FORMATS != ('float32',):
        assert len(wires) > 1


# --- picking again ----------------------------------------------------------------------------------------

class Searched(Exception):
    """A search was started."""


@pytest.fixture
def no_search(monkeypatch):
    """Any search fails."""
    def refuse(*args):
        raise Searched

    monkeypatch.setattr(domain_search, 'run_search', refuse)


def step3(workspace: Workspace, results: str, *arguments: str, settings: List[str] = ()) -> Dict[str, Any]:
    import step_3_joint
    step_3_joint.main(['--domain_id', str(DOMAIN), '--lut_file', f'{workspace.folder}/table.json', *arguments, '--set',
                       *workspace.overrides, f'RESULTS_DIR={results}', *settings])
    return provenance.read_anyhow('joint', workspace.settings(f'RESULTS_DIR={results}'), DOMAIN).content


@pytest.fixture
def finished(workspace, tmp_path) -> str:
    """A copy of the finished results."""
    return shutil.copytree(os.path.join(workspace.folder, 'undisturbed'), str(tmp_path / 'results'))


def test_without_confidence_the_answer_is_the_lowest_J_of_the_frontier_within_the_constraint(workspace, finished,
                                                                                            no_search):
    content, settings = step3(workspace, finished, '--if_changed', settings=['CONFIDENCE=none']), workspace.settings()
    reference, step2 = content['accuracy']['val_reference'], content['baselines']['step2']['T_eff_ms']
    allowed = [p for p in content['frontier']['T_eff'] if p['accuracy'] >= reference - settings.EPSILON]
    assert content['J'] == min(p['T_eff_ms'] / step2 - settings.MU * p['accuracy'] for p in allowed)
    assert content['pick'] == {'rule': 'constraint', 'T_eff_ms': None, 'latency_ms': None, 'min_fps': None,
                               'confidence': None, 'n_tested': None, 'n_passed': None}
    tested = accuracy_through_wire(workspace, content, 'test')
    assert tested == pytest.approx(content['accuracy']['final'], abs=1.5 / content['accuracy']['n_test'])


def test_the_answer_is_the_last_point_that_is_confirmed_on_calibration_images_before_the_first_that_is_not(workspace):
    content, settings = workspace.content, workspace.settings()
    pruned = [p for p in content['frontier']['tests'] if p['n_pruned'] or p['wire'] != 'float32']
    values = [p_value_of(workspace, point) for point in pruned]
    passed = list(itertools.takewhile(lambda value: value <= 0.1, values))
    assert passed  # or this workspace shows nothing
    assert content['T_eff_ms'] == pruned[len(passed) - 1]['T_eff_ms']
    assert content['accuracy']['cal_p_value'] == pytest.approx(passed[-1], abs=0.02)  # ties may fall either way
    assert content['accuracy']['n_cal'] == len(domain_inputs.load_domain(settings, DOMAIN, 'calibration'))
    assert content['accuracy']['cal_final'] == pytest.approx(accuracy_through_wire(workspace, content, 'calibration'))
    assert content['pick']['confidence'] == 0.9 and content['pick']['n_passed'] == 1 + len(passed)  # the unpruned one
    assert content['pick']['n_tested'] == 1 + min(len(values), len(passed) + 1)


@pytest.mark.parametrize('workspace', [LOSSY], indirect=True)
def test_when_nothing_is_confirmed_the_unpruned_network_is_the_answer_and_says_so(workspace, finished, no_search,
                                                                                 capsys):
    content = step3(workspace, finished, '--if_changed', settings=['CONFIDENCE=0.999999'])
    step2, accuracy = content['baselines']['step2'], content['accuracy']
    assert content['pruned'] == [] and content['wire'] == 'float32'
    lossless = solve_exact(workspace.table, surviving_branches(alpha_of(content)), workspace.settings(
        'WIRE_FORMATS=float32'))
    assert content['T_eff_ms'] == lossless.times.T_eff_ms >= step2['T_eff_ms']
    assert accuracy['val_final'] == accuracy['val_reference'] and accuracy['final'] == accuracy['reference']
    assert accuracy['cal_p_value'] == 0 and (content['pick']['n_tested'], content['pick']['n_passed']) == (2, 1)
    assert 'no pruned network is shown to lose at most ε with confidence 0.999999' in capsys.readouterr().out
    settings = workspace.settings(f'RESULTS_DIR={finished}', 'CONFIDENCE=0.999999')
    assert result_file.load(DOMAIN, workspace.table, settings).nothing_confirmed


def test_a_result_without_calibration_figures_is_refused_by_name(workspace, finished):
    settings = workspace.settings(f'RESULTS_DIR={finished}')
    path = kinds.path_of('joint', settings, DOMAIN)
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    del content['accuracy']['cal_final']
    with open(path, 'w', encoding='utf-8') as stream:
        json.dump(content, stream)
    with pytest.raises(UserError, match="_joint.json: field 'accuracy.cal_final' is missing; make it again"):
        result_file.load(DOMAIN, workspace.table, settings)


@pytest.mark.parametrize('workspace', [LOSSY], indirect=True)
def test_a_knee_picked_from_the_file_is_the_file_of_a_search_that_picks_it(workspace, finished, monkeypatch):
    searched = run_step3([*workspace.overrides, 'PICK=knee'], os.path.join(workspace.folder, 'knee'))
    monkeypatch.setattr(domain_search, 'run_search', lambda *args: 1 / 0)
    again = step3(workspace, finished, '--pick', 'knee')
    assert without_times(again) == without_times(searched)
    assert again['pick']['rule'] == 'knee' and again['frontier'] == workspace.content['frontier']
    back = step3(workspace, finished, '--pick', 'constraint')
    assert without_times(back) == without_times(workspace.content)


def test_a_changed_pick_is_not_up_to_date_but_needs_no_search(workspace, finished, no_search, capsys):
    step3(workspace, finished, '--if_changed')
    assert 'is up to date' in capsys.readouterr().err
    fastest = workspace.content['frontier']['throughput'][0]
    budget = [f"BUDGET_MIN_FPS={fastest['throughput_fps'] * 0.999}", 'PICK=budget']
    found = step3(workspace, finished, '--if_changed', settings=budget)
    assert found['pick']['rule'] == 'budget' and found['throughput_fps'] >= fastest['throughput_fps'] * 0.999
    assert found['metadata']['config']['PICK'] == 'budget'
    step3(workspace, finished, '--if_changed', settings=budget)
    assert 'is up to date' in capsys.readouterr().err
    with pytest.raises(Searched):  # other inputs
        step3(workspace, finished, '--if_changed', settings=[*budget, 'MU=0.5'])
    with pytest.raises(Searched):  # asked for
        step3(workspace, finished, settings=budget)


def test_all_fields_are_those_of_the_picked_point(workspace, finished, no_search):
    def latency_ms(point) -> float:
        return point['T_lat_ms'] + point['wait_ms']  # many clients: budgets count what they wait for each other

    target = min((point for points in workspace.content['frontier'].values() for point in points), key=latency_ms)
    found = step3(workspace, finished, '--pick', 'budget', '--budget_latency_ms', repr(latency_ms(target)))
    for name in ('alpha', 'gamma', 'lambda', 'wire', 'T_lat_ms', 'T_cyc_ms', 'T_eff_ms', 'throughput_fps'):
        assert found[name] == target[name]
    report, settings = found['accuracy'], workspace.settings()
    assert report['val_final'] == target['accuracy'] and len(found['pruned']) == target['n_pruned']
    assert found['xi_A'] == max(0.0, report['val_reference'] - settings.EPSILON - target['accuracy'])
    J = target['T_eff_ms'] / found['baselines']['step2']['T_eff_ms'] + settings.KAPPA * found['xi_A']
    assert found['J'] == pytest.approx(J - settings.MU * target['accuracy'])
    assert report['final'] == pytest.approx(accuracy_through_wire(workspace, target, 'test'),
                                            abs=1.5 / report['n_test'])


@pytest.mark.parametrize('workspace', [LOSSLESS], indirect=True)
def test_a_budget_that_nothing_meets_names_the_nearest_point_and_leaves_the_file(workspace, finished, no_search):
    fastest = workspace.content['frontier']['T_eff'][0]
    with pytest.raises(UserError) as caught:
        step3(workspace, finished, '--pick', 'budget', '--budget_T_eff_ms', '0.001')
    assert f"T_eff {fastest['T_eff_ms']:.4g} ms" in str(caught.value) and '\n' not in str(caught.value)
    settings = workspace.settings(f'RESULTS_DIR={finished}')
    assert provenance.read_anyhow('joint', settings, DOMAIN).content == workspace.content


def test_bad_rules_end_in_one_line_and_status_2():
    for arguments in (['--pick', 'best'], ['--pick', 'budget'], ['--budget_min_fps', '30']):
        done = subprocess.run([sys.executable, 'step_3_joint.py', '--domain_id', '0', *arguments], cwd=config.ROOT,
                              capture_output=True, text=True)
        assert (done.returncode, done.stderr.count('\n')) == (2, 1) and 'Traceback' not in done.stderr


# --- wire formats that lose -----------------------------------------------------------------------------

@pytest.mark.parametrize('workspace', [LOSSLESS], indirect=True)
def test_a_wire_without_loss_runs_nothing_twice(workspace):
    network = deploy(model_with(workspace, alpha_of(workspace.content)))
    for split, wire in ((3, 'float32'), (3, 'float32+zlib'), (0, 'uint8'), (len(network.blocks), 'float16')):
        assert through_wire(network, split, wire) is network
    measured = WireLoss(model_with(workspace, alpha_of(workspace.content)), None, workspace.settings())
    assert measured.accuracy(alpha_of(workspace.content), 3, 'float32+zlib', 0.875) == 0.875
    assert measured.block_evaluations == 0


@pytest.mark.parametrize('workspace', [LOSSLESS], indirect=True)
def test_a_format_that_ruins_the_network_is_not_chosen_and_another_takes_its_place(workspace, monkeypatch):
    decode = codec.decode
    monkeypatch.setattr(codec, 'decode', lambda tensors, wire, shape: 0 * decode(tensors, wire, shape))
    overrides = [*workspace.overrides, 'WIRE_FORMATS=float32,uint8']
    content = run_step3(overrides, os.path.join(workspace.folder, 'ruined'))
    bound = content['accuracy']['val_reference'] - content['epsilon']
    assert content['wire'] == 'float32' and content['accuracy']['val_final'] >= bound and content['xi_A'] == 0
    assert all(point['wire'] == 'float32' for point in all_points(content) if point['accuracy'] >= bound)


@pytest.mark.parametrize('workspace', [LOSSY], indirect=True)
def test_a_killed_search_with_lossy_formats_ends_with_the_same_file(workspace, monkeypatch):
    save, kills = state_file.save, []

    def save_and_die(*arguments):
        save(*arguments)
        kills.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(state_file, 'save', save_and_die)
    results = os.path.join(workspace.folder, 'killed')
    while True:
        try:
            content = without_times(run_step3(workspace.overrides, results))
            break
        except KeyboardInterrupt:
            assert len(kills) < 60
    undisturbed = without_times(workspace.content)
    assert content.pop('block_evaluations') > undisturbed.pop('block_evaluations')  # what was in memory is run again
    assert json.dumps(content) == json.dumps(undisturbed)
