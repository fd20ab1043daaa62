"""What does step 3's search cost, and what does each of its parts bring?

    python -m benchmarks.search_cost                       # beside the plain scheme; ten domains, times from results/
    python -m benchmarks.search_cost --domains 0,3 --candidates saving
    python -m benchmarks.search_cost --ablation            # each part switched off in turn, on three links

The plain scheme tries, in every round, every surviving branch that may go: it recovers α exactly as the search does and
accepts the candidate with the lowest J, until none lowers it. With `--candidates saving` it only tries what the search
would try, the changes that save time; what to leave out is then given to it for nothing.

A block evaluation is a forward pass of one block on one image. Training passes (a forward and a backward pass, counted
once) are listed on their own. Neither counts nor J depend on the machine's speed; processor seconds do, and stand
there as a ratio to the whole search, measured in the same run. J of an ablation is compared case by case, with the
standard error of the mean difference. Results and the machine stand in docs/search.md.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
PARSER.add_argument('--candidates', choices=('all', 'saving'), default='all')
PARSER.add_argument('--ablation', action='store_true', help='switch off the parts of the search in turn')
PARSER.add_argument('--links', default='10,100,1000', metavar='MBPS,...', help='of the ablation, in Mbit/s')
PARSER.add_argument('--parts', metavar='NAME,...', help='of the ablation (default: all of ABLATIONS)')
PARSER.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import time
from dataclasses import replace
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

import lut_manager
from benchmarks.links import on_link
from config import Settings, UserError
from costs.cost_model import HardwareTable
from network.alpha import PruningMask, mask_of, pruned
from network.shapes import BRANCHES
from pipeline import kinds
from progressive_pruning import ProgressivePruning
from search import alpha_training, surrogate
from search.domain_search import problem_of
from search.problem import LEAST_IMPROVEMENT, PruningProblem
from search.recovery import Recovery
from search.state import SearchState
from steps.joint import search_of


class Cost(NamedTuple):
    """How a search ended and what it took."""
    J: float
    block_evaluations: int
    trained_block_images: int
    processor_s: float


class PlainSearch:
    """Every candidate recovered and measured in every round."""

    def __init__(self, problem: PruningProblem, options: Optional[Sequence[Sequence[Sequence[bool]]]]) -> None:
        """`options`: what blocks may keep; None: every branch may go that is not a block's last."""
        self.problem, self.options, self.recovery = problem, options, Recovery(problem)

    def changes(self, now: PruningMask) -> List[PruningMask]:
        """Everything that is one change away."""
        found = []
        for k, row in enumerate(now):
            if self.options is None:
                choices = [tuple(alive and b != less for b, alive in enumerate(row)) for less in range(len(BRANCHES))
                           if row[less] and sum(row) > 1]
            else:
                choices = [kept for kept in self.options[k] if kept != row and not any(
                    a and not b for a, b in zip(kept, row))]
            found += [(*now[:k], kept, *now[k + 1:]) for kept in choices]
        return found

    def start(self) -> SearchState:
        """The state before anything is pruned."""
        return self.problem.start()

    def run(self, state: SearchState, save: Callable[[SearchState], None]) -> SearchState:
        """Rounds until no candidate lowers J."""
        problem, self.recovery.work = self.problem, state.work
        best = state.best
        while best is not None:
            state.best, best, lowest = best, None, problem.J_of(best) - LEAST_IMPROVEMENT
            for mask in self.changes(mask_of(state.best.alpha)):
                alpha = pruned(state.best.alpha, mask)
                seed = alpha_training.seed_of(problem.settings.SEED, problem.domain_id,
                                              *(int(v) for row in mask for v in row))
                network = self.recovery.train(alpha, seed, self.recovery.measure(alpha))
                if network.accuracy >= problem.goal.min_accuracy and problem.J_of(network) < lowest:
                    best, lowest = network, problem.J_of(network)
        return state


def cost_of(domain: int, table: HardwareTable, settings: Settings,
            search: Callable[[PruningProblem], ProgressivePruning] = search_of) -> Cost:
    """Run a search of one domain to its end."""
    made = search(problem_of(domain, table, settings))
    start = time.process_time()
    state = made.run(made.start(), lambda state: None)
    seconds = time.process_time() - start
    return Cost(made.problem.J_of(state.best), state.work.block_evaluations, state.work.trained_block_images, seconds)


def saving_only(problem: PruningProblem) -> PlainSearch:
    """The plain scheme, told which changes save time."""
    return PlainSearch(problem, search_of(problem).candidates.options)


def compare_with_plain(domains: Sequence[int], table: HardwareTable, settings: Settings, candidates: str) -> None:
    """Print a line for each domain."""
    plain = saving_only if candidates == 'saving' else lambda problem: PlainSearch(problem, None)
    print('        ------------- ours -------------   ------------- plain ------------   plain / ours')
    print('domain        J   forward     trained          J   forward     trained    forward   total', flush=True)
    rows = []
    for domain in domains:
        rows.append((*cost_of(domain, table, settings)[:3], *cost_of(domain, table, settings, plain)[:3]))
        print(line(str(domain), rows[-1]), flush=True)
    print(line('mean', [float(np.mean(column)) for column in zip(*rows)]))
    print(f'domains where our J is the same or lower: {sum(row[0] <= row[3] + LEAST_IMPROVEMENT for row in rows)} of '
          f'{len(rows)}')


def line(name: str, row: Sequence[float]) -> str:
    """One line of the comparison."""
    J, forward, trained, plain_J, plain_forward, plain_trained = row
    return (f'{name:6} {J:8.4f} {forward:9.0f} {trained:11.0f}   {plain_J:8.4f} {plain_forward:9.0f} '
            f'{plain_trained:11.0f} {plain_forward / forward:9.1f}x '
            f'{(plain_forward + plain_trained) / (forward + trained):6.1f}x')


# --- ablation -------------------------------------------------------------------------------------------

def without_pairs(problem: PruningProblem) -> ProgressivePruning:
    """The surrogate without what pairs of dropped branches add."""
    search = search_of(problem)

    class WithoutPairs(surrogate.Surrogate):
        """Branches add up."""
        pair_variances = (0.0,)

    search.surrogate = WithoutPairs
    return search


class MeasuredAsUnpruned(ProgressivePruning):
    """Measures with the unpruned network's α whatever has been recovered; recoveries start from the best one's."""

    def measure(self, state: SearchState, masks: List[PruningMask]) -> None:
        """As always, but for the α."""
        self.start_alpha = lambda state: self.problem.unpruned
        try:
            super().measure(state, masks)
        finally:
            del self.start_alpha


def measured_as_unpruned(problem: PruningProblem) -> ProgressivePruning:
    """The search of that class."""
    made = search_of(problem)
    return MeasuredAsUnpruned(problem, made.candidates, made.evaluator, made.acquisition, made.recovery, made.stopping)


def with_settings(**changes: float) -> Callable[[PruningProblem], ProgressivePruning]:
    """The search under other settings."""
    return lambda problem: search_of(replace(problem, settings=replace(problem.settings, **changes)))


ABLATIONS: Dict[str, Callable[[PruningProblem], ProgressivePruning]] = {
    'no prefix cache': with_settings(ACTIVATION_CACHE_MB=0),
    'no pair terms': without_pairs,
    'unpruned alpha': measured_as_unpruned,
    'no recovery': with_settings(RECOVERY_STEPS=0),
    'half the recovery': with_settings(RECOVERY_STEPS=24),
    'twice the recovery': with_settings(RECOVERY_STEPS=96),
    'twice the measurements': lambda problem: with_settings(MAX_EVALUATIONS=8 * problem.table.n_blocks)(problem),
}


def ablate(domains: Sequence[int], table: HardwareTable, settings: Settings, links: Sequence[float],
           parts: Sequence[str]) -> None:
    """Print what every part brings, over all domains and links."""
    cases = [(domain, replace(settings, BANDWIDTH_MBPS=mbps)) for mbps in links for domain in domains]

    def costs(search: Callable[[PruningProblem], ProgressivePruning]) -> np.ndarray:
        return np.array([cost_of(domain, on_link(table, linked), linked, search) for domain, linked in cases])

    whole = costs(search_of)
    print(f'{len(cases)} cases; the whole search: J {whole[:, 0].mean():.4f}, {whole[:, 3].mean():.1f} processor '
          f'seconds')
    print(f"{'':22} {'J':>8} {'difference':>11} {'standard error':>15} {'seconds, ratio':>15} {'forward':>9} "
          f"{'trained':>9}", flush=True)
    for name in parts:
        found = costs(ABLATIONS[name])
        difference = found[:, 0] - whole[:, 0]
        error = difference.std(ddof=1) / np.sqrt(len(cases)) if len(cases) > 1 else float('nan')
        print(f'{name:22} {found[:, 0].mean():8.4f} {difference.mean():+11.4f} {error:15.4f} '
              f'{found[:, 3].sum() / whole[:, 3].sum():15.2f} {found[:, 1].mean():9.0f} {found[:, 2].mean():9.0f}',
              flush=True)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    table = lut_manager.load(args.lut_file or kinds.path_of('lut', settings), settings)
    domains = cli.domains(args.domains, settings)
    if args.ablation:
        parts = args.parts.split(',') if args.parts else list(ABLATIONS)
        unknown = [name for name in parts if name not in ABLATIONS]
        if unknown:
            raise UserError(f'--parts: there is no part {unknown[0]!r}; choose among {", ".join(ABLATIONS)}')
        try:
            links = [float(mbps) for mbps in args.links.split(',')]
        except ValueError:
            raise UserError(f'--links {args.links!r}: write numbers such as 10,100,1000') from None
        ablate(domains, table, settings, links, parts)
    else:
        compare_with_plain(domains, table, settings, args.candidates)


if __name__ == '__main__':
    cli.run(main)
