"""From a finished search to its result: the point that PICK chooses, its accuracy on test images, and the baselines."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Optional, Tuple

import numpy as np
import torch

from config import Settings
from costs.cost_model import FLOAT32, Configuration, HardwareTable, Solution, Times, scenario_of, times
from costs.goal import Goal
from costs.limits import NothingFits
from costs.verdict import sentences
from domain_transforms import domain_name
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import HyperRepVGG, deploy
from network import batchnorm
from network.alpha import unpruned_alpha
from search import alpha_training, pick, result_warnings
from search.alpha_training import recalibrated_statistics
from search.domain_inputs import images_of, reference_alpha
from search.domain_search import SearchOutcome, solve_unpruned
from search.frontier import frontiers_of
from search.one_tier import Network, SentImages, verdict_on, without_split
from search.result import AccuracyReport, Baseline, JointResult
from search.wire_loss import WireLoss, through_wire
from wire.formats import by_loss


PRUNED_ENDS = ('all_client_pruned', 'all_server_pruned')


@dataclass(frozen=True)
class Picked:
    """A configuration as the answer of a search: what follows from it, test images included."""
    configuration: Configuration
    val_accuracy: float
    test_accuracy: float
    ci95: Tuple[float, float]  # of the test accuracy
    times: Times
    J: float
    xi_A: float
    batchnorm: Optional[np.ndarray]  # re-estimated BatchNorm statistics; None: the model's own


def picked(chosen: Configuration, val_accuracy: float, statistics: Optional[np.ndarray], goal: Goal, model: HyperRepVGG,
           test: ImageSet, table: HardwareTable, settings: Settings) -> Picked:
    """Measure a chosen configuration of this validation accuracy, with these BatchNorm statistics (None: the model's
    own), on test images. They are used here, for baselines in `assemble` and nowhere else."""
    correct = correct_with(model, chosen, test, settings, statistics)
    found = times(table, chosen, scenario_of(settings))
    return Picked(chosen, val_accuracy, correct / len(test), wilson_interval(correct, len(test)), found,
                  goal.J(found.T_eff_ms, val_accuracy), goal.violation(val_accuracy), statistics)


def assemble(outcome: SearchOutcome, chosen: Configuration, accuracy: float, mode: str,
             statistics: Optional[np.ndarray] = None) -> JointResult:
    """The result of a finished search that runs as `chosen`, of this validation accuracy and with these BatchNorm
    statistics (None: the model's own)."""
    problem, state = outcome.problem, outcome.state
    table, settings, goal = problem.table, problem.settings, problem.goal
    test = images_of(settings, problem.domain_id, 'test')
    ones = unpruned_alpha(table.has_identity)
    step2 = solve_unpruned(table, settings)

    def share(alpha: np.ndarray, split: int, wire: str) -> float:
        return correct_with(problem.model, Configuration(alpha, (), split, wire), test, settings) / len(test)

    original, reference = (share(alpha, 0, FLOAT32) for alpha in (ones, problem.unpruned))
    at_step2 = share(problem.unpruned, step2.split, step2.wire)
    answer = picked(chosen, accuracy, statistics, goal, problem.model, test, table, settings)
    images = SentImages(problem.val, test, table, settings)
    unpruned = Network(problem.unpruned, correct_on(problem.model, problem.unpruned, None, settings),
                       goal.min_accuracy)
    pruned = Network(chosen.alpha, correct_on(problem.model, chosen.alpha, statistics, settings), goal.min_accuracy)
    return JointResult(
        problem.domain_id, domain_name(problem.domain_id), mode, table.block_names, chosen,
        AccuracyReport(original, reference, answer.test_accuracy, len(test), answer.ci95, goal.A_ref, accuracy),
        settings.EPSILON, answer.xi_A, answer.J, answer.times,
        {**without_split(unpruned, '', images, table, settings), 'step2': Baseline(at_step2, step2.times),
         **without_split(pruned, '_pruned', images, table, settings)},
        state.curve, None, settings.SEED, outcome.wall_s, state.work.block_evaluations, batchnorm=statistics,
        warnings=tuple(result_warnings.of_domain(problem.val, goal.A_ref, settings.EPSILON)))


def as_chosen(result: JointResult, chosen: Configuration, accuracy: float, model: HyperRepVGG, val: ImageSet,
              test: ImageSet, table: HardwareTable, settings: Settings, statistics: Optional[np.ndarray] = None,
              ) -> JointResult:
    """A search's result with another configuration, of this validation accuracy and with these BatchNorm statistics
    (None: the model's own), as its answer."""
    goal = goal_of(result, settings)
    answer = picked(chosen, accuracy, statistics, goal, model, test, table, settings)
    pruned = Network(chosen.alpha, correct_on(model, chosen.alpha, statistics, settings), goal.min_accuracy)
    same_alpha = without_split(pruned, '_pruned', SentImages(val, test, table, settings), table, settings)
    others = {name: found for name, found in result.baselines.items() if not name.startswith(PRUNED_ENDS)}
    report = replace(result.accuracy, final=answer.test_accuracy, ci95=answer.ci95, val_final=accuracy)
    return replace(result, configuration=chosen, accuracy=report, times=answer.times, J=answer.J, xi_A=answer.xi_A,
                   baselines={**others, **same_alpha}, batchnorm=statistics)


def goal_of(result: JointResult, settings: Settings) -> Goal:
    """The goal that a finished result is measured by."""
    return Goal(result.baselines['step2'].times.T_eff_ms, result.accuracy.val_reference, settings.EPSILON,
                settings.KAPPA, settings.MU)


def best_on_wire(alpha: np.ndarray, solve: Callable[[Settings], Solution], model: HyperRepVGG, val: ImageSet,
                 goal: Goal, settings: Settings, statistics: Optional[np.ndarray] = None,
                 ) -> Tuple[Configuration, float]:
    """A pruned network (with these BatchNorm statistics; None: the model's own) at its lowest J over the wire formats,
    each with the validation accuracy that it leaves.

    `solve` chooses γ and λ under settings that list formats of one loss. Raises `limits.NothingFits` when no format is
    within the limits.
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
        found.append((goal.J(at.times.T_eff_ms, accuracy), at, accuracy))
    _, best, accuracy = min(found, key=lambda option: option[0])
    return Configuration(alpha, best.gamma, best.split, best.wire), accuracy


def pick_from_search(outcome: SearchOutcome, mode: str) -> JointResult:
    """A finished joint search's result: its frontiers and the point that PICK chooses. Raises `limits.NothingFits` when
    no network is within the limits."""
    problem = outcome.problem
    frontiers = frontiers_of(problem, outcome.state)
    if not frontiers['T_eff']:
        problem.times.solve_within_limits(outcome.state.best.alpha)  # says which limit is not met
    point = pick.pick(frontiers, problem.settings, problem.goal)
    statistics = problem.statistics_for(point.configuration.alpha)[0] if point.recalibrated else None
    result = assemble(outcome, point.configuration, point.accuracy, mode, statistics)
    return replace(result, frontier=frontiers, pick=pick.rule_of(problem.settings))


def pick_again(result: JointResult, table: HardwareTable, settings: Settings, model: HyperRepVGG) -> JointResult:
    """What PICK chooses from the frontiers of a finished result, without a new search."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    point = pick.pick(result.frontier, settings, goal_of(result, settings))
    domain, statistics = result.domain_id, None
    val = images_of(settings, domain, 'val')
    if point.recalibrated:  # as the search did
        train = images_of(settings, domain, 'train')
        unpruned, _ = reference_alpha(model, val, domain, settings)
        statistics, _ = recalibrated_statistics(model, point.configuration.alpha, unpruned, train, domain, settings)
    test = images_of(settings, domain, 'test')
    again = as_chosen(result, point.configuration, point.accuracy, model, val, test, table, settings, statistics)
    return replace(again, pick=pick.rule_of(settings), measured=None)


def correct_with(model: HyperRepVGG, chosen: Configuration, data: ImageSet, settings: Settings,
                 statistics: Optional[np.ndarray] = None) -> int:
    """Correctly classified images under this α and these BatchNorm statistics (None: the model's own), with the loss of
    the wire format at the split."""
    model.set_alpha_array(chosen.alpha)
    with batchnorm.using(model, statistics):
        return alpha_training.count_correct(through_wire(deploy(model), chosen.split, chosen.wire), data, settings)


def correct_on(model: HyperRepVGG, alpha: np.ndarray, statistics: Optional[np.ndarray], settings: Settings,
               ) -> Callable[[ImageSet], int]:
    """`correct_with` for any images, without a split."""
    return lambda data: correct_with(model, Configuration(alpha, (), 0, FLOAT32), data, settings, statistics)


def summary(result: JointResult, settings: Settings) -> str:
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
    lines += [f'  {line}' for line in sentences([verdict_on(result, settings)])]
    lines += [f'  warning: {line}' for line in result.warnings]
    return '\n'.join(lines)
