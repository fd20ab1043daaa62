"""One domain's search from its files to its result: what step 3 and the sequential baseline share."""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch

import alpha_training as training
import cli
import joint_result
import json_files
import lut_manager
from config import Settings, UserError
from cost_model import Configuration, HardwareTable, goal, times
from domain_dataset import load_domain
from domain_transforms import domain_name
from evaluation import ImageSet, wilson_interval
from hyper_repvgg import (HyperRepVGG, alpha_from_blocks, create_hyper_repvgg, deploy, surviving_branches,
                          unpruned_alpha)
from joint_result import AccuracyReport, Baseline, JointResult
from pruning_search import PruningSearch, SearchState
from repvgg import BRANCHES
from throughput_optimizer import Solution, baselines, solve_exact


@dataclass(frozen=True)
class TrainedAlpha:
    """Task 1's α of one domain."""
    domain_name: str
    alpha: np.ndarray  # [N, 3]


def load_alphas(settings: Settings) -> Dict[str, TrainedAlpha]:
    """Task 1's α by domain id; `UserError` when missing or damaged."""
    names, has_identity = lut_manager.blocks_of(settings)
    document = json_files.read_kind('alpha', settings)
    result = {}
    for domain, entry in document.get('domains').items():
        try:
            alpha = alpha_from_blocks(entry['alpha'], names)
            result[domain] = TrainedAlpha(str(entry['domain_name']), alpha)
        except (KeyError, TypeError, ValueError):
            raise document.refuse(f'domain {domain} does not hold the α of {settings.MODEL_NAME}') from None
        if (np.isnan(alpha) != np.isnan(unpruned_alpha(has_identity))).any():
            raise document.refuse(f'domain {domain}: α must be null exactly where a block has no identity')
    return result


def importance_ranking(domain: int, names: Sequence[str], settings: Settings) -> List[Tuple[int, int]]:
    """Task 2's ranking as (block, branch) indices, least important first."""
    document = json_files.read_kind('importance_rankings', settings)
    index = {f'{name}.{branch}': (k, b) for k, name in enumerate(names) for b, branch in enumerate(BRANCHES)}
    entries = document.get(('domains', str(domain), 'ranking'), list)
    unknown = [entry for entry in entries if entry not in index]
    if unknown:
        raise document.refuse(f'{unknown[0]!r} is no branch of {settings.MODEL_NAME}')
    return [index[entry] for entry in entries]


def reference_alpha(model: HyperRepVGG, val: ImageSet, domain: int, settings: Settings) -> Tuple[np.ndarray, float]:
    """(α [N, 3], A_ref): task 1's α for the domain, or α = 1 where that is more accurate on validation images."""
    alphas = load_alphas(settings)
    if str(domain) not in alphas:
        raise UserError(f"{json_files.path_of('alpha', settings)}: has no domain {domain}; make it with "
                        f'`python code1_train_and_record_weights.py --domains {domain}`')
    found = []
    for alpha in (alphas[str(domain)].alpha, unpruned_alpha([block.n_branches == 3 for block in model.blocks])):
        model.set_alpha_array(alpha)
        found.append((training.accuracy(model, val, settings), model.alpha_array()))
    value, alpha = max(found, key=lambda item: item[0])
    return alpha, value


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search with what it started from."""
    search: PruningSearch
    state: SearchState
    reference: np.ndarray  # α behind A_ref
    wall_s: float


def run_search(domain: int, table: HardwareTable, settings: Settings, search_type: Callable[..., PruningSearch],
               kind: str, inputs: str) -> SearchOutcome:
    """Search one domain, or go on with a search of the same inputs; its state is kept in the file of `kind`_state."""
    start = time.perf_counter()
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    ranking = importance_ranking(domain, table.block_names, settings)
    train, val = load_domain(settings, domain, 'train'), load_domain(settings, domain, 'val')
    reference, A_ref = reference_alpha(model, val, domain, settings)
    unpruned = solve_unpruned(table, settings)
    search = search_type(model, table, train, val, settings, domain, reference, A_ref, unpruned.times.T_eff_ms,
                         ranking)
    resumed = joint_result.load_state(f'{kind}_state', domain, table, settings, inputs)
    state, spent = resumed or (search.start(), 0.0)
    if resumed:
        cli.say(f'domain {domain}: going on after round {state.rounds}')

    said = state.curve[-1]

    def keep(state: SearchState) -> None:
        joint_result.save_state(f'{kind}_state', state, domain, table, settings, inputs,
                                spent + time.perf_counter() - start)
        nonlocal said
        if state.curve[-1] is not said:
            said = state.curve[-1]
            cli.say(f'domain {domain} round {state.rounds}: {said.n_pruned} branches pruned, validation accuracy '
                    f'{said.accuracy:.3f}, T_eff {said.T_eff_ms:.3f} ms')

    search.run(state, keep)
    return SearchOutcome(search, state, reference, spent + time.perf_counter() - start)


def solve_unpruned(table: HardwareTable, settings: Settings) -> Solution:
    """Step 2's exact answer: the network as it is, at its best split."""
    return solve_exact(table, surviving_branches(unpruned_alpha(table.has_identity)), settings)


def assemble(outcome: SearchOutcome, chosen: Solution, mode: str) -> JointResult:
    """The result of a finished search that runs as `chosen`. The only place where test images are used."""
    search, state = outcome.search, outcome.state
    table, settings = search.table, search.settings
    test = load_domain(settings, search.domain_id, 'test')
    ones = unpruned_alpha(table.has_identity)
    original, at_reference, final = (correct_with(search.model, alpha, test, settings)
                                     for alpha in (ones, outcome.reference, state.alpha))
    statistics = None
    if state.recalibrated:
        own = search.model.batchnorm()
        search.recalibrate(state.alpha)
        statistics = search.model.batchnorm()
        final = training.count_correct(deploy(search.model), test, settings)
        search.model.set_batchnorm(own)
    configuration = Configuration(state.alpha, chosen.gamma, chosen.split, chosen.wire)
    found = times(table, configuration, settings.HEAD_TIER, settings.OMEGA)
    J, xi = goal(found.T_eff_ms, search.T_eff_ref_ms, state.accuracy, search.reference, settings.EPSILON,
                 settings.KAPPA, settings.MU)
    compared = baselines(table, surviving_branches(ones), settings)
    compared['step2'] = solve_unpruned(table, settings)
    return JointResult(
        search.domain_id, domain_name(search.domain_id), mode, table.block_names, configuration,
        AccuracyReport(original / len(test), at_reference / len(test), final / len(test), len(test),
                       wilson_interval(final, len(test)), search.reference, state.accuracy),
        settings.EPSILON, xi, J, found,
        {name: Baseline(at_reference / len(test), compared[name].times)
         for name in ('all_client', 'all_server', 'step2')},
        state.curve, None, settings.SEED, outcome.wall_s, state.block_evaluations,
        statistics)


def correct_with(model: HyperRepVGG, alpha: np.ndarray, data: ImageSet, settings: Settings) -> int:
    """Correctly classified images under this α."""
    model.set_alpha_array(alpha)
    return training.count_correct(deploy(model), data, settings)


def summary(result: JointResult) -> str:
    """What a user wants to know first, in three lines."""
    step2, a = result.baselines['step2'], result.accuracy
    lines = [f'domain {result.domain_id} ({result.domain_name}): {len(result.pruned)} branches pruned, '
             f'λ = {result.configuration.split}, T_eff {result.times.T_eff_ms:.3f} ms '
             f'({100 * (1 - result.times.T_eff_ms / step2.times.T_eff_ms):.1f} % below unpruned), '
             f'{result.times.throughput_fps:.0f} fps '
             f'({100 * (result.times.throughput_fps / step2.times.throughput_fps - 1):+.1f} %)',
             f'  test accuracy {a.final:.3f} [{a.ci95[0]:.3f}, {a.ci95[1]:.3f}], unpruned {a.reference:.3f}, '
             f'α = 1 {a.original:.3f}; validation {a.val_final:.3f}, reference {a.val_reference:.3f}']
    single_tier: Dict[str, Any] = {name: result.baselines[name].times.T_eff_ms for name in ('all_client', 'all_server')}
    best = min(single_tier, key=single_tier.__getitem__)
    if single_tier[best] < result.times.T_eff_ms:
        lines.append(f"  splitting does not pay here: {best.replace('_', ' ')} has T_eff {single_tier[best]:.3f} ms")
    return '\n'.join(lines)
