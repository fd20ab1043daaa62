"""One domain's search from its files to its result: what step 3 and the sequential baseline share."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

import cli
import lut_manager
from config import Settings, UserError
from costs.cost_model import FLOAT32, Configuration, HardwareTable, Solution, goal, times
from costs.limits import NothingFits
from domain_dataset import load_domain
from domain_transforms import domain_name
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg, deploy
from network import batchnorm
from network.alpha import alpha_from_blocks, surviving_branches, unpruned_alpha
from network.shapes import BRANCHES
from pipeline import documents, kinds
from search import alpha_training as training
from search import frontier, joint_result
from search.joint_result import AccuracyReport, Baseline, JointResult
from search.pruning_search import PruningSearch, SearchState, recalibrated_statistics
from search.wire_loss import WireLoss, through_wire
from throughput_optimizer import baselines, solve_exact
from tier import devices
from wire.formats import by_loss


@dataclass(frozen=True)
class TrainedAlpha:
    """Task 1's α of one domain."""
    domain_name: str
    alpha: np.ndarray  # [N, 3]


def load_alphas(settings: Settings) -> Dict[str, TrainedAlpha]:
    """Task 1's α by domain id; `UserError` when missing or damaged."""
    names, has_identity = lut_manager.blocks_of(settings)
    document = documents.read_kind('alpha', settings)
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
    document = documents.read_kind('importance_rankings', settings)
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
        raise UserError(f"{kinds.path_of('alpha', settings)}: has no domain {domain}; make it with "
                        f'`python code1_train_and_record_weights.py --domains {domain}`')
    found = []
    for alpha in (alphas[str(domain)].alpha, unpruned_alpha([block.n_branches == 3 for block in model.blocks])):
        model.set_alpha_array(alpha)
        found.append((training.accuracy(model, val, settings), model.alpha_array()))
    value, alpha = max(found, key=lambda item: item[0])
    return alpha, value


def base_model(settings: Settings) -> HyperRepVGG:
    """The network that is pruned, on TRAIN_DEVICE."""
    return create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME,
                               settings.NUM_CLASSES).to(devices.device_of(settings.TRAIN_DEVICE))


def images_of(settings: Settings, domain: int, split: str) -> ImageSet:
    """A domain's images, on TRAIN_DEVICE."""
    return load_domain(settings, domain, split).to(devices.device_of(settings.TRAIN_DEVICE))


def new_search(domain: int, table: HardwareTable, settings: Settings, search_type: Callable[..., PruningSearch],
               ) -> PruningSearch:
    """A search of one domain, ready to start; `unpruned` is the α behind A_ref."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = base_model(settings)
    ranking = importance_ranking(domain, table.block_names, settings)
    train, val = images_of(settings, domain, 'train'), images_of(settings, domain, 'val')
    reference, A_ref = reference_alpha(model, val, domain, settings)
    return search_type(model, table, train, val, settings, domain, reference, A_ref,
                       solve_unpruned(table, settings).times.T_eff_ms, ranking)


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
    search = new_search(domain, table, settings, search_type)
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
    return SearchOutcome(search, state, search.unpruned, spent + time.perf_counter() - start)


def solve_unpruned(table: HardwareTable, settings: Settings) -> Solution:
    """Step 2's exact answer: the network as it is, at its best split."""
    return solve_exact(table, surviving_branches(unpruned_alpha(table.has_identity)), settings)


def assemble(outcome: SearchOutcome, chosen: Configuration, accuracy: float, mode: str,
             statistics: Optional[np.ndarray] = None) -> JointResult:
    """The result of a finished search that runs as `chosen`, of this validation accuracy and with these BatchNorm
    statistics (None: the model's own). Test images are used here, in `as_chosen` and nowhere else."""
    search, state = outcome.search, outcome.state
    table, settings = search.table, search.settings
    test = images_of(settings, search.domain_id, 'test')
    ones = unpruned_alpha(table.has_identity)
    compared = baselines(table, surviving_branches(ones), settings)
    compared['step2'] = solve_unpruned(table, settings)

    def share(alpha: np.ndarray, split: int, wire: str) -> float:
        return correct_with(search.model, Configuration(alpha, (), split, wire), test, settings) / len(test)

    original, at_reference = (share(alpha, 0, FLOAT32) for alpha in (ones, outcome.reference))
    result = JointResult(
        search.domain_id, domain_name(search.domain_id), mode, table.block_names, chosen,
        AccuracyReport(original, at_reference, 0.0, len(test), (0.0, 1.0), search.reference, accuracy),
        settings.EPSILON, 0.0, 0.0, times(table, chosen, settings.HEAD_TIER, settings.OMEGA),
        {'all_client': Baseline(at_reference, compared['all_client'].times),
         'all_server': Baseline(at_reference, compared['all_server'].times),
         'step2': Baseline(share(outcome.reference, compared['step2'].split, compared['step2'].wire),
                           compared['step2'].times)},
        state.curve, None, settings.SEED, outcome.wall_s, state.block_evaluations)
    return as_chosen(result, chosen, accuracy, search.model, test, table, settings, statistics)


def as_chosen(result: JointResult, chosen: Configuration, accuracy: float, model: HyperRepVGG, test: ImageSet,
              table: HardwareTable, settings: Settings, statistics: Optional[np.ndarray] = None) -> JointResult:
    """The same search's result with another configuration, of this validation accuracy and with these BatchNorm
    statistics (None: the model's own), as its answer."""
    correct = correct_with(model, chosen, test, settings, statistics)
    found = times(table, chosen, settings.HEAD_TIER, settings.OMEGA)
    J, xi = goal(found.T_eff_ms, result.baselines['step2'].times.T_eff_ms, accuracy, result.accuracy.val_reference,
                 settings.EPSILON, settings.KAPPA, settings.MU)
    report = replace(result.accuracy, final=correct / len(test), ci95=wilson_interval(correct, len(test)),
                     val_final=accuracy)
    return replace(result, configuration=chosen, accuracy=report, times=found, J=J, xi_A=xi,
                   batchnorm=statistics)


def best_on_wire(alpha: np.ndarray, solve: Callable[[Settings], Solution], model: HyperRepVGG, val: ImageSet,
                 goal_of: Callable[[float, float], float], settings: Settings,
                 statistics: Optional[np.ndarray] = None) -> Tuple[Configuration, float]:
    """A pruned network (with these BatchNorm statistics; None: the model's own) at its lowest J over the wire formats,
    each with the validation accuracy that it leaves.

    `solve` chooses γ and λ under settings that list formats of one loss; `goal_of(T_eff_ms, accuracy)` is J.
    Raises `limits.NothingFits` when no format is within the limits.
    """
    measured, found = WireLoss(model, val, settings, lambda alpha: statistics), []
    lossless = correct_with(model, Configuration(alpha, (), 0, FLOAT32), val, settings, statistics) / len(val)
    groups = by_loss(settings.WIRE_FORMATS)
    for formats in groups:
        try:
            at = solve(replace(settings, WIRE_FORMATS=formats))
        except NothingFits:
            if formats == groups[-1] and not found:
                raise
            continue
        accuracy = measured.accuracy(alpha, at.split, at.wire, lossless, statistics is not None)
        found.append((goal_of(at.times.T_eff_ms, accuracy), at, accuracy))
    _, best, accuracy = min(found, key=lambda option: option[0])
    return Configuration(alpha, best.gamma, best.split, best.wire), accuracy


def pick_from_search(outcome: SearchOutcome, mode: str) -> JointResult:
    """A finished joint search's result: its frontiers and the point that PICK chooses. Raises `limits.NothingFits` when
    no network is within the limits."""
    search, settings = outcome.search, outcome.search.settings
    frontiers = search.frontiers(outcome.state)
    if not frontiers['T_eff']:
        search.final(outcome.state.alpha)  # says which limit is not met
    point = frontier.pick(frontiers, settings, search.reference, search.T_eff_ref_ms)
    statistics = search.statistics_for(point.configuration.alpha)[0] if point.recalibrated else None
    result = assemble(outcome, point.configuration, point.accuracy, mode, statistics)
    return replace(result, frontier=frontiers, pick=frontier.rule_of(settings))


def pick_again(result: JointResult, table: HardwareTable, settings: Settings, model: HyperRepVGG) -> JointResult:
    """What PICK chooses from the frontiers of a finished result: the same as after a search, without the search."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    point = frontier.pick(result.frontier, settings, result.accuracy.val_reference,
                          result.baselines['step2'].times.T_eff_ms)
    statistics = None
    if point.recalibrated:  # as the search did
        domain = result.domain_id
        train, val = images_of(settings, domain, 'train'), images_of(settings, domain, 'val')
        unpruned, _ = reference_alpha(model, val, domain, settings)
        statistics, _ = recalibrated_statistics(model, point.configuration.alpha, unpruned, train, domain, settings)
    test = images_of(settings, result.domain_id, 'test')
    again = as_chosen(result, point.configuration, point.accuracy, model, test, table, settings, statistics)
    return replace(again, pick=frontier.rule_of(settings), measured=None)


def correct_with(model: HyperRepVGG, chosen: Configuration, data: ImageSet, settings: Settings,
                 statistics: Optional[np.ndarray] = None) -> int:
    """Correctly classified images under this α and these BatchNorm statistics (None: the model's own), with the loss of
    the wire format at the split."""
    model.set_alpha_array(chosen.alpha)
    with batchnorm.using(model, statistics):
        return training.count_correct(through_wire(deploy(model), chosen.split, chosen.wire), data, settings)


def summary(result: JointResult) -> str:
    """What a user wants to know first, in a few lines."""
    step2, a = result.baselines['step2'], result.accuracy
    lines = [f'domain {result.domain_id} ({result.domain_name}): {len(result.pruned)} branches pruned, '
             f'λ = {result.configuration.split}, T_eff {result.times.T_eff_ms:.3f} ms '
             f'({100 * (1 - result.times.T_eff_ms / step2.times.T_eff_ms):.1f} % below unpruned), '
             f'{result.times.throughput_fps:.0f} fps '
             f'({100 * (result.times.throughput_fps / step2.times.throughput_fps - 1):+.1f} %)',
             f'  test accuracy {a.final:.3f} [{a.ci95[0]:.3f}, {a.ci95[1]:.3f}], unpruned {a.reference:.3f}, '
             f'α = 1 {a.original:.3f}; validation {a.val_final:.3f}, reference {a.val_reference:.3f}']
    points = result.frontier.get('T_eff')
    if points:
        lines.append(f'  picked by {result.pick.rule} from a frontier of {len(points)} points: T_eff '
                     f'{points[0].times.T_eff_ms:.3f} to {points[-1].times.T_eff_ms:.3f} ms, validation accuracy '
                     f'{points[0].accuracy:.3f} to {points[-1].accuracy:.3f}')
    single_tier: Dict[str, Any] = {name: result.baselines[name].times.T_eff_ms for name in ('all_client', 'all_server')}
    best = min(single_tier, key=single_tier.__getitem__)
    if single_tier[best] < result.times.T_eff_ms:
        lines.append(f"  splitting does not pay here: {best.replace('_', ' ')} has T_eff {single_tier[best]:.3f} ms")
    return '\n'.join(lines)
