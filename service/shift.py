"""Which domain do a client's frames look like? Pure functions of what the stem of the network makes of them.

The stem (stage0) is the same in every network of a model, whatever α: so its output says what the images look like, and
not what is pruned. A frame's features are the mean and the logarithm of the variance of each of its channels. A
domain's reference are the means of these features over some of its training images; the distance to it counts every
feature in units of its spread within one domain. The evidence of a frame for another domain is by how much nearer it
is, and counts at most 1. It is added up as in Page's CUSUM test (Biometrika 41, 1954): what speaks against the other
domain is taken off, down to 0, and so is MARGIN every time, so that frames which lie between two domains change
nothing.
"""
from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Optional, Tuple

import numpy as np

MARGIN = 0.25  # evidence of a frame that does not count
SMALLEST_VARIANCE = 1e-6  # of a channel; one that is always 0 says nothing
SMALLEST_SPREAD = 1e-3  # of a feature, as a share of the largest one


class References(NamedTuple):
    """What the frames of each domain look like."""
    names: Tuple[str, ...]
    means: np.ndarray  # [domains, features]
    spread: np.ndarray  # [features]: standard deviation within a domain


def features_of(statistics: np.ndarray) -> np.ndarray:
    """[..., 2, C], mean and variance of every channel -> [..., 2·C]."""
    mean, variance = statistics[..., 0, :], statistics[..., 1, :]
    return np.concatenate([mean, np.log(np.maximum(variance, SMALLEST_VARIANCE))], axis=-1)


def references_of(statistics: Mapping[str, np.ndarray]) -> References:
    """From some images of every domain, [images, 2, C] each, by name."""
    features = {name: features_of(found.astype(np.float64)) for name, found in statistics.items()}
    spread = np.sqrt(np.mean([found.var(axis=0) for found in features.values()], axis=0))
    return References(tuple(features), np.array([found.mean(axis=0) for found in features.values()]),
                      np.maximum(spread, SMALLEST_SPREAD * spread.max()))


def evidence_of(features: np.ndarray, current: str, references: References) -> Dict[str, float]:
    """By how much nearer the frame is to every other domain than to the current one."""
    distances = (((features - references.means) / references.spread) ** 2).mean(axis=1) / 2
    here = distances[references.names.index(current)]
    return {name: float(here - there) for name, there in zip(references.names, distances) if name != current}


class Sum(NamedTuple):
    """What speaks for a domain."""
    counted: float  # with at most 1 a frame
    whole: float  # of the same frames: which of several domains is the nearest


Sums = Mapping[str, Sum]  # by domain; {}: nothing yet
NOTHING = Sum(0.0, 0.0)


def watch(sums: Sums, statistics: np.ndarray, current: str, references: References, after_frames: int,
          ) -> Tuple[Sums, Optional[str]]:
    """One more frame, [2, C]. Returns (what is known now, the domain to change to or None). Frames that clearly look
    like another domain lead there when `after_frames` of them have come in a row."""
    if current not in references.names or not np.isfinite(statistics).all():
        return sums, None
    found: Dict[str, Sum] = {}
    for name, evidence in evidence_of(features_of(statistics), current, references).items():
        before = sums.get(name, NOTHING)
        counted = before.counted + max(-1.0, min(1.0, evidence)) - MARGIN
        found[name] = Sum(counted, before.whole + evidence) if counted > 0 else NOTHING
    enough = (1 - MARGIN) * after_frames - 1e-9
    clear = [name for name, one in found.items() if one.counted >= enough]
    return ({}, max(clear, key=lambda name: found[name].whole)) if clear else (found, None)
