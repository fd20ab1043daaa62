"""`export_split.py`: read a result, build both parts, check them, write them."""
from __future__ import annotations

from typing import Any, Dict, Optional

import lut_manager
from config import Settings
from domain_dataset import load_domain
from export import as_onnx, as_torchscript, check, files
from export.chosen import point_of, split_of
from pipeline import kinds
from search import result_file
from service.entries import class_names
from service.tails import base_model

CHECK_IMAGES = 32  # validation images that a file is held against PyTorch on
BUILDERS: Dict[str, Any] = {check.ONNX: as_onnx, check.TORCHSCRIPT: as_torchscript}


def export(domain: int, point_name: str, file_format: str, folder: str, settings: Settings) -> None:
    """Write the folder. Raises `UserError`, with nothing written, for whatever does not fit."""
    files.check_folder(folder)
    table = lut_manager.load(kinds.path_of('lut', settings), settings)
    result = result_file.load(domain, table, settings)
    images = load_domain(settings, domain, 'val').images
    point = point_of(result, point_name, len(images))
    chosen = split_of(base_model(settings), point, settings)
    builder = BUILDERS[file_format]
    parts: Dict[str, Optional[bytes]] = {'head': builder.head_bytes(chosen), 'tail': builder.tail_bytes(chosen)}
    checked = check.check(chosen, parts['head'], parts['tail'], file_format, images[:CHECK_IMAGES])
    manifest = files.manifest_of(result, point, chosen, file_format, checked, class_names(settings), settings)
    files.write(folder, parts, file_format, manifest, checked, files.metadata_of(domain, file_format, settings))
    split, n = point.configuration.split, len(result.block_names)
    sizes = ', '.join(f'{name} {len(data) / 1e6:.1f} MB' for name, data in parts.items() if data is not None)
    expected = manifest['expected_accuracy']
    print(f'domain {domain} ({result.domain_name}), {point.name}: λ = {split} of {n}, {manifest["bytes_per_frame"]} '
          f'bytes a frame as {point.configuration.wire}; {sizes} -> {folder}')
    print(f'  {len(checked.images)} images: classes as PyTorch, head within {checked.head_difference:.1e}, tail within '
          f'{checked.tail_difference:.1e}; accuracy to expect {100 * expected["value"]:.1f} % '
          f'({100 * expected["ci95"][0]:.1f} to {100 * expected["ci95"][1]:.1f}, {expected["n_images"]} '
          f'{expected["subset"]} images)')
