"""The sequential baseline for one domain: prune by importance (first half), then choose γ and λ (second half)."""
from __future__ import annotations

import itertools
from typing import Iterator

import numpy as np
import torch

import lut_manager
from config import Settings
from network.alpha import surviving_branches
from pipeline import kinds
from search import answers, domain_inputs, domain_search, result_assembly, result_file, state_file
from search.importance_pruning import ImportancePruning
from search.problem import PruningProblem
from search.recovery import Recovery
from search.state import EvaluatedNetwork
from throughput_optimizer import solve_exact
from throughput_optimizer_limit import solve_within_limits

PRUNED = 'sequential_accuracy'  # the kind of the first half's file


def search_of(problem: PruningProblem) -> ImportancePruning:
    """The search by importance."""
    return ImportancePruning(problem, Recovery(problem))


def prune(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The first half: prune by importance; of the networks accepted, the last that is confirmed on calibration images
    in the order of pruning, at the split that step 2 chose for the unpruned network."""
    table = lut_manager.load(lut_file, settings)
    outcome = domain_search.run_search(domain, table, settings, search_of, PRUNED, inputs)
    split = domain_search.solve_unpruned(table, settings).split
    problem = outcome.problem
    calibration = answers.calibration_of(problem.model, problem.unpruned, domain, settings)

    def at_split(alpha: np.ndarray) -> answers.Solve:
        return lambda given: solve_exact(table, surviving_branches(alpha), given, splits=[split])

    def answer(network: EvaluatedNetwork) -> answers.Answer:
        statistics = problem.statistics_for(network.alpha)[0] if network.recalibrated else None
        return answers.best_on_wire(network.alpha, at_split(network.alpha), calibration, problem.val, problem.goal,
                                    settings.WIRE_FORMATS, statistics)

    first = answers.unpruned(at_split(problem.unpruned), calibration, problem.val, problem.goal)
    accepted = outcome.state.recovered.values()  # in the order of pruning
    found = answers.last_confirmed(itertools.chain(first, map(answer, accepted)), calibration)
    result = result_assembly.assemble(outcome, found.answer, 'pseudo')
    result_file.save(PRUNED, result, settings, inputs, lut_file=lut_file)
    state_file.drop(f'{PRUNED}_state', domain, settings)
    print(result_assembly.summary(result, settings))
    print(f'  -> {kinds.path_of(PRUNED, settings, domain)}')


def split(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The second half: γ and λ for the network that the first half left; where a lossy format at the new split is not
    confirmed on calibration images, a format without loss, and at last the unpruned network."""
    table = lut_manager.load(lut_file, settings)
    pruned = result_file.load(domain, table, settings, PRUNED, lut_file)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    model, goal = domain_inputs.base_model(settings), result_assembly.goal_of(pruned, settings)
    val, test = (domain_inputs.images_of(settings, domain, subset) for subset in ('val', 'test'))
    reference, _ = domain_inputs.reference_alpha(model, val, domain, settings)
    calibration = answers.calibration_of(model, reference, domain, settings)

    def solve_for(alpha: np.ndarray) -> answers.Solve:
        return lambda given: solve_within_limits(table, surviving_branches(alpha), given)

    def options() -> Iterator[answers.Answer]:
        alpha = pruned.configuration.alpha
        for formats in filter(None, (settings.WIRE_FORMATS, answers.lossless(settings))):
            yield answers.best_on_wire(alpha, solve_for(alpha), calibration, val, goal, formats, pruned.batchnorm)
        yield from answers.unpruned(solve_for(reference), calibration, val, goal)

    answer = answers.first_confirmed(options(), calibration)
    result = result_assembly.as_chosen(pruned, answer, model, val, test, table, settings)
    result_file.save('sequential', result, settings, inputs, lut_file=lut_file)
    result_file.add_sequential_baseline(result, settings, lut_file)
    print(result_assembly.summary(result, settings))
    print(f"  -> {kinds.path_of('sequential', settings, domain)}")
