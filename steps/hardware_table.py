"""The hardware table (step 1): a tier's times measured or simulated, and both tiers merged into the complete table."""
from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Dict, Mapping, Optional, Tuple

import numpy as np
import torch
from tqdm import tqdm

import cli
import lut_manager
from config import Settings, UserError
from costs.cost_model import FLOAT32, TIERS, Link, gathered
from costs.wire_costs import WireCosts, block_bytes_of
from domain_dataset import load_clean
from domains import image_formats
from lut_manager import TierCosts
from network.gammas import fused_gamma
from network.outline import outline_for
from pipeline import documents, fingerprints, kinds, measured, provenance, writing
from roofline_measure import current_roofline
from tier.block_timing import thread_count
from tier.tasks import wire_ms


def make_tier(tier: str, settings: Settings, force: bool = False) -> None:
    """Measure or simulate one tier and write its file; `force`: also in the place of a device's roofline."""
    outline = outline_for(settings)  # an unknown model is an error before anything is measured
    writing.check_writable(kinds.path_of(f'lut_{tier}', settings))
    roofline = current_roofline(tier, settings, force)
    with tqdm(desc=f'timing blocks ({tier})', unit='visit', leave=False, delay=2, disable=None) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if tier == 'client' and settings.DEVICE_PROFILE:
            costs = lut_manager.simulate_client(settings, roofline, progress)
        else:
            costs = lut_manager.measure_tier(tier, settings, roofline, progress)
    path = lut_manager.save_tier(costs, settings)
    how = f"simulated by {costs.info['profile']}" if costs.info['simulated'] else 'measured'
    fused = [fused_gamma((True,) * count) for count in outline.n_branches]
    correction = costs.correction()
    total = correction.part_ms(costs.stem_ms + costs.classifier_ms + gathered(costs.block_ms, fused).sum())
    as_what = 'fused' if max(outline.n_branches) > 1 else 'as it is'
    print(f"{tier} ({costs.info['name']}, {how}): whole network {as_what} {total:.2f} ms -> {path}")
    if costs.info.get('cells_timed_again'):
        print(f"  {costs.info['cells_timed_again']} entries looked disturbed and were timed again")
    if correction.held_out is not None:
        print(f'  {correction.held_out.n} whole heads, tails and networks against the corrected sums of their blocks: '
              f'{100 * correction.held_out.median:.1f} % off (median, held out), at most '
              f'{100 * correction.held_out.worst:.1f} %')


def merge(settings: Settings) -> None:
    """Write the complete table from both tiers' files, making one that is missing. One that was made under other
    settings is refused; a link and wire formats that were measured with this client stay."""
    writing.check_writable(kinds.path_of('lut', settings))
    for tier in TIERS:
        path = kinds.path_of(f'lut_{tier}', settings)
        if not os.path.exists(path):
            how = f'simulating {settings.DEVICE_PROFILE}' if tier == 'client' else 'measuring this machine'
            if tier == 'client' and not settings.DEVICE_PROFILE:
                raise measured.no_device(path)
            cli.say(f'{path} is missing: {how}')
            make_tier(tier, settings)
        else:
            check_tier(tier, path, settings)
    link, wire = measured_before(settings)
    tiers = {tier: lut_manager.load_tier(tier, settings) for tier in TIERS}
    table = lut_manager.merge(tiers['server'], tiers['client'], settings, link, wire or wire_costs(tiers, settings),
                              image_codec_ms(settings))
    path = lut_manager.save(table, settings)
    simulated = [tier for tier in TIERS if table.tier_info[tier].get('simulated')]
    print(f"{table.n_blocks} blocks, link {table.link.bandwidth_mbps:g} Mbit/s with {table.link.rtt_ms:g} ms round trip"
          f"{', simulated: ' + ' and '.join(simulated) if simulated else ''} -> {path}")


def image_codec_ms(settings: Settings) -> Dict[str, Tuple[float, float]]:
    """What PNG and JPEG take for images of the data set; nothing, with a line that says so, where there is no data."""
    try:
        return image_formats.codec_ms(load_clean(settings, 'val', image_formats.TIMED).images)
    except UserError as error:
        cli.say(f'note: PNG and JPEG are not timed: {error}')
        return {}


def wire_costs(tiers: Mapping[str, TierCosts], settings: Settings) -> WireCosts:
    """What encoding and decoding take where no client is connected, for every format whose size follows from the shape
    (which values a map has does not matter to them): processor time of one thread of this machine, which stands for
    both tiers, times the factor of a simulated one, as with PNG and JPEG (domains/image_formats.py)."""
    shapes = outline_for(settings).blocks
    sizes = block_bytes_of(shapes)
    with torch.inference_mode(), thread_count(1):
        ms = np.stack([wire_ms(torch.rand(lut_manager.BATCH_SIZE, *shape.out_shape), tuple(sizes), time.thread_time)
                       for shape in shapes], axis=1)  # [formats, N, 2]
    slower = {tier: float(costs.info.get('slowdown', 1.0)) for tier, costs in tiers.items()}
    return WireCosts(sizes, {wire: {tier: slower[tier] * taken for tier in TIERS} for wire, taken in zip(sizes, ms)})


def check_tier(tier: str, path: str, settings: Settings) -> None:
    """Raise `UserError` when a tier's file is damaged or not what these settings mean."""
    document = documents.read(path, kinds.command_for(f'lut_{tier}', settings))
    document.require_model(settings)
    if tier == 'client' and not document.get('metadata.client.simulated', bool):
        measured.check_meant(path, settings)
        measured.say_used(path, settings)
    elif tier == 'client' and not settings.DEVICE_PROFILE:
        raise measured.no_device(path)
    else:
        provenance.require(f'lut_{tier}', path, settings)


def measured_before(settings: Settings) -> Tuple[Optional[Link], Optional[WireCosts]]:
    """The link and the wire formats' costs of the complete table that is there, as far as they were measured with the
    client whose file is there now and towards the tier that runs the tail; no costs where a format of now lacks them:
    times of two machines would not compare."""
    path = kinds.path_of('lut', settings)
    metadata = fingerprints.metadata_of(path)
    client = fingerprints.content_hash(kinds.path_of('lut_client', settings))
    if (provenance.recorded(metadata, 'lut_client').get('sha256') != client or
            metadata.get('config', {}).get('HEAD_TIER') != settings.HEAD_TIER):
        return None, None
    for formats in (settings.WIRE_FORMATS, (FLOAT32,)):  # a table that lacks a format still knows the link
        try:
            table = lut_manager.read(path, replace(settings, WIRE_FORMATS=formats))
        except UserError:
            continue
        costs = WireCosts(table.block_bytes, table.codec_ms) if set(settings.WIRE_FORMATS) <= set(
            table.codec_ms) else None
        return (table.link, costs) if table.link.measured else (None, None)
    return None, None
