"""The images of a domain as every script sees them.

    images = load_domain(settings, domain_id=0, subset='val')    # an ImageSet

Reads the partition (domains/partition.py) and applies the domain's corruption (domain_transforms.py).
"""
from __future__ import annotations

from typing import Dict, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from config import Settings, UserError
from domain_transforms import check_domain, corrupt, domain_name
from domains.division import SUBSETS
from domains.image_sets import ImageSet
from domains.image_sources import ImageSource, open_source
from domains.loading import batches
from domains.partition import load_partition

IN_MEMORY: Dict[Tuple[int, str], ImageSet] = {}  # (domain, subset): images that came to a cluster's node with their job
LOADER_BATCH = 32  # images that a loading process hands over at once


class DomainDataset(Dataset):
    """Images `indices` of a source under a domain's corruption (None: clean): (uint8 [3, S, S], label)."""

    def __init__(self, source: ImageSource, indices: np.ndarray, domain_id: Optional[int], seed: int) -> None:
        self.source, self.indices, self.domain_id, self.seed = source, indices, domain_id, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Tuple[torch.Tensor, int]:
        index = int(self.indices[position])
        try:
            image = self.source.read(index)
        except Exception as error:  # whatever a file that was damaged or removed since provokes
            raise no_longer_readable(self.source, index, error) from None
        if self.domain_id is not None:
            image = corrupt(image, self.domain_id, self.seed, index)
        return image, int(self.source.labels[index])


def no_longer_readable(source: ImageSource, index: int, error: Exception) -> UserError:
    """What to say of an image that could be read when the partition was made."""
    reason = ' '.join(str(error).split())
    return UserError(f'{source.describe(index)}: can no longer be read ({reason}); make the partition again with '
                     '`python create_noniid_partition.py`')


def load_domain(settings: Settings, domain_id: int, subset: str) -> ImageSet:
    """Corrupted images of one subset (of partition.SUBSETS) of a domain.

    Raises `UserError` for a domain that does not exist, missing data, or a partition that does not fit.
    """
    check_domain(domain_id, settings.NUM_DOMAINS)
    if (domain_id, subset) in IN_MEMORY:
        return IN_MEMORY[domain_id, subset]
    source, partition = _open(settings, subset)
    dataset = DomainDataset(source, partition.domains[domain_id][subset], domain_id, settings.SEED)
    return read_all(dataset, settings, f'domain {domain_id} ({domain_name(domain_id)}), {subset}')


def load_clean(settings: Settings, subset: str, at_most: Optional[int] = None) -> ImageSet:
    """All images of a subset, of all domains together and uncorrupted: what the base model is trained on. `at_most`:
    that many of them, evenly spaced."""
    source, partition = _open(settings, subset)
    pool = partition.pools[subset]
    if at_most is not None and at_most < len(pool):
        pool = pool[np.linspace(0, len(pool) - 1, at_most).astype(int)]
    return read_all(DomainDataset(source, pool, None, settings.SEED), settings, f'clean, {subset}')


def _open(settings: Settings, subset: str):
    if subset not in SUBSETS:
        raise ValueError(f'subset {subset!r} is none of {SUBSETS}')
    source = open_source(settings)
    return source, load_partition(source, settings)


def read_all(dataset: DomainDataset, settings: Settings, what: str) -> ImageSet:
    """The whole dataset in memory, in order; `what` names the progress bar."""
    images, labels = zip(*batches(dataset, LOADER_BATCH, settings.NUM_WORKERS, what))
    return ImageSet(torch.cat(images), torch.cat(labels))
