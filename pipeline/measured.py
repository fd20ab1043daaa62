"""What was measured on a device stays until --force replaces it, and no other machine is taken for the device."""
from __future__ import annotations

import argparse
import os
from typing import Any, Dict

import cli
from config import TORCH, Settings, UserError
from pipeline import documents, kinds
from pipeline.fingerprints import metadata_of
from pipeline.provenance import is_measured_client, names_a_profile

ON_THE_DEVICE = ('run `python step1_measure_lut.py --mode client --set DEVICE_PROFILE=` on the device and copy its '
                 'lut_client.json here, or set DEVICE_PROFILE to simulate one')


def add_flags(to: argparse.ArgumentParser) -> None:
    """The flags of steps that measure or simulate the client."""
    to.add_argument('--force', action='store_true', help='replace what was measured on a device')
    to.add_argument('--keep_measured', action='store_true',
                    help='use what was measured on a device, and never measure this machine as the client')


def keeps(kind: str, settings: Settings, args: argparse.Namespace) -> bool:
    """Is the client's file of this kind ('lut_client', 'roofline_client') that is there to be used as it is? Raises
    `UserError` where the step would replace what was measured, or take this machine for the device."""
    path = kinds.path_of(kind, settings)
    if args.force:
        return False
    if is_measured(kind, settings):
        check_meant(path, settings)
        if not args.keep_measured:
            raise UserError(f'{path}: was measured on {device_of(path)}; --force replaces it')
        say_used(path, settings)
        return True
    if not args.keep_measured or settings.DEVICE_PROFILE:
        return False
    if kind == 'roofline_client' and is_measured('lut_client', settings):
        cli.say(f"the client's roofline stands in {kinds.path_of('lut_client', settings)}")
        return True
    raise no_device(path)


def is_measured(kind: str, settings: Settings) -> bool:
    """Is there a client's file of this kind that was measured on a device?"""
    path = kinds.path_of(kind, settings)
    if kind == 'lut_client':
        return is_measured_client(metadata_of(path))
    return bool(metadata_of(path)) and documents.read(path, '').content.get('simulated') is False


def check_meant(path: str, settings: Settings) -> None:
    """Refuse a measured file where a simulated client is asked for by name, or another engine."""
    if names_a_profile(settings):
        raise UserError(f'{path}: was measured on {device_of(path)}, and DEVICE_PROFILE={settings.DEVICE_PROFILE} '
                        'means a simulated client: leave it empty to use the device, choose another RESULTS_DIR, or '
                        f"replace it with `{kinds.command_for('lut_client', settings)} --force`")
    engine = str(client_of(path).get('engine', TORCH))
    if client_of(path) and settings.CLIENT_ENGINE != engine:
        raise UserError(f'{path}: was measured on {device_of(path)} with CLIENT_ENGINE={engine} (now '
                        f'{settings.CLIENT_ENGINE}): measure it again there, or set CLIENT_ENGINE={engine}')


def say_used(path: str, settings: Settings) -> None:
    """Say what a measured file was measured with."""
    client = client_of(path)
    with_ = ', '.join(f'{name} {client[name]}' for name in ('device', 'threads', 'torch') if name in client)
    cli.say(f"{path} was measured on {device_of(path)}{f' ({with_})' if with_ else ''}: using it"
            f"{f', not simulating {settings.DEVICE_PROFILE}' if settings.DEVICE_PROFILE else ''}")


def no_device(path: str) -> UserError:
    """The error where a device is meant and nothing was measured on one."""
    what = 'is simulated, but' if os.path.exists(path) else 'no such file, and'
    return UserError(f'{path}: {what} DEVICE_PROFILE is empty (a real device is meant): {ON_THE_DEVICE}')


def device_of(path: str) -> str:
    """The name of the device."""
    return str(client_of(path).get('name', 'a device'))


def client_of(path: str) -> Dict[str, Any]:
    """What a measured file says of its device; a roofline says nothing."""
    client = metadata_of(path).get('client')
    return client if isinstance(client, dict) else {}
