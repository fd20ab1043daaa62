"""Reading many images in order, in this process or in loading processes, with errors that a user can read."""
from __future__ import annotations

from typing import Any, Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from config import UserError


def batches(dataset: Dataset, batch_size: int, num_workers: int, what: str) -> Iterator[Any]:
    """The dataset in batches, in order; `what` names the progress bar. The loader gets a generator of its own: it would
    draw from torch's. Raises `UserError` where the dataset does, and where loading processes cannot do their work."""
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, generator=torch.Generator())
    yield from explained(tqdm(loader, what, delay=3, leave=False, disable=None), num_workers, what)


def explained(loaded: Iterable[Any], num_workers: int, what: str) -> Iterator[Any]:
    """What a loader yields, with its errors as `UserError` where a user can put them right."""
    try:
        yield from loaded
    except UserError as error:  # a loading process wraps it in its traceback
        raise UserError(str(error).rpartition('UserError: ')[2].strip()) from None
    except (RuntimeError, OSError) as error:  # ended by a signal, no room in shared memory, too many files, ...
        if num_workers == 0:
            raise
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{what}: a loading process failed ({reason}); NUM_WORKERS=0 does without them') from None
