"""How long the exact method takes, and how many evaluations brute force would need for the same answer.

    python -m benchmarks.optimizer_speed

Claim (2-core AMD EPYC virtual machine, PyTorch 2.15, machine shared with other work): 0.09 ms for 27 blocks, 11 ms for
10,000 (medians of 51). Brute force would evaluate 10^17.9 combinations for the 27, 10^6198 for the 10,000.

Bars: at most 10 ms for 27 blocks (RepVGG-B3), at most 1 s for 10,000; exit status 1 where one is missed. The work is
O(14·N): for each tier the fastest valid γ of each block, then prefix sums over all N + 1 splits. Random tables, nothing
pruned; brute force counts a (γ, λ) combination as one evaluation of cost_model.times. For 4 blocks it is run, and
gives the same optimum. The gradient method on the 27 blocks ends 80 % above the optimum, which lies at λ = 1: it starts
in the middle, and 800 steps of Adam at lr 0.01 move λ by 8 at most.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--repeats', type=int, default=51)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import itertools
import statistics
import sys
import time
from typing import Optional, Sequence

import numpy as np
import torch

from config import Settings
from costs.cost_model import Configuration, EndCosts, HardwareTable, Link, Roofline, Solution, scenario_of, times
from gamma_mask_builder import build_gamma_mask, runnable_gammas
from throughput_optimizer import solve_exact, solve_gradient

BARS_MS = {27: 10.0, 10_000: 1000.0}  # by number of blocks
BRUTE_FORCE_BLOCKS = 4


def random_table(n: int, seed: int) -> HardwareTable:
    """A table of n blocks with an identity in all but every fifth, random times."""
    rng = np.random.default_rng(seed)
    has_identity = np.arange(n) % 5 != 0
    runnable = runnable_gammas(2 + has_identity)
    block_ms = {tier: np.where(runnable, rng.uniform(low, 4 * low, (n, 14)), np.nan)
                for tier, low in (('client', 1.0), ('server', 0.25))}
    ones = np.where(runnable, 1e6, np.nan)
    end = EndCosts({'client': 1.0, 'server': 0.25}, 1e6, 1e6)
    return HardwareTable('random', 10, (3, 32, 32), 1, {'client': {}, 'server': {}},
                         tuple(f'block{k}' for k in range(n)), has_identity, block_ms, ones, ones, end, end, 3072,
                         {'float32': rng.integers(1000, 100_000, n)}, 40, Link(100.0, 2.0, False),
                         {'client': Roofline(50, 10), 'server': Roofline(200, 20)})


def unpruned(table: HardwareTable) -> np.ndarray:
    """Surviving branches where nothing is pruned, bool [N, 3]."""
    return np.column_stack([np.ones((table.n_blocks, 2), dtype=bool), table.has_identity])


def median_ms(table: HardwareTable, settings: Settings, repeats: int) -> float:
    """Median time of the exact method, ms."""
    surviving, spent = unpruned(table), []
    for _ in range(repeats):
        start = time.perf_counter()
        solve_exact(table, surviving, settings)
        spent.append(1000 * (time.perf_counter() - start))
    return statistics.median(spent)


def combinations_log10(table: HardwareTable) -> float:
    """log10 of how many (γ, λ) combinations are allowed."""
    per_block = build_gamma_mask(unpruned(table)).sum(axis=1)
    return float(np.log10(per_block).sum() + np.log10(table.n_blocks - 1))


def brute_force(table: HardwareTable, settings: Settings) -> float:
    """The smallest T_eff over all (γ, λ), ms."""
    valid = [np.flatnonzero(row) for row in build_gamma_mask(unpruned(table))]
    alpha = np.ones((table.n_blocks, 3))
    return min(times(table, Configuration(alpha, gamma, split), scenario_of(settings, table)).T_eff_ms
               for gamma in itertools.product(*valid) for split in range(1, table.n_blocks))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Status 0 when both bars are met and brute force finds nothing better."""
    args = PARSER.parse_args(argv)
    torch.set_num_threads(1)  # the gradient method's tensors are far too small for more
    settings, met = Settings(), True
    print(f'{"blocks":>7}{"exact, median":>16}{"bar":>10}   brute force: evaluations')
    for n, bar_ms in BARS_MS.items():
        table = random_table(n, seed=n)
        found_ms = median_ms(table, settings, args.repeats)
        met = met and found_ms <= bar_ms
        print(f'{n:>7}{found_ms:>13.2f} ms{bar_ms:>7.0f} ms   10^{combinations_log10(table):.1f}', flush=True)
    small = random_table(BRUTE_FORCE_BLOCKS, seed=0)
    start = time.perf_counter()
    best = brute_force(small, settings)
    spent = time.perf_counter() - start
    exact = solve_exact(small, unpruned(small), settings)
    same = abs(exact.times.T_eff_ms / best - 1) < 1e-12
    print(f'{BRUTE_FORCE_BLOCKS} blocks: brute force took {spent:.2f} s for '
          f'{round(10 ** combinations_log10(small))} evaluations, exact {median_ms(small, settings, args.repeats):.2f} '
          f'ms; {"the same optimum" if same else "ANOTHER optimum"}')
    show_gradient(settings)
    print('bars:', 'met' if met and same else 'NOT met')
    return int(not (met and same))


def show_gradient(settings: Settings) -> None:
    """For comparison: the gradient method on the table of 27 blocks, and how far above the optimum it ends."""
    table = random_table(27, seed=27)
    run, exact = solve_gradient(table, unpruned(table), settings), solve_exact(table, unpruned(table), settings)
    found: Solution = run.solution
    print(f'27 blocks: gradient method {run.wall_s:.2f} s for {run.steps} steps, '
          f'{found.times.T_eff_ms / exact.times.T_eff_ms - 1:.2%} above the exact optimum')


if __name__ == '__main__':
    sys.exit(main())
