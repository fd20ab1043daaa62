"""The sequential baseline for one domain: prune by importance (first half), then choose γ and λ (second half)."""
from __future__ import annotations

import torch

import lut_manager
from config import Settings
from costs.goal import Goal
from network.alpha import surviving_branches
from pipeline import kinds
from search import domain_inputs, domain_search, result_assembly, result_file, state_file
from search.importance_pruning import ImportancePruning
from search.problem import PruningProblem
from search.recovery import Recovery
from throughput_optimizer import solve_exact
from throughput_optimizer_limit import solve_within_limits

PRUNED = 'sequential_accuracy'  # the kind of the first half's file


def search_of(problem: PruningProblem) -> ImportancePruning:
    """The search by importance."""
    return ImportancePruning(problem, Recovery(problem))


def prune(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The first half: prune by importance, run at the split that step 2 chose for the unpruned network."""
    table = lut_manager.load(lut_file, settings)
    outcome = domain_search.run_search(domain, table, settings, search_of, PRUNED, inputs)
    split = domain_search.solve_unpruned(table, settings).split
    problem, best = outcome.problem, outcome.state.best
    statistics = problem.statistics_for(best.alpha)[0] if best.recalibrated else None
    configuration, accuracy = result_assembly.best_on_wire(
        best.alpha, lambda chosen: solve_exact(table, surviving_branches(best.alpha), chosen, splits=[split]),
        problem.model, problem.val, problem.goal, settings, statistics)
    result = result_assembly.assemble(outcome, configuration, accuracy, 'pseudo', statistics)
    result_file.save(PRUNED, result, settings, inputs)
    state_file.drop(f'{PRUNED}_state', domain, settings)
    print(result_assembly.summary(result, settings))
    print(f'  -> {kinds.path_of(PRUNED, settings, domain)}')


def split(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The second half: γ and λ for the network that the first half left."""
    table = lut_manager.load(lut_file, settings)
    pruned = result_file.load(domain, table, settings, PRUNED)
    alpha, model = pruned.configuration.alpha, domain_inputs.base_model(settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    goal = Goal(pruned.baselines['step2'].times.T_eff_ms, pruned.accuracy.val_reference, settings.EPSILON,
                settings.KAPPA, settings.MU)
    val, test = (domain_inputs.images_of(settings, domain, subset) for subset in ('val', 'test'))
    chosen, accuracy = result_assembly.best_on_wire(
        alpha, lambda chosen: solve_within_limits(table, surviving_branches(alpha), chosen), model, val, goal, settings,
        pruned.batchnorm)
    result = result_assembly.as_chosen(pruned, chosen, accuracy, model, val, test, table, settings, pruned.batchnorm)
    result_file.save('sequential', result, settings, inputs)
    result_file.add_sequential_baseline(result, settings)
    print(result_assembly.summary(result, settings))
    print(f"  -> {kinds.path_of('sequential', settings, domain)}")
