"""What this machine draws, W, read from its own sensors: files of Linux, where there are any.

    INA3221   the power monitor of a Jetson board: /sys/bus/i2c/drivers/ina3221*, the rail of the whole board
    RAPL      the energy counters of Intel and AMD processors: /sys/class/powercap; often readable by root alone

The second says what the processors draw, without the rest of the machine.
"""
from __future__ import annotations

import glob
import os
import time
from typing import Callable, Dict, List, Optional, Tuple

RAIL_NAMES = ('VDD_IN', 'POM_5V_IN')  # of the whole board: Jetson TX2, Xavier and Orin; Nano
SECONDS = 1.0  # how long an average is taken: a sensor has a new value every few ms


def watts_of(compute: Callable[[], object], root: str = '/sys') -> Optional[Tuple[float, float]]:
    """Mean power while `compute` runs, and while this process does nothing; None where no sensor can be read."""
    idle_w = watts_during(lambda: time.sleep(0.02), root)
    active_w = None if idle_w is None else watts_during(compute, root)
    return None if active_w is None else (active_w, idle_w)


def watts_during(work: Callable[[], object], root: str = '/sys', seconds: float = SECONDS) -> Optional[float]:
    """Mean power while `work` is called again and again for some seconds; None where no sensor can be read."""
    if board_w(root) is None and not counters_uj(root):
        return None
    samples: List[float] = []
    before, start = counters_uj(root), time.monotonic()
    while time.monotonic() < start + seconds or not samples:
        work()
        samples.append(board_w(root) or 0.0)
    spent, after = time.monotonic() - start, counters_uj(root)
    if any(samples):
        return sum(samples) / len(samples)
    joules = sum(used_uj(path, before[path], after[path]) for path in before if path in after) / 1e6
    return joules / spent if joules > 0 else None


def board_w(root: str = '/sys') -> Optional[float]:
    """What the whole board draws now by its INA3221; None where there is none. Both layouts of the driver: JetPack 4
    with power in mW beside the rail's name, JetPack 5 and later with mV and mA beside its label."""
    for chip in sorted(glob.glob(os.path.join(root, 'bus/i2c/drivers/ina3221*/*-*'))):
        for path in glob.glob(os.path.join(chip, 'iio*/rail_name_*')):
            milliwatts = _number(os.path.join(os.path.dirname(path), f'in_power{path[-1]}_input'))
            if _text(path) in RAIL_NAMES and milliwatts is not None:
                return milliwatts / 1e3
        for path in glob.glob(os.path.join(chip, 'hwmon/hwmon*/in*_label')):
            channel = os.path.basename(path)[len('in'):-len('_label')]
            volts, amperes = (_number(os.path.join(os.path.dirname(path), f'{what}{channel}_input'))
                              for what in ('in', 'curr'))
            if _text(path) in RAIL_NAMES and volts is not None and amperes is not None:
                return volts * amperes / 1e6
    return None


def counters_uj(root: str = '/sys') -> Dict[str, float]:
    """The energy counter of every processor package that can be read, µJ, by its folder."""
    packages = [path for path in glob.glob(os.path.join(root, 'class/powercap/*-rapl:*'))
                if os.path.basename(path).count(':') == 1]  # not the parts of one
    found = {path: _number(os.path.join(path, 'energy_uj')) for path in packages}
    return {path: value for path, value in found.items() if value is not None}


def used_uj(path: str, before_uj: float, after_uj: float) -> float:
    """What a counter has counted, µJ; it starts anew at its `max_energy_range_uj`."""
    if after_uj < before_uj:
        after_uj += _number(os.path.join(path, 'max_energy_range_uj')) or 0.0
    return max(0.0, after_uj - before_uj)


def _text(path: str) -> str:
    try:
        with open(path, encoding='ascii', errors='replace') as stream:
            return stream.read(200).strip()
    except OSError:
        return ''


def _number(path: str) -> Optional[float]:
    try:
        return float(int(_text(path)))
    except ValueError:
        return None
