"""How good is step 3's search? Compare it with exhaustive enumeration, random and evolutionary search.

    python -m benchmarks.search_quality --domain_id 0                 # built-in example, times from results/
    python -m benchmarks.search_quality --domain_id 0 --options 3     # blocks may also keep identity alone
    python -m benchmarks.search_quality --domain_id 0 --all_links     # both head tiers on three links
    python -m benchmarks.search_quality --domain_id 0 --set MODEL_NAME=RepVGG-A0 WEIGHT_PATH_SERVER=a0.pt \\
        RESULTS_DIR=results_a0                                        # too many networks to enumerate

Every way to prune that could pay is enumerated: each block keeps all its branches, or loses its 3x3 (with --options
3 also its 1x1), and the true validation accuracy of all of these networks is measured (depth first, so that networks
share the blocks that they have in common). α stays as trained for the unpruned network: without recovery all methods
see the same accuracies, and the optimum is known. Then each method searches with the same number of evaluated
networks, and its best J is compared with the enumerated optimum. Beyond ENUMERABLE networks accuracies are measured
when they are asked for, and the methods are compared with one another.

All methods know the unpruned network. Hypervolume is that of all networks that a method evaluated, in accuracy
(fraction of 1) and T_eff / T_eff_ref. The sequential search stops where importance leads it, with fewer networks. The
table's link is replaced by that of the settings (BANDWIDTH_MBPS, RTT_MS): one table serves all links.

On a 2-core Intel Xeon virtual machine, PyTorch 2.14, one thread: built-in example, 2,048 networks, domains 0, 3 and 6
with --all_links, 18 cases, 44 networks in each: ours finds the optimum in 17, in the other it is 0.0016 of J above.
Random, evolutionary and sequential search are 0.0361, 0.0339 and 0.0439 above in the mean, and ahead of ours in none.
Of the optimum's hypervolume ours has 90 to 91 %.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domain_id', type=int, default=0)
PARSER.add_argument('--options', type=int, choices=(2, 3), default=2,
                    help='how many sets of branches a block may choose from')
PARSER.add_argument('--images', type=int, help='validation images to use (default: all)')
PARSER.add_argument('--all_links', action='store_true', help='both head tiers at 10, 100 and 1000 Mbit/s')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import itertools
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

import config
import lut_manager
from benchmarks.known_networks import KnownEvaluator, KnownNetworks, NoRecovery, OnDemand, Outcome, enumerate_margins
from benchmarks.links import every_link, on_link
from costs.cost_model import HardwareTable
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG
from network.alpha import BlockMask, PruningMask, mask_of
from pipeline import kinds
from progressive_pruning import ProgressivePruning
from search import domain_inputs
from search.acquisition import Acquisition
from search.candidates import Candidates
from search.evaluator import Evaluator
from search.importance_pruning import ImportancePruning
from search.problem import PruningProblem
from search.pruned_times import PrunedTimes
from search.stopping import stopping_rule

POPULATION = 20  # of the evolutionary search
ENUMERABLE = 20_000  # networks
SEEDS, FEWER_SEEDS = 20, 5  # repetitions of the random methods; where networks cannot be enumerated
METHODS = ('best', 'ours', 'sequential', 'random', 'evolutionary')
SAME = 1e-9  # of J


def block_options(has_identity: Sequence[bool], count: int) -> List[List[BlockMask]]:
    """What each block may keep: all, all but the 3x3, and (count 3) identity alone."""
    result = []
    for identity in has_identity:
        options = [(True, True, bool(identity)), (False, True, bool(identity))]
        if count == 3 and identity:
            options.append((False, False, True))
        result.append(options)
    return result


def random_search(known: KnownNetworks, options: List[List[BlockMask]], budget: int, seed: int) -> Outcome:
    """`budget` distinct random masks."""
    rng = np.random.default_rng(seed)
    while len(known.asked) < budget:
        known.J(tuple(choices[rng.integers(len(choices))] for choices in options))
    return known.outcome()


def tournament(population: List[PruningMask], known: KnownNetworks, rng: np.random.Generator) -> PruningMask:
    """The better of two random ones."""
    return min((population[rng.integers(len(population))] for _ in range(2)), key=known.J)


def evolutionary_search(known: KnownNetworks, options: List[List[BlockMask]], budget: int, seed: int) -> Outcome:
    """A (μ+λ) search: tournament parents, uniform crossover, one mutation a child on average."""
    rng = np.random.default_rng(seed)
    first = [tuple(choices[0] for choices in options)]
    first += [tuple(choices[rng.integers(len(choices))] for choices in options) for _ in range(POPULATION - 1)]
    population: List[PruningMask] = []
    while True:
        children = [child_of(population, known, options, rng) for _ in first] if population else first
        for mask in children:
            known.J(mask)
            if len(known.asked) >= budget:
                return known.outcome()
        population = sorted({*population, *children}, key=known.J)[:POPULATION]


def child_of(population: List[PruningMask], known: KnownNetworks, options: List[List[BlockMask]],
             rng: np.random.Generator) -> PruningMask:
    """Uniform crossover of two tournament winners, then one mutation on average."""
    mother, father = (tournament(population, known, rng) for _ in range(2))
    child = [m if rng.random() < 0.5 else f for m, f in zip(mother, father)]
    for k, choices in enumerate(options):
        if rng.random() < 1 / len(options):
            child[k] = choices[rng.integers(len(choices))]
    return tuple(child)


@dataclass(frozen=True)
class Task:
    """What all methods are given for one domain, whatever the link."""
    domain: int
    model: HyperRepVGG
    table: HardwareTable
    data: ImageSet
    alpha: np.ndarray  # [N, 3], of the unpruned network
    importance: List[Tuple[int, int]]
    options: List[List[BlockMask]]
    margins: Dict[PruningMask, np.ndarray]

    @property
    def enumerated(self) -> bool:
        """Is the optimum known?"""
        return not isinstance(self.margins, OnDemand)

    def known(self, settings: config.Settings) -> KnownNetworks:
        """Networks that nobody has asked for yet, on the link of the settings."""
        return KnownNetworks(self.margins, on_link(self.table, settings), tuple(choices[0] for choices in self.options),
                             settings)

    def problem(self, known: KnownNetworks) -> PruningProblem:
        """What our searches are given; nothing of it is trained."""
        return PruningProblem(self.model, self.data, self.data, self.alpha, self.importance, known.goal,
                              PrunedTimes(known.table, known.goal.T_eff_ref_ms, known.settings), known.settings,
                              self.domain)

    def ours(self, settings: config.Settings) -> Outcome:
        """What step 3's search ends with."""
        known = self.known(settings)
        problem = self.problem(known)
        search = ProgressivePruning(
            problem, Candidates(mask_of(self.alpha), self.options, self.importance), KnownEvaluator(known),
            Acquisition(known.goal, problem.times.relative, slack=0.5 / len(self.data)), NoRecovery(known),
            stopping_rule(known.table.n_blocks, settings))
        state = search.run(search.start(), lambda state: None)
        return known.outcome(known.J(mask_of(state.best.alpha)))

    def sequential(self, settings: config.Settings) -> Outcome:
        """What the search by importance ends with."""
        known = self.known(settings)
        search = ImportancePruning(self.problem(known), NoRecovery(known))
        state = search.run(search.start(), lambda state: None)
        return known.outcome(known.J(mask_of(state.best.alpha)))


def prepare(domain: int, options_count: int, n_images: Optional[int], settings: config.Settings) -> Task:
    """Load a domain; enumerate its networks where they are few enough."""
    table = lut_manager.load(kinds.path_of('lut', settings), settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    model = domain_inputs.base_model(settings)
    data = load_domain(settings, domain, 'val')
    data = ImageSet(data.images[:n_images], data.labels[:n_images])
    alpha, _ = domain_inputs.reference_alpha(model, data, domain, settings)
    importance = domain_inputs.importance_ranking(domain, table.block_names, settings)
    options = block_options(table.has_identity, options_count)
    if np.prod([float(len(choices)) for choices in options]) <= ENUMERABLE:
        margins = enumerate_margins(model, alpha, options, data, settings)
    else:
        margins = OnDemand(Evaluator(model, alpha, data, settings))
    return Task(domain, model, table, data, alpha, importance, options, margins)


def run_all(task: Task, settings: config.Settings) -> Dict[str, List[Outcome]]:
    """What each method finds, the random ones once for each seed; the lowest J of all of them under 'best', the optimum
    where it is known."""
    found = {'unpruned': [task.known(settings).outcome()], 'ours': [task.ours(settings)],
             'sequential': [task.sequential(settings)]}
    budget = found['ours'][0].networks
    for name, method in (('random', random_search), ('evolutionary', evolutionary_search)):
        found[name] = [method(task.known(settings), task.options, budget, seed)
                       for seed in range(SEEDS if task.enumerated else FEWER_SEEDS)]
    if task.enumerated:
        everything = task.known(settings)
        for mask in itertools.product(*task.options):
            everything.J(mask)
        found['best'] = [everything.outcome()]
    else:
        outcomes = [outcome for several in found.values() for outcome in several]
        found['best'] = [min(outcomes, key=lambda outcome: outcome.J)]
    return found


def medians(found: Dict[str, List[Outcome]], field: str) -> List[float]:
    """Over the seeds, of METHODS."""
    return [float(np.median([getattr(outcome, field) for outcome in found[name]])) for name in METHODS]


def print_one(task: Task, found: Dict[str, List[Outcome]]) -> None:
    """A line for each method."""
    best = found['best'][0].J
    names = {'unpruned': 'unpruned', 'ours': 'step 3 (ours)', 'sequential': 'sequential (importance)',
             'random': 'random search', 'evolutionary': 'evolutionary search',
             'best': 'enumerated optimum' if task.enumerated else 'lowest of all'}
    print(f"{'':34} {'J':>9} {'above the best':>20} {'hypervolume':>12} {'networks':>9}")
    for key, name in names.items():
        outcomes = found[key]
        J, area = (np.array([getattr(outcome, field) for outcome in outcomes]) for field in ('J', 'hypervolume'))
        rows = [(name, J[0], area[0])] if len(outcomes) == 1 else [
            (f'{name}, median of {len(J)}', np.median(J), np.median(area)),
            (f'{name}, best of {len(J)}', J.min(), area.max())]
        for label, value, volume in rows:
            print(f'{label:34} {value:9.5f} {value - best:9.5f} {percent(value, best):8.2f} % {volume:12.6f} '
                  f'{outcomes[0].networks:9d}')


def percent(J: np.ndarray, best: np.ndarray) -> np.ndarray:
    """How far J is above the best, in % of its size."""
    return 100 * (J - best) / np.abs(best)


def print_links(task: Task, settings: config.Settings) -> None:
    """A line for each head tier and link, and what they have in common."""
    print('head   Mbit/s      best      ours     above networks sequential   random evolutionary', flush=True)
    rows, areas = [], []
    for linked in every_link(settings):
        found = run_all(task, linked)
        rows.append(medians(found, 'J'))
        areas.append(medians(found, 'hypervolume'))
        best, ours, sequential, by_chance, evolved = rows[-1]
        print(f'{linked.HEAD_TIER:6} {linked.BANDWIDTH_MBPS:6.0f} {best:9.5f} {ours:9.5f} {ours - best:9.5f} '
              f'{found["ours"][0].networks:8d} {sequential:10.5f} {by_chance:8.5f} {evolved:12.5f}', flush=True)
    best, ours, _, by_chance, evolved = np.array(rows).T
    above = percent(ours, best)
    print(f'ours is the best in {int((ours <= best + SAME).sum())} of {len(rows)} cases; above it by '
          f'{(ours - best).mean():.5f} ({above.mean():.2f} %) in the mean, {(ours - best).max():.5f} '
          f'({above.max():.2f} %) at worst; behind the median of random search in '
          f'{int((ours > by_chance + SAME).sum())}, of evolutionary search in {int((ours > evolved + SAME).sum())}')
    print('hypervolume, means: ' + ', '.join(
        f'{name} {area:.5f}' for name, area in zip(METHODS, np.mean(areas, axis=0)) if task.enumerated or
        name != 'best'))


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    task = prepare(cli.domains(str(args.domain_id), settings)[0], args.options, args.images, settings)
    reference = task.known(settings).goal.A_ref
    number = f'{len(task.margins)} networks' if task.enumerated else 'networks on demand'
    print(f'domain {task.domain}, {len(task.data)} validation images, {number}, A_ref {reference:.4f}')
    if args.all_links:
        print_links(task, settings)
    else:
        print_one(task, run_all(task, settings))


if __name__ == '__main__':
    cli.run(main)
