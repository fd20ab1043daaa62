"""One domain's search from its input files to its end, resumed where an earlier run was killed."""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, List, Protocol, Tuple

import numpy as np
import torch

import cli
from config import Settings
from costs.cost_model import HardwareTable, Solution
from costs.goal import Goal
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG
from network.alpha import surviving_branches, unpruned_alpha
from search import domain_inputs, state_file
from search.problem import PruningProblem
from search.pruned_times import PrunedTimes
from search.state import SearchState
from throughput_optimizer import solve_exact


class Search(Protocol):
    """What step 3's search and the sequential one have in common."""

    def start(self) -> SearchState:
        """The state before anything is pruned."""

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Search to the end; `save(state)` after every round."""


def problem_of(domain: int, table: HardwareTable, settings: Settings) -> PruningProblem:
    """The pruning problem of a domain; the network to prune is the one behind A_ref."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = domain_inputs.base_model(settings)
    ranking = domain_inputs.importance_ranking(domain, table.block_names, settings)
    train, val = (domain_inputs.images_of(settings, domain, subset) for subset in ('train', 'val'))
    unpruned, A_ref = domain_inputs.reference_alpha(model, val, domain, settings)
    return made_problem(model, train, val, unpruned, A_ref, ranking, table, settings, domain)


def made_problem(model: HyperRepVGG, train: ImageSet, val: ImageSet, unpruned: np.ndarray, A_ref: float,
                 ranking: List[Tuple[int, int]], table: HardwareTable, settings: Settings, domain: int,
                 ) -> PruningProblem:
    """A problem from its parts: `unpruned` is the α [N, 3] of the network to prune, A_ref its accuracy."""
    T_eff_ref_ms = solve_unpruned(table, settings).times.T_eff_ms
    goal = Goal(T_eff_ref_ms, A_ref, settings.EPSILON, settings.KAPPA, settings.MU)
    return PruningProblem(model, train, val, unpruned, ranking, goal, PrunedTimes(table, T_eff_ref_ms, settings),
                          settings, domain)


def solve_unpruned(table: HardwareTable, settings: Settings) -> Solution:
    """Step 2's exact answer: the network as it is, at its best split."""
    return solve_exact(table, surviving_branches(unpruned_alpha(table.n_branches)), settings)


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search with the problem that it started from."""
    problem: PruningProblem
    state: SearchState
    wall_s: float


def run_search(domain: int, table: HardwareTable, settings: Settings, search_of: Callable[[PruningProblem], Search],
               kind: str, inputs: str) -> SearchOutcome:
    """Search one domain, or go on with a search of the same inputs; its state is kept in the file of `kind`_state."""
    start = time.perf_counter()
    problem = problem_of(domain, table, settings)
    search = search_of(problem)
    resumed = state_file.load(f'{kind}_state', domain, table, settings, inputs)
    state, spent = resumed or (search.start(), 0.0)
    if resumed:
        cli.say(f'domain {domain}: going on after round {state.rounds}')
    said = state.curve[-1]

    def keep(state: SearchState) -> None:
        state_file.save(f'{kind}_state', state, domain, table, settings, inputs, spent + time.perf_counter() - start)
        nonlocal said
        if state.curve[-1] is not said:
            said = state.curve[-1]
            cli.say(f'domain {domain} round {state.rounds}: {said.n_pruned} branches pruned, validation accuracy '
                    f'{said.accuracy:.3f}, T_eff {said.T_eff_ms:.3f} ms')

    search.run(state, keep)
    return SearchOutcome(problem, state, spent + time.perf_counter() - start)
