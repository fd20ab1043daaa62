"""Is a network's time the sum of its table's entries? Holds sums against measured whole networks.

    python -m benchmarks.lut_fidelity                       # RepVGG-Micro at 32x32 and RepVGG-A0 at 224x224
    python -m benchmarks.lut_fidelity --isolated            # beside it: each block timed in a loop of its own
    python -m benchmarks.lut_fidelity --models RepVGG-A0@224 --assignments 100 --rounds 9 --threads 2

Claim: see docs/accuracy_of_figures.md.

Bar: of at least 40 random networks (γ and branches of every block drawn; none was used for the correction), the table's
time is within 5 % of the measured one for at least 95 %; exit status 1 where it is not. Heads and tails stand beside
them.

How: the table is measured as step 1 measures it (tier/block_timing.py: blocks timed in whole passes, and twelve whole
heads, tails and networks, from which costs/correction.py learns what sums miss). Its visits and uninterrupted runs of
fresh networks, heads and tails take turns in one shuffled order, and every figure is a median over visits spread over
the whole run. A shared machine changes its speed by tens of percent from one second to the next; so one fixed half
of a network, the yardstick, is timed between any two tasks. A task counts as disturbed when the yardstick before or
after it took more than 1.1 times its tenth percentile, and is then done again later, as long as all tasks together are
at most three times as many. The isolated method takes turns with both: each block's plan called again and
again on one input, warm caches.
Limit: heads and tails of one or two blocks keep their weights in cache, and what that saves depends on their γ. So does
whether all weights of a whole network fit: no sum of blocks can know (the line "by weights").
"""
from __future__ import annotations

import cli
from config import ENGINES

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--models', default='RepVGG-Micro@32,RepVGG-A0@224', metavar='NAME@SIZE,...')
PARSER.add_argument('--assignments', type=int, default=40, help='fresh random networks; half as many heads and tails')
PARSER.add_argument('--rounds', type=int, default=0,
                    help='visits of every entry and every part (default: 15 for small images, 5 for large)')
PARSER.add_argument('--threads', type=int, default=1)
PARSER.add_argument('--device', default='cpu')
PARSER.add_argument('--engine', choices=ENGINES, default='torch', help='what runs the networks (docs/deployment.md)')
PARSER.add_argument('--seed', type=int, default=0, help='of the assignments and of the order')
PARSER.add_argument('--isolated', action='store_true', help='also time each block in a loop of its own')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

import lut_manager
from config import Settings
from costs.correction import TOLERANCE
from costs.cost_model import Roofline
from costs.memory import weight_bytes
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg
from network.gammas import N_GAMMA, fused_gamma
from network.outline import outline_for
from tier import block_timing, devices
from tier.block_timing import BlockSamples, PartTiming

SHARE_BAR = 0.95
CALM, QUIET_PERCENTILE = 1.1, 10  # of the yardstick's times; less than CALM times this percentile is undisturbed
MOST_TASKS = 3  # times the tasks without repetition
ISOLATED_CALLS = 5  # timed calls of one block in a row, after the timer's own warm-up
KINDS = ('networks', 'heads', 'tails')


def draw_fresh(n_branches: Sequence[int], count: int, rng: np.random.Generator) -> Dict[str, List[PartTiming]]:
    """Random networks, heads and tails: γ of every block uniform over those that it can run."""
    n = len(n_branches)

    def one(first: int, last: int) -> PartTiming:
        gamma = tuple(int(rng.choice(block_timing.runnable_ids(branches))) for branches in n_branches)
        return PartTiming(first, last, gamma, float('nan'))

    return {'networks': [one(0, n) for _ in range(count)],
            'heads': [one(0, int(rng.integers(1, n))) for _ in range(count // 2)],
            'tails': [one(int(rng.integers(1, n)), n) for _ in range(count // 2)]}


class Sample(NamedTuple):
    """One task's result and when it was."""
    turn: int  # position in the order of all tasks
    what: PartTiming
    row_ms: np.ndarray  # [passes, N + 2] of a visit, [1] of a part


class Run:
    """One model's measurements, task by task; the yardstick, one fixed network, is timed between any two."""

    def __init__(self, model: HyperRepVGG, image: torch.Tensor, threads: int, fresh: Dict[str, List[PartTiming]],
                 engine: str) -> None:
        self.model, self.image, self.threads, self.fresh, self.engine = model, image, threads, fresh, engine
        self.counts = block_timing.branch_counts(model)
        self.known = block_timing.draw_parts(self.counts)  # what step 1 times as a whole
        self.samples: Dict[str, List[Sample]] = {'visits': [], 'isolated': [], 'parts': []}
        self.yardstick = block_timing.assign(model, [fused_gamma((True, True, n == 3)) for n in self.counts])
        self.yardstick_ms: List[float] = []  # before each task, and once at the end

    def time_yardstick(self) -> None:
        """One more time of the fixed network."""
        part = 0, (len(self.counts) + 1) // 2
        self.yardstick_ms.append(block_timing.part_ms(self.yardstick, self.image, self.threads, part))

    def visit(self, turn: int, what: PartTiming) -> None:
        """A visit of the table, as step 1 does it."""
        network = block_timing.assign(self.model, what.gamma, self.engine)
        row = block_timing.timed_passes(network, self.image, self.threads, engine=self.engine)
        self.samples['visits'].append(Sample(turn, what, row))

    def run_part(self, turn: int, what: PartTiming) -> None:
        """Uninterrupted passes of a part."""
        network = block_timing.assign(self.model, what.gamma, self.engine)
        ms = block_timing.part_ms(network, self.image, self.threads, (what.first, what.last), self.engine)
        self.samples['parts'].append(Sample(turn, what, np.array([ms])))

    def visit_isolated(self, turn: int, what: PartTiming) -> None:
        """Each piece of a network called again and again on its own input."""
        network = block_timing.assign(self.model, what.gamma)
        row, x = [], self.image
        for piece in (network.stem, *network.blocks, network.classify):
            names = {'piece': piece, 'x': x}
            timer = block_timing.benchmark.Timer('piece(x)', globals=names, num_threads=self.threads)
            row.append(1000 * timer.timeit(ISOLATED_CALLS).median)
            x = piece(x)
        self.samples['isolated'].append(Sample(turn, what, np.array([row])))

    def take_turns(self, rounds: int, with_isolated: bool, rng: np.random.Generator) -> None:
        """All tasks of a round in a random order, round after round; step 1's parts in as many rounds as there."""
        visits = [PartTiming(0, len(self.counts), tuple(gamma), float('nan'))
                  for gamma in block_timing.latin_visits(self.counts, rounds)]
        tasks: List[Tuple[Callable[[int, PartTiming], None], PartTiming]] = []
        for number in range(rounds):
            parts = [part for kind in KINDS for part in self.fresh[kind]]
            of_round = [(self.run_part, part) for part in
                        parts + self.known * block_timing.times_parts(number, rounds)]
            for what in visits[number * N_GAMMA:(number + 1) * N_GAMMA]:
                of_round += [(self.visit, what)] + [(self.visit_isolated, what)] * with_isolated
            tasks += [of_round[i] for i in rng.permutation(len(of_round))]
        with torch.inference_mode(), block_timing.thread_count(self.threads):
            self.time_yardstick()
            most = MOST_TASKS * len(tasks)
            for turn, (task, what) in enumerate(tqdm(tasks, self.model.model_name, unit='task', leave=False,
                                                         disable=None)):
                task(turn, what)
                self.time_yardstick()
                if not self.is_calm(turn) and len(tasks) < most:
                    tasks.append((task, what))

    def is_calm(self, turn: int) -> bool:
        """Was the machine undisturbed before and after this task?"""
        return max(self.yardstick_ms[turn:turn + 2]) <= CALM * float(np.percentile(self.yardstick_ms, QUIET_PERCENTILE))

    def measured_ms(self, part: PartTiming, only_calm: bool) -> float:
        """Median time of a part; where it has no calm sample, of all its samples."""
        every = [sample for sample in self.samples['parts'] if sample.what is part]
        calm = [sample for sample in every if only_calm and self.is_calm(sample.turn)] or every
        return float(np.median([sample.row_ms for sample in calm]))

    def costs(self, method: str, only_calm: bool) -> lut_manager.TierCosts:
        """A tier's costs as step 1 makes them, from the visits or from blocks in loops of their own."""
        every, calm = BlockSamples(len(self.counts)), BlockSamples(len(self.counts))
        for sample in self.samples[method]:
            every.add(sample.what.gamma, sample.row_ms)
            if only_calm and self.is_calm(sample.turn):
                calm.add(sample.what.gamma, sample.row_ms)
        for row, of_all in zip(calm.blocks, every.blocks):
            row[:] = [some or all_of_them for some, all_of_them in zip(row, of_all)]
        timing = calm.timing() if calm.stem else every.timing()
        parts = tuple(part._replace(ms=self.measured_ms(part, only_calm)) for part in self.known)
        return lut_manager.TierCosts('server', {}, timing.block_ms, timing.block_iqr_ms, timing.stem_ms,
                                     timing.classifier_ms, Roofline(1.0, 1.0), parts)

    def ratios(self, method: str, corrected: bool, only_calm: bool) -> Dict[str, np.ndarray]:
        """By kind: the table's time over the measured one, of every fresh part."""
        costs = self.costs(method, only_calm)
        correction = costs.correction() if corrected else lut_manager.Correction()
        return {kind: np.array([correction.part_ms(costs.sum_ms(part)) / self.measured_ms(part, only_calm)
                                for part in self.fresh[kind]]) for kind in KINDS}


def share(ratios: np.ndarray) -> float:
    """Which share is within the tolerance."""
    return float(np.mean(np.abs(ratios - 1) <= TOLERANCE))


def show(what: str, found: Dict[str, np.ndarray]) -> None:
    """A line a kind."""
    for kind, ratios in found.items():
        print(f'{what:<34}{kind:<10}{len(ratios):>4}{share(ratios):>10.0%}{np.median(ratios):>9.3f}{ratios.min():>9.3f}'
              f'{ratios.max():>9.3f}', flush=True)
        what = ''


def show_by_weights(networks: Sequence[PartTiming], ratios: np.ndarray, settings: Settings) -> None:
    """Whether networks of few and of many weights are off in opposite directions: those that fill the cache are."""
    blocks = outline_for(settings).blocks
    megabytes = np.array([sum(weight_bytes(block, g) for block, g in zip(blocks, what.gamma)) / 1e6
                          for what in networks])
    order, third = np.argsort(megabytes), len(networks) // 3
    light, heavy = order[:third], order[len(order) - third:]
    print(f'  by weights of the blocks: {np.median(ratios[light]):.3f} (the lightest third, '
          f'{np.median(megabytes[light]):.1f} MB), {np.median(ratios[heavy]):.3f} (the heaviest, '
          f'{np.median(megabytes[heavy]):.1f} MB)')


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Status 0 when every model meets the bar."""
    args = PARSER.parse_args(argv)
    device, met = devices.device_of(args.device), True
    cli.keep_freed_memory()
    print(f'{devices.device_name(device)}, {args.threads} threads, PyTorch {torch.__version__}, engine {args.engine}')
    print(f'{"table / measured":<44}{"n":>4}{"within 5%":>10}{"median":>9}{"lowest":>9}{"highest":>9}')
    for item in args.models.split(','):
        name, _, size = item.partition('@')
        rng = np.random.default_rng(args.seed)
        torch.manual_seed(args.seed)
        settings = Settings(MODEL_NAME=name, INPUT_SIZE=int(size))
        model = create_hyper_repvgg(None, name, settings.NUM_CLASSES).to(device)
        image = torch.rand(1, 3, int(size), int(size), device=device)
        run = Run(model, image, args.threads, draw_fresh(block_timing.branch_counts(model), args.assignments, rng),
                  args.engine)
        run.take_turns(args.rounds or (15 if int(size) < 100 else 5), args.isolated, rng)
        found = run.ratios('visits', corrected=True, only_calm=True)
        show(item, found)
        show('  disturbed tasks included', run.ratios('visits', corrected=True, only_calm=False))
        show('  sums without correction', run.ratios('visits', corrected=False, only_calm=True))
        if args.assignments >= 3:
            show_by_weights(run.fresh['networks'], found['networks'], settings)
        if args.isolated:
            show('  each block in a loop of its own', run.ratios('isolated', corrected=False, only_calm=True))
        correction, turns = run.costs('visits', only_calm=True).correction(), range(len(run.yardstick_ms) - 1)
        print(f'  scale {correction.scale:.3f}, offset {correction.offset_ms:.4f} ms, held out {correction.held_out}\n'
              f'  yardstick {np.median(run.yardstick_ms):.2f} ms; {np.mean([run.is_calm(t) for t in turns]):.0%} of '
              f'{len(turns)} tasks undisturbed', flush=True)
        met = met and share(found['networks']) >= SHARE_BAR
    print(f'bar: at least {SHARE_BAR:.0%} of networks within 5 %:', 'met' if met else 'NOT met')
    return int(not met)


if __name__ == '__main__':
    sys.exit(main())
