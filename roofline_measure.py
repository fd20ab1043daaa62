"""Measure a tier's roofline: peak GFLOP/s, memory bandwidth and the knee between them.

    python roofline_measure.py                    # this machine as the server tier
    python roofline_measure.py --tier client      # on the client device (or simulated, see DEVICE_PROFILE)

Peak: float32 matrix products, the best size's median. Bandwidth: b = s·a on arrays of 8 times the last-level
cache (at least 256 MB), counting bytes read and written. Both at the tier's thread count. Writes
results/roofline_{tier}.json.
"""
from __future__ import annotations

import glob
import re
import statistics
from typing import TYPE_CHECKING, Optional, Sequence

import cli
import json_files
from config import Settings
from cost_model import TIERS, Roofline

if TYPE_CHECKING:
    import torch

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


def measure_roofline(device: 'torch.device', threads: int) -> Roofline:
    """Peak and bandwidth of a device (float32); medians of REPEATS timings."""
    import torch
    from block_timing import benchmark

    def median_s(statement: str, **names: 'torch.Tensor') -> float:
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
    return Roofline(peak_gflops=peak / 1e9, bandwidth_gbs=2 * n_bytes / seconds / 1e9)


def roofline_of_tier(tier: str, settings: Settings) -> Roofline:
    """Measured on this machine for the server; for the client simulated by DEVICE_PROFILE, or measured here when
    that is empty (this machine then is the client)."""
    import torch

    from device_profile import load_profile
    from lut_manager import device_of, slowdown_of
    if tier == 'server':
        return measure_roofline(device_of(settings.SERVER_DEVICE), settings.threads(settings.SERVER_THREADS))
    if not settings.DEVICE_PROFILE:
        return measure_roofline(device_of(settings.CLIENT_DEVICE), settings.threads(settings.CLIENT_THREADS))
    profile = load_profile(settings.DEVICE_PROFILE)
    if profile.kind == 'kernel-model':
        return Roofline(profile.peak_gflops, profile.bandwidth_gbs)
    slowdown = slowdown_of(profile, settings)
    here = measure_roofline(torch.device('cpu'), profile.threads)
    return Roofline(here.peak_gflops / slowdown, here.bandwidth_gbs / slowdown)


def save_roofline(tier: str, settings: Settings) -> Roofline:
    """Measure (or simulate) and write results/roofline_{tier}.json."""
    path = json_files.path_of(f'roofline_{tier}', settings)
    json_files.check_writable(path)
    found = roofline_of_tier(tier, settings)
    kind = f'roofline_{tier}'
    json_files.write(path, {'tier': tier, 'peak_gflops': found.peak_gflops, 'bandwidth_gbs': found.bandwidth_gbs,
                            'i_knee': found.i_knee, 'simulated': tier == 'client' and bool(settings.DEVICE_PROFILE)},
                     json_files.make_metadata(settings, kind, json_files.inputs_of(kind, settings)))
    return found


def load_roofline(tier: str, settings: Settings) -> Roofline:
    """Read results/roofline_{tier}.json; `UserError` when it is missing or damaged."""
    document = json_files.read(json_files.path_of(f'roofline_{tier}', settings),
                               json_files.command_for(f'roofline_{tier}', settings))
    return Roofline(document.number('peak_gflops', 1e-9), document.number('bandwidth_gbs', 1e-9))


def current_roofline(tier: str, settings: Settings) -> Roofline:
    """The file's figures when it was made under these settings, otherwise measured and written now."""
    path = json_files.path_of(f'roofline_{tier}', settings)
    if json_files.is_current([path], json_files.inputs_of(f'roofline_{tier}', settings)):
        return load_roofline(tier, settings)
    return save_roofline(tier, settings)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--tier', choices=TIERS, default='server')
    args, settings = cli.parse(parser, argv)
    path = json_files.path_of(f'roofline_{args.tier}', settings)
    if args.if_changed and json_files.is_current([path], json_files.inputs_of(f'roofline_{args.tier}', settings)):
        cli.say(f'{path} is up to date')
        return
    found = save_roofline(args.tier, settings)
    print(f'{args.tier}: peak {found.peak_gflops:.1f} GFLOP/s, bandwidth {found.bandwidth_gbs:.1f} GB/s, '
          f'knee {found.i_knee:.1f} FLOP/byte -> {path}')


if __name__ == '__main__':
    cli.run(main)
