"""How images are divided: into pools, one a subset, and among domains, with label skew. Pure functions of labels."""
from __future__ import annotations

from typing import Dict, Optional, Sequence

import numpy as np

from config import Settings, UserError

SUBSETS = ('train', 'val', 'calibration', 'test')
BLOCKS_FROM = 10  # classes a domain: from here on, domains get blocks of classes instead of a skew over all
RARE = 10  # images of a pool: a class with fewer does not limit the size of a domain

Indices = np.ndarray  # int64 [n], sorted


def test_fraction(settings: Settings) -> float:
    """What the other three fractions leave."""
    rest = 1 - settings.TRAIN_FRACTION - settings.VAL_FRACTION - settings.CAL_FRACTION
    return rest if rest > 1e-9 else 0.0  # 1 - 0.5 - 0.25 - 0.25 need not be 0 in floating point


def subset_pools(labels: np.ndarray, readable: Indices, settings: Settings,
                 seen: Optional[np.ndarray] = None, held_out: Optional[np.ndarray] = None) -> Dict[str, Indices]:
    """Divide the images by the fractions, stratified: within a class every pool is within two images of its share. The
    training pool depends on SEED and TRAIN_FRACTION alone, so weights stay valid when the others change.

    `seen`: bool [images], those that the weights were trained on; they become training images where they would not be
    (None: none).
    `held_out`: bool [images], the division into training and other images that the data brings along; None: none.
    """
    seen = np.zeros(len(labels), dtype=bool) if seen is None else seen
    rng = np.random.default_rng([settings.SEED, 0])
    shuffled = rng.permutation(readable)
    ordered = shuffled[np.argsort(labels[shuffled], kind='stable')]  # by class, random within one
    half = (1 - settings.TRAIN_FRACTION) / 2  # held-out images are dealt in two halves: the shipped weights' pool was
    out = deal(len(ordered), [settings.TRAIN_FRACTION, half, half]) > 0 if held_out is None else held_out[ordered]
    if (out & seen[ordered]).any():
        out = unseen_held_out(labels[ordered], out, seen[ordered])
    rest = ordered[out]
    owner = deal(len(rest), [settings.VAL_FRACTION, settings.CAL_FRACTION, test_fraction(settings)])
    pools = {'train': np.sort(ordered[~out])}
    pools.update({subset: np.sort(rest[owner == number]) for number, subset in enumerate(SUBSETS[1:])})
    for subset, pool in pools.items():
        if not len(pool):
            known = f', {int(seen[readable].sum())} of which the weights were trained on' if seen.any() else ''
            raise UserError(f'{len(readable)} images{known}, are too few: the {subset} subset would be empty')
    return pools


def unseen_held_out(classes: np.ndarray, held_out: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """bool [n]: what of a row of images is held out when what was seen must not be. The training images of a class stay
    as many, or become as many as were seen; with those as what was seen the answer is the same again."""
    left = ~seen
    for label in np.unique(classes):
        here = classes == label
        room = int((here & ~held_out).sum()) - int((here & seen).sum())
        left[np.flatnonzero(here & ~held_out & ~seen)[:max(0, room)]] = False
    return left


def deal(count: int, fractions: Sequence[float]) -> np.ndarray:
    """To which share, int64 [count], each of `count` things in a row goes: the next one goes to the share that is
    furthest behind its fraction of the sum."""
    wanted = np.array(fractions) / sum(fractions)
    taken, owner = np.zeros(len(wanted)), np.empty(count, dtype=np.int64)
    for position in range(count):
        owner[position] = np.argmax(wanted * (position + 1) - taken)
        taken[owner[position]] += 1
    return owner


def label_shares(class_counts: np.ndarray, settings: Settings) -> np.ndarray:
    """Label distribution of every domain, [NUM_DOMAINS, classes], rows sum to 1.

    Many classes: consecutive blocks of classes, one a domain. Few: class frequencies weighted by a draw from
    a symmetric Dirichlet distribution (label skew as in Hsu et al., 2019, arXiv:1909.06335).
    """
    classes, domains = len(class_counts), settings.NUM_DOMAINS
    if classes >= BLOCKS_FROM * domains:
        block_of = np.arange(classes) * domains // classes
        weights = (block_of == np.arange(domains)[:, None]).astype(float)
    else:
        rng = np.random.default_rng([settings.SEED, 1])
        weights = rng.dirichlet(np.full(classes, settings.DIRICHLET_BETA), size=domains)
    shares = weights * class_counts
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def draw(pool: Indices, labels: np.ndarray, share: np.ndarray, limit: int, rng: np.random.Generator) -> Indices:
    """Up to `limit` images (0: no limit) of a pool with this label distribution, as many as the pool can give
    without bending the distribution (classes of fewer than RARE images are just capped)."""
    of_class = [pool[labels[pool] == label] for label in range(len(share))]
    have = np.array([len(members) for members in of_class])
    bounds = have[(share > 0) & (have >= RARE)] / share[(share > 0) & (have >= RARE)]
    total = int(min([have.sum(), *bounds, *([limit] if limit else [])]))
    counts = np.minimum(round_to_sum(share * max(total, 1)), have)
    chosen = [rng.choice(members, count, replace=False) for members, count in zip(of_class, counts) if count]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def round_to_sum(values: np.ndarray) -> np.ndarray:
    """Whole numbers next to `values` with the same (rounded) sum: the largest remainders are rounded up."""
    whole = np.floor(values).astype(np.int64)
    missing = int(round(float(values.sum()))) - int(whole.sum())
    whole[np.argsort(whole - values, kind='stable')[:missing]] += 1
    return whole
