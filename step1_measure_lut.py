"""Step 1: make the hardware table, every block's time under every γ on both tiers.

    python step1_measure_lut.py --mode server            # measure this machine as the server
    python step1_measure_lut.py --mode client            # simulate the client by DEVICE_PROFILE; with
                                                         # DEVICE_PROFILE= (empty): measure this machine as the client
    python step1_measure_lut.py --mode client --device_profile jetson-tx2
    python step1_measure_lut.py --mode merge             # both into results/hardware_lut_complete.json; makes a
                                                         # missing one first (server: here; client: DEVICE_PROFILE)

Without a server connection: run `--mode client --set DEVICE_PROFILE=` on the device, copy its
results/lut_client.json into results/ on the server, then `--mode merge --set DEVICE_PROFILE=` there. What was measured
on a device is only replaced with --force.
"""
from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

import cli
from costs.checks import check_settings
from pipeline import fingerprints, kinds, measured


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    measured.add_flags(parser)
    parser.add_argument('--mode', choices=('client', 'server', 'merge'), required=True)
    parser.add_argument('--device_profile', metavar='NAME|FILE',
                        help="simulated client: edge-cpu, jetson-tx2, a JSON file, or '' to measure this machine")
    args, settings = cli.parse(parser, argv)
    if args.device_profile is not None:
        settings = dataclasses.replace(settings, DEVICE_PROFILE=args.device_profile)
    check_settings(settings, weights=False)
    kind = 'lut' if args.mode == 'merge' else f'lut_{args.mode}'
    path = kinds.path_of(kind, settings)
    if kind == 'lut_client' and measured.keeps(kind, settings, args):
        return
    if args.if_changed and fingerprints.is_current([path], fingerprints.inputs_of(kind, settings)):
        cli.say(f'{path} is up to date')
        return
    from steps import hardware_table  # loads PyTorch, which --help does not need
    if args.mode == 'merge':
        hardware_table.merge(settings)
    else:
        hardware_table.make_tier(args.mode, settings, args.force)


if __name__ == '__main__':
    cli.run(main)
