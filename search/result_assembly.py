"""From a finished search to its result: the point that PICK chooses, its accuracy on test images, and the baselines."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np
import torch

from config import Settings
from costs.cost_model import FLOAT32, Configuration, HardwareTable, Times, scenario_of, times
from costs.energy import energy_lines, energy_of
from costs.goal import Goal
from costs.verdict import sentences
from domain_transforms import domain_name
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import HyperRepVGG
from network.alpha import unpruned_alpha
from search import answers, result_warnings
from search.alpha_training import recalibrated_statistics
from search.answers import Answer
from search.domain_inputs import images_of, reference_alpha
from search.domain_search import SearchOutcome, solve_unpruned
from search.frontier import frontiers_of
from search.one_tier import PRUNED_ENDS, CorrectOn, Network, SentImages, verdict_on, without_split
from search.result import AccuracyReport, Baseline, JointResult
from search.wire_loss import classified_right


@dataclass(frozen=True)
class Measured:
    """What follows from an answer, test images included."""
    test_accuracy: float
    ci95: Tuple[float, float]  # of the test accuracy
    times: Times
    J: float
    xi_A: float


def measured(answer: Answer, goal: Goal, model: HyperRepVGG, test: ImageSet, table: HardwareTable, settings: Settings,
             ) -> Measured:
    """Measure an answer on test images. They are used here, for baselines in `assemble` and nowhere else."""
    correct = correct_with(model, answer.configuration, test, settings, answer.batchnorm)
    found = times(table, answer.configuration, scenario_of(settings, table))
    return Measured(correct / len(test), wilson_interval(correct, len(test)), found,
                    goal.J(found.T_eff_ms, answer.val_accuracy), goal.violation(answer.val_accuracy))


def assemble(outcome: SearchOutcome, answer: Answer, mode: str) -> JointResult:
    """The result of a finished search that ends with this answer."""
    problem, state = outcome.problem, outcome.state
    table, settings, goal = problem.table, problem.settings, problem.goal
    test = images_of(settings, problem.domain_id, 'test')
    ones = unpruned_alpha(table.n_branches)
    step2 = solve_unpruned(table, settings)

    def share(alpha: np.ndarray, split: int = 0, wire: str = FLOAT32, peaks: Optional[Tuple[float, ...]] = None,
              ) -> float:
        chosen = Configuration(alpha, (), split, wire, problem.channel_choice.at(alpha, split, wire), peaks)
        return correct_with(problem.model, chosen, test, settings) / len(test)

    original, peaks = share(ones), problem.channel_choice.peaks.of(problem.unpruned)
    at_step2 = share(problem.unpruned, step2.split, step2.wire, peaks)
    found = measured(answer, goal, problem.model, test, table, settings)
    alpha, statistics = answer.configuration.alpha, answer.batchnorm
    images = SentImages(problem.val, test, table, settings)
    unpruned = without_split(network_of(problem.model, problem.unpruned, None, peaks, goal, settings), '', images,
                             table, settings)
    pruned = without_split(network_of(problem.model, alpha, statistics, answer.configuration.peaks, goal, settings),
                           '_pruned', images, table, settings)
    # on one tier nothing is lost on the way, but by int8
    reference = unpruned['all_client'].accuracy if peaks is None else share(problem.unpruned)
    return with_energy(JointResult(
        problem.domain_id, domain_name(problem.domain_id), mode, table.block_names, answer.configuration,
        AccuracyReport(original, reference, found.test_accuracy, len(test), found.ci95, goal.A_ref,
                       answer.val_accuracy, **vars(answer.comparison)),
        settings.EPSILON, found.xi_A, found.J, found.times,
        {**unpruned, 'step2': Baseline(at_step2, step2.times), **pruned},
        state.curve, None, settings.SEED, outcome.wall_s, state.work.block_evaluations, batchnorm=statistics,
        warnings=tuple(result_warnings.of_domain(problem.val, goal.A_ref, settings.EPSILON))), table, settings)


def as_chosen(result: JointResult, answer: Answer, model: HyperRepVGG, val: ImageSet, test: ImageSet,
              table: HardwareTable, settings: Settings) -> JointResult:
    """A search's result with another answer."""
    goal, alpha = goal_of(result, settings), answer.configuration.alpha
    found = measured(answer, goal, model, test, table, settings)
    same_alpha = without_split(network_of(model, alpha, answer.batchnorm, answer.configuration.peaks, goal,
                                          settings), '_pruned',
                               SentImages(val, test, table, settings), table, settings)
    others = {name: entry for name, entry in result.baselines.items() if not name.startswith(PRUNED_ENDS)}
    report = replace(result.accuracy, final=found.test_accuracy, ci95=found.ci95, val_final=answer.val_accuracy,
                     **vars(answer.comparison))
    again = replace(result, configuration=answer.configuration, accuracy=report, times=found.times, J=found.J,
                    xi_A=found.xi_A, baselines={**others, **same_alpha}, batchnorm=answer.batchnorm)
    return with_energy(again, table, settings)


def with_energy(result: JointResult, table: HardwareTable, settings: Settings) -> JointResult:
    """The result with the energy of its configuration and of its baselines, where the table knows watts."""
    if not table.power:
        return result
    ways = {'chosen': result.times, **{name: baseline.times for name, baseline in result.baselines.items()}}
    return replace(result, energy={name: energy_of(found, table.power, settings.CLIENTS, settings.SERVER_WORKERS)
                                   for name, found in ways.items()})


def goal_of(result: JointResult, settings: Settings) -> Goal:
    """The goal that a finished result is measured by."""
    return Goal(result.baselines['step2'].times.T_eff_ms, result.accuracy.val_reference, settings.EPSILON,
                settings.KAPPA, settings.MU)


def pick_from_search(outcome: SearchOutcome, mode: str) -> JointResult:
    """A finished joint search's result: its frontiers and the point that PICK chooses. Raises `limits.NothingFits` when
    no network is within the limits."""
    problem = outcome.problem
    frontiers = frontiers_of(problem, outcome.state)
    if not frontiers['T_eff']:
        problem.times.solve_within_limits(outcome.state.best.alpha)  # says which limit is not met
    calibration = answers.calibration_of(problem.model, problem.unpruned, problem.domain_id, problem.settings)
    answer, rule = answers.picked(frontiers, problem.goal, calibration, problem.val, problem.table,
                                  lambda alpha: problem.statistics_for(alpha)[0])
    return replace(assemble(outcome, answer, mode), frontier=frontiers, pick=rule)


def pick_again(result: JointResult, table: HardwareTable, settings: Settings, model: HyperRepVGG) -> JointResult:
    """What PICK chooses from the frontiers of a finished result, without a new search."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    domain = result.domain_id
    val = images_of(settings, domain, 'val')
    unpruned, _ = reference_alpha(model, val, domain, settings)

    def statistics_of(alpha: np.ndarray) -> np.ndarray:
        """As the search made them."""
        train = images_of(settings, domain, 'train')
        return recalibrated_statistics(model, alpha, unpruned, train, domain, settings)[0]

    calibration = answers.calibration_of(model, unpruned, domain, settings)
    answer, rule = answers.picked(result.frontier, goal_of(result, settings), calibration, val, table, statistics_of)
    again = as_chosen(result, answer, model, val, images_of(settings, domain, 'test'), table, settings)
    return replace(again, pick=rule, measured=None)


def correct_with(model: HyperRepVGG, chosen: Configuration, data: ImageSet, settings: Settings,
                 statistics: Optional[np.ndarray] = None) -> int:
    """Correctly classified images under this α and these BatchNorm statistics (None: the model's own), with the loss of
    the wire format at the split."""
    return int(classified_right(model, chosen, data, settings, statistics).sum())


def network_of(model: HyperRepVGG, alpha: np.ndarray, statistics: Optional[np.ndarray],
               peaks: Optional[Tuple[float, ...]], goal: Goal, settings: Settings) -> Network:
    """A network of this α and these BatchNorm statistics (None: the model's own) that is to run without a split."""
    at_head = None if peaks is None else correct_on(model, alpha, statistics, settings, peaks, len(alpha))
    return Network(alpha, correct_on(model, alpha, statistics, settings, peaks), goal.min_accuracy, at_head)


def correct_on(model: HyperRepVGG, alpha: np.ndarray, statistics: Optional[np.ndarray], settings: Settings,
               peaks: Optional[Tuple[float, ...]] = None, split: int = 0) -> CorrectOn:
    """`correct_with` for any images, without a split: at 0 or N."""
    chosen = Configuration(alpha, (), split, FLOAT32, peaks=peaks)
    return lambda data: correct_with(model, chosen, data, settings, statistics)


def summary(result: JointResult, settings: Settings) -> str:
    """What a user wants to know first, in a few lines."""
    step2, a = result.baselines['step2'], result.accuracy
    lines = [f'domain {result.domain_id} ({result.domain_name}): {len(result.pruned)} branches pruned, '
             f'λ = {result.configuration.split}, T_eff {result.times.T_eff_ms:.3f} ms '
             f'({100 * (1 - result.times.T_eff_ms / step2.times.T_eff_ms):.1f} % below unpruned), '
             f'{result.times.throughput_fps:.0f} fps '
             f'({100 * (result.times.throughput_fps / step2.times.throughput_fps - 1):+.1f} %)' +
             (f' for each of {settings.CLIENTS} clients' if settings.CLIENTS > 1 else ''),
             f'  test accuracy {a.final:.3f} [{a.ci95[0]:.3f}, {a.ci95[1]:.3f}], unpruned {a.reference:.3f}, '
             f'α = 1 {a.original:.3f}; validation {a.val_final:.3f}, reference {a.val_reference:.3f}']
    lines[1:1] = [f'  warning: {line}' for line in result.warnings]  # beside the first numbers
    lines.append(f'  {confirmation_text(result)}')
    points = result.frontier.get('T_eff')
    if points:
        lines.append(f'  picked by {result.pick.rule} from a frontier of {len(points)} points: T_eff '
                     f'{points[0].times.T_eff_ms:.3f} to {points[-1].times.T_eff_ms:.3f} ms, validation accuracy '
                     f'{points[0].accuracy:.3f} to {points[-1].accuracy:.3f}')
    if result.energy:
        shown = {name: result.energy[name] for name in ('chosen', *PRUNED_ENDS) if name in result.energy}
        lines += [f'  {line}' for line in energy_lines(shown)]
    lines += [f'  {line}' for line in sentences([verdict_on(result, settings)])]
    return '\n'.join(lines)


def confirmation_text(result: JointResult) -> str:
    """What calibration images say of the answer."""
    a, rule = result.accuracy, result.pick
    said = (f'calibration {a.cal_final:.3f}, reference {a.cal_reference:.3f} on {a.n_cal} images: p = '
            f'{a.cal_p_value:.2g} for a loss of ε or more')
    if rule is None or rule.confidence is None:
        return said
    if result.nothing_confirmed:
        return (f'{said}\n  no pruned network is shown to lose at most ε with confidence {rule.confidence:g}: the '
                'unpruned network is the answer')
    return f'{said}; {rule.n_passed} of {rule.n_tested} configurations tested pass at confidence {rule.confidence:g}'
