"""How long the exact answer under limits takes, for 27 blocks (RepVGG-B3) and for 1,000 blocks of the same shapes.

    python -m benchmarks.limited_optimiser

Tables of random times on both tiers: 'uniform'; 'dear' (a γ is the faster the more memory it takes, so that memory
and time are really at odds); 'distinct' (random sizes, no two alike). The client may have 50 % or 90 % of the memory
that the unlimited optimum takes, with and without the frame rate of that optimum asked for as well. Printed: the
longest and the median time of each kind, for requests that fit and for those that do not (nearest configuration).
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import dataclasses
import sys
import time
from collections import defaultdict

import numpy as np

from config import Settings
from costs.cost_model import EndCosts, HardwareTable, Link, Roofline
from costs.limits import Limits, NothingFits
from costs.memory import MemoryTable, memory_table
from costs.work import out_elements, work_table
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from network.alpha import surviving_branches, unpruned_alpha
from network.shapes import ClassifierShape, architecture, block_shapes
from throughput_optimizer import solve_exact
from throughput_optimizer_limit import LimitedProblem, solve_limited

DEPTHS = {27: (4, 6, 16, 1), 1000: (150, 220, 620, 10)}


def random_case(n_blocks: int, kind: str, seed: int):
    """(table, memory) of a RepVGG-B3 of this depth."""
    rng = np.random.default_rng(seed)
    stem, shapes = block_shapes(dataclasses.replace(architecture('RepVGG-B3'), depths=DEPTHS[n_blocks]), 224)
    has_identity = np.array([shape.has_identity for shape in shapes])
    runnable = runnable_gammas(2 + has_identity)
    memory = memory_table(shapes, stem, ClassifierShape(shapes[-1].out_channels, 1000, shapes[-1].out_size),
                          side_by_side=True)
    if kind == 'distinct':
        sizes = np.where(runnable, rng.integers(10 ** 5, 10 ** 7, (2, n_blocks, 14)), np.nan)
        memory = MemoryTable(*sizes, memory.stem, memory.classifier)
    factor = 1e8 / (memory.weights + memory.activations) if kind == 'dear' else 1.0
    block_ms = {tier: np.where(runnable, factor * rng.uniform(1, 3, (n_blocks, 14)), np.nan)
                for tier in ('client', 'server')}
    end, elements = EndCosts({'client': 1.0, 'server': 1.0}, 1e6, 1e6), np.array([out_elements(s) for s in shapes])
    table = HardwareTable(
        'RepVGG-B3', 1000, (3, 224, 224), 1, {'server': {}, 'client': {}}, tuple(f'block{k}' for k in range(n_blocks)),
        has_identity, block_ms, *work_table(shapes), end, end, 3 * 224 ** 2, {'float32': 4 * elements}, 4000,
        Link(100.0, 2.0, False), {tier: Roofline(100.0, 20.0) for tier in ('client', 'server')})
    return table, memory


def timed(table: HardwareTable, memory: MemoryTable, settings: Settings, share: float, with_rate: bool):
    """(did it fit?, seconds)"""
    surviving = surviving_branches(unpruned_alpha(table.n_branches))
    free = solve_exact(table, surviving, settings)
    problem = LimitedProblem(table, build_gamma_mask(surviving), settings, Limits(), memory)
    taken, _ = problem.fastest_at(problem.stage(free.split, free.wire), np.inf, np.inf)
    limits = Limits(client_memory_bytes=share * (taken.weight_bytes + taken.activation_bytes),
                    min_fps=free.times.throughput_fps if with_rate else None)
    start = time.perf_counter()
    try:
        proven, fits = solve_limited(table, surviving, settings, limits, memory).proven, True
    except NothingFits as error:
        proven, fits = error.proven, False
    if not proven:
        sys.exit('an answer was not proven')
    return fits, time.perf_counter() - start


def main() -> None:
    """Print the times."""
    print(f"{'blocks':>6} {'table':>9} {'':>9} {'cases':>5} {'median ms':>10} {'longest ms':>10}")
    for n_blocks, seeds in ((27, range(10)), (1000, range(2))):
        for kind in ('uniform', 'dear', 'distinct'):
            spent = defaultdict(list)
            for seed in seeds:
                case = random_case(n_blocks, kind, seed)
                for head in ('client', 'server'):
                    for share in (0.5, 0.9):
                        for with_rate in (False, True):
                            fits, seconds = timed(*case, Settings(HEAD_TIER=head), share, with_rate)
                            spent['fits' if fits else 'does not'].append(1000 * seconds)
            for what, values in sorted(spent.items(), reverse=True):
                print(f'{n_blocks:6} {kind:>9} {what:>9} {len(values):5} {np.median(values):10.1f} '
                      f'{max(values):10.1f}', flush=True)


if __name__ == '__main__':
    main()
