"""Time every block under every γ as it runs inside the network.

A block timed in a loop of its own finds its weights and input in cache, which it never does in use. Here a
block is only ever timed inside a forward pass of the whole network: the pass notes the clock at every block
boundary. Each visit times all blocks at once, each under a γ of its own, and 14 visits cover the table; rounds
of such visits spread every entry's samples over the whole measurement, so that a drifting clock speed hits all
entries alike. benchmarks/lut_fidelity.py holds the sums of entries against whole networks.
"""
from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np
import torch

from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network.gammas import GAMMAS, N_GAMMA
from network.shapes import BRANCHES


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


@dataclass(frozen=True)
class NetworkTiming:
    """Medians and interquartile ranges, ms for one image; NaN where a block cannot run a γ."""
    block_ms: np.ndarray  # [N, 14]
    block_iqr_ms: np.ndarray  # [N, 14]
    stem_ms: float
    classifier_ms: float
    n_samples: int  # timings behind each median


class MarkedNetwork:
    """Runs a deployed network and notes the clock before the stem, after it, after each block and at the end; or only
    before and after the network, where it runs as a whole."""

    def __init__(self, network: DeployedNetwork, device: torch.device, as_a_whole: bool = False) -> None:
        self.network, self.on_cuda, self.as_a_whole = network, device.type == 'cuda', as_a_whole
        self.passes: List[list] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        marks = [self._mark()]
        if self.as_a_whole:
            x = self.network(x)
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
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def intervals_ms(self) -> np.ndarray:
        """[passes, N + 2] ms: stem, blocks, classifier; as a whole [passes, 1]."""
        if not self.on_cuda:
            return 1000 * np.diff(np.array(self.passes), axis=1)
        torch.cuda.synchronize()
        return np.array([[a.elapsed_time(b) for a, b in zip(marks, marks[1:])] for marks in self.passes])


def assign(model: HyperRepVGG, gamma: Sequence[int]) -> DeployedNetwork:
    """The network in which block k keeps exactly the branches that γ_k runs (α = 1), and runs them so."""
    alpha = np.zeros((len(model.blocks), len(BRANCHES)))
    for row, g, block in zip(alpha, gamma, model.blocks):
        row[list(GAMMAS[g].branches)] = 1
        row[block.n_branches:] = np.nan
    model.set_alpha_array(alpha)
    return deploy(model, gamma)


def latin_visits(model: HyperRepVGG, rounds: int) -> Iterator[List[int]]:
    """γ [N] of every visit: in each round of 14 visits every block runs each of its γ at least once, in an order of
    its own, so that what runs before a block varies too. Fixed seed."""
    runnable = [[g.id for g in GAMMAS if max(g.branches) < block.n_branches] for block in model.blocks]
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        shuffled = [rng.permutation(ids) for ids in runnable]
        for visit in range(N_GAMMA):
            yield [int(ids[visit % len(ids)]) for ids in shuffled]


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


def time_network(model: HyperRepVGG, image: torch.Tensor, threads: int, rounds: int,
                 progress: Optional[Callable[[int, int], None]] = None) -> NetworkTiming:
    """Time a model's blocks on the image's device (model and image [1, 3, S, S] must share it). Changes the model's α.

    `rounds`: visits of every (block, γ); `progress(done, total)` is called after each visit.
    """
    samples = BlockSamples(len(model.blocks))
    with torch.inference_mode(), thread_count(threads):
        for done, gamma in enumerate(latin_visits(model, rounds), start=1):
            samples.add(gamma, timed_passes(assign(model, gamma), image, threads))
            if progress is not None:
                progress(done, rounds * N_GAMMA)
    return samples.timing()


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


def timed_passes(network: DeployedNetwork, image: torch.Tensor, threads: int, as_a_whole: bool = False) -> np.ndarray:
    """PASSES rows [N + 2] of stem, block and classifier times, ms; as a whole [1]."""
    start = time.perf_counter()
    while 1000 * (time.perf_counter() - start) < WARM_UP_MS:
        network(image)
    marked = MarkedNetwork(network, image.device, as_a_whole)
    benchmark.Timer('network(image)', globals={'network': marked, 'image': image},
                    num_threads=threads).timeit(PASSES)
    return marked.intervals_ms()[-PASSES:]


def whole_network_ms(network: DeployedNetwork, image: torch.Tensor, threads: int) -> float:
    """Median time of PASSES uninterrupted forward passes, ms: what the sum of a table's entries should give."""
    with torch.inference_mode():
        return float(np.median(timed_passes(network, image, threads, as_a_whole=True)))


def summarise(values_ms: Sequence[float]) -> benchmark.Measurement:
    """Median and interquartile range of raw times (in whatever unit they come in)."""
    task = benchmark.TaskSpec(stmt='', setup='')
    return benchmark.Measurement(number_per_run=1, raw_times=[float(v) for v in values_ms], task_spec=task)
