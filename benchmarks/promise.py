"""Does the loss of the answer stay within ε on images that no decision has seen, and what does that cost in T_eff?

    python -m benchmarks.promise run --root results/promise --lut_file F       # 10 partition seeds x 10 domains
    python -m benchmarks.promise show --root results/promise

`run` makes for every seed a partition, task 1's α, the ranking and step 3's search of every domain, all with the times
of one table (default: the one in RESULTS_DIR), and writes a file a case; cases that are there are not done again, so a
killed run goes on. The base weights are the shipped ones, and images that they were trained on are training images
under every seed. `show` counts the answers that lose more than ε against the unpruned reference network, with
CONFIDENCE as set and with none, and 95 % intervals (Wilson):
  test       on the domain's test images, all that there are: a few hundred, so that networks that truly lose less than
             ε are counted when these few are unlucky, and the other way round
  estimate   on all images of the test pool, each under REDRAWN fresh draws of the domain's noise, weighted to the
             domain's mix of classes: closer to the true loss
The estimate's standard error over images stands beside it. Last, how well the loss on calibration images follows from
validation loss and from the number of pruned branches, over all networks in the order of tests (least squares).
Results and the machine: docs/accuracy_of_figures.md and docs/frontier.md.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('what', choices=('run', 'show'))
PARSER.add_argument('--root', default='results/promise', metavar='FOLDER')
PARSER.add_argument('--seeds', default='0-9', metavar='0-9', help='partition seeds (default: 0-9)')
PARSER.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import dataclasses
import os
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

import lut_manager
from config import Settings, UserError
from costs.cost_model import FLOAT32, Configuration, HardwareTable, scenario_of, times
from costs.importance import importance_of, model_branch_flops, ranking
from domain_dataset import DomainDataset, load_domain
from domains.image_sets import ImageSet, wilson_interval
from domains.image_sources import open_source
from domains.partition import load_partition
from pipeline import documents, kinds, writing
from search import answers, domain_inputs, domain_search
from search.confirmation import Calibration
from search.frontier import TESTS, FrontierPoint, frontiers_of
from search.problem import PruningProblem
from search.wire_loss import classified_right
from steps.joint import search_of
from steps.trained_alpha import train_epochs

REDRAWN = 4  # draws of the noise of each test image
FIRST_DRAW = 10 ** 6  # seed of the first: no partition seed is as large


def problem_of(domain: int, table: HardwareTable, settings: Settings) -> PruningProblem:
    """Tasks 1 and 2 of a domain in memory, and the problem that follows."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = domain_inputs.base_model(settings)
    train, val = (domain_inputs.images_of(settings, domain, subset) for subset in ('train', 'val'))
    epochs = train_epochs(model, train, val, settings, domain)
    trained, index = epochs.alphas[epochs.best], domain_inputs.branch_index(table.block_names)
    order = ranking(importance_of(trained, model_branch_flops(settings)), table.block_names)
    unpruned, A_ref = domain_inputs.trained_or_ones(model, val, trained, settings)
    return domain_search.made_problem(model, train, val, unpruned, A_ref, [index[name] for name in order], table,
                                      settings, domain)


def redrawn(domain: int, settings: Settings) -> Iterator[ImageSet]:
    """All images of the test pool under other draws of a domain's noise."""
    source = open_source(settings)
    pool = load_partition(source, settings).pools['test']
    for draw in range(REDRAWN):
        images, labels = zip(*DomainDataset(source, pool, domain, FIRST_DRAW + draw))
        yield ImageSet(torch.stack(images), torch.tensor(labels))


class Losses:
    """Losses of configurations against a problem's reference network, on images that decided nothing."""

    def __init__(self, problem: PruningProblem) -> None:
        self.problem = problem
        self.test = load_domain(problem.settings, problem.domain_id, 'test')
        self.pools = list(redrawn(problem.domain_id, problem.settings))
        reference = Configuration(problem.unpruned, (), 0, FLOAT32)
        self.reference = [self.right(reference, images) for images in (self.test, *self.pools)]

    def right(self, configuration: Configuration, images: ImageSet, statistics: Optional[np.ndarray] = None,
              ) -> np.ndarray:
        """float [n], 1 where an image is classified correctly."""
        return classified_right(self.problem.model, configuration, images, self.problem.settings,
                                statistics).astype(float)

    def of(self, answer: answers.Answer) -> Dict[str, float]:
        """The loss on test images, the estimate of the true loss, and its standard error."""
        lost = [before - self.right(answer.configuration, images, answer.batchnorm)
                for before, images in zip(self.reference, (self.test, *self.pools))]
        estimate, error = self.estimate(np.mean(lost[1:], axis=0))
        return {'test': float(lost[0].mean()), 'estimate': estimate, 'error': error}

    def estimate(self, lost: np.ndarray) -> Tuple[float, float]:
        """(mean, standard error) of a loss per image of the test pool, weighted to the domain's mix of classes."""
        labels = self.pools[0].labels.numpy()
        share = np.bincount(self.test.labels.numpy(), minlength=int(labels.max()) + 1) / len(self.test)
        mean = variance = 0.0
        for label in np.flatnonzero(share):
            of_class = lost[labels == label]
            mean += share[label] * of_class.mean()
            variance += share[label] ** 2 * of_class.var() / len(of_class)
        return float(mean), float(np.sqrt(variance))


def one_case(domain: int, table: HardwareTable, settings: Settings) -> Dict[str, Any]:
    """Search a domain, pick with and without confidence, and measure both answers."""
    problem = problem_of(domain, table, settings)
    search = search_of(problem)
    state = search.run(search.start(), lambda state: None)
    frontiers, losses, found = frontiers_of(problem, state), Losses(problem), {}
    for confidence in (settings.CONFIDENCE, None):
        asked = dataclasses.replace(settings, CONFIDENCE=confidence)
        calibration = answers.calibration_of(problem.model, problem.unpruned, domain, asked)
        answer, rule = answers.picked(frontiers, problem.goal, calibration, problem.val, table,
                                      lambda alpha: problem.statistics_for(alpha)[0])
        found['none' if confidence is None else 'confident'] = {
            'n_pruned': int((answer.configuration.alpha == 0).sum()), 'T_eff_ms': times_of(answer, table, asked),
            'val_loss': problem.goal.A_ref - answer.val_accuracy,
            'cal_loss': answer.comparison.cal_reference - answer.comparison.cal_final,
            'p_value': answer.comparison.cal_p_value, 'n_tested': rule.n_tested, 'n_passed': rule.n_passed,
            'loss': losses.of(answer)}
    return {'T_eff_ref_ms': problem.goal.T_eff_ref_ms, 'epsilon': settings.EPSILON, 'n_val': len(problem.val),
            'tests': [point_to_json(point, calibration, problem.goal.A_ref) for point in frontiers[TESTS]],
            'n_cal': answer.comparison.n_cal, 'n_test': len(losses.test), 'n_pool': len(losses.pools[0]), **found}


def point_to_json(point: FrontierPoint, calibration: Calibration, A_ref: float) -> Dict[str, float]:
    """A point in the order of tests."""
    found = calibration.compare(point.configuration)
    return {'val_loss': A_ref - point.accuracy, 'T_eff_ms': point.times.T_eff_ms, 'n_pruned': point.n_pruned,
            'cal_loss': found.cal_reference - found.cal_final, 'p_value': found.cal_p_value}


def times_of(answer: answers.Answer, table: HardwareTable, settings: Settings) -> float:
    """T_eff in ms."""
    return times(table, answer.configuration, scenario_of(settings, table)).T_eff_ms


def path_of(root: str, seed: int, domain: int) -> str:
    """Where a case lies."""
    return os.path.join(root, f'seed_{seed}_domain_{domain}.json')


def run(root: str, seeds: Sequence[int], lut_file: str, settings: Settings) -> None:
    """All cases that are not there yet."""
    table = lut_manager.load(lut_file, settings)
    todo = [(seed, domain) for seed in seeds for domain in range(settings.NUM_DOMAINS)]
    for seed, domain in tqdm(todo, 'cases', unit='case', disable=None):
        path = path_of(root, seed, domain)
        if os.path.exists(path):
            continue
        own = dataclasses.replace(settings, SEED=seed, PARTITION_FILE=os.path.join(root, f'partition_{seed}.json'))
        case = one_case(domain, table, own)
        writing.write(path, case, writing.make_metadata(own, 'joint', ''))
        cli.say(f'seed {seed} domain {domain}: ' + ', '.join(
            f"{way} {case[way]['n_pruned']} pruned, T_eff {case[way]['T_eff_ms']:.3f} ms, test loss "
            f"{100 * case[way]['loss']['test']:.2f}" for way in ('confident', 'none')))


def show(root: str, seeds: Sequence[int], settings: Settings) -> None:
    """Count and print."""
    cases: Dict[int, List[Dict[str, Any]]] = {domain: [] for domain in range(settings.NUM_DOMAINS)}
    for seed in seeds:
        for domain, found in cases.items():
            path = path_of(root, seed, domain)
            if os.path.exists(path):
                found.append(documents.read(path, '').content)
    together = [case for found in cases.values() for case in found]
    if not together:
        raise UserError(f'{root}: no case is there yet; `python -m benchmarks.promise run --root {root}` makes them')
    sizes = {name: np.mean([case[name] for case in together]) for name in ('n_val', 'n_cal', 'n_test', 'n_pool')}
    print(f'{len(together)} cases; images a domain: ' + ', '.join(f'{name[2:]} {size:.0f}'
                                                                  for name, size in sizes.items()))
    for way, word in (('confident', 'with CONFIDENCE'), ('none', 'CONFIDENCE=none')):
        print(f'\n{word}')
        for measured in ('test', 'estimate'):
            print(f'  lose more than ε ({measured}): {share_above(together, way, measured)}')
        mean = {name: 100 * np.mean([case[way][name] for case in together]) for name in ('val_loss', 'cal_loss')}
        loss = {name: 100 * np.mean([case[way]['loss'][name] for case in together])
                for name in ('test', 'estimate', 'error')}
        print(f"  mean loss in points: validation {mean['val_loss']:.2f}, calibration {mean['cal_loss']:.2f}, test "
              f"{loss['test']:.2f}, estimate {loss['estimate']:.2f} (standard error of one {loss['error']:.2f})")
        print(f'  T_eff against unpruned: {change(together, way):+.1f} %; unpruned network chosen in '
              f"{sum(case[way]['n_pruned'] == 0 for case in together)}")
    print('\ndomain  cases  T_eff confident  none   mean test loss confident  none')
    for domain, found in cases.items():
        if found:
            losses = [100 * np.mean([case[way]['loss']['test'] for case in found]) for way in ('confident', 'none')]
            print(f"{domain:6} {len(found):6} {change(found, 'confident'):+15.1f}% {change(found, 'none'):+5.1f}% "
                  f'{losses[0]:25.2f} {losses[1]:5.2f}')
    print('\n' + what_predicts([point for case in together for point in case['tests'] if point['n_pruned']]))


def what_predicts(points: Sequence[Dict[str, float]]) -> str:
    """How far calibration losses are from what validation losses and numbers of pruned branches make one expect."""
    lost = {name: np.array([point[name] for point in points]) for name in ('cal_loss', 'val_loss', 'n_pruned')}
    found = []
    for names in (('val_loss',), ('n_pruned',), ('val_loss', 'n_pruned')):
        known = np.column_stack([np.ones(len(points)), *(lost[name] for name in names)])
        weights = np.linalg.lstsq(known, lost['cal_loss'], rcond=None)[0]
        found.append(f'{" and ".join(names)} {100 * (lost["cal_loss"] - known @ weights).std():.2f}')
    return (f'{len(points)} networks in the order of tests; standard deviation of calibration loss about its line, in '
            f'points: {", ".join(found)}; of the last, a point of val_loss counts {weights[1]:.2f} and a branch '
            f'{100 * weights[2]:.2f}')


def share_above(cases: Sequence[Dict[str, Any]], way: str, measured: str) -> str:
    """How many answers lose more than ε, with the interval."""
    count = sum(case[way]['loss'][measured] > case['epsilon'] + 1e-12 for case in cases)
    low, high = wilson_interval(count, len(cases))
    return f'{count} of {len(cases)} [{100 * low:.1f} to {100 * high:.1f} %]'


def change(cases: Sequence[Dict[str, Any]], way: str) -> float:
    """Mean change of T_eff against the unpruned network, in %."""
    return 100 * float(np.mean([case[way]['T_eff_ms'] / case['T_eff_ref_ms'] - 1 for case in cases]))


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    if settings.CONFIDENCE is None:
        raise UserError('CONFIDENCE=none: set a confidence; without one is the comparison')
    seeds = seeds_of(args.seeds)
    if args.what == 'run':
        os.makedirs(args.root, exist_ok=True)
        run(args.root, seeds, args.lut_file or kinds.path_of('lut', settings), settings)
    show(args.root, seeds, settings)


def seeds_of(text: str) -> List[int]:
    """'0-2,7' -> [0, 1, 2, 7]. Raises `UserError`."""
    found: List[int] = []
    for part in text.split(','):
        first, _, last = part.partition('-')
        if not (first.isdigit() and (last or first).isdigit()):
            raise UserError(f'--seeds {text}: write numbers and ranges, such as 0-9 or 0,3')
        found += range(int(first), int(last or first) + 1)
    return found


if __name__ == '__main__':
    cli.run(main)
