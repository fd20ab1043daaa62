"""Step 3 for one domain: search, pick from the frontier, write the result, say what was found."""
from __future__ import annotations

import dataclasses
import os
from typing import Any, Callable, Dict, NamedTuple, Optional

import cli
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable
from domain_dataset import load_domain
from hyper_repvgg import HyperRepVGG
from pipeline import fingerprints, kinds
from progressive_pruning import ProgressivePruning
from remote.session import Session
from report.measured import comparison
from search import domain_inputs, domain_search, result_assembly, result_file, state_file
from search.acquisition import Acquisition
from search.candidates import candidates_of
from search.evaluator import Evaluator
from search.problem import PruningProblem
from search.recovery import Recovery
from search.result import JointResult
from search.stopping import stopping_rule
from split_trainer import measure, split_network


class JointInputs(NamedTuple):
    """Fingerprints of what shapes a joint result, and where the table behind it lies."""
    result: str
    search: str  # less what is only picked
    lut_file: str


def joint_inputs(domain: int, settings: Settings, lut_file: str, mode: str) -> JointInputs:
    """The fingerprints of a domain under these settings and this table."""
    return JointInputs(*(fingerprints.inputs_of(kind, settings, domain, mode, lut=lut_file)
                         for kind in ('joint', 'joint_state')), lut_file)


def joint(domain: int, settings: Settings, inputs: str, lut_file: str, search_inputs: str, search_again: bool) -> None:
    """Step 3 in pseudo mode."""
    optimise(domain, lut_manager.load(lut_file, settings), settings, JointInputs(inputs, search_inputs, lut_file),
             search_again=search_again)


def joint_through_client(domain: int, session: Session, settings: Settings, remeasure: bool = False,
                         search_again: bool = True) -> None:
    """Step 3 in real mode: table, α training, evaluation and stream through a connected client."""
    table = session.table(domain, remeasure)
    test = load_domain(settings, domain, 'test')
    train_as = split_network(session, table)
    optimise(domain, table, settings, joint_inputs(domain, settings, kinds.path_of('lut', settings), fingerprints.REAL),
             fingerprints.REAL,
             lambda problem: search_of(dataclasses.replace(problem, model=train_as(problem.model))),
             lambda model, result: measure(session, model, result.configuration, table, test,
                                           statistics=result.batchnorm), search_again)


def search_of(problem: PruningProblem) -> ProgressivePruning:
    """The joint search of a problem, put together from its parts."""
    settings = problem.settings
    return ProgressivePruning(
        problem,
        candidates_of(problem.table, problem.unpruned, problem.goal.T_eff_ref_ms, problem.importance, settings),
        Evaluator(problem.model, problem.unpruned, problem.val, settings),
        Acquisition(problem.goal, problem.times.relative, slack=0.5 / len(problem.val)),
        Recovery(problem), stopping_rule(problem.table.n_blocks, settings))


def optimise(domain: int, table: HardwareTable, settings: Settings, inputs: JointInputs, mode: str = 'pseudo',
             make_search: Callable[[PruningProblem], ProgressivePruning] = search_of,
             measured: Optional[Callable[[HyperRepVGG, JointResult], Dict[str, Any]]] = None,
             search_again: bool = True) -> None:
    """Search one domain (unless a finished search of the same inputs will do: `search_again`), pick from its frontier,
    write the result, print a summary. Real mode gives a `make_search` of its own, and `measured(model, result)`, what
    the file's `measured` holds."""
    found = None if search_again else result_file.load_finished(domain, table, settings, inputs.search, mode)
    if found is None and not search_again and os.path.exists(kinds.path_of('joint', settings, domain)):
        cli.say(f'domain {domain}: the result that is there was made under other settings or inputs; searching anew')
    if found is not None:
        model = domain_inputs.base_model(settings)
        result = result_assembly.pick_again(found, table, settings, model)
    else:
        outcome = domain_search.run_search(domain, table, settings, make_search, 'joint', inputs.search)
        model, result = outcome.problem.model, result_assembly.pick_from_search(outcome, mode)
    sequential = result_file.sequential_baseline(domain, table, settings, inputs.lut_file)
    if sequential is not None:
        result.baselines['sequential'] = sequential
    if measured is not None:
        result = dataclasses.replace(result, measured=measured(model, result))
    result_file.save('joint', result, settings, inputs.result, inputs.search, inputs.lut_file)
    state_file.drop('joint_state', domain, settings)
    print(result_assembly.summary(result, settings))
    if result.measured is not None:
        print('\n'.join(f'  {line}' for line in comparison(result.measured)))
    print(f"  -> {kinds.path_of('joint', settings, domain)}")
