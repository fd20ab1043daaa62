"""What does each part of recovery bring, and what does it cost? The same pruned networks, recovered in several ways.

    python -m benchmarks.recovery                           # ten domains, times from results/

For every domain the networks that lack 2, 4 and 6 of the 3x3 convolutions (at each size those that save most T_eff,
chosen by the exact optimiser, blind to accuracy) are measured
  none          with the unpruned network's α
  own           after RECOVERY_STEPS steps of α from there
  shared        with the α that a search trains once, for SHARED_STEPS, on networks pruned at random
  shared, own   after RECOVERY_STEPS steps of α from there
  BatchNorm     the last with re-estimated BatchNorm statistics
`kept` is what a search with RECALIBRATE_BN keeps: the best of the last three on validation images. Test accuracy is
reported, nothing is chosen by it.

Ten built-in domains, a table at 100 Mbit/s (2-core Intel Xeon virtual machine, one thread, PyTorch 2.14; means of 30
networks, accuracies in %): validation 87.14 none, 87.78 own, 87.58 shared, 87.74 shared and own, 86.36 with BatchNorm,
88.00 kept; test 88.14, 88.34, 88.12, 88.34, 87.53, 88.41. An own recovery costs 4,224 trained block images, the shared
one 33,792 once a domain, BatchNorm 2,816 block evaluations; a validation 6,893. Kept are shared and own for 14,
shared alone for 9, BatchNorm for 7, which is why it is off by default.
"""
from __future__ import annotations

import dataclasses
import time
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

import cli
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable
from domain_dataset import load_domain
from network import batchnorm
from network.alpha import kept, surviving_branches
from network.shapes import DENSE
from pipeline import kinds
from progressive_pruning import JointSearch
from search import alpha_training, domain_search
from search.prefix_activations import choice_of
from search.pruning_search import SearchState
from throughput_optimizer import solve_exact

SIZES = (2, 4, 6)
WAYS = ('none', 'own', 'shared', 'shared, own', 'BatchNorm')
KEPT = WAYS[2:]  # what a search tries


@dataclasses.dataclass
class Measured:
    """One network after one kind of recovery."""
    val: float
    test: float
    forward: int  # block evaluations: of the estimation and one validation
    trained: int  # block images trained
    seconds: float  # of the recovery alone


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
    search = domain_search.new_search(domain, table, settings, JointSearch)
    model, train, val, unpruned = search.model, search.train, search.val, search.unpruned
    test = load_domain(settings, domain, 'test')
    model.set_alpha_array(unpruned)
    print(f'domain {domain}: unpruned validation {100 * search.reference:.2f} %, '
          f'test {100 * alpha_training.accuracy(model, test, settings):.2f} %', flush=True)
    state = SearchState(unpruned, search.reference, [], unpruned)
    search.share_alpha(state)
    statistics, seed, results = model.batchnorm(), alpha_training.seed_of(settings.SEED, domain), []
    for alpha, T_eff_ms in networks(unpruned, table, settings):
        found = {}
        for way in WAYS:
            model.set_batchnorm(statistics)
            model.set_alpha_array(alpha if way in ('none', 'own') else kept(choice_of(alpha), state.shared_alpha))
            start, forward, trained = time.perf_counter(), 0, 0
            if way not in ('none', 'shared'):
                steps = alpha_training.train_alpha(model, train, settings, settings.RECOVERY_STEPS,
                                                   settings.RECOVERY_LR, seed,
                                                   batch_size=settings.RECOVERY_BATCH_SIZE)
                trained = len(steps) * len(model.blocks) * min(settings.RECOVERY_BATCH_SIZE, len(train))
            if way == 'BatchNorm':
                forward += batchnorm.recalibrate(model, unpruned, train, settings, seed)
                model.set_batchnorm(model.batchnorm())
            seconds = time.perf_counter() - start
            found[way] = Measured(alpha_training.accuracy(model, val, settings),
                                  alpha_training.accuracy(model, test, settings),
                                  forward + len(val) * len(model.blocks), trained, seconds)
        results.append((T_eff_ms, found))
        print(f'  T_eff {T_eff_ms:.3f} ms: ' + '   '.join(
            f'{way} {100 * m.val:.2f} ({100 * m.test:.2f})' for way, m in found.items()), flush=True)
    return results


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    table = lut_manager.load(args.lut_file or kinds.path_of('lut', settings), settings)
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    print('validation accuracy in % (test in brackets)')
    rows = [found for domain in cli.domains(args.domains, settings) for _, found in recover(domain, table, settings)]
    print(f"\n{f'mean of {len(rows)}':20} {'validation':>10} {'test':>8} {'forward':>9} {'trained':>9} {'seconds':>8}")
    for way in (*WAYS, 'kept'):
        chosen = [max((found[name] for name in KEPT), key=lambda m: m.val) if way == 'kept' else found[way]
                  for found in rows]
        cost = [[found[name] for name in KEPT[1:]] for found in rows] if way == 'kept' else [[m] for m in chosen]
        sums = np.mean([[sum(getattr(m, name) for m in ms) for name in ('forward', 'trained', 'seconds')]
                        for ms in cost], axis=0)
        print(f'{way:20} {100 * np.mean([m.val for m in chosen]):10.2f} {100 * np.mean([m.test for m in chosen]):8.2f} '
              f'{sums[0]:9.0f} {sums[1]:9.0f} {sums[2]:8.2f}')
    best = [max(KEPT, key=lambda way: found[way].val) for found in rows]
    print('kept: ' + ', '.join(f'{way} {best.count(way)}' for way in KEPT))


if __name__ == '__main__':
    cli.run(main)
