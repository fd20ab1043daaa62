"""Which image belongs to which subset of which domain, and the file that records it.

The images are divided once into four pools: an image that is training data anywhere is never validation, calibration
or test data anywhere. Every domain then draws from each pool, without replacement, by a label distribution of its own,
the same one for its four subsets. Two domains may hold the same image (under different corruptions), but only ever in
the same subset. Where the data has train/ and val/, training images come from the first alone; images that the base
weights were trained on are training images. Training images fit α, validation images decide, calibration images confirm
the answer, test images report.
"""
from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from cli import say
from config import Settings, UserError
from domain_transforms import domain_name
from domains import trained_images
from domains.division import SUBSETS, Indices, draw, label_shares, subset_pools, test_fraction
from domains.folders import shown
from domains.image_sources import ImageSource
from domains.loading import batches
from pipeline import documents, fingerprints, kinds, writing

SHAPING = ('SEED', 'DATASET', 'NUM_DOMAINS', 'TRAIN_FRACTION', 'VAL_FRACTION', 'CAL_FRACTION', 'DIRICHLET_BETA',
           'IMAGES_PER_SUBSET')
NAMES_SHOWN = 20  # images that are left out, named in the warning


@dataclass(frozen=True)
class Partition:
    """Indices into an ImageSource."""
    pools: Dict[str, Indices]  # by subset: all images of it
    domains: List[Dict[str, Indices]]  # by domain and subset
    skipped: List[str]  # unreadable images, and copies of others


# --- making one -----------------------------------------------------------------------------------

def make_partition(source: ImageSource, settings: Settings) -> Partition:
    """Pools and domains, a pure function of the source, what the weights have seen, and the settings in `SHAPING`.

    Raises `UserError` when a pool, or a subset of a domain, would be empty.
    """
    if test_fraction(settings) <= 0:
        raise UserError(f'TRAIN_FRACTION {settings.TRAIN_FRACTION:g}, VAL_FRACTION {settings.VAL_FRACTION:g} and '
                        f'CAL_FRACTION {settings.CAL_FRACTION:g} leave nothing to test on; their sum must be below 1')
    readable, skipped = find_readable(source, settings.NUM_WORKERS)
    readable, copies = find_first(source, readable)
    seen = trained_images.seen_images(source, settings)
    pools = subset_pools(source.labels, readable, settings, seen, source.held_out)
    refuse_nothing_left(pools, seen, source, settings)
    shares = label_shares(np.bincount(source.labels[readable], minlength=len(source.class_names)), settings)
    domains: List[Dict[str, Indices]] = []
    for domain, share in enumerate(shares):
        domains.append({})
        for number, subset in enumerate(SUBSETS):
            rng = np.random.default_rng([settings.SEED, 2, domain, number])
            drawn = draw(pools[subset], source.labels, share, settings.IMAGES_PER_SUBSET, rng)
            if not len(drawn):
                raise UserError(f'domain {domain} would have no {subset} images: use more images, a larger '
                                'DIRICHLET_BETA or fewer NUM_DOMAINS')
            domains[-1][subset] = drawn
    return Partition(pools, domains, skipped + copies)


def find_readable(source: ImageSource, num_workers: int = 0) -> Tuple[Indices, List[str]]:
    """Indices of the images that can be decoded, and the names of the others, which one warning line names too."""
    everything = np.arange(len(source))
    if not source.can_be_damaged():
        return everything, []
    readable = np.concatenate([part.numpy() for part in batches(_Decodes(source), 64, num_workers, 'checking images')])
    skipped = [source.describe(index) for index in np.flatnonzero(~readable)]
    if skipped:
        say(f'warning: skipped {len(skipped)} unreadable of {len(source)} images: {shown(skipped, NAMES_SHOWN)}')
    if len(skipped) == len(source):
        raise UserError(f'{source.name}: none of the {len(source)} images can be read')
    return everything[readable], skipped


def find_first(source: ImageSource, readable: Indices) -> Tuple[Indices, List[str]]:
    """The images without copies of earlier ones, which could get into another subset; and the names of the copies."""
    if source.digests is None:
        return readable, []
    _, first = np.unique(source.digests[readable], return_index=True)
    kept = readable[np.sort(first)]
    copies = [source.describe(index) for index in np.setdiff1d(readable, kept)]
    if copies:
        say(f'warning: left out {len(copies)} copies of other images: {shown(copies, NAMES_SHOWN)}')
    return kept, copies


class _Decodes:
    """A map-style dataset of flags: can image i be read?"""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bool:
        return self.source.decodes(index)


def refuse_nothing_left(pools: Dict[str, Indices], seen: np.ndarray, source: ImageSource, settings: Settings) -> None:
    """Raise `UserError` when the weights have seen what must stay unseen."""
    weights = kinds.weights_file(settings)
    if source.held_out is not None and (seen & source.held_out).any():
        both = [source.describe(index) for index in np.flatnonzero(seen & source.held_out)]
        raise UserError(f'{weights} was trained on {len(both)} held-out images of {source.name}: {shown(both)}; use '
                        'other weights or other images')
    train = label_histogram(source, pools['train'])
    held_out = label_histogram(source, np.concatenate([pools[subset] for subset in SUBSETS[1:]]))
    expected = [n * (1 - settings.TRAIN_FRACTION) for n in train]  # held-out images, give or take two, of a whole class
    gone = [name for label, name in enumerate(source.class_names) if not held_out[label] and expected[label] > 2]
    if gone and seen.any() and source.held_out is None:
        raise UserError(f'{weights} was trained on every image of class {shown(gone)}: none is left to validate and '
                        'test on; use other weights or more images')


# --- the file -------------------------------------------------------------------------------------

def inputs_fingerprint(source: ImageSource, settings: Settings) -> str:
    """What the partition file was made from. After a training on its own training pool it is made once more, with the
    same content, so that nothing behind it changes."""
    own, seen = fingerprints.inputs_of('partition', settings), trained_images.seen_images(source, settings)
    return hashlib.sha256(f'{own}:{source.identity}:'.encode() + seen.tobytes()).hexdigest()


def save_partition(partition: Partition, source: ImageSource, settings: Settings) -> None:
    """Write the partition's file."""
    counts = {subset: label_histogram(source, pool) for subset, pool in partition.pools.items()}
    writing.write(kinds.path_of('partition', settings), {
        'dataset': {'name': settings.DATASET, 'identity': source.identity, 'n_images': len(source),
                    'n_classes': len(source.class_names), 'class_names': source.class_names},
        'warnings': data_warnings(partition, source),
        'skipped': {'count': len(partition.skipped), 'names': partition.skipped},
        'pools': {subset: {'n': len(pool), 'label_histogram': counts[subset], 'indices': pool.tolist()}
                  for subset, pool in partition.pools.items()},
        'domains': [{'domain_id': domain, 'domain_name': domain_name(domain),
                     **{subset: {'n': len(drawn), 'label_histogram': label_histogram(source, drawn),
                                'indices': drawn.tolist()} for subset, drawn in subsets.items()}}
                    for domain, subsets in enumerate(partition.domains)],
    }, writing.make_metadata(settings, 'partition', inputs_fingerprint(source, settings)))


def fewer_classes(n_classes: int, settings: Settings) -> List[str]:
    """A sentence when the data has fewer classes than the network. (NUM_CLASSES does not shape the file.)"""
    return [] if n_classes >= settings.NUM_CLASSES else [
        f'the data has {n_classes} classes, the model NUM_CLASSES={settings.NUM_CLASSES}: are some missing? Class '
        'numbers count from 0 in the order of the names']


def data_warnings(partition: Partition, source: ImageSource) -> List[str]:
    """What a user should know about the data, a sentence each."""
    found = list(source.warnings)
    lacking: Dict[Tuple[str, ...], List[str]] = {}  # classes by the subsets that have no image of them
    have = {subset: label_histogram(source, pool) for subset, pool in partition.pools.items()}
    for label, name in enumerate(source.class_names):
        lacking.setdefault(tuple(subset for subset in SUBSETS if not have[subset][label]), []).append(name)
    found += [f'{source.name}: no {" or ".join(subsets)} image of class {shown(names)}'
              for subsets, names in lacking.items() if subsets]
    return found


def label_histogram(source: ImageSource, indices: Indices) -> List[int]:
    """How many of these images each class has."""
    return np.bincount(source.labels[indices], minlength=len(source.class_names)).tolist()


def load_partition(source: ImageSource, settings: Settings) -> Partition:
    """Read the partition's file and check it against the dataset on disk and the settings; made now if there is none.

    Raises `UserError` when it is damaged, of another dataset, or was made with other settings.
    """
    path = fingerprints.found_at('partition', settings)
    if not os.path.exists(path):
        partition = make_partition(source, settings)
        save_partition(partition, source, settings)
        say(f'{path}: there was none, made it')
        for line in data_warnings(partition, source) + fewer_classes(len(source.class_names), settings):
            say(f'warning: {line}')
        return partition
    document = documents.read(path, kinds.command_for('partition', settings))
    recorded = document.get('metadata.config', dict)
    differ = [(f'{name}={recorded[name]!r}' if name in recorded else f'no {name}') + f' (now {now!r})'
              for name, now in settings.group('data').items() if name in SHAPING and recorded.get(name) != now]
    if differ:
        raise document.refuse(f'was made with {", ".join(differ)}')
    if document.get('dataset.identity', str) != source.identity:
        raise document.refuse(f'belongs to other images than those of {source.name}')
    owner = np.full(len(source), -1)
    pools: Dict[str, Indices] = {}
    for number, subset in enumerate(SUBSETS):
        pools[subset] = _indices(document, document.get(f'pools.{subset}.indices', list), f'pools.{subset}',
                                 len(source))
        if (owner[pools[subset]] >= 0).any():
            raise document.refuse(f'pools.{subset} shares images with another pool')
        owner[pools[subset]] = number
    seen = trained_images.seen_images(source, settings)
    for subset in SUBSETS[1:]:
        of_training = int(seen[pools[subset]].sum())
        if of_training:
            raise document.refuse(f'{of_training} of {len(pools[subset])} {subset} images are training images of '
                                  f'{kinds.weights_file(settings)}')
    domains: List[Dict[str, Indices]] = []
    for entry in document.get('domains', list):
        where = f'domains[{len(domains)}]'
        domain = documents.Document(path, document.check(entry, where, dict), document.made_by)
        domains.append({subset: _indices(document, domain.get(f'{subset}.indices', list), f'{where}.{subset}',
                                         len(source)) for subset in SUBSETS})
        for number, subset in enumerate(SUBSETS):
            if (owner[domains[-1][subset]] != number).any():
                raise document.refuse(f'{where}.{subset} holds images that are not of the {subset} pool')
    if len(domains) != settings.NUM_DOMAINS:
        raise document.refuse(f'has {len(domains)} domains, not {settings.NUM_DOMAINS}')
    return Partition(pools, domains, [str(name) for name in document.get('skipped.names', list)])


def _indices(document: documents.Document, values: Sequence[Any], where: str, n_images: int) -> Indices:
    if not values:
        raise document.refuse(f'{where} has no images')
    if not all(type(value) is int and 0 <= value < n_images for value in values):
        raise document.refuse(f'{where} holds something that is not an image index below {n_images}')
    indices = np.array(values, dtype=np.int64)
    if (np.diff(indices) <= 0).any():
        raise document.refuse(f'{where} is not in rising order')
    return indices
