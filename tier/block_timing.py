"""Time every block under every γ as it runs inside the network.

A block timed in a loop of its own finds its weights and input in cache, which it never does in use. Here a
block is only ever timed inside a forward pass of the whole network: the pass notes the clock at every block
boundary. Each visit times all blocks at once, each under a γ of its own, and 14 visits cover the table; rounds
of such visits spread every entry's samples over the whole measurement, so that a drifting clock speed hits all
entries alike. benchmarks/lut_fidelity.py holds the sums of entries against whole networks.

A head or a tail that runs again and again on its own finds more in cache than inside the whole network. So some whole
heads, tails and networks are timed, too (`draw_parts`), and costs/correction.py fits what sums of entries miss of them.
A cell that a passing disturbance has hit is found and timed again (`disturbed_cells`).
"""
from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch

from config import INT8, TORCH
from hyper_repvgg import DeployedNetwork, Network, deploy
from network.gammas import FUSED, GAMMAS, N_GAMMA, runnable_ids
from network.shapes import BRANCHES
from tier import onnx_timing


@contextmanager
def only_errors_of(logger: str) -> Iterator[None]:
    """Within: this logger says nothing below an error."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(before)


with only_errors_of('torch.utils.cpp_extension'):  # it warns where there is nvcc but no GPU
    from torch.utils import benchmark

PASSES = 3  # timed forward passes a visit, after torch.utils.benchmark's own warm-up of two passes
WARM_UP_MS = 10  # before that: a network that was just built needs about ten passes of 1 ms to reach its final speed
HEADS, WHOLE_NETWORKS = 5, 2  # parts that are timed as a whole: as many tails as heads
PART_ROUNDS = 9  # rounds that time the parts, at most: a median of fewer is uncertain by 2 %, more cost time
OUTLIER = 1.5  # times what cells of the same work take: undisturbed ones of RepVGG-Micro and A0 reach 1.3
SPREAD = 0.5  # interquartile range over median: undisturbed cells reach 0.45 on a shared machine

Gammas = Sequence[int]  # γ of every block


class PartTiming(NamedTuple):
    """Blocks [first, last) of a network under γ [N], run without a stop: with the stem where first = 0, with the
    classifier where last = N. Median ms for one image."""
    first: int
    last: int
    gamma: Tuple[int, ...]
    ms: float


@dataclass(frozen=True)
class NetworkTiming:
    """Medians and interquartile ranges, ms for one image; NaN where a block cannot run a γ."""
    block_ms: np.ndarray  # [N, 14]
    block_iqr_ms: np.ndarray  # [N, 14]
    stem_ms: float
    classifier_ms: float
    n_samples: int  # timings behind each median
    parts: Tuple[PartTiming, ...] = ()
    n_timed_again: int = 0  # cells that were found disturbed


class MarkedNetwork:
    """Runs a deployed network and notes the clock before the stem, after it, after each block and at the end; or a
    part of it (blocks [first, last)), and notes the clock before and after it."""
    clock = staticmethod(time.perf_counter)  # s; of a CPU

    def __init__(self, network: DeployedNetwork, device: torch.device, part: Optional[Tuple[int, int]] = None) -> None:
        self.network, self.on_cuda, self.part = network, device.type == 'cuda', part
        self.passes: List[list] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        marks = [self._mark()]
        if self.part is not None:
            x = run_part(self.network, self.part, x)
            self.passes.append([*marks, self._mark()])
            return x
        x = self.network.stem(x)
        marks.append(self._mark())
        for block in self.network.blocks:
            x = block(x)
            marks.append(self._mark())
        x = self.network.classify(x)
        marks.append(self._mark())
        self.passes.append(marks)
        return x

    def _mark(self):
        if not self.on_cuda:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def intervals_ms(self) -> np.ndarray:
        """[passes, N + 2] ms: stem, blocks, classifier; of a part [passes, 1]."""
        if not self.on_cuda:
            return 1000 * np.diff(np.array(self.passes), axis=1)
        torch.cuda.synchronize()
        return np.array([[a.elapsed_time(b) for a, b in zip(marks, marks[1:])] for marks in self.passes])


def assign(model: Network, gamma: Sequence[int], engine: str = TORCH) -> DeployedNetwork:
    """The network in which block k keeps exactly the branches that γ_k runs (α = 1), and runs them so; in int8 fused,
    whatever γ_k says."""
    alpha = np.zeros((len(model.blocks), len(BRANCHES)))
    for row, g, block in zip(alpha, gamma, model.blocks):
        row[list(GAMMAS[g].branches)] = 1
        row[block.n_branches:] = np.nan
    model.set_alpha_array(alpha)
    return deploy(model, None if engine == INT8 else gamma)


def run_part(network: DeployedNetwork, part: Tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """Blocks [first, last) of a network, with the stem and the classifier at its ends."""
    x = network.run(x, *part)
    return network.classify(x) if part[1] == len(network.blocks) else x


def branch_counts(model: Network) -> List[int]:
    """Branches of every block: the first so many of BRANCHES."""
    return [block.n_branches for block in model.blocks]


def visits_a_round(n_branches: Sequence[int]) -> int:
    """As many as the block with most γ has: 14 where one has three branches."""
    return max(len(runnable_ids(count)) for count in n_branches)


def latin_visits(n_branches: Sequence[int], rounds: int) -> Iterator[List[int]]:
    """γ [N] of every visit: in each round every block runs each of its γ at least once, in an order of its own, so that
    what runs before a block varies too. Fixed seed."""
    runnable = [runnable_ids(count) for count in n_branches]
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        shuffled = [rng.permutation(ids) for ids in runnable]
        for visit in range(visits_a_round(n_branches)):
            yield [int(ids[visit % len(ids)]) for ids in shuffled]


def draw_parts(n_branches: Sequence[int]) -> List[PartTiming]:
    """The heads, tails and whole networks to time, not yet timed: a random γ of every block, the cuts spread over the
    network. Fixed seed."""
    rng, n = np.random.default_rng(1), len(n_branches)
    edges = np.linspace(1, n, HEADS + 1)  # one cut from each of HEADS equal ranges of 1..N-1
    cuts = [int(rng.uniform(low, high)) for low, high in zip(edges, edges[1:])] if n > 1 else []
    spans = [*((0, cut) for cut in cuts), *((cut, n) for cut in cuts), *[(0, n)] * WHOLE_NETWORKS]
    return [PartTiming(*span, tuple(int(rng.choice(runnable_ids(count))) for count in n_branches), np.nan)
            for span in spans]


def times_parts(number: int, rounds: int) -> bool:
    """Does this round time the parts? PART_ROUNDS of all rounds do, or all where there are fewer."""
    return number * PART_ROUNDS // rounds != (number - 1) * PART_ROUNDS // rounds


def visits_through(cells: Iterable[Tuple[int, int]], n_branches: Sequence[int], count: int) -> List[List[int]]:
    """γ [N] of visits that run each of these cells (block, γ) at least `count` times; other blocks run any γ."""
    rng = np.random.default_rng(2)
    wanted: List[List[int]] = [[] for _ in n_branches]
    for k, gamma in cells:
        wanted[k].append(gamma)
    return [[ids[i % len(ids)] if ids else int(rng.choice(runnable_ids(n_branches[k])))
             for k, ids in enumerate(wanted)] for _ in range(count) for i in range(max(map(len, wanted)))]


class BlockSamples:
    """Collects the timings of visits and summarises them."""

    def __init__(self, n_blocks: int) -> None:
        self.blocks: List[List[List[float]]] = [[[] for _ in range(N_GAMMA)] for _ in range(n_blocks)]
        self.stem: List[float] = []
        self.classifier: List[float] = []

    def add(self, gamma: Sequence[int], intervals_ms: np.ndarray) -> None:
        """Rows [N + 2] of one visit under γ [N]."""
        for row in intervals_ms:
            self.stem.append(row[0])
            self.classifier.append(row[-1])
            for k, g in enumerate(gamma):
                self.blocks[k][g].append(row[k + 1])

    def add_visits(self, gammas: Sequence[Gammas], ms: Sequence[Sequence[Sequence[float]]]) -> None:
        """All passes of visits: γ [visits][N], ms [visits][passes][N + 2]."""
        for gamma, rows in zip(gammas, ms):
            self.add(gamma, np.array(rows))

    def replace(self, cells: Iterable[Tuple[int, int]], fresh: 'BlockSamples') -> None:
        """Take other samples for these cells (block, γ) where their median is lower: a disturbance only adds time."""
        for k, g in cells:
            if np.median(fresh.blocks[k][g]) < np.median(self.blocks[k][g]):
                self.blocks[k][g] = fresh.blocks[k][g]

    def timing(self) -> NetworkTiming:
        """Medians and spreads of everything seen."""
        medians, spreads = np.full((2, len(self.blocks), N_GAMMA), np.nan)
        for k, row in enumerate(self.blocks):
            for g, values in enumerate(row):
                if values:
                    summary = summarise(values)
                    medians[k, g], spreads[k, g] = summary.median, summary.iqr
        return NetworkTiming(medians, spreads, summarise(self.stem).median, summarise(self.classifier).median,
                             min(len(values) for row in self.blocks for values in row if values))


class Machine(Protocol):
    """What times a network: this process, or a client over the wire. `progress(n)`: n visits of this call are done."""

    def visits(self, gammas: Sequence[Gammas], progress: Callable[[int], None]) -> np.ndarray:
        """ms [visits, passes, N + 2] of stem, blocks and classifier under each γ [N]."""

    def parts(self, parts: Sequence[PartTiming]) -> np.ndarray:
        """ms [parts, passes] of parts that run without a stop."""


class ThisMachine:
    """Times a model on its device, which the image [1, 3, S, S] shares. Changes the model's α."""

    def __init__(self, model: Network, image: torch.Tensor, threads: int, engine: str = TORCH) -> None:
        self.model, self.image, self.threads, self.engine = model, image, threads, engine

    def visits(self, gammas: Sequence[Gammas], progress: Callable[[int], None]) -> np.ndarray:
        """See `Machine`."""
        times = []
        with torch.inference_mode(), thread_count(self.threads):
            for done, gamma in enumerate(gammas):
                progress(done)
                network = assign(self.model, gamma, self.engine)
                times.append(timed_passes(network, self.image, self.threads, engine=self.engine))
        return np.stack(times)

    def parts(self, parts: Sequence[PartTiming]) -> np.ndarray:
        """See `Machine`."""
        with torch.inference_mode(), thread_count(self.threads):
            return np.stack([timed_passes(assign(self.model, part.gamma, self.engine), self.image, self.threads,
                                          (part.first, part.last), self.engine)[:, 0] for part in parts])


class Round(NamedTuple):
    """One round of visits, as lists: γ [visits][N], ms [visits][passes][N + 2], and ms [parts][passes] if it times
    parts."""
    gamma: List[List[int]]
    ms: List[List[List[float]]]
    part_ms: List[List[float]]


def time_network(machine: Machine, n_branches: Sequence[int], same_work: np.ndarray, rounds: int,
                 progress: Callable[[int, int], None] = lambda done, total: None, done: Sequence[Round] = (),
                 keep: Callable[[List[Round]], None] = lambda finished: None) -> NetworkTiming:
    """Time every block under every γ that it can run, and whole parts.

    `same_work` [N, 14]: cells with the same number do the same work. `rounds`: visits of every (block, γ);
    `progress(visits done, all)`. `done`: rounds of an earlier attempt; `keep(finished rounds)` is called after each.
    """
    visits, parts, finished = list(latin_visits(n_branches, rounds)), draw_parts(n_branches), list(done)
    per_round = visits_a_round(n_branches)
    for number in range(len(finished), rounds):
        start = number * per_round
        gammas = visits[start:start + per_round]
        ms = machine.visits(gammas, lambda at, start=start: progress(start + at, len(visits)))
        part_ms = machine.parts(parts).tolist() if times_parts(number, rounds) else []
        finished.append(Round(gammas, ms.tolist(), part_ms))
        keep(finished)
    samples = BlockSamples(len(n_branches))
    for entry in finished:
        samples.add_visits(entry.gamma, entry.ms)
    again = disturbed_cells(samples.timing(), same_work)
    if again:
        gammas = visits_through(again, n_branches, rounds)
        fresh = BlockSamples(len(n_branches))
        fresh.add_visits(gammas, machine.visits(gammas, lambda at: None).tolist())
        samples.replace(again, fresh)
    part_ms = np.concatenate([np.array(entry.part_ms) for entry in finished if entry.part_ms], axis=1)
    return replace(samples.timing(), n_timed_again=len(again), parts=tuple(
        part._replace(ms=float(np.median(row))) for part, row in zip(parts, part_ms)))


def pooled(timing: NetworkTiming) -> NetworkTiming:
    """For int8, where every γ of the same branches runs the same: all get the median of their times, so that the
    smallest of several timings is not mistaken for a faster γ. The fused one comes first, by a hair."""
    block_ms = np.array(timing.block_ms)
    for branches, fused in FUSED.items():
        same = [g for g in range(N_GAMMA) if GAMMAS[g].branches == branches]
        block_ms[:, same] = np.median(timing.block_ms[:, same], axis=1, keepdims=True)
        block_ms[:, [g for g in same if g != fused]] *= 1 + 1e-9
    return replace(timing, block_ms=block_ms)


def disturbed_cells(timing: NetworkTiming, same_work: np.ndarray) -> List[Tuple[int, int]]:
    """Cells (block, γ) that something else has slowed down: more than OUTLIER times the median of the other cells that
    do the same work, or, of the cell's own timings, an interquartile range above SPREAD times their median.

    Why: a disturbance of seconds hits a few cells, never most of the same work, and shows as a cell that is alone; one
    that comes and goes shows in the cell's own timings.
    """
    found = []
    for k, g in np.argwhere(np.isfinite(timing.block_ms)):
        others = timing.block_ms[same_work == same_work[k, g]]
        ms = timing.block_ms[k, g]
        usual_ms = np.median(np.delete(others, np.flatnonzero(others == ms)[0])) if len(others) > 1 else ms
        if ms > OUTLIER * usual_ms or timing.block_iqr_ms[k, g] > SPREAD * ms:
            found.append((int(k), int(g)))
    return found


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """This many CPU threads for everything, also between timings: threads that have just folded a network go on
    spinning for a while, and would compete with what is timed next."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_passes(network: DeployedNetwork, image: torch.Tensor, threads: int, part: Optional[Tuple[int, int]] = None,
                 engine: str = TORCH) -> np.ndarray:
    """PASSES rows [N + 2] of stem, block and classifier times, ms; of a part that runs without a stop [1]."""
    x = image if part is None else network.run(image, 0, part[0])
    if engine != TORCH:
        return onnx_timing.timed_passes(network, x, threads, part, PASSES, WARM_UP_MS, engine)
    whole = part or (0, len(network.blocks))
    start = time.perf_counter()
    while 1000 * (time.perf_counter() - start) < WARM_UP_MS:
        run_part(network, whole, x)
    marked = MarkedNetwork(network, image.device, part)
    benchmark.Timer('network(x)', globals={'network': marked, 'x': x}, num_threads=threads).timeit(PASSES)
    return marked.intervals_ms()[-PASSES:]


def part_ms(network: DeployedNetwork, image: torch.Tensor, threads: int, part: Tuple[int, int], engine: str = TORCH,
            ) -> float:
    """Median time of PASSES uninterrupted passes of a part, ms: what the sum of a table's entries should give."""
    with torch.inference_mode():
        return float(np.median(timed_passes(network, image, threads, part, engine)))


def summarise(values_ms: Sequence[float]) -> benchmark.Measurement:
    """Median and interquartile range of raw times (in whatever unit they come in)."""
    task = benchmark.TaskSpec(stmt='', setup='')
    return benchmark.Measurement(number_per_run=1, raw_times=[float(v) for v in values_ms], task_spec=task)
