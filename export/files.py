"""The folder of an exported split: head, tail, the images that both were checked on, and manifest.json.

The manifest goes first and comes last: a folder without one is not complete, and one with it holds what it says.
"""
from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from config import Settings, UserError
from domains.image_sets import wilson_interval
from export.check import ONNX, TOLERANCE, Checked
from export.chosen import ChosenSplit, Point
from pipeline import fingerprints, kinds, writing
from search.int8_loss import uses_int8
from search.result import JointResult
from tier.onnx_session import onnxruntime_package

MANIFEST, CHECK_IMAGES = 'manifest.json', 'check_images.npz'
ENDINGS = {'onnx': 'onnx', 'torchscript': 'pt'}
PART_FILES = {f'{part}.{ending}' for part in ('head', 'tail') for ending in ENDINGS.values()}


def check_folder(folder: str) -> None:
    """Raise `UserError` now rather than after the work where the folder cannot be written, or holds something else."""
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, MANIFEST)):
        leftovers = PART_FILES | {CHECK_IMAGES}
        if not all(name in leftovers or name.startswith('.') for name in os.listdir(folder)):
            raise UserError(f'--out {folder}: holds files that are no exported split; choose another folder')
    writing.check_writable(os.path.join(folder, MANIFEST))


def write(folder: str, parts: Dict[str, Optional[bytes]], file_format: str, manifest: Dict[str, Any], checked: Checked,
          metadata: Dict[str, Any]) -> None:
    """Write the folder. `parts`: the bytes of 'head' and 'tail', None where there is none."""
    images = io.BytesIO()
    np.savez_compressed(images, images=checked.images.numpy(), logits=checked.logits.numpy(),
                        classes=checked.classes.numpy())
    files: Dict[str, Tuple[str, bytes]] = {
        name: (f'{name}.{ENDINGS[file_format]}', data) for name, data in parts.items() if data is not None}
    files['check_images'] = CHECK_IMAGES, images.getvalue()
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, MANIFEST))
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if name in PART_FILES:
            os.unlink(os.path.join(folder, name))  # of an export before this one
    for name, data in files.values():
        with writing.replacing(os.path.join(folder, name)) as temporary, open(temporary, 'wb') as stream:
            stream.write(data)
    described = {name: {'file': file, 'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
                 for name, (file, data) in files.items()}
    writing.write(os.path.join(folder, MANIFEST), {**manifest, 'files': {'head': None, 'tail': None, **described}},
                  metadata)


def manifest_of(result: JointResult, point: Point, chosen: ChosenSplit, file_format: str, checked: Checked,
                names: List[str], settings: Settings) -> Dict[str, Any]:
    """What the manifest says beside the files."""
    choice = point.configuration
    low, high = wilson_interval(round(point.accuracy * point.n_images), point.n_images)
    return {
        'format': file_format, 'domain_id': result.domain_id, 'domain_name': result.domain_name, 'point': point.name,
        'lambda': choice.split, 'head_tier': settings.HEAD_TIER, 'wire': choice.wire,
        'gamma': dict(zip(result.block_names, choice.gamma)),
        'input': chosen.images.as_dict(), 'sent': [spec.as_dict() for spec in chosen.sent],
        'bytes_per_frame': sum(spec.n_bytes for spec in chosen.sent), 'output': chosen.logits.as_dict(),
        'normalisation': {'mean': list(chosen.mean), 'std': list(chosen.std), 'of': 'images in [0, 1]',
                          'done': 'inside the first file'},
        'class_names': names,
        'expected_accuracy': {'value': point.accuracy, 'ci95': [low, high], 'n_images': point.n_images,
                              'subset': point.subset, 'of': 'tiers in onnxruntime-int8, not of these '
                              'files' if uses_int8(settings) else 'PyTorch'},
        'checked': {'n_images': len(checked.images), 'tolerance': TOLERANCE, 'head_difference': checked.head_difference,
                    'tail_difference': checked.tail_difference, 'classes': 'equal'}}


def metadata_of(domain: int, file_format: str, settings: Settings) -> Dict[str, Any]:
    """Where an export comes from; the result's own file says under which settings it was made."""
    found = writing.make_metadata(settings, 'joint', '', domain)
    if file_format == ONNX:
        found['software']['onnxruntime'] = onnxruntime_package().__version__
    return {**{name: found[name] for name in ('model', 'created', 'software', 'seed')},
            'result_sha256': fingerprints.content_hash(kinds.path_of('joint', settings, domain))}
