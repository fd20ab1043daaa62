"""Measure a device's peak arithmetic rate and memory bandwidth."""
from __future__ import annotations

import glob
import re
import statistics
from typing import Tuple

import torch

from tier.block_timing import benchmark

GEMM_SIZES = {'cpu': (1024, 1536), 'cuda': (4096, 8192)}  # rows = columns
CACHE_FACTOR = 8
DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell
MAX_ARRAY_BYTES = 1 << 30
REPEATS = 5


def last_level_cache_bytes() -> int:
    """Size of the largest cache that the system reports."""
    sizes = []
    for path in glob.glob('/sys/devices/system/cpu/cpu0/cache/index*/size'):
        with open(path, encoding='ascii') as stream:
            match = re.match(r'(\d+)([KM]?)', stream.read())
        if match:
            sizes.append(int(match.group(1)) << {'': 0, 'K': 10, 'M': 20}[match.group(2)])
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def measure_roofline(device: torch.device, threads: int) -> Tuple[float, float]:
    """(peak GFLOP/s, bandwidth in GB/s) of a device in float32; medians of REPEATS timings."""
    def median_s(statement: str, **names: torch.Tensor) -> float:
        timer = benchmark.Timer(statement, globals={'torch': torch, **names}, num_threads=threads)
        return statistics.median(timer.timeit(1).median for _ in range(REPEATS))

    peak = 0.0
    for n in GEMM_SIZES[device.type]:
        a, b, c = (torch.rand(n, n, device=device) for _ in range(3))
        peak = max(peak, 2 * n ** 3 / median_s('torch.mm(a, b, out=c)', a=a, b=b, c=c))
    n_bytes = min(max(256 << 20, CACHE_FACTOR * last_level_cache_bytes()), MAX_ARRAY_BYTES)
    source = torch.rand(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = median_s('torch.mul(source, 1.5, out=target)', source=source, target=target)
    return peak / 1e9, 2 * n_bytes / seconds / 1e9
