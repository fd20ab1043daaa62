"""Is an output still current? A fingerprint of everything that shaped it is stored in the file and compared."""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any, Dict, Mapping, Optional, Sequence

import config
from config import ROOT, Settings, UserError
from pipeline import documents
from pipeline.documents import read
from pipeline.kinds import KINDS, SHIPPED, path_of, plain, report_on_weights, weights_file

ENTRY_A_DOMAIN = ('alpha', 'importance_rankings')  # kinds whose file holds all domains
PSEUDO, REAL = MODES = ('pseudo', 'real')  # without and with a client device


# --- which files a file is made from ----------------------------------------------------------------

def found_at(kind: str, settings: Settings, domain: Optional[int] = None) -> str:
    """Where a kind of file is read: where it is written; where nothing lies there, the file that ships with the
    repository if it is current under these settings."""
    if kind == 'base_model':
        return report_on_weights(settings)
    own = path_of(kind, settings, domain)
    if kind not in SHIPPED or os.path.exists(own):
        return own
    shipped = path_of(kind, dataclasses.replace(settings, RESULTS_DIR=Settings.RESULTS_DIR), domain)
    if kind == 'partition':  # its fingerprint needs the images
        fits = os.path.exists(shipped) and not differences(metadata_of(shipped), KINDS[kind].groups, settings)
    else:
        fits = is_current([shipped], inputs_of(kind, settings))
    return shipped if fits else own


def input_files(kind: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> Dict[str, str]:
    """The files that a kind of file is made from, by kind or by the setting that names it. `replaced` gives another
    path for one of them."""
    spec = KINDS[kind]
    return {**{name: replaced.get(name) or found_at(name, settings, domain) for name in spec.inputs},
            **{name: named_file(name, settings) for name in spec.files}}


def named_file(name: str, settings: Settings) -> str:
    """The file that a setting means: weights, or a device profile by its path or its name."""
    if name == 'WEIGHT_PATH_SERVER':
        return weights_file(settings)
    value = getattr(settings, name)
    built_in = os.path.join(ROOT, 'data', 'device_profiles', f'{value}.json')
    return built_in if os.path.isfile(built_in) else value


def made_from(kind: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> Dict[str, Any]:
    """What metadata records of these files: name, content, and the settings that it was made under itself."""
    found = {}
    for name, path in input_files(kind, settings, domain, **replaced).items():
        found[name] = {'file': os.path.basename(path), 'sha256': input_hash(name, path, settings, domain)}
        recorded = metadata_of(path).get('config') if name in KINDS else None
        if recorded:
            found[name]['config'] = recorded
    return found


# --- fingerprints -----------------------------------------------------------------------------------

def inputs_of(kind: str, settings: Settings, domain: Optional[int] = None, mode: str = PSEUDO, **replaced: str) -> str:
    """A hash of everything that shapes a file of this kind: its settings, the mode, and the content of its input files
    (our own JSON files count without their metadata, a missing file counts as missing). `replaced` gives another path
    for an input, as in `inputs_of('step2', settings, lut='table.json')`."""
    digest = hashlib.sha256(json.dumps(plain(settings.group(*KINDS[kind].groups)), sort_keys=True).encode())
    digest.update(f'\n{domain}'.encode())
    for name, path in input_files(kind, settings, domain, **replaced).items():
        digest.update(f'\n{os.path.basename(path)}:{input_hash(name, path, settings, domain)}'.encode())
    if mode != PSEUDO:
        digest.update(f'\n{mode}'.encode())
    return digest.hexdigest()


def input_hash(name: str, path: str, settings: Settings, domain: Optional[int] = None) -> str:
    """The content of an input as its reader takes it: a table with the link that is in force; of a file with an entry a
    domain only this domain's, so that other domains may come and change."""
    if name in ENTRY_A_DOMAIN and domain is not None and os.path.isfile(path):
        return _entry_hash(path, _stamp(path), domain)
    if name != 'lut' or not os.path.isfile(path):
        return content_hash(path)
    found = _link_and_rest(path, _stamp(path))
    if found is None:
        return content_hash(path)
    return hashlib.sha256(f'{json.dumps(link_in_force(found[0], settings), sort_keys=True)}{found[1]}'.encode()
                          ).hexdigest()


def link_in_force(recorded: Mapping[str, Any], settings: Settings) -> Dict[str, Any]:
    """The link of a table as its readers take it: the measured one, unless a setting names another; else the settings'.
    `recorded` is the table's `bandwidth`."""
    default = config.profile_defaults(settings)
    named = (settings.BANDWIDTH_MBPS, settings.RTT_MS) != (default.BANDWIDTH_MBPS, default.RTT_MS)
    if recorded.get('measured') is True and not named:
        return dict(recorded)
    return {'bandwidth_mbps': settings.BANDWIDTH_MBPS, 'rtt_ms': settings.RTT_MS, 'measured': False}


def content_hash(path: str) -> str:
    """SHA-256 of a file's content, '' when there is none; of our own JSON files without their metadata."""
    return _content_hash(path, _stamp(path)) if os.path.isfile(path) else ''


def metadata_of(path: str) -> Dict[str, Any]:
    """A file's metadata, {} where it has none; not to be changed."""
    return _metadata_of(path, _stamp(path)) if os.path.isfile(path) else {}


def _stamp(path: str) -> Sequence[int]:
    """What changes when a file is replaced: what is kept of its content is read again then."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@functools.lru_cache(maxsize=256)
def _content_hash(path: str, stamp: Sequence[int]) -> str:
    if not path.endswith('.json'):
        return _bytes_hash(path)
    data = documents.read_bytes(path)
    try:
        content = documents.parse(data)
        if isinstance(content, dict):
            content.pop('metadata', None)
        data = json.dumps(content, sort_keys=True).encode()
    except ValueError:
        pass  # a damaged file hashes as it is; reading it will say what is wrong
    return hashlib.sha256(data).hexdigest()


def _bytes_hash(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as stream:
            for piece in iter(lambda: stream.read(1 << 20), b''):
                digest.update(piece)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _entry_hash(path: str, stamp: Sequence[int], domain: int) -> str:
    try:
        domains = read(path, '').content.get('domains')
    except UserError:
        return _content_hash(path, stamp)  # reading it will say what is wrong
    entry = domains.get(str(domain)) if isinstance(domains, dict) else None
    return '' if entry is None else hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _metadata_of(path: str, stamp: Sequence[int]) -> Dict[str, Any]:
    try:
        found = read(path, '').content['metadata']
    except UserError:
        return {}
    return found if isinstance(found.get('config', {}), dict) else {}


@functools.lru_cache(maxsize=16)
def _link_and_rest(path: str, stamp: Sequence[int]) -> Optional[Sequence[Any]]:
    """A table's link, and a hash of the rest; None for a file that is no table."""
    try:
        content = dict(read(path, '').content)
    except UserError:
        return None
    link = content.pop('bandwidth', None)
    content.pop('metadata')
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (link if isinstance(link, dict) else {}), digest


def is_current(paths: Sequence[str], inputs: str) -> bool:
    """Were all these outputs made from inputs with this fingerprint? Pictures only have to be there."""
    return all(os.path.isfile(path) and (not path.endswith('.json') or metadata_of(path).get('inputs') == inputs)
               for path in paths)


# --- settings that differ ---------------------------------------------------------------------------

def differences(metadata: Mapping[str, Any], groups: Sequence[str], settings: Settings) -> Sequence[str]:
    """["SERVER_THREADS=1 (now 2)", ...]: where the settings that a file records differ from these, by name. A setting
    that the file does not record had its default; one that no longer exists is passed over."""
    recorded = metadata.get('config')
    recorded = recorded if isinstance(recorded, dict) else {}
    now, default = settings.group(*groups), config.profile_defaults(settings).group(*groups)
    was = {name: recorded.get(name, plain(default[name])) for name in now}
    return [f'{name}={_shown(was[name])} (now {_shown(plain(value))})' for name, value in now.items()
            if was[name] != plain(value)]


def _shown(value: object) -> str:
    return config.as_text(tuple(value) if isinstance(value, list) else value)
