"""A file is used only under the settings that it was made under, and with the inputs that it was made from.

Metadata records both (`writing.make_metadata`); `require` holds them against the present ones, and refuses by name with
the command that makes the file again. What the pipeline takes for current (fingerprints.py) is never refused.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional

from config import TORCH, Settings, UserError, profile_defaults
from pipeline import documents
from pipeline.documents import Document
from pipeline.fingerprints import (
    content_hash,
    differences,
    found_at,
    input_files,
    input_hash,
    metadata_of,
    named_file,
)
from pipeline.kinds import KINDS, command_for, path_of


def read_kind(kind: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> Document:
    """Read the file of this kind that belongs to these settings, made under them. `replaced` gives another path for one
    of its inputs: `lut='table.json'`."""
    document = read_anyhow(kind, settings, domain)
    require(kind, document.path, settings, domain, **replaced)
    return document


def read_anyhow(kind: str, settings: Settings, domain: Optional[int] = None) -> Document:
    """Read the file of this kind, made for the settings' model under whatever other settings."""
    document = documents.read(found_at(kind, settings, domain), command_for(kind, settings, domain))
    document.require_model(settings)
    return document


def require(kind: str, path: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> None:
    """Refuse (`UserError`) the file of this kind at `path` when it, or what it is made from, was made under other
    settings. What lies deepest is named first: it has to be made again first."""
    why = _why_not(kind, path, settings, domain, replaced)
    if why:
        raise UserError(why)


def is_named_table(lut_file: str, settings: Settings) -> bool:
    """Was this table named by the user (`--lut_file`)? It is meant as it is, whatever hardware it was made for."""
    return os.path.abspath(lut_file) != os.path.abspath(path_of('lut', settings))


def names_a_profile(settings: Settings) -> bool:
    """Is a simulated client asked for by name? The default profile is only what stands in where no device is."""
    return settings.DEVICE_PROFILE not in ('', profile_defaults(settings).DEVICE_PROFILE)


def is_measured_client(metadata: Mapping[str, Any]) -> bool:
    """Was the client of this tier's or complete table measured on a device?"""
    client = metadata.get('client')
    return isinstance(client, dict) and client.get('simulated') is False


def _why_not(kind: str, path: str, settings: Settings, domain: Optional[int], replaced: Dict[str, str]) -> str:
    """Why this file must not be used; '' when it may."""
    metadata = metadata_of(path)
    if not metadata:
        return ''  # missing or damaged: reading it says so
    differ = differing(kind, metadata, settings)
    for name, at in input_files(kind, settings, domain, **replaced).items():
        was = recorded(metadata, name)
        is_other = os.path.isfile(at) and was.get('sha256', '') not in ('', input_hash(name, at, settings, domain))
        if is_other and not differ:
            known = differing(name, was, settings) if name in KINDS else []
            differ = [f"another {at}{' (' + ', '.join(known) + ')' if known else ''}"]
        elif name in KINDS and not (name == 'lut' and is_named_table(at, settings)):
            if os.path.isfile(at):
                why = _why_not(name, at, settings, domain if '{domain}' in KINDS[name].path else None, {})
                if why:
                    return why
            elif 'config' in was:
                differ += [text for text in differing(name, was, settings) if text not in differ]
    if not differ:
        return ''
    return f"{path}: was made with {', '.join(differ)}; make it again with `{command_for(kind, settings, domain)}`"


def differing(kind: str, metadata: Mapping[str, Any], settings: Settings) -> List[str]:
    """How the settings behind a file of this kind differ from these (`fingerprints.differences`). A file that a setting
    names is the same when its content is; a client that was measured is what it is, and no profile may be meant."""
    spec = KINDS[kind]
    groups = [name for name in spec.groups if name not in spec.applied]
    if 'client' in groups and is_measured_client(metadata):
        groups = [name for name in groups if name != 'client' and (name != 'lut' or kind == 'lut')]
        if names_a_profile(settings):
            return [f'a device (now DEVICE_PROFILE={settings.DEVICE_PROFILE})']
        engine = metadata['client'].get('engine', TORCH)
        if engine != settings.CLIENT_ENGINE:
            return [f'CLIENT_ENGINE={engine} (now {settings.CLIENT_ENGINE})']
    found = list(differences(metadata, groups, settings))
    for name in spec.files:
        was, now = recorded(metadata, name).get('sha256'), content_hash(named_file(name, settings))
        if now and was == now:
            found = [text for text in found if not text.startswith(f'{name}=')]
    return found


def recorded(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What metadata holds of an input."""
    found = metadata.get('made_from')
    entry = found.get(name) if isinstance(found, dict) else None
    return entry if isinstance(entry, dict) else {}
