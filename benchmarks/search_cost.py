"""What does a search cost in block evaluations? Step 3's search beside the plain progressive pruning.

    python -m benchmarks.search_cost                       # ten built-in domains, times from results/
    python -m benchmarks.search_cost --domains 0,3 --candidates saving
    python -m benchmarks.search_cost --ours --set SHARED_STEPS=0   # what a setting does, without the plain scheme
    python -m benchmarks.search_cost --estimates           # how far looks at a part of the images are off

The plain scheme tries, in every round, every surviving branch that may go: it recovers α exactly as our search does,
measures the accuracy on all validation images, and accepts the candidate with the lowest J, until none lowers it; then
it polishes as ours does. With `--candidates saving` it only tries what our search would try, the changes that save
time; what to leave out is then given to it for nothing.

A block evaluation is a forward pass of one block on one image. Training passes (a forward and a backward pass, counted
once) are listed on their own and added in the total. Neither counts nor J depend on the machine's speed.

Ten domains, one measured table at 100 Mbit/s (2-core Intel Xeon virtual machine, PyTorch 2.14, one thread), means:
ours J -0.1613 with 114,700 forward and 87,400 trained; plain with all candidates J -0.1588 with 1,563,000 forward and
993,900 trained. That is 13.6 times the forward passes and 12.7 times the total (7.4 to 16.8 by domain). Ours is
lower in domains 2, 3, 5 and 7, by 0.0237 at most, and higher in the others, by 0.0058 at most.
"""
from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple, Type

import numpy as np

import cli
import lut_manager
from benchmarks.links import every_link, on_link
from config import Settings
from costs.cost_model import HardwareTable
from network.shapes import BRANCHES
from pipeline import kinds
from progressive_pruning import LEAST_IMPROVEMENT, JointSearch
from search import domain_search
from search.hardest_first import Look
from search.prefix_activations import Choice, choice_of
from search.pruning_search import PruningSearch, SearchState


class PlainSearch(JointSearch):
    """Every candidate recovered and measured in every round."""
    only_saving = False

    def validate(self, state: SearchState, needed: float = 0.0) -> Look:
        """On all images, whatever is needed."""
        return super().validate(state)

    def candidates(self, now: Choice) -> List[Choice]:
        """Everything that is one change away."""
        found = []
        for k, row in enumerate(now):
            if self.only_saving:
                keeps = [keep for keep in self.options()[k] if keep != row and not any(
                    a and not b for a, b in zip(keep, row))]
            else:
                keeps = [tuple(alive and b != branch for b, alive in enumerate(row)) for branch in range(len(BRANCHES))
                         if row[branch] and sum(row) > 1]
            found += [(*now[:k], keep, *now[k + 1:]) for keep in keeps]
        return found

    def round(self, state: SearchState) -> bool:
        """Judge them all, accept the best; False when none lowers J."""
        best = None
        for choice in self.candidates(choice_of(state.alpha)):
            judgement = self.judge(state, choice)
            J = self.J(self.T_eff_ms(np.array(choice)), judgement.accuracy)
            if judgement.accuracy >= self.bound and (best is None or J < best[0]):
                best = J, judgement
        if best is None or best[0] >= self.J_of(state) - LEAST_IMPROVEMENT:
            return False
        self.accept(state, best[1])
        return True


class PlainSavingSearch(PlainSearch):
    """The same, told which changes save time."""
    only_saving = True


class CheckedSearch(JointSearch):
    """Measures on all images whatever a look left, for `off` alone: what each estimate is above the truth."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.off: Dict[bool, List[float]] = {True: [], False: []}  # by Look.enough

    def look_at(self, state: SearchState, choice: Choice, needed: float, quiet_share: float) -> Look:
        """As always."""
        found = super().look_at(state, choice, needed, quiet_share)
        if not found.whole:
            self.off[found.enough].append(found.accuracy - self.evaluator(state).accuracy(choice))
        return found


def check_estimates(domains: Sequence[int], table: HardwareTable, settings: Settings) -> None:
    """Print how far looks that were not whole are off."""
    off: Dict[bool, List[float]] = {True: [], False: []}
    for domain in domains:
        search = domain_search.new_search(domain, table, settings, CheckedSearch)
        search.run(search.start(), lambda state: None)
        for enough, values in search.off.items():
            off[enough] += values
    for enough, name in ((True, 'taken as right after a quiet stretch'), (False, 'given up, accuracy estimated')):
        points = 100 * np.array(off[enough])
        print(f'{name}: {len(points)} looks, off by {points.mean():+.2f} points on average, standard deviation '
              f'{points.std():.2f}, middle 90 % {np.quantile(points, 0.05):+.2f} to {np.quantile(points, 0.95):+.2f}')


def run(search_type: Type[PruningSearch], domain: int, table: HardwareTable, settings: Settings,
        ) -> Tuple[float, int, int]:
    """(final J, block evaluations, trained block images) of one search."""
    search = domain_search.new_search(domain, table, settings, search_type)
    state = search.run(search.start(), lambda state: None)
    return search.J_of(state), state.block_evaluations, state.trained_block_images


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
    parser.add_argument('--candidates', choices=('all', 'saving'), default='all')
    parser.add_argument('--ours', action='store_true', help='only our search, on both head tiers and three links')
    parser.add_argument('--estimates', action='store_true', help='only check the estimates of our search')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    table = lut_manager.load(args.lut_file or kinds.path_of('lut', settings), settings)
    if args.estimates:
        check_estimates(cli.domains(args.domains, settings), table, settings)
        return
    if args.ours:
        print_ours(cli.domains(args.domains, settings), table, settings)
        return
    plain = PlainSavingSearch if args.candidates == 'saving' else PlainSearch
    rows = []
    print('        ------------- ours -------------   ------------- plain ------------   plain / ours')
    print('domain        J   forward     trained          J   forward     trained    forward   total', flush=True)
    for domain in cli.domains(args.domains, settings):
        ours, theirs = run(JointSearch, domain, table, settings), run(plain, domain, table, settings)
        rows.append((*ours, *theirs))
        print(line(str(domain), rows[-1]), flush=True)
    print(line('mean', [float(np.mean(column)) for column in zip(*rows)]))
    print(f'domains where our J is the same or lower: {sum(row[0] <= row[3] + LEAST_IMPROVEMENT for row in rows)} of '
          f'{len(rows)}')


def print_ours(domains: Sequence[int], table: HardwareTable, settings: Settings) -> None:
    """Means of our search over domains, a line for each head tier and link."""
    print('head   Mbit/s        J   forward     trained', flush=True)
    for linked in every_link(settings):
        results = [run(JointSearch, domain, on_link(table, linked), linked) for domain in domains]
        J, forward, trained = np.mean(results, axis=0)
        print(f'{linked.HEAD_TIER:6} {linked.BANDWIDTH_MBPS:6.0f} {J:8.4f} {forward:9.0f} {trained:11.0f}', flush=True)


def line(name: str, row: Sequence[float]) -> str:
    """One line of the table."""
    J, forward, trained, plain_J, plain_forward, plain_trained = row
    return (f'{name:6} {J:8.4f} {forward:9.0f} {trained:11.0f}   {plain_J:8.4f} {plain_forward:9.0f} '
            f'{plain_trained:11.0f} {plain_forward / forward:9.1f}x '
            f'{(plain_forward + plain_trained) / (forward + trained):6.1f}x')


if __name__ == '__main__':
    cli.run(main)
