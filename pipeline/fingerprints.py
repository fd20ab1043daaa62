"""Is an output still current? A fingerprint of everything that shaped it is stored in the file and compared."""
from __future__ import annotations

import hashlib
import json
import os
from typing import Optional, Sequence

from config import ROOT, Settings, UserError
from pipeline.documents import read
from pipeline.kinds import KINDS, path_of
from pipeline.writing import _plain

# --- is an output still current? -------------------------------------------------------------------

def inputs_of(kind: str, settings: Settings, domain: Optional[int] = None, **replaced: str) -> str:
    """A hash of everything that shapes a file of this kind: its settings and the content of its input files (our own
    JSON files count without their metadata, a missing file counts as missing). `replaced` gives another path for
    an input, as in `inputs_of('step2', settings, lut='table.json')`."""
    spec = KINDS[kind]
    files = [replaced.get(name) or path_of(name, settings) for name in spec.inputs]
    files += [_named_file(getattr(settings, name)) for name in spec.files]
    digest = hashlib.sha256(json.dumps(_plain(settings.group(*spec.groups)), sort_keys=True).encode())
    digest.update(f'\n{domain}'.encode())
    for path in files:
        digest.update(f'\n{os.path.basename(path)}:{content_hash(path)}'.encode())
    return digest.hexdigest()


def _named_file(value: str) -> str:
    """The file that a setting means: a path, or the name of a built-in device profile."""
    built_in = os.path.join(ROOT, 'data', 'device_profiles', f'{value}.json')
    return built_in if os.path.isfile(built_in) else value


def content_hash(path: str) -> str:
    """SHA-256 of a file's content, '' when there is none; of our own JSON files without their metadata."""
    if not os.path.isfile(path):
        return ''
    with open(path, 'rb') as stream:
        data = stream.read()
    if path.endswith('.json'):
        try:
            content = json.loads(data)
            content.pop('metadata', None)
            data = json.dumps(content, sort_keys=True).encode()
        except (ValueError, AttributeError):
            pass  # a damaged file hashes as it is; reading it will say what is wrong
    return hashlib.sha256(data).hexdigest()


def is_current(paths: Sequence[str], inputs: str) -> bool:
    """Were all these outputs made from inputs with this fingerprint? Pictures only have to be there."""
    for path in paths:
        if not os.path.isfile(path):
            return False
        if path.endswith('.json'):
            try:
                if read(path, '').content['metadata'].get('inputs') != inputs:
                    return False
            except UserError:
                return False
    return True
