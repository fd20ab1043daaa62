"""`export_split.py`: read a result, build both parts, check them, write them."""
from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple

import lut_manager
from config import Settings
from domain_dataset import load_domain
from domains.image_sets import ImageSet, wilson_interval
from export import as_onnx, as_torchscript, check, files, int8
from export.chosen import point_of, split_of, unpruned_point
from fleet.points import UNPRUNED
from pipeline import kinds
from search import result_file
from service.entries import class_names
from service.tails import base_model

CHECK_IMAGES = 32  # validation images that a file is held against PyTorch on
BUILDERS: Dict[str, Any] = {check.ONNX: as_onnx, check.TORCHSCRIPT: as_torchscript}


class Wanted(NamedTuple):
    """What the command line asks for."""
    domain: int
    point: str = 'result'
    file_format: str = check.ONNX
    int8: bool = False
    kept: Tuple[str, ...] = ()  # units that stay in float


def export(wanted: Wanted, folder: str, settings: Settings) -> None:
    """Write the folder. Raises `UserError`, with nothing written, for whatever does not fit."""
    files.check_folder(folder)
    table = lut_manager.load(kinds.path_of('lut', settings), settings)
    result = result_file.load(wanted.domain, table, settings)
    val = load_domain(settings, wanted.domain, 'val')
    model = base_model(settings)
    point = (unpruned_point(result, model, val, table, settings) if wanted.point == UNPRUNED else
             point_of(result, wanted.point, len(val)))
    point = int8.fused(point) if wanted.int8 else point
    chosen = split_of(model, point, settings)
    int8.check_kept(wanted.kept, chosen)
    builder = BUILDERS[wanted.file_format]
    parts: Dict[str, Optional[bytes]] = {'head': builder.head_bytes(chosen), 'tail': builder.tail_bytes(chosen)}
    checked = check.check(chosen, parts['head'], parts['tail'], wanted.file_format, val.images[:CHECK_IMAGES])
    manifest = files.manifest_of(result, point, chosen, wanted.file_format, checked, class_names(settings), settings)
    if wanted.int8:
        ranges = load_domain(settings, wanted.domain, 'train').images[:int8.RANGE_IMAGES]
        in_float, parts = parts, int8.quantised_parts(chosen, parts, ranges, wanted.kept)
        same = int8.logits_of(in_float, val.images).argmax(dim=1) == int8.logits_of(parts, val.images).argmax(dim=1)
        manifest['int8'] = {'in_float': list(wanted.kept), 'ranges_from': f'{len(ranges)} training images',
                            'same_class_as_float': {'images': int(same.sum()), 'of': len(val), 'subset': 'val'}}
        manifest['expected_accuracy'] = measured(parts, load_domain(settings, wanted.domain, 'test'))
    files.write(folder, parts, wanted.file_format, manifest, checked,
                files.metadata_of(wanted.domain, wanted.file_format, settings))
    split, n = point.configuration.split, len(result.block_names)
    sizes = ', '.join(f'{name} {len(data) / 1e6:.1f} MB' for name, data in parts.items() if data is not None)
    expected = manifest['expected_accuracy']
    print(f'domain {wanted.domain} ({result.domain_name}), {point.name}: λ = {split} of {n}, '
          f'{manifest["bytes_per_frame"]} bytes a frame as {point.configuration.wire}; {sizes} -> {folder}')
    print(f'  {len(checked.images)} images: classes as PyTorch, head within {checked.head_difference:.1e}, tail within '
          f'{checked.tail_difference:.1e}{" (before int8)" if wanted.int8 else ""}; accuracy to expect '
          f'{100 * expected["value"]:.1f} % ({100 * expected["ci95"][0]:.1f} to {100 * expected["ci95"][1]:.1f}, '
          f'{expected["n_images"]} {expected["subset"]} images)')


def measured(parts: Dict[str, Optional[bytes]], data: ImageSet) -> Dict[str, Any]:
    """The accuracy of ONNX parts on test images, as a manifest holds it."""
    right = int((int8.logits_of(parts, data.images).argmax(dim=1) == data.labels).sum())
    return {'value': right / len(data), 'ci95': list(wilson_interval(right, len(data))), 'n_images': len(data),
            'subset': 'test', 'of': 'these files in onnxruntime'}
