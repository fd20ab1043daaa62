"""Is computed memory right? Holds costs/memory.py against what PyTorch allocates while every kind of block runs.

    python -m benchmarks.memory_check [--model RepVGG-B3] [--size 224] [--device cpu|cuda]

Computed: the tensors that a block holds at once, its input included. Measured: the allocator's peak (CPU: the
profiler's memory events; CUDA: max_memory_allocated), which adds what convolution libraries take as workspace.
One line a distinct block shape, for γ fused and all branches in parallel; weights are compared byte by byte.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--model', default='RepVGG-Micro')
PARSER.add_argument('--size', type=int, default=32)
PARSER.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
from typing import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from costs.memory import activation_bytes, weight_bytes
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGGBlock
from network.gammas import fused_gamma, unfused_gamma
from network.shapes import architecture, block_shapes


def allocated_peak(run: Callable[[], torch.Tensor], device: str) -> int:
    """Most bytes allocated beyond what was there before, while `run` runs."""
    if device == 'cuda':
        run()  # libraries that set themselves up once
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    now = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == '[memory]':
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def main() -> None:
    """Print the comparison."""
    args = PARSER.parse_args()
    torch.set_num_threads(1)
    print(f"{'in':>5} {'out':>5} {'px':>4} {'γ':>3} " +
          ' '.join(f'{word:>11}' for word in ('weights', 'tensors', 'allocated', 'workspace')))
    for shape in dict.fromkeys(block_shapes(architecture(args.model), args.size)[1]):
        block = HyperRepVGGBlock(shape).eval().to(args.device)
        every = (True, True, shape.has_identity)
        x = torch.rand(1, shape.in_channels, shape.in_size, shape.in_size, device=args.device)
        for gamma in (fused_gamma(every), unfused_gamma(every)):
            plan = build_plan(block, block.alpha, gamma)
            held = sum(t.numel() * t.element_size() for t in [*plan.buffers(), *plan.parameters()])
            if held != weight_bytes(shape, gamma):
                sys.exit(f'weights: {held} bytes held, {weight_bytes(shape, gamma)} computed')
            with torch.inference_mode():
                allocated = x.numel() * x.element_size() + allocated_peak(lambda p=plan, x=x: p(x), args.device)
            tensors = activation_bytes(shape, gamma, side_by_side=args.device == 'cuda')
            print(f'{shape.in_channels:5} {shape.out_channels:5} {shape.in_size:4} {gamma:3} {held:11} {tensors:11} '
                  f'{allocated:11} {allocated - tensors:11}')


if __name__ == '__main__':
    main()
