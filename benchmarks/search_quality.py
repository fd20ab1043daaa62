"""How good is step 3's search? Compare it with exhaustive enumeration, random and evolutionary search.

    python benchmarks/search_quality.py --domain_id 0                 # built-in example, times from results/
    python benchmarks/search_quality.py --domain_id 0 --options 3     # blocks may also keep identity alone
    python benchmarks/search_quality.py --domain_id 0 --all_links     # both head tiers on three links
    python benchmarks/search_quality.py --domain_id 0 --set MODEL_NAME=RepVGG-A0 WEIGHT_PATH_SERVER=a0.pt \
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

On a 2-core Intel Xeon virtual machine, PyTorch 2.14, one thread. Built-in example, 2,048 networks, all ten domains with
--all_links, 60 cases, 52 networks: ours finds the optimum in 44, is 0.0008 of J above it in the mean and 0.0150 at
worst; behind the median of random and of evolutionary search in none, behind the sequential search in 1. In the mean
those are 0.0175, 0.0152 and 0.0332 above the optimum. Of the optimum's hypervolume ours has 93 to 97 %.
RepVGG-A0 on 32x32 digits, 2^21 networks, --all_links, medians of 5, before the surrogate predicted margins (commit
43f84ed): in domain 0 ours is the lowest in 6 of 6 cases with 44 networks; in domain 3 in 2 of 6 with 44 (0.0395 above
at worst, behind random and evolutionary search in 1) and in 4 of 6 with 80 (LOOKS=76; 0.0135 at worst, behind none of
the medians).
"""
from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass, replace
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cli  # noqa: E402
import config  # noqa: E402
import domain_search  # noqa: E402
import hardest_first  # noqa: E402
import json_files  # noqa: E402
import lut_manager  # noqa: E402
from cost_model import TIERS, HardwareTable, Link, goal  # noqa: E402
from domain_dataset import load_domain  # noqa: E402
from evaluation import ImageSet, normalise  # noqa: E402
from frontier import hypervolume, lowest_explored  # noqa: E402
from frontier_search import SLOWEST, FrontierSearch  # noqa: E402
from gamma_configurator import build_plan, fused_gamma  # noqa: E402
from hyper_repvgg import HyperRepVGG, deploy  # noqa: E402
from importance_pruning import ImportanceSearch  # noqa: E402
from prefix_activations import Choice, Keep, PruningEvaluator, choice_of, kept  # noqa: E402
from pruning_search import Judgement, PruningSearch, SearchState  # noqa: E402
from throughput_optimizer import solve_exact  # noqa: E402

POPULATION = 20  # of the evolutionary search
ENUMERABLE = 20_000  # networks
SEEDS, FEWER_SEEDS = 20, 5  # repetitions of the random methods; where networks cannot be enumerated
METHODS = ('best', 'ours', 'sequential', 'random', 'evolutionary')
LINKS_MBPS = (10.0, 100.0, 1000.0)  # of --all_links
SAME = 1e-9  # of J


def block_options(has_identity: Sequence[bool], count: int) -> List[List[Keep]]:
    """What each block may keep: all, all but the 3x3, and (count 3) identity alone."""
    result = []
    for identity in has_identity:
        options = [(True, True, bool(identity)), (False, True, bool(identity))]
        if count == 3 and identity:
            options.append((False, False, True))
        result.append(options)
    return result


def enumerate_margins(model: HyperRepVGG, alpha: np.ndarray, options: List[List[Keep]],
                      data: ImageSet, settings: config.Settings) -> Dict[Choice, np.ndarray]:
    """Margins [n] of every combination of options on all images, depth first: a prefix of blocks is run once for all
    that share it."""
    model.set_alpha_array(alpha)
    stem, n = deploy(model).stem, len(options)
    plans = []
    for block, row, choices in zip(model.blocks, alpha, options):
        values = [torch.as_tensor(np.where(keep, row, 0)[:block.n_branches], dtype=block.alpha.dtype)
                  for keep in choices]
        plans.append([build_plan(block, value, fused_gamma(keep)) for value, keep in zip(values, choices)])
    found: Dict[Choice, np.ndarray] = {}
    total = int(np.prod([len(choices) for choices in options]))
    with torch.inference_mode(), tqdm(total=total, desc='enumerating', unit='network') as bar:
        def descend(depth: int, x: torch.Tensor, chosen: Choice) -> None:
            if depth == n:
                found[chosen] = hardest_first.margins_of(model.classify(x), data.labels)
                bar.update()
                return
            for plan, keep in zip(plans[depth], options[depth]):
                descend(depth + 1, plan(x), (*chosen, keep))

        descend(0, stem(normalise(data.images, settings.NORM_MEAN, settings.NORM_STD)), ())
    return found


class OnDemand(Dict[Choice, np.ndarray]):
    """Margins that are measured when they are first asked for."""

    def __init__(self, evaluator: PruningEvaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.bar = tqdm(desc='measuring', unit='network')

    def __missing__(self, choice: Choice) -> np.ndarray:
        self[choice] = self.evaluator.look(choice).margins
        self.bar.update()
        return self[choice]


class Outcome(NamedTuple):
    """What a search has found."""
    J: float
    hypervolume: float  # of all networks that it evaluated
    networks: int


class Evaluator:
    """J of choices; counts the distinct networks that were asked for. The first is the unpruned one, which every
    method knows."""

    def __init__(self, margins: Dict[Choice, np.ndarray], table: HardwareTable, unpruned: Choice,
                 settings: config.Settings) -> None:
        self.margins, self.table, self.settings = margins, table, settings
        self.reference = self.accuracy(unpruned)
        self.T_eff_ref_ms = domain_search.solve_unpruned(table, settings).times.T_eff_ms
        self.asked: Dict[Choice, float] = {}  # J
        self.points: List[Tuple[float, float]] = []  # (accuracy, T_eff / T_eff_ref) of what was asked for
        self.J(unpruned)

    def accuracy(self, choice: Choice) -> float:
        """On all images."""
        return float((self.margins[choice] > 0).mean())

    def J(self, choice: Choice) -> float:
        """The objective of a choice, remembered."""
        if choice not in self.asked:
            T_eff_ms = solve_exact(self.table, np.array(choice), self.settings).times.T_eff_ms
            accuracy = self.accuracy(choice)
            self.points.append((accuracy, T_eff_ms / self.T_eff_ref_ms))
            self.asked[choice] = goal(T_eff_ms, self.T_eff_ref_ms, accuracy, self.reference,
                                      self.settings.EPSILON, self.settings.KAPPA, self.settings.MU)[0]
        return self.asked[choice]

    def outcome(self, J: Optional[float] = None) -> Outcome:
        """What a search has found: this J, or the lowest of all."""
        accuracy, relative = np.array(self.points).T
        area = hypervolume(accuracy, relative, lowest_explored(self.reference, self.settings.EPSILON), SLOWEST)
        return Outcome(min(self.asked.values()) if J is None else J, area, len(self.asked))


def random_search(evaluator: Evaluator, options: List[List[Keep]], budget: int, seed: int) -> Outcome:
    """`budget` distinct random choices."""
    rng = np.random.default_rng(seed)
    while len(evaluator.asked) < budget:
        evaluator.J(tuple(choices[rng.integers(len(choices))] for choices in options))
    return evaluator.outcome()


def tournament(population: List[Choice], evaluator: Evaluator, rng: np.random.Generator) -> Choice:
    """The better of two random ones."""
    return min((population[rng.integers(len(population))] for _ in range(2)), key=evaluator.J)


def evolutionary_search(evaluator: Evaluator, options: List[List[Keep]], budget: int, seed: int) -> Outcome:
    """A (μ+λ) search: tournament parents, uniform crossover, one mutation a child on average."""
    rng = np.random.default_rng(seed)
    first = [tuple(choices[0] for choices in options)]
    first += [tuple(choices[rng.integers(len(choices))] for choices in options) for _ in range(POPULATION - 1)]
    population: List[Choice] = []
    while True:
        children = [child_of(population, evaluator, options, rng) for _ in first] if population else first
        for choice in children:
            evaluator.J(choice)
            if len(evaluator.asked) >= budget:
                return evaluator.outcome()
        population = sorted({*population, *children}, key=evaluator.J)[:POPULATION]


def child_of(population: List[Choice], evaluator: Evaluator, options: List[List[Keep]], rng: np.random.Generator,
             ) -> Choice:
    """Uniform crossover of two tournament winners, then one mutation on average."""
    mother, father = (tournament(population, evaluator, rng) for _ in range(2))
    child = [m if rng.random() < 0.5 else f for m, f in zip(mother, father)]
    for k, choices in enumerate(options):
        if rng.random() < 1 / len(options):
            child[k] = choices[rng.integers(len(choices))]
    return tuple(child)


class TabledEvaluator:
    """Looks at known margins as step 3 looks at networks: at no more images than it needs to see."""

    def __init__(self, known: Evaluator, unpruned: Choice, batch_size: int) -> None:
        self.known, self.margins, self.batch_size = known, known.margins[unpruned], batch_size
        self.block_evaluations = 0

    def look(self, choice: Choice, expected: np.ndarray, needed: float, quiet_share: float) -> hardest_first.Look:
        """Read, and counted."""
        self.known.J(choice)
        return hardest_first.look(lambda index: self.known.margins[choice][index.numpy()], expected, self.batch_size,
                                  needed, quiet_share)


class Tabled:
    """Mixed into a search of ours: its looks and judgements read the known margins, α does not recover."""
    known: Evaluator
    given: List[List[Keep]]

    def options(self) -> List[List[Keep]]:
        """What every method may choose from."""
        return self.given

    def share_alpha(self, state: SearchState) -> None:
        """All see the unpruned network's α."""

    def evaluator(self, state: SearchState) -> TabledEvaluator:
        """Of the known margins."""
        return TabledEvaluator(self.known, choice_of(self.unpruned), self.settings.BATCH_SIZE)

    def margins(self, state: SearchState) -> np.ndarray:
        """Of the unpruned network."""
        return self.evaluator(state).margins

    def judged_as_looked(self, choice: Choice) -> Judgement:
        """On all images, counted."""
        self.known.J(choice)
        return Judgement(self.known.accuracy(choice), kept(choice, self.unpruned))

    def polish(self, state: SearchState) -> None:
        """Nothing to recover."""
        state.polished = True


class TabledStep3(Tabled, FrontierSearch):
    """Step 3's search. What recoveries won elsewhere is not to be expected here."""

    def share_recovered(self, state: SearchState) -> float:
        """Nothing."""
        return 0.0

    def once_recovered(self, state: SearchState, looked: np.ndarray, sd: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """A look is what it is."""
        return looked, np.maximum(sd, 1e-9)

    def judge(self, state: SearchState, choice: Choice, looked: Optional[Judgement] = None, whole: bool = False,
              ) -> Judgement:
        """Without recovery."""
        return self.judged_as_looked(choice)

    def go_further(self, state: SearchState) -> bool:
        """Looks have told all: without recovery there is no other α."""
        return False


class TabledSequential(Tabled, ImportanceSearch):
    """The sequential search."""

    def judge(self, state: SearchState, block: int, keep: Keep) -> Judgement:
        """Without recovery; what is not among the options is never accepted."""
        choice = choice_of(state.alpha)
        if keep not in self.given[block]:
            return Judgement(0.0, state.alpha)
        return self.judged_as_looked((*choice[:block], keep, *choice[block + 1:]))


@dataclass(frozen=True)
class Task:
    """What all methods are given for one domain, whatever the link."""
    domain: int
    model: HyperRepVGG
    table: HardwareTable
    data: ImageSet
    alpha: np.ndarray  # [N, 3], of the unpruned network
    importance: List[Tuple[int, int]]
    options: List[List[Keep]]
    margins: Dict[Choice, np.ndarray]

    @property
    def enumerated(self) -> bool:
        """Is the optimum known?"""
        return not isinstance(self.margins, OnDemand)

    def evaluator(self, settings: config.Settings) -> Evaluator:
        """One that nobody has asked yet, on the link of the settings."""
        table = lut_manager.with_link(self.table, Link(settings.BANDWIDTH_MBPS, settings.RTT_MS, False))
        return Evaluator(self.margins, table, tuple(choices[0] for choices in self.options), settings)

    def ours(self, search_type: Type[PruningSearch], settings: config.Settings) -> Outcome:
        """What a search of ours ends with."""
        known = self.evaluator(settings)
        search = search_type(self.model, known.table, self.data, self.data, settings, self.domain, self.alpha,
                             known.reference, known.T_eff_ref_ms, self.importance)
        search.known, search.given = known, self.options
        state = search.run(search.start(), lambda state: None)
        return known.outcome(known.J(choice_of(state.alpha)))


def prepare(domain: int, options_count: int, n_images: Optional[int], settings: config.Settings) -> Task:
    """Load a domain; enumerate its networks where they are few enough."""
    table = lut_manager.load(json_files.path_of('lut', settings), settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    model = domain_search.base_model(settings)
    data = load_domain(settings, domain, 'val')
    data = ImageSet(data.images[:n_images], data.labels[:n_images])
    alpha, _ = domain_search.reference_alpha(model, data, domain, settings)
    importance = domain_search.importance_ranking(domain, table.block_names, settings)
    options = block_options(table.has_identity, options_count)
    if np.prod([float(len(choices)) for choices in options]) <= ENUMERABLE:
        margins = enumerate_margins(model, alpha, options, data, settings)
    else:
        margins = OnDemand(PruningEvaluator(model, alpha, data, settings))
    return Task(domain, model, table, data, alpha, importance, options, margins)


def run_all(task: Task, settings: config.Settings) -> Dict[str, List[Outcome]]:
    """What each method finds, the random ones once for each seed; the lowest J of all of them under 'best', the optimum
    where it is known."""
    found = {'unpruned': [task.evaluator(settings).outcome()], 'ours': [task.ours(TabledStep3, settings)],
             'sequential': [task.ours(TabledSequential, settings)]}
    budget = found['ours'][0].networks
    for name, method in (('random', random_search), ('evolutionary', evolutionary_search)):
        found[name] = [method(task.evaluator(settings), task.options, budget, seed)
                       for seed in range(SEEDS if task.enumerated else FEWER_SEEDS)]
    if task.enumerated:
        everything = task.evaluator(settings)
        for choice in itertools.product(*task.options):
            everything.J(choice)
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
    for head_tier, bandwidth in itertools.product(TIERS, LINKS_MBPS):
        found = run_all(task, replace(settings, HEAD_TIER=head_tier, BANDWIDTH_MBPS=bandwidth))
        rows.append(medians(found, 'J'))
        areas.append(medians(found, 'hypervolume'))
        best, ours, sequential, by_chance, evolved = rows[-1]
        print(f'{head_tier:6} {bandwidth:6.0f} {best:9.5f} {ours:9.5f} {ours - best:9.5f} '
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
    parser = cli.parser(__doc__)
    parser.add_argument('--domain_id', type=int, default=0)
    parser.add_argument('--options', type=int, choices=(2, 3), default=2, help='keep-sets a block may choose from')
    parser.add_argument('--images', type=int, help='validation images to use (default: all)')
    parser.add_argument('--all_links', action='store_true', help='both head tiers at 10, 100 and 1000 Mbit/s')
    args, settings = cli.parse(parser, argv)
    task = prepare(cli.domains(str(args.domain_id), settings)[0], args.options, args.images, settings)
    reference = task.evaluator(settings).reference
    number = f'{len(task.margins)} networks' if task.enumerated else 'networks on demand'
    print(f'domain {task.domain}, {len(task.data)} validation images, {number}, A_ref {reference:.4f}')
    if args.all_links:
        print_links(task, settings)
    else:
        print_one(task, run_all(task, settings))


if __name__ == '__main__':
    cli.run(main)
