"""Base weights from a file: the RepVGG authors' layout or timm's, never executing what the file holds.

A file is what torch.save wrote, or of the safetensors format (name.safetensors), which holds tensors and nothing else.
"""
from __future__ import annotations

import functools
import os
import re
import struct
import warnings
import zipfile
from typing import Dict, List, Sequence

import torch
import torch.nn as nn

import cli
from config import UserError

_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')  # averaged weights first, as timm does
_DEEPEST = 4  # wrappers inside each other
_PREFIXES = re.compile(r'^(?:(?:module|model|_orig_mod)\.)+')  # of DataParallel, Lightning, torch.compile
_FUSED = re.compile(r'\.(?:rbr_reparam|reparam_conv)\.')  # authors, timm

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
_WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_COUNTS = (*_WEIGHTS, torch.int64, torch.int32)
SAFETENSORS = '.safetensors'
_SHOWN = 4  # differing names of a sort shown in an error


def load_checkpoint(model: nn.Module, path: str) -> None:
    """Load base weights into a RepVGG or HyperRepVGG; its α stay as they are.

    Accepts keys such as `stage1.0.rbr_dense.conv.weight` (authors) or `stages.0.0.conv_kxk.conv.weight` (timm),
    wrapped in an entry such as `state_dict` or `model_ema` (`_WRAPPERS`), with or without prefixes such as `module.`.
    Raises `UserError` when the file is missing, is no checkpoint, would execute code, or does not fit.
    """
    state = normalise_keys(read_checkpoint(path), path)
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith('.alpha')}
    refuse_misfit(path, state, wanted)
    model.load_state_dict({**model.state_dict(), **{name: state[name] for name in wanted if name in state}})


def load_for_fine_tuning(model: nn.Module, path: str) -> bool:
    """Load base weights, except for the classifier where the file has another number of classes; True where it fits.

    Raises `UserError` as `load_checkpoint` does.
    """
    state = normalise_keys(read_checkpoint(path), path)
    own = model.state_dict()
    fits = all(state[name].shape == own[name].shape for name in ('linear.weight', 'linear.bias') if name in state)
    if not fits:
        state.update({name: own[name] for name in ('linear.weight', 'linear.bias')})
    wanted = {name: value for name, value in own.items() if not name.endswith('.alpha')}
    refuse_misfit(path, state, wanted)
    model.load_state_dict({**own, **{name: state[name] for name in wanted if name in state}})
    return fits


def read_checkpoint(path: str) -> Dict[str, torch.Tensor]:
    """The state dict in a file, as saved, on the CPU; raises `UserError`."""
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such weights file')
    content = _saved_as_safetensors(path) if path.endswith(SAFETENSORS) else _saved_by_torch(path)
    content = _unwrapped(content, path)
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f'{path}: holds no state dict (names to tensors)')
    odd = [name for name, value in content.items() if value.layout != torch.strided or value.is_quantized or
           getattr(value, 'is_nested', False) or value.device.type != 'cpu' or value.dtype not in (
               _COUNTS if name.endswith('num_batches_tracked') else _WEIGHTS)]
    if odd:
        raise UserError(f'{path}: {odd[0]} is sparse, nested, quantised, without data or of type '
                        f'{content[odd[0]].dtype}; save ordinary tensors of 16 bits or more')
    return content


def _saved_by_torch(path: str) -> object:
    """What torch.save wrote to a file; raises `UserError`."""
    if not _can_load_safely():
        raise UserError(f'{path}: PyTorch {torch.__version__} cannot load a file without executing code from it; use '
                        'PyTorch 1.13 or newer here, a .safetensors file, or leave WEIGHT_PATH_CLIENT empty: the '
                        'server sends the weights')
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch comments on what it then refuses
            return torch.load(path, map_location='cpu', weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged or hostile file provokes in the unpickler
        raise UserError(f'{path}: {_why_unreadable(error)}; save it again as a plain state dict') from None


def _saved_as_safetensors(path: str) -> object:
    """The tensors of a safetensors file by name; raises `UserError`. The library checks that they fill the file
    exactly: nothing is compressed, and no header makes it read beyond the file."""
    library = cli.optional('safetensors.torch', 'safetensors', f'{path}: weights of this format')
    try:
        return library.load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # the library's own errors, and torch's for a type that it does not know
        raise UserError(f'{path}: {_why_unreadable(error)}; save it again with safetensors') from None


def _refuse_packed(path: str) -> None:
    """Raise `UserError` for an archive that claims to hold more than it is long: PyTorch stores weights as they are,
    and a few megabytes that are compressed could fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error):
        return  # of the older format, or damaged: loading says so
    if unpacked > os.path.getsize(path):
        raise UserError(f'{path}: {os.path.getsize(path)} bytes that unpack to {unpacked}: weights are not compressed; '
                        'save them again with torch.save')


def _unwrapped(content: object, path: str) -> object:
    """What lies inside the wrappers of a checkpoint; says which entry is taken where there is a choice."""
    for _ in range(_DEEPEST):
        held = [name for name in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), dict)]
        if not held:
            break
        if len(held) > 1:
            others = ', '.join(map(repr, held[1:]))
            _say_once(f'{path}: took the weights in its entry {held[0]!r}, not those in {others}')
        content = content[held[0]]
    return content


@functools.lru_cache(maxsize=None)
def _say_once(message: str) -> None:
    cli.say(message)


def _why_unreadable(error: Exception) -> str:
    refused = re.search(r'(?:GLOBAL|Unsupported class) (\S+)', str(error))
    if refused:
        return f'holds more than tensors, and loading it could execute code ({refused.group(1)})'
    reason = re.sub(r'\s+', ' ', str(error)).partition('. ')[0][:120]
    return f'is not a readable checkpoint ({type(error).__name__}{": " if reason else ""}{reason})'


def _can_load_safely() -> bool:
    major, minor = (int(part) for part in torch.__version__.split('.')[:2])
    return (major, minor) >= (1, 13)  # torch.load's weights_only


def normalise_keys(state: Dict[str, torch.Tensor], path: str = '') -> Dict[str, torch.Tensor]:
    """The tensors of a state dict under the authors' names, without prefixes such as `module.`. Raises `UserError`
    where two of them have the same name then."""
    result: Dict[str, torch.Tensor] = {}
    for given, value in state.items():
        name = _PREFIXES.sub('', given)
        for pattern, replacement in _TIMM:
            name = pattern.sub(replacement, name)
        if name in result:
            raise UserError(f'{path}: holds {name} more than once, one of them as {given}; save one network only')
        result[name] = value
    return result


def unprefixed(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The tensors of a state dict without prefixes such as `module.`."""
    return {_PREFIXES.sub('', name): value for name, value in state.items()}


def _listed(names: Sequence[str], what: str) -> List[str]:
    """['a, b and 3 more are missing'], [] without names."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return [f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'} {what}"] if names else []


def refuse_misfit(path: str, state: Dict[str, torch.Tensor], wanted: Dict[str, torch.Tensor]) -> None:
    """Raise `UserError` naming what is missing, left over and of another shape."""
    fused = [name for name in state if _FUSED.search(name)]
    if fused:
        raise UserError(f'{path}: holds fused weights for deployment ({fused[0]}): the branches of a block are one '
                        'convolution there and cannot be told apart any more; use the weights as they were trained')
    required = {name for name in wanted if not name.endswith('num_batches_tracked')}
    missing, left_over = sorted(required - set(state)), sorted(set(state) - set(wanted))
    misshapen = [name for name in sorted(required & set(state)) if state[name].shape != wanted[name].shape]
    if misshapen == ['linear.bias', 'linear.weight'] and not missing and not left_over:
        raise UserError(f"{path}: classifies {len(state['linear.bias'])} classes, NUM_CLASSES is "
                        f"{len(wanted['linear.bias'])}: linear.weight is {tuple(state['linear.weight'].shape)}, not "
                        f"{tuple(wanted['linear.weight'].shape)}; set NUM_CLASSES={len(state['linear.bias'])}, or use "
                        'weights that were trained on this data')
    differ = _listed(missing, 'missing') + _listed(left_over, 'not part of the model')
    differ += [f'{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}' for name in misshapen[:_SHOWN]]
    differ += [f'{len(misshapen) - _SHOWN} more have other shapes'] * (len(misshapen) > _SHOWN)
    if differ:
        raise UserError(f'{path}: does not fit the model: {"; ".join(differ)}')
    broken = [name for name in sorted(required) if not torch.isfinite(state[name]).all()]
    if broken:
        raise UserError(f'{path}: NaN or infinity in {", ".join(broken[:_SHOWN])}')
    negative = [name for name in sorted(required) if name.endswith('running_var') and bool((state[name] < 0).any())]
    if negative:
        raise UserError(f'{path}: a variance below 0 in {", ".join(negative[:_SHOWN])}')
