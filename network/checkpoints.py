"""Base weights from a file: the RepVGG authors' layout or timm's, never executing what the file holds."""
from __future__ import annotations

import os
import re
import warnings
from typing import Any, Dict, List

import torch
import torch.nn as nn

from config import UserError

_TIMM = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r'^stem\.', 'stage0.'),
    (r'^stages\.(\d+)\.', lambda m: f'stage{int(m.group(1)) + 1}.'),
    (r'^head\.fc\.', 'linear.'),
    (r'\.conv_kxk\.', '.rbr_dense.'),
    (r'\.conv_1x1\.', '.rbr_1x1.'),
    (r'\.identity\.', '.rbr_identity.'),
    (r'\.attn\.fc1\.', '.se.down.'),
    (r'\.attn\.fc2\.', '.se.up.'),
)]
_SHOWN = 6  # differing names shown in an error


def load_checkpoint(model: nn.Module, path: str) -> None:
    """Load base weights into a RepVGG or HyperRepVGG; its α stay as they are.

    Accepts keys such as `stage1.0.rbr_dense.conv.weight` (authors) or `stages.0.0.conv_kxk.conv.weight` (timm),
    wrapped in `state_dict` (or `model`), with or without a `module.` prefix.
    Raises `UserError` when the file is missing, is no checkpoint, would execute code, or does not fit.
    """
    state = normalise_keys(read_checkpoint(path))
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith('.alpha')}
    refuse_misfit(path, state, wanted)
    model.load_state_dict({**model.state_dict(), **{name: state[name] for name in wanted if name in state}})


def read_checkpoint(path: str) -> Dict[str, torch.Tensor]:
    """The state dict in a file, as saved, on the CPU; raises `UserError`."""
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such weights file')
    if not _can_load_safely():
        raise UserError(f'{path}: PyTorch {torch.__version__} cannot load a file without executing code from it; use '
                        'PyTorch 1.13 or newer here, or leave WEIGHT_PATH_CLIENT empty: the server sends the weights')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch comments on what it then refuses
            content: Any = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes in the unpickler
        raise UserError(f'{path}: {_why_unreadable(error)}; save it again as a plain state dict') from None
    for wrapper in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f'{path}: holds no state dict (names to tensors)')
    odd = [name for name, value in content.items() if value.layout != torch.strided or value.is_quantized or
           value.is_complex() or value.device.type != 'cpu']
    if odd:
        raise UserError(f'{path}: {odd[0]} is sparse, quantised, complex or without data; save ordinary tensors')
    return content


def _why_unreadable(error: Exception) -> str:
    refused = re.search(r'(?:GLOBAL|Unsupported class) (\S+)', str(error))
    if refused:
        return f'holds more than tensors, and loading it could execute code ({refused.group(1)})'
    reason = re.sub(r'\s+', ' ', str(error)).partition('. ')[0][:120]
    return f'is not a readable checkpoint ({type(error).__name__}{": " if reason else ""}{reason})'


def _can_load_safely() -> bool:
    major, minor = (int(part) for part in torch.__version__.split('.')[:2])
    return (major, minor) >= (1, 13)  # torch.load's weights_only


def normalise_keys(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The tensors of a state dict under the authors' names, without a `module.` prefix."""
    result = {}
    for name, value in state.items():
        name = name[len('module.'):] if name.startswith('module.') else name
        for pattern, replacement in _TIMM:
            name = pattern.sub(replacement, name)
        result[name] = value
    return result


def refuse_misfit(path: str, state: Dict[str, torch.Tensor], wanted: Dict[str, torch.Tensor]) -> None:
    """Raise `UserError` naming what is missing, left over or of another shape."""
    required = {name for name in wanted if not name.endswith('num_batches_tracked')}
    differ: List[str] = []
    differ += [f'{name} is missing' for name in sorted(required - set(state))]
    differ += [f'{name} is not part of the model' for name in sorted(set(state) - set(wanted))]
    differ += [f'{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}'
               for name in sorted(required & set(state)) if state[name].shape != wanted[name].shape]
    if differ:
        more = f' and {len(differ) - _SHOWN} more' if len(differ) > _SHOWN else ''
        raise UserError(f'{path}: does not fit the model: {"; ".join(differ[:_SHOWN])}{more}')
    broken = [name for name in sorted(required) if not torch.isfinite(state[name]).all()]
    if broken:
        raise UserError(f'{path}: NaN or infinity in {", ".join(broken[:_SHOWN])}')
    negative = [name for name in sorted(required) if name.endswith('running_var') and bool((state[name] < 0).any())]
    if negative:
        raise UserError(f'{path}: a variance below 0 in {", ".join(negative[:_SHOWN])}')
