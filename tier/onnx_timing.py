"""Times of blocks and parts in the engines `onnxruntime` and `onnxruntime-int8`.

onnxruntime runs a whole graph at once, and merges operators across what PyTorch runs one by one; blocks in graphs of
their own would pay for the borders. So the whole network runs with the engine's profiler on: the times of its
operators, which keep the names of their blocks, are added up block by block. The profiler itself takes some µs an
operator: what it says of the classifier's Flatten, which computes nothing, is taken off every operator. What lies
between operators is in none of the sums; the correction by whole heads and tails, which run without the profiler, adds
it (costs/correction.py).
"""
from __future__ import annotations

import json
import os
import re
import tempfile
import time
from typing import List, Optional, Tuple

import numpy as np
import torch
import torch.nn as nn

from config import INT8
from hyper_repvgg import DeployedNetwork
from tier.onnx_graph import part_graph
from tier.onnx_int8 import int8_part_graph
from tier.onnx_session import Session
from tier.rounding import Grid

OPERATOR = re.compile(r'(?:^|\s)unit(\d+)/.*_kernel_time')  # in the name of an event of the profile
US_A_MS = 1000
RUNS = 8  # that a pass stands for, at most: the profile holds whole µs, and a block may take 5
LEAST_MS = 1e-4  # of a unit: no time is 0
ANY_GRID = Grid(1 / 32)  # times do not depend on values
EMPTY = 'Flatten'  # an operator that computes nothing


def timed_passes(network: DeployedNetwork, x: torch.Tensor, threads: int, part: Optional[Tuple[int, int]], passes: int,
                 warm_up_ms: float, engine: str) -> np.ndarray:
    """`passes` rows [N + 2] of stem, block and classifier times, ms; of a part that runs without a stop [1]. `x`: what
    goes into the first unit. In int8 every block of the network is fused."""
    n = len(network.blocks)
    units = units_of(network, *(part or (0, n)))
    graph = (int8_part_graph(units, x.dtype, x.shape[1:], None, [ANY_GRID] * (len(units) + 1)) if engine == INT8 else
             part_graph(units, x.dtype, x.shape[1:], None))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(graph, threads, '' if part else os.path.join(folder, 'profile'))
        start, warm = time.perf_counter(), 0
        while 1000 * (time.perf_counter() - start) < warm_up_ms:
            session(x)
            warm += 1
        runs = max(1, min(RUNS, warm))  # 1: of a large network, or where something held this process up
        times_ms = []
        for _ in range(passes * runs):
            begun = time.perf_counter()
            session(x)
            times_ms.append([1000 * (time.perf_counter() - begun)])
        rows = np.array(times_ms) if part else by_unit_ms(session.end_profile(), n + 2)[-passes * runs:]
        return quiet_mean(rows.reshape(passes, runs, -1), axis=1)


def quiet_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the smaller half: what something else has held up does not count."""
    return np.take(np.sort(values, axis=axis), range((values.shape[axis] + 1) // 2), axis=axis).mean(axis=axis)


def units_of(network: DeployedNetwork, first: int, last: int) -> List[Tuple[str, nn.Module]]:
    """Blocks [first, last), with stem and classifier where `DeployedNetwork.run` has them, named by their numbers."""
    units = [(f'unit{k + 1}', network.blocks[k]) for k in range(first, last)]
    stem = [('unit0', network.stem)] if first == 0 and last > 0 else []
    return stem + units + ([(f'unit{last + 1}', network.classifier)] if last == len(network.blocks) else [])


def by_unit_ms(profile: str, n_units: int) -> np.ndarray:
    """The profile in this file, [runs, units] ms. What the engine adds (a change of the layout of a map) and gives no
    unit's name counts for the unit before it."""
    with open(profile, encoding='utf-8') as stream:
        events = json.load(stream)
    operators = [event for event in events if event['name'].endswith('_kernel_time')]
    own_us = quiet_mean(np.array([event['dur'] for event in operators if event['args'].get('op_name') == EMPTY]))
    rows, row, unit = [], np.zeros(n_units), 0
    for event in events:
        if event['name'].endswith('_kernel_time'):
            found = OPERATOR.search(event['name'])
            unit = int(found[1]) if found else unit
            row[unit] += (event['dur'] - own_us) / US_A_MS
        elif event['name'] == 'model_run':
            rows.append(row.clip(min=LEAST_MS))
            row, unit = np.zeros(n_units), 0
    return np.array(rows)
