"""Accuracy of many networks on the same images, the hardest images first.

An image that a network is expected to get right by a wide margin will hardly be wrong; the few with narrow margins
decide. So images are run in the order of the margins to expect, and a network is left
  as soon as it has made more errors than the accuracy that it needs allows: on all images it could not be accurate
  enough, whatever the rest would show, so no such decision is wrong. Its margins on the rest, and from them its
  accuracy, are then predicted by a straight line through expected and found margins, fitted to the images seen;
  or, where an estimate is enough, when a share of all images (QUIET_SHARE) in a row, each easier than the one before,
  were right. The rest is taken as right.
`benchmarks/search_cost.py --estimates` shows how far both estimates are off.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable, Tuple

import numpy as np
import torch

from network.inputs import batches
from search.normal_distribution import cumulative

LEAST_SHARE = 0.2  # of the images are seen before a network is given up: on fewer, estimates are of little use
STEP_SHARE = 0.05  # of the images at a time, at most: a network can be left after every step
PRIOR_WEIGHT = 4.0  # of the belief that expected margins are right, in images with a margin of 1
LARGEST_MARGIN = 100.0  # nothing is more certain; half-precision numbers go to 65,504


@dataclass(frozen=True)
class Look:
    """What is known of one network's accuracy."""
    accuracy: float  # on all images; an estimate unless all were seen
    seen: int  # images
    margins: np.ndarray = field(compare=False, repr=False)  # float16 [n]; of images not seen, predicted
    sd: float = 0.0  # standard deviation of the estimate; 0: all images were seen
    enough: bool = True  # False: it was given up, since it needed more than `accuracy` can be

    @property
    def whole(self) -> bool:
        """Was it measured on all images?"""
        return self.sd == 0


def margins_of(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Logit of the right class less the highest other one, over the standard deviation of the image's logits, float32
    [n], of logits [n, classes]; an image is right where it is above 0."""
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    margins = (right - others) / logits.std(dim=1).clamp_min(torch.finfo(logits.dtype).tiny)
    return torch.nan_to_num(margins, nan=-1.0).clamp(-LARGEST_MARGIN, LARGEST_MARGIN).cpu().numpy().astype(np.float32)


def look(margins_at: Callable[[torch.Tensor], np.ndarray], expected: np.ndarray, batch_size: int, needed: float = 0.0,
         quiet_share: float = 1.0) -> Look:
    """Look at one network.

    `margins_at(index [B])` runs it on these images and returns their margins [B]; `expected` [n]: what they may be, as
    far as is known. `needed`: accuracy (fraction of 1) below which the network is of no use; `quiet_share` 1: nothing
    is taken as right.
    """
    count, order = len(expected), np.argsort(expected, kind='stable')
    step = min(batch_size, math.ceil(STEP_SHARE * count))
    allowed = count * (1 - needed) + 1e-9  # errors
    found, errors, quiet = [], 0, 0
    for part in batches(count, step):
        found.append(margins_at(torch.as_tensor(order[part])))
        wrong = int((found[-1] <= 0).sum())
        errors, quiet = errors + wrong, 0 if wrong else quiet + len(found[-1])
        if part.stop >= LEAST_SHARE * count if errors > allowed else quiet >= quiet_share * count:
            break
    margins, enough = np.concatenate(found), errors <= allowed
    seen, rest = order[:len(margins)], order[len(margins):]
    accuracy, sd, completed = (count - errors) / count, 0.0, np.empty(count, np.float16)
    completed[seen] = margins
    if len(rest):
        completed[rest], more, sd = to_come(expected[seen], margins, expected[rest])
        accuracy, sd = (accuracy, 0.5 / count) if enough else (accuracy - more / count, sd / count)
    return Look(accuracy, len(seen), completed, sd, enough)


def to_come(expected: np.ndarray, margins: np.ndarray, rest: np.ndarray) -> Tuple[np.ndarray, float, float]:
    """(margins, expected number of errors, its standard deviation) on images with the expected margins `rest`, of a
    network that had these margins where others were expected."""
    x = np.stack([expected, np.ones(len(expected))], axis=1).astype(float)
    prior = PRIOR_WEIGHT * np.eye(2)
    slope, shift = np.linalg.solve(x.T @ x + prior, x.T @ margins + prior @ (1.0, 0.0))
    spread = (margins - x @ (slope, shift)).std() + 1e-6
    predicted = slope * rest.astype(float) + shift
    wrong = cumulative(-predicted / spread)
    more = float(wrong.sum())
    return (np.clip(predicted, -LARGEST_MARGIN, LARGEST_MARGIN), more,
            math.sqrt(1 + float((wrong * (1 - wrong)).sum()) + (more / 2) ** 2))
