"""Settings that take knowledge of networks, formats and files to check: in every script, before any work. No NumPy."""
from __future__ import annotations

import os
from importlib.util import find_spec

from config import INT8, ROOT, TORCH, Settings, UserError
from network.shapes import architecture, is_graph
from pipeline import kinds
from wire.formats import formats_of, share_of

PROFILE_DIR = os.path.join(ROOT, 'data', 'device_profiles')
EDGE_CPU, JETSON_TX2 = BUILT_IN = ('edge-cpu', 'jetson-tx2')


def check_settings(settings: Settings, weights: bool = True) -> None:
    """Raise `UserError` for a network, wire format, range of splits, device profile or engine that does not exist; with
    `weights` for a weights file that is not there, too."""
    formats_of(settings.WIRE_FORMATS)
    if not is_graph(settings.MODEL_NAME):  # whose blocks are counted where they are needed: it takes seconds
        split_range(sum(architecture(settings.MODEL_NAME).depths), settings)
    elif any(share_of(wire) < 1 for wire in settings.WIRE_FORMATS):
        raise UserError(f'MODEL_NAME={settings.MODEL_NAME}: a share of the channels can only be sent of RepVGG; leave '
                        'such formats out of WIRE_FORMATS')
    for name in ('SERVER_ENGINE', 'CLIENT_ENGINE'):
        if is_graph(settings.MODEL_NAME) and getattr(settings, name) != TORCH:
            raise UserError(f'MODEL_NAME={settings.MODEL_NAME}: the engine {getattr(settings, name)} runs RepVGG only; '
                            f'set {name}={TORCH}')
        if not is_graph(settings.MODEL_NAME) and getattr(settings, name) == INT8 and architecture(
                settings.MODEL_NAME).use_se:
            raise UserError(f'MODEL_NAME={settings.MODEL_NAME}: squeeze-and-excitation cannot be merged into whole '
                            f'numbers, and {INT8} would be slower than float; set {name}=onnxruntime')
    if settings.DEVICE_PROFILE:
        profile_path(settings.DEVICE_PROFILE)
    for name in ('SERVER_ENGINE', *(['CLIENT_ENGINE'] if settings.DEVICE_PROFILE else [])):
        if getattr(settings, name) != TORCH and not all(map(find_spec, ('onnx', 'onnxruntime'))):
            raise UserError(f'{name}={getattr(settings, name)} needs onnx and onnxruntime here: pip install -r '
                            'requirements-export.txt')
    path = kinds.weights_file(settings)
    if weights and path and not os.path.isfile(path):
        raise UserError(f'{path}: no such weights file; set WEIGHT_PATH_SERVER to one (empty: random weights)')


def split_range(n_blocks: int, settings: Settings) -> range:
    """The splits that the optimisers may choose; `UserError` when the settings leave none."""
    last = n_blocks - 1 if settings.LAMBDA_MAX is None else settings.LAMBDA_MAX
    if not 0 <= settings.LAMBDA_MIN <= last <= n_blocks:
        raise UserError(f'LAMBDA_MIN={settings.LAMBDA_MIN} and LAMBDA_MAX={last} leave no split: the model has '
                        f'{n_blocks} blocks, so 0 <= LAMBDA_MIN <= LAMBDA_MAX <= {n_blocks}')
    return range(settings.LAMBDA_MIN, last + 1)


def profile_path(name_or_path: str) -> str:
    """The JSON file behind a profile, '' for edge-cpu, which has none; raises `UserError` when there is no such one."""
    if name_or_path == EDGE_CPU:
        return ''
    path = os.path.join(PROFILE_DIR, name_or_path + '.json') if name_or_path in BUILT_IN else name_or_path
    if not os.path.isfile(path):
        raise UserError(f'there is no device profile {name_or_path!r}: choose {", ".join(BUILT_IN)} or the path of a '
                        'JSON file (docs/device_profiles.md shows one)')
    return path
