"""What steps 3 and 4 do for one domain, from its input files to its result file. These functions are the work of the
engines' jobs (engines/jobs.py), so all of them begin with (domain, settings, inputs, lut_file)."""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, NamedTuple, Optional

import torch

import lut_manager
from config import Settings
from costs.cost_model import HardwareTable, goal
from hyper_repvgg import HyperRepVGG
from network.alpha import surviving_branches
from pipeline import fingerprints, kinds
from search import domain_search, joint_result
from search.frontier_search import FrontierSearch
from search.importance_pruning import ImportanceSearch
from search.joint_result import JointResult
from search.pruning_search import PruningSearch
from throughput_optimizer import solve_exact
from throughput_optimizer_limit import solve_within_limits


class JointInputs(NamedTuple):
    """Fingerprints of what shapes a joint result."""
    result: str
    search: str  # the same without what is only picked


def joint_inputs(domain: int, settings: Settings, lut_file: str) -> JointInputs:
    """The fingerprints of a domain under these settings and this table."""
    return JointInputs(*(fingerprints.inputs_of(kind, settings, domain, lut=lut_file)
                         for kind in ('joint', 'joint_state')))


def joint(domain: int, settings: Settings, inputs: str, lut_file: str, search_inputs: str, search_again: bool) -> None:
    """Step 3 in pseudo mode."""
    optimise(domain, lut_manager.load(lut_file, settings), settings, JointInputs(inputs, search_inputs),
             search_again=search_again)


def optimise(domain: int, table: HardwareTable, settings: Settings, inputs: JointInputs, mode: str = 'pseudo',
             search_type: Callable[..., PruningSearch] = FrontierSearch,
             measure: Optional[Callable[[HyperRepVGG, JointResult], Dict[str, Any]]] = None,
             search_again: bool = True) -> None:
    """Search one domain (unless a finished search of the same inputs will do: `search_again`), pick from its frontier,
    write the result, print a summary. Real mode gives its own `search_type`, and `measure(model, result)`, what the
    file's `measured` holds."""
    found = None if search_again else joint_result.load_same_search(domain, table, settings, inputs.search, mode)
    if found is not None:
        model = domain_search.base_model(settings)
        result = domain_search.pick_again(found, table, settings, model)
    else:
        outcome = domain_search.run_search(domain, table, settings, search_type, 'joint', inputs.search)
        model, result = outcome.search.model, domain_search.pick_from_search(outcome, mode)
    sequential = joint_result.sequential_baseline(domain, table, settings)
    if sequential is not None:
        result.baselines['sequential'] = sequential
    if measure is not None:
        result = dataclasses.replace(result, measured=measure(model, result))
    joint_result.save('joint', result, settings, inputs.result, inputs.search)
    joint_result.drop_state('joint_state', domain, settings)
    print(domain_search.summary(result))
    print(f"  -> {kinds.path_of('joint', settings, domain)}")


def sequential_pruning(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The sequential baseline's first half: prune by importance, run at the split that step 2 chose."""
    kind = 'sequential_accuracy'
    table = lut_manager.load(lut_file, settings)
    outcome = domain_search.run_search(domain, table, settings, ImportanceSearch, kind, inputs)
    split = domain_search.solve_unpruned(table, settings).split
    search, alpha = outcome.search, outcome.state.alpha
    statistics = search.statistics_for(alpha)[0] if outcome.state.recalibrated else None
    configuration, accuracy = domain_search.best_on_wire(
        alpha, lambda chosen: solve_exact(table, surviving_branches(alpha), chosen, splits=[split]), search.model,
        search.val, search.J, settings, statistics)
    result = domain_search.assemble(outcome, configuration, accuracy, 'pseudo', statistics)
    joint_result.save(kind, result, settings, inputs)
    joint_result.drop_state(f'{kind}_state', domain, settings)
    print(domain_search.summary(result))
    print(f'  -> {kinds.path_of(kind, settings, domain)}')


def sequential_split(domain: int, settings: Settings, inputs: str, lut_file: str) -> None:
    """The sequential baseline's second half: γ and λ for the network that the first half left."""
    table = lut_manager.load(lut_file, settings)
    pruned = joint_result.load(domain, table, settings, 'sequential_accuracy')
    alpha = pruned.configuration.alpha
    T_eff_ref_ms, model = pruned.baselines['step2'].times.T_eff_ms, domain_search.base_model(settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    chosen, accuracy = domain_search.best_on_wire(
        alpha, lambda chosen: solve_within_limits(table, surviving_branches(alpha), chosen), model,
        domain_search.images_of(settings, domain, 'val'),
        lambda T_eff_ms, accuracy: goal(T_eff_ms, T_eff_ref_ms, accuracy, pruned.accuracy.val_reference,
                                        settings.EPSILON, settings.KAPPA, settings.MU)[0], settings, pruned.batchnorm)
    result = domain_search.as_chosen(pruned, chosen, accuracy, model, domain_search.images_of(settings, domain, 'test'),
                                     table, settings, pruned.batchnorm)
    joint_result.save('sequential', result, settings, inputs)
    joint_result.add_sequential_baseline(result, settings)
    print(domain_search.summary(result))
    print(f"  -> {kinds.path_of('sequential', settings, domain)}")
