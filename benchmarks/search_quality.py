"""How good is step 3's search? Compare it with exhaustive enumeration, random and evolutionary search.

    python benchmarks/search_quality.py --domain_id 0                 # built-in example, times from results/
    python benchmarks/search_quality.py --domain_id 0 --options 3     # blocks may also keep identity alone

Every way to prune that could pay is enumerated: each block keeps all its branches, or loses its 3x3 (with --options
3 also its 1x1), and the true validation accuracy of all of these networks is measured (depth first, so that networks
share the blocks that they have in common). α stays as trained for the unpruned network: without recovery all methods
see the same accuracies, and the optimum is known. Then each method searches with the same number of evaluated
networks, and its best J is compared with the enumerated optimum.
"""
from __future__ import annotations

import itertools
import os
import sys
from typing import Dict, List, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cli  # noqa: E402
import config  # noqa: E402
import domain_search  # noqa: E402
import json_files  # noqa: E402
import lut_manager  # noqa: E402
from cost_model import HardwareTable, goal  # noqa: E402
from domain_dataset import load_domain  # noqa: E402
from evaluation import ImageSet, normalise  # noqa: E402
from gamma_configurator import build_plan, fused_gamma  # noqa: E402
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg, deploy  # noqa: E402
from importance_pruning import ImportanceSearch  # noqa: E402
from prefix_activations import Choice, Look  # noqa: E402
from progressive_pruning import JointSearch  # noqa: E402
from pruning_search import Judgement, PruningSearch, SearchState, choice_of  # noqa: E402
from throughput_optimizer import solve_exact  # noqa: E402

POPULATION, SEEDS = 20, 20  # of the evolutionary search; repetitions of the random methods


def block_options(has_identity: Sequence[bool], count: int) -> List[List[Tuple[bool, ...]]]:
    """What each block may keep: all, all but the 3x3, and (count 3) identity alone."""
    result = []
    for identity in has_identity:
        options = [(True, True, bool(identity)), (False, True, bool(identity))]
        if count == 3 and identity:
            options.append((False, False, True))
        result.append(options)
    return result


def enumerate_accuracies(model: HyperRepVGG, alpha: np.ndarray, options: List[List[Tuple[bool, ...]]],
                         data: ImageSet, settings: config.Settings) -> Dict[Choice, float]:
    """Accuracy of every combination of options, depth first: a prefix of blocks is run once for all that share it."""
    model.set_alpha_array(alpha)
    stem, n = deploy(model).stem, len(options)
    plans = []
    for block, row, choices in zip(model.blocks, alpha, options):
        values = [torch.as_tensor(np.where(keep, row, 0)[:block.n_branches], dtype=block.alpha.dtype)
                  for keep in choices]
        plans.append([build_plan(block, value, fused_gamma(keep)) for value, keep in zip(values, choices)])
    found: Dict[Choice, float] = {}
    total = int(np.prod([len(choices) for choices in options]))
    with torch.inference_mode(), tqdm(total=total, desc='enumerating', unit='network') as bar:
        def descend(depth: int, x: torch.Tensor, chosen: Choice) -> None:
            if depth == n:
                logits = model.classify(x)
                found[chosen] = float((logits.argmax(1) == data.labels).float().mean())
                bar.update()
                return
            for plan, keep in zip(plans[depth], options[depth]):
                descend(depth + 1, plan(x), (*chosen, keep))

        descend(0, stem(normalise(data.images, settings.NORM_MEAN, settings.NORM_STD)), ())
    return found


class Evaluator:
    """J of a choice by the enumerated accuracies; counts the distinct networks that were asked for."""

    def __init__(self, accuracies: Dict[Choice, float], table: HardwareTable, reference: float,
                 settings: config.Settings) -> None:
        self.accuracies, self.table, self.reference, self.settings = accuracies, table, reference, settings
        self.T_eff_ref_ms = domain_search.solve_unpruned(table, settings).times.T_eff_ms
        self.asked: Dict[Choice, float] = {}

    def J(self, choice: Choice) -> float:
        """The objective of a choice, remembered."""
        if choice not in self.asked:
            T_eff_ms = solve_exact(self.table, np.array(choice), self.settings).times.T_eff_ms
            self.asked[choice] = goal(T_eff_ms, self.T_eff_ref_ms, self.accuracies[choice], self.reference,
                                      self.settings.EPSILON, self.settings.KAPPA, self.settings.MU)[0]
        return self.asked[choice]


def random_search(evaluator: Evaluator, options: List[List[Tuple[bool, ...]]], budget: int, seed: int) -> float:
    """Best J of `budget` distinct random choices."""
    rng = np.random.default_rng(seed)
    while len(evaluator.asked) < budget:
        evaluator.J(tuple(choices[rng.integers(len(choices))] for choices in options))
    return min(evaluator.asked.values())


def tournament(population: List[Choice], evaluator: Evaluator, rng: np.random.Generator) -> Choice:
    """The better of two random ones."""
    return min((population[rng.integers(len(population))] for _ in range(2)), key=evaluator.J)


def evolutionary_search(evaluator: Evaluator, options: List[List[Tuple[bool, ...]]], budget: int, seed: int) -> float:
    """Best J of a (μ+λ) search: tournament parents, uniform crossover, one mutation a child on average."""
    rng = np.random.default_rng(seed)
    population = [tuple(choices[0] for choices in options)]
    population += [tuple(choices[rng.integers(len(choices))] for choices in options) for _ in range(POPULATION - 1)]
    while True:
        for choice in population:
            evaluator.J(choice)
            if len(evaluator.asked) >= budget:
                return min(evaluator.asked.values())

        children = []
        for _ in range(POPULATION):
            mother, father = (tournament(population, evaluator, rng) for _ in range(2))
            child = [m if rng.random() < 0.5 else f for m, f in zip(mother, father)]
            for k, choices in enumerate(options):
                if rng.random() < 1 / len(options):
                    child[k] = choices[rng.integers(len(choices))]
            children.append(tuple(child))
        population = sorted({*population, *children}, key=evaluator.J)[:POPULATION]


class Tabled:
    """Mixed into a search of ours: its looks and judgements read the enumerated accuracies, α does not recover."""
    evaluator: Evaluator
    given: List[List[Tuple[bool, ...]]]

    def options(self) -> List[List[Tuple[bool, ...]]]:
        """What was enumerated."""
        return self.given

    def look_accuracy(self, state: SearchState, choice: Choice, needed: float = 0.0) -> Look:
        """Read, and counted."""
        self.evaluator.J(choice)
        return Look(self.evaluator.accuracies[choice], len(self.val))

    def judge(self, state: SearchState, *change) -> Judgement:
        """A look again; a change that was not enumerated is never accepted."""
        if len(change) == 2:  # the sequential search names one block
            rows = list(choice_of(state.alpha))
            rows[change[0]] = change[1]
            change = (tuple(rows),)
        if change[0] not in self.evaluator.accuracies:
            return Judgement(0.0, state.alpha)
        alpha = np.where(np.isnan(self.unpruned), np.nan, np.where(np.array(change[0]), self.unpruned, 0.0))
        return Judgement(self.look_accuracy(state, change[0]).accuracy, alpha)

    def polish(self, state: SearchState) -> None:
        """Nothing to recover."""
        state.polished = True

    def go_further(self, state: SearchState) -> bool:
        """Looks have told all: without recovery there is no other α."""
        return False


def our_search(search_type: Type[PruningSearch], evaluator: Evaluator, options: List[List[Tuple[bool, ...]]],
               *arguments) -> Tuple[float, int]:
    """(J, evaluated networks) of a search of ours on the enumerated accuracies."""
    search = type('TabledSearch', (Tabled, search_type), {'evaluator': evaluator, 'given': options})(*arguments)
    state = search.run(search.start(), lambda state: None)
    return evaluator.J(choice_of(state.alpha)), len(evaluator.asked)


def compare(domain: int, options_count: int, n_images: Optional[int], settings: config.Settings) -> None:
    """Enumerate, search and print the comparison."""
    table = lut_manager.load(json_files.path_of('lut', settings), settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)
    data = load_domain(settings, domain, 'val')
    data = ImageSet(data.images[:n_images], data.labels[:n_images])
    alpha, _ = domain_search.reference_alpha(model, data, domain, settings)
    options = block_options(table.has_identity, options_count)
    accuracies = enumerate_accuracies(model, alpha, options, data, settings)
    reference = accuracies[tuple(choices[0] for choices in options)]
    importance = domain_search.importance_ranking(domain, table.block_names, settings)

    def fresh() -> Evaluator:
        return Evaluator(accuracies, table, reference, settings)

    everything = fresh()
    optimum = min(everything.J(choice) for choice in itertools.product(*options))
    unpruned = everything.J(tuple(choices[0] for choices in options))
    arguments = (model, table, data, data, settings, domain, alpha, reference, everything.T_eff_ref_ms, importance)
    found, evaluated = our_search(JointSearch, fresh(), options, *arguments)
    sequential, tried = our_search(ImportanceSearch, fresh(), options, *arguments)
    rows = [('unpruned', unpruned, 1), ('enumerated optimum', optimum, len(accuracies)),
            ('joint search (ours)', found, evaluated), ('sequential (importance)', sequential, tried)]
    for name, method in (('random search', random_search), ('evolutionary search', evolutionary_search)):
        values = [method(fresh(), options, evaluated, seed) for seed in range(SEEDS)]
        rows.append((f'{name}, median of {SEEDS}', float(np.median(values)), evaluated))
        rows.append((f'{name}, best of {SEEDS}', float(np.min(values)), evaluated))
    print(f'domain {domain}, {len(data)} validation images, {len(accuracies)} networks, A_ref {reference:.4f}')
    print(f"{'':34} {'J':>9} {'above optimum':>14} {'networks':>9}")
    for name, J, count in rows:
        print(f'{name:34} {J:9.5f} {100 * (J - optimum) / abs(optimum):12.2f} % {count:9d}')


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('--domain_id', type=int, default=0)
    parser.add_argument('--options', type=int, choices=(2, 3), default=2, help='keep-sets a block may choose from')
    parser.add_argument('--images', type=int, help='validation images to use (default: all)')
    args, settings = cli.parse(parser, argv)
    compare(cli.domains(str(args.domain_id), settings)[0], args.options, args.images, settings)


if __name__ == '__main__':
    cli.run(main)
