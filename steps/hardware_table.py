"""The hardware table (step 1): a tier's times measured or simulated, and both tiers merged into the complete table."""
from __future__ import annotations

import os
from typing import Dict, Tuple

import numpy as np
from tqdm import tqdm

import cli
import lut_manager
from config import Settings, UserError
from costs.cost_model import TIERS
from domain_dataset import load_clean
from domains import image_formats
from pipeline import documents, fingerprints, kinds, writing
from roofline_measure import current_roofline


def make_tier(tier: str, settings: Settings) -> None:
    """Measure or simulate one tier and write its file."""
    lut_manager.blocks_of(settings)  # an unknown model is an error before anything is measured
    writing.check_writable(kinds.path_of(f'lut_{tier}', settings))
    roofline = current_roofline(tier, settings)
    with tqdm(desc=f'timing blocks ({tier})', unit='visit', leave=False, delay=2) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if tier == 'client' and settings.DEVICE_PROFILE:
            costs = lut_manager.simulate_client(settings, roofline, progress)
        else:
            costs = lut_manager.measure_tier(tier, settings, roofline, progress)
    path = lut_manager.save_tier(costs, settings)
    how = f"simulated by {costs.info['profile']}" if costs.info['simulated'] else 'measured'
    fused = costs.block_ms[:, [4, 13]]
    correction = costs.correction()
    total = correction.part_ms(costs.stem_ms + costs.classifier_ms + np.where(np.isnan(fused[:, 1]), *fused.T).sum())
    print(f"{tier} ({costs.info['name']}, {how}): whole network fused {total:.2f} ms -> {path}")
    if costs.info.get('cells_timed_again'):
        print(f"  {costs.info['cells_timed_again']} entries looked disturbed and were timed again")
    if correction.held_out is not None:
        print(f'  {correction.held_out.n} whole heads, tails and networks against the corrected sums of their blocks: '
              f'{100 * correction.held_out.median:.1f} % off (median, held out), at most '
              f'{100 * correction.held_out.worst:.1f} %')


def merge(settings: Settings) -> None:
    """Write the complete table, making a tier's file that is missing or was made under other settings."""
    writing.check_writable(kinds.path_of('lut', settings))
    for tier in TIERS:
        path = kinds.path_of(f'lut_{tier}', settings)
        reason = why_make(tier, path, settings)
        if reason:
            how = f'simulating {settings.DEVICE_PROFILE}' if tier == 'client' else 'measuring this machine'
            cli.say(f'{path} {reason}: {how}')
            make_tier(tier, settings)
    table = lut_manager.merge(lut_manager.load_tier('server', settings), lut_manager.load_tier('client', settings),
                              settings, image_codec_ms=image_codec_ms(settings))
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


def why_make(tier: str, path: str, settings: Settings) -> str:
    """Why a tier's file must be made before merging; '' when it can be used. A client table that was measured on a
    device is never replaced by a simulated one."""
    real_client = tier == 'client' and not settings.DEVICE_PROFILE
    if not os.path.exists(path):
        if real_client:
            raise UserError(f'{path}: no such file, and DEVICE_PROFILE is empty (a real device is meant): run '
                            '`python step1_measure_lut.py --mode client --set DEVICE_PROFILE=` on the device and copy '
                            'its file here, or set DEVICE_PROFILE to simulate one')
        return 'is missing'
    document = documents.read(path, kinds.command_for(f'lut_{tier}', settings))
    if tier == 'client' and not document.get('metadata.client.simulated', bool):
        if not real_client:
            cli.say(f"{path} was measured on {document.get('metadata.client.name', str)}: using it, not simulating "
                    f'{settings.DEVICE_PROFILE}')
        return ''
    if real_client:
        raise document.refuse('is simulated, but DEVICE_PROFILE is empty (a real device is meant)')
    stale = document.get('metadata').get('inputs') != fingerprints.inputs_of(f'lut_{tier}', settings)
    return 'was made under other settings' if stale else ''
