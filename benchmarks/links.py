"""The links that benchmarks compare, with the head on either tier, and one measured table on each of them."""
from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Iterator

import lut_manager
from config import Settings
from costs.cost_model import TIERS, HardwareTable, Link

LINKS_MBPS = (10, 100, 1000)


def every_link(settings: Settings) -> Iterator[Settings]:
    """The settings of every case."""
    for head_tier, mbps in itertools.product(TIERS, LINKS_MBPS):
        yield replace(settings, HEAD_TIER=head_tier, BANDWIDTH_MBPS=float(mbps))


def on_link(table: HardwareTable, settings: Settings) -> HardwareTable:
    """The table with the link of the settings, simulated, in the place of its own."""
    return lut_manager.with_link(table, Link(settings.BANDWIDTH_MBPS, settings.RTT_MS, False))
