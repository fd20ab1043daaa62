"""Step 1: the hardware table, every block's time under every γ on both tiers.

    python step1_measure_lut.py --mode server            # measure this machine as the server
    python step1_measure_lut.py --mode client            # simulate the client by DEVICE_PROFILE; with
                                                         # DEVICE_PROFILE= (empty): measure this machine as the client
    python step1_measure_lut.py --mode client --device_profile jetson-tx2
    python step1_measure_lut.py --mode merge             # both into results/hardware_lut_complete.json; makes a
                                                         # missing one first (server: here; client: DEVICE_PROFILE)

Without a server connection: run `--mode client --set DEVICE_PROFILE=` on the device, copy its
results/lut_client.json into results/ on the server, then `--mode merge --set DEVICE_PROFILE=` there.
"""
from __future__ import annotations

import dataclasses
import os
from typing import Optional, Sequence

import cli
from config import Settings, UserError
from costs.cost_model import TIERS
from pipeline import documents, fingerprints, kinds, writing


def make_tier(tier: str, settings: Settings) -> None:
    """Measure or simulate one tier and write its file."""
    from tqdm import tqdm

    import lut_manager
    from roofline_measure import current_roofline
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
    total = costs.stem_ms + costs.classifier_ms + sum(row[1] if row[1] == row[1] else row[0] for row in fused)
    print(f"{tier} ({costs.info['name']}, {how}): whole network fused {total:.2f} ms -> {path}")


def merge(settings: Settings) -> None:
    """Write the complete table, making a tier's file that is missing or was made under other settings."""
    import lut_manager
    writing.check_writable(kinds.path_of('lut', settings))
    for tier in TIERS:
        path = kinds.path_of(f'lut_{tier}', settings)
        reason = why_make(tier, path, settings)
        if reason:
            how = f'simulating {settings.DEVICE_PROFILE}' if tier == 'client' else 'measuring this machine'
            cli.say(f'{path} {reason}: {how}')
            make_tier(tier, settings)
    table = lut_manager.merge(lut_manager.load_tier('server', settings), lut_manager.load_tier('client', settings),
                              settings)
    path = lut_manager.save(table, settings)
    simulated = [tier for tier in TIERS if table.tier_info[tier].get('simulated')]
    print(f"{table.n_blocks} blocks, link {table.link.bandwidth_mbps:g} Mbit/s with {table.link.rtt_ms:g} ms round trip"
          f"{', simulated: ' + ' and '.join(simulated) if simulated else ''} -> {path}")


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


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--mode', choices=(*TIERS, 'merge'), required=True)
    parser.add_argument('--device_profile', metavar='NAME|FILE',
                        help="simulated client: edge-cpu, jetson-tx2, a JSON file, or '' to measure this machine")
    args, settings = cli.parse(parser, argv)
    if args.device_profile is not None:
        settings = dataclasses.replace(settings, DEVICE_PROFILE=args.device_profile)
    kind = 'lut' if args.mode == 'merge' else f'lut_{args.mode}'
    path = kinds.path_of(kind, settings)
    if args.if_changed and fingerprints.is_current([path], fingerprints.inputs_of(kind, settings)):
        cli.say(f'{path} is up to date')
        return
    if args.mode == 'merge':
        merge(settings)
    else:
        make_tier(args.mode, settings)


if __name__ == '__main__':
    cli.run(main)
