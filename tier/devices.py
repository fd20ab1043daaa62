"""The device that computes: found by name, named for a reader, and described by what its times depend on."""
from __future__ import annotations

import glob
import math
import os
import platform
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch

from config import UserError
from wire.compression import available

CPU_CLOCKS = '/sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq'  # kHz
GPU_CLOCKS = '/sys/class/devfreq/*gpu*/max_freq'  # Hz; as a Jetson has it, whose GPUs are called 17000000.gp10b, too
JETSON_GPU_CLOCKS = '/sys/devices/gpu.0/devfreq/*/max_freq'
GOVERNORS = '/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor'
POWER_MODE = '/var/lib/nvpmodel/status'  # of a Jetson: 'pmode:0002'
CHANGING = ('temperature_c', 'host', 'compressions')  # facts that times do not depend on, or that change all the time


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


def facts_of(device: torch.device, threads: int) -> Dict[str, Any]:
    """What the times of this machine depend on, as far as it can be read: a table of times holds for just these."""
    return {**machine_facts(), 'name': device_name(device), 'device': device.type, 'threads': threads,
            'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__,
            'compressions': ' '.join(available()), 'power_mode': ' '.join(_texts(POWER_MODE)) or None,
            'cpu_governor': ' '.join(sorted(set(_texts(GOVERNORS)))) or None,
            'cpu_max_mhz': _largest(CPU_CLOCKS, 1e3), 'gpu_max_mhz': _gpu_max_mhz(device),
            'temperature_c': _largest('/sys/class/thermal/thermal_zone*/temp', 1e3)}


def machine_facts() -> Dict[str, Any]:
    """What a machine is, whatever runs on it."""
    return {'cores': os.cpu_count() or 1, 'machine': platform.machine(), 'system': platform.platform(),
            'host': platform.node(), 'memory_bytes': _memory_bytes()}


def changes(recorded: Mapping[str, Any], facts: Mapping[str, Any]) -> List[str]:
    """['threads 1, now 2', ...]: which facts of a device are not those of a table of times."""
    return [f"{name} {recorded.get(name, 'unknown')}, now {now}" for name, now in facts.items()
            if name not in CHANGING and recorded.get(name, 'unknown') != now]


def _gpu_max_mhz(device: torch.device) -> Optional[float]:
    """The highest clock that the GPU may run at, where the system tells."""
    if device.type != 'cuda':
        return None
    return _largest(JETSON_GPU_CLOCKS, 1e6) or _largest(GPU_CLOCKS, 1e6)


def _memory_bytes() -> int:
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (ValueError, OSError):
        return 0


def _largest(pattern: str, unit: float) -> Optional[float]:
    """The largest number in files of this pattern, in units of `unit`; None where there is none."""
    found = []
    for text in _texts(pattern):
        try:
            found.append(int(text) / unit)
        except ValueError:
            continue
    return max((value for value in found if math.isfinite(value)), default=None)


def _texts(pattern: str) -> List[str]:
    """What the files of this pattern hold, in one line each; a file that cannot be read is left out."""
    found = []
    for path in sorted(glob.glob(pattern)):
        try:
            with open(path, encoding='ascii', errors='replace') as stream:
                found.append(' '.join(stream.read(200).split()))
        except OSError:
            continue
    return [text for text in found if text]
