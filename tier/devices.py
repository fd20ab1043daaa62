"""The device that computes: found by name, and named for a reader."""
from __future__ import annotations

import platform

import torch

from config import UserError


def device_of(name: str) -> torch.device:
    """'auto' is the first CUDA device if there is one, else the CPU; `UserError` for one that is not there."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {name!r} cannot be used: {str(error).splitlines()[0]}') from None
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f"device {name!r}: only 'cpu' and 'cuda' are supported")
    return device


def device_name(device: torch.device) -> str:
    """What a reader of the table should see: the GPU's or the processor's name."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as stream:
            names = [line.partition(':')[2].strip() for line in stream if line.startswith('model name')]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
