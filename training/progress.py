"""The file that a killed training goes on from: everything that the next epoch depends on, as of the end of an epoch.

Random numbers are not in it: every epoch draws them from the seed and its own number.
"""
from __future__ import annotations

import json
import os
import warnings
from typing import Any, Dict, Optional

import torch

from config import UserError
NEW = '.new'
State = Dict[str, Any]  # tensors and plain values


def save(path: str, identity: Dict[str, Any], state: State) -> None:
    """Write `state` in one step; `identity` says of which training it is. The temporary file has one name, so that of
    many kills one file is left, not one each. Raises `UserError` when it cannot be written."""
    try:
        with open(path + NEW, 'wb') as stream:
            torch.save({'identity': json.dumps(identity, sort_keys=True), **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(path + NEW, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None


def forget(path: str) -> None:
    """Remove the file, and what a kill left of a newer one."""
    for name in (path, path + NEW):
        if os.path.exists(name):
            os.remove(name)


def load(path: str, identity: Dict[str, Any]) -> Optional[State]:
    """The state at `path`, None where there is none. Raises `UserError` for one of another training, or damaged."""
    if not os.path.exists(path):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch comments on what it then refuses
            state = torch.load(path, map_location='cpu', weights_only=True)
        recorded = json.loads(state.pop('identity'))
    except Exception as error:  # whatever a damaged file provokes in the unpickler
        reason = ' '.join(str(error).split())[:120]
        raise UserError(f'{path}: cannot be read ({reason}); remove it to train from the beginning') from None
    now = json.loads(json.dumps(identity))
    differ = [f'{name}={recorded.get(name)!r} (now {now.get(name)!r})' for name in sorted({*recorded, *now})
              if recorded.get(name) != now.get(name)]
    if differ:
        raise UserError(f'{path}: is a half-done training with {", ".join(differ)}; give the same to go on with it, or '
                        'remove the file to train from the beginning')
    return state
