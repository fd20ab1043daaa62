"""What does each part of recovery bring, and what does it cost? The same pruned networks, recovered in several ways.

    python -m benchmarks.recovery                           # ten domains, times from results/

For every domain the networks that lack 2, 4 and 6 of the 3x3 convolutions (at each size those that save most T_eff,
chosen by the exact optimiser, blind to accuracy) are measured
  none          with the unpruned network's α
  trained       after a recovery: at most RECOVERY_STEPS steps of α from there, the best of its validations
  BatchNorm     the last with re-estimated BatchNorm statistics
`kept` is what a search with RECALIBRATE_BN keeps: the best of the last two on validation images. Test accuracy is
reported, nothing is chosen by it. Results and the machine stand in docs/search.md.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
PARSER.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import dataclasses
import time
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

import lut_manager
from config import Settings
from costs.cost_model import HardwareTable
from domain_dataset import load_domain
from network import batchnorm
from network.alpha import surviving_branches
from network.shapes import DENSE
from pipeline import kinds
from search import alpha_training
from search.domain_search import problem_of
from search.recovery import Recovery
from throughput_optimizer import solve_exact

SIZES = (2, 4, 6)
WAYS = ('none', 'trained', 'BatchNorm')
KEPT = WAYS[1:]  # what a search tries


@dataclasses.dataclass
class Measured:
    """One network after one kind of recovery."""
    val: float
    test: float
    forward: int  # block evaluations: validations, and the estimation of statistics
    trained: int  # block images trained
    seconds: float  # of the processor, validations included


def networks(unpruned: np.ndarray, table: HardwareTable, settings: Settings) -> List[Tuple[np.ndarray, float]]:
    """(α, T_eff in ms) without 2, 4, 6 of the 3x3: each time the block whose 3x3 saves most of what is left."""
    alpha, found = unpruned.copy(), []
    for _ in range(max(SIZES)):
        options = []
        for k in np.flatnonzero(alpha[:, DENSE]):
            smaller = alpha.copy()
            smaller[k, DENSE] = 0
            options.append((solve_exact(table, surviving_branches(smaller), settings).times.T_eff_ms, int(k), smaller))
        T_eff_ms, _, alpha = min(options, key=lambda option: option[:2])
        found.append((alpha, T_eff_ms))
    return [found[size - 1] for size in SIZES]


def recover(domain: int, table: HardwareTable, settings: Settings) -> List[Tuple[float, Dict[str, Measured]]]:
    """Every network of a domain: (T_eff in ms, what each way gives)."""
    problem = problem_of(domain, table, settings)
    model, test = problem.model, load_domain(settings, domain, 'test')
    model.set_alpha_array(problem.unpruned)
    print(f'domain {domain}: unpruned validation {100 * problem.goal.A_ref:.2f} %, '
          f'test {100 * alpha_training.accuracy(model, test, settings):.2f} %', flush=True)
    results = []
    for alpha, T_eff_ms in networks(problem.unpruned, table, settings):
        found = {}
        for way in WAYS:
            recovery, start = Recovery(problem), time.process_time()
            network = recovery.measure(alpha)
            if way != 'none':
                network = recovery.train(alpha, alpha_training.seed_of(settings.SEED, domain), network)
            statistics = None
            if way == 'BatchNorm':
                network = recovery.recalibrated(network.alpha)
                statistics = problem.statistics_for(network.alpha)[0]
            seconds = time.process_time() - start
            model.set_alpha_array(network.alpha)
            with batchnorm.using(model, statistics):
                found[way] = Measured(network.accuracy, alpha_training.accuracy(model, test, settings),
                                      recovery.work.block_evaluations, recovery.work.trained_block_images, seconds)
        results.append((T_eff_ms, found))
        print(f'  T_eff {T_eff_ms:.3f} ms: ' + '   '.join(
            f'{way} {100 * m.val:.2f} ({100 * m.test:.2f})' for way, m in found.items()), flush=True)
    return results


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    table = lut_manager.load(args.lut_file or kinds.path_of('lut', settings), settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    print('validation accuracy in % (test in brackets)')
    rows = [found for domain in cli.domains(args.domains, settings) for _, found in recover(domain, table, settings)]
    print(f"\n{f'mean of {len(rows)}':20} {'validation':>10} {'test':>8} {'forward':>9} {'trained':>9} {'seconds':>8}")
    for way in (*WAYS, 'kept'):
        chosen = [max((found[name] for name in KEPT), key=lambda m: m.val) if way == 'kept' else found[way]
                  for found in rows]
        cost = [[found[name] for name in KEPT] for found in rows] if way == 'kept' else [[m] for m in chosen]
        sums = np.mean([[sum(getattr(m, name) for m in ms) for name in ('forward', 'trained', 'seconds')]
                        for ms in cost], axis=0)
        print(f'{way:20} {100 * np.mean([m.val for m in chosen]):10.2f} {100 * np.mean([m.test for m in chosen]):8.2f} '
              f'{sums[0]:9.0f} {sums[1]:9.0f} {sums[2]:8.2f}')
    best = [max(KEPT, key=lambda way: found[way].val) for found in rows]
    print('kept: ' + ', '.join(f'{way} {best.count(way)}' for way in KEPT))


if __name__ == '__main__':
    cli.run(main)
