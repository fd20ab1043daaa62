"""What γ, pruning and int8 bring in PyTorch and in onnxruntime, and how fast a stream is in each.

    python -m benchmarks.engines                                # RepVGG-Micro at 32x32 and RepVGG-A0 at 224x224
    python -m benchmarks.engines --models RepVGG-Micro@32 --rounds 15

Claim: see docs/deployment.md.

Bar: a stream with both ends in onnxruntime has at least the frame rate of one in PyTorch; exit status 1 where not.

How: five forms of a network, whole, in all engines, one image at a time, one thread: all in turns, round after round,
each built anew as step 1 does it (tier/block_timing.py); the fastest of its three passes (other programs make some much
slower), and the median over the rounds. Then streams over a loopback socket between this process and a client
(`client_worker.py`), cut in the middle, float32, every block fused: the engines in turns, the median frame rate of
each. Weights are random: times do not depend on them.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--models', default='RepVGG-Micro@32,RepVGG-A0@224', metavar='NAME@SIZE,...')
PARSER.add_argument('--rounds', type=cli.count, default=9, help='of times of whole networks')
PARSER.add_argument('--streams', type=cli.count, default=3, help='of each engine')
PARSER.add_argument('--frames', type=cli.count, default=100, help='of a stream')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from tqdm import tqdm

from config import ENGINES, ONNXRUNTIME, ROOT, TORCH, Settings
from costs.cost_model import Configuration
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg, deploy
from network.gammas import fused_gamma, unfused_gamma
from network.inputs import normalise
from remote.client import wait_for_client
from remote.streaming import run_stream
from tier import block_timing
from tier.rounding import peaks_of

Gammas = Tuple[int, ...]


def forms(has_identity: Sequence[bool]) -> Dict[str, Gammas]:
    """γ of every block, and with it the branches that it keeps."""
    unpruned = [(True, True, has) for has in has_identity]
    without_3x3 = [(False, True, has) for has in has_identity]
    every_second = [row if k % 2 else pruned for k, (row, pruned) in enumerate(zip(unpruned, without_3x3))]
    return {'all branches, each on its own': tuple(map(unfused_gamma, unpruned)),
            'all branches, fused': tuple(map(fused_gamma, unpruned)),
            'the 3x3 branch alone': tuple(fused_gamma((True, False, False)) for _ in has_identity),
            'every second block without its 3x3, fused': tuple(map(fused_gamma, every_second)),
            'no block with a 3x3, fused': tuple(map(fused_gamma, without_3x3))}


def whole_ms(model: HyperRepVGG, image: torch.Tensor, rounds: int) -> Dict[str, List[float]]:
    """Median time of every form in every engine, ms."""
    counts = block_timing.branch_counts(model)
    every = forms([count == 3 for count in counts])
    samples: Dict[Tuple[str, str], List[float]] = {(name, engine): [] for name in every for engine in ENGINES}
    with torch.inference_mode(), block_timing.thread_count(1):
        for _ in tqdm(range(rounds), model.model_name, unit='round', leave=False, disable=None):
            for name, engine in samples:
                network = block_timing.assign(model, every[name], engine)
                passes_ms = block_timing.timed_passes(network, image, 1, (0, len(counts)), engine)
                samples[name, engine].append(float(passes_ms.min()))
    return {name: [float(np.median(samples[name, engine])) for engine in ENGINES] for name in every}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return listener.getsockname()[1]


def stream_fps(model: HyperRepVGG, images: torch.Tensor, settings: Settings, streams: int, frames: int,
               ) -> Dict[str, List[float]]:
    """Frame rates of streams by engine."""
    n, has_identity = len(model.blocks), [count == 3 for count in block_timing.branch_counts(model)]
    model.set_alpha_array(np.array([[1, 1, 1 if has else np.nan] for has in has_identity]))
    with torch.inference_mode():
        peaks = peaks_of(deploy(model), normalise(images, settings.NORM_MEAN, settings.NORM_STD))
    configuration = Configuration(model.alpha_array(), forms(has_identity)['all branches, fused'], n // 2, 'float32',
                                  peaks=tuple(peaks))
    found: Dict[str, List[float]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [sys.executable, os.path.join(ROOT, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                   str(port), '--control_port', '0', '--cache_dir', folder, '--once']
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        with wait_for_client(settings, '127.0.0.1', port, say=lambda text: None) as client:
            for _ in range(streams):
                for engine in ENGINES:
                    figures, _ = run_stream(client, model, configuration, images, frames, replace(
                        settings, CLIENT_ENGINE=engine, SERVER_ENGINE=engine))
                    found[engine].append(figures['throughput_fps'])
        process.wait(60)
    return found


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Status 0 when every stream meets the bar."""
    args, met = PARSER.parse_args(argv), True
    cli.keep_freed_memory()
    torch.set_num_threads(1)
    for item in args.models.split(','):
        name, _, size = item.partition('@')
        settings = Settings(MODEL_NAME=name, INPUT_SIZE=int(size), DEVICE_PROFILE='', SERVER_DEVICE='cpu')
        torch.manual_seed(0)
        model = create_hyper_repvgg(None, name, settings.NUM_CLASSES)
        times = whole_ms(model, torch.rand(1, 3, int(size), int(size)), args.rounds)
        base = times['all branches, fused']
        print(f'{item}, ms (over "all branches, fused")'.ljust(52) + ''.join(f'{engine:>20}' for engine in ENGINES))
        for form, values in times.items():
            cells = ''.join(f'{value:>13.3f} ({value / of:4.2f})' for value, of in zip(values, base))
            print(f'  {form:<50}{cells}', flush=True)
        fps = stream_fps(model, torch.randint(0, 256, (8, 3, int(size), int(size)), dtype=torch.uint8), settings,
                         args.streams, args.frames)
        rates = {engine: float(np.median(fps[engine])) for engine in ENGINES}
        print(f'  stream, λ = {len(model.blocks) // 2}, frames/s (over torch): ' + ', '.join(
            f'{engine} {rate:.1f} ({rate / rates[TORCH]:.2f})' for engine, rate in rates.items()), flush=True)
        met = met and rates[ONNXRUNTIME] >= rates[TORCH]
    print('bar: streams in onnxruntime at least as fast:', 'met' if met else 'NOT met')
    return int(not met)


if __name__ == '__main__':
    sys.exit(main())
