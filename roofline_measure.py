"""Measure a tier's roofline: peak GFLOP/s, memory bandwidth and the knee between them.

    python roofline_measure.py                    # this machine as the server tier
    python roofline_measure.py --tier client      # on the client device (or simulated, see DEVICE_PROFILE)

Peak: float32 matrix products, the best size's median. Bandwidth: b = s·a on arrays of 8 times the last-level
cache (at least 256 MB), counting bytes read and written. Both at the tier's thread count. Writes
results/roofline_{tier}.json.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
from config import Settings, UserError
from costs.checks import check_settings
from costs.cost_model import TIERS, Roofline
from costs.device_profiles import load_profile, slowdown_of
from pipeline import documents, fingerprints, kinds, measured, writing


def roofline_of_tier(tier: str, settings: Settings) -> Roofline:
    """Measured on this machine for the server; for the client simulated by DEVICE_PROFILE, or measured here when
    that is empty (this machine then is the client)."""
    from tier import devices, roofline  # loads PyTorch, which --help does not need

    def here(device: str, threads: int) -> Roofline:
        return Roofline(*roofline.measure_roofline(devices.device_of(device), threads))

    if tier == 'server':
        return here(settings.SERVER_DEVICE, settings.threads(settings.SERVER_THREADS))
    if not settings.DEVICE_PROFILE:
        return here(settings.CLIENT_DEVICE, settings.threads(settings.CLIENT_THREADS))
    profile = load_profile(settings.DEVICE_PROFILE)
    if profile.kind == 'kernel-model':
        return Roofline(profile.peak_gflops, profile.bandwidth_gbs)
    slowdown = slowdown_of(profile, settings)
    found = here('cpu', profile.threads)
    return Roofline(found.peak_gflops / slowdown, found.bandwidth_gbs / slowdown)


def save_roofline(tier: str, settings: Settings) -> Roofline:
    """Measure (or simulate) and write results/roofline_{tier}.json."""
    path = kinds.path_of(f'roofline_{tier}', settings)
    writing.check_writable(path)
    found = roofline_of_tier(tier, settings)
    kind = f'roofline_{tier}'
    writing.write(path, {'tier': tier, 'peak_gflops': found.peak_gflops, 'bandwidth_gbs': found.bandwidth_gbs,
                            'i_knee': found.i_knee, 'simulated': tier == 'client' and bool(settings.DEVICE_PROFILE)},
                     writing.make_metadata(settings, kind, fingerprints.inputs_of(kind, settings)))
    return found


def load_roofline(tier: str, settings: Settings) -> Roofline:
    """Read results/roofline_{tier}.json; `UserError` when it is missing or damaged."""
    document = documents.read(kinds.path_of(f'roofline_{tier}', settings),
                               kinds.command_for(f'roofline_{tier}', settings))
    return Roofline(document.number('peak_gflops', 1e-9), document.number('bandwidth_gbs', 1e-9))


def current_roofline(tier: str, settings: Settings, force: bool = False) -> Roofline:
    """The file's figures when it was made under these settings, otherwise measured and written now. Raises `UserError`
    when that would replace what was measured on a device, unless `force`."""
    path = kinds.path_of(f'roofline_{tier}', settings)
    if fingerprints.is_current([path], fingerprints.inputs_of(f'roofline_{tier}', settings)):
        return load_roofline(tier, settings)
    if tier == 'client' and not force and measured.is_measured('roofline_client', settings):
        raise UserError(f'{path}: was measured on a device; --force replaces it')
    return save_roofline(tier, settings)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    measured.add_flags(parser)
    parser.add_argument('--tier', choices=TIERS, default='server')
    args, settings = cli.parse(parser, argv)
    check_settings(settings, weights=False)
    path = kinds.path_of(f'roofline_{args.tier}', settings)
    if args.tier == 'client' and measured.keeps('roofline_client', settings, args):
        return
    if args.if_changed and fingerprints.is_current([path], fingerprints.inputs_of(f'roofline_{args.tier}', settings)):
        cli.say(f'{path} is up to date')
        return
    found = save_roofline(args.tier, settings)
    print(f'{args.tier}: peak {found.peak_gflops:.1f} GFLOP/s, bandwidth {found.bandwidth_gbs:.1f} GB/s, '
          f'knee {found.i_knee:.1f} FLOP/byte -> {path}')


if __name__ == '__main__':
    cli.run(main)
