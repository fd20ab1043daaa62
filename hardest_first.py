"""Accuracy of many networks on the same images, the hardest images first.

An image that every network so far got right by a wide margin will hardly tell the next two apart; the few with narrow
margins do. So images are run in the order of the smallest margin that any network has had on them (the logit of the
right class less the highest other one), and a network is left
  as soon as it has made more errors than the accuracy that it needs allows: on all images it could not be accurate
  enough, whatever the rest would show, so no such decision is wrong. Its margins on the rest, and from them its
  accuracy, are then predicted by a linear regression on what is known of each image, fitted to the images seen;
  or, where an estimate is enough, when a share of all images (QUIET_SHARE) in a row, each easier than the one before,
  were right. The rest is taken as right.
`benchmarks/search_cost.py --estimates` shows how far both estimates are off.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Tuple

import numpy as np
import torch

from evaluation import batches
from normal_distribution import cumulative

LEAST_SHARE = 0.2  # of the images are seen before a network is given up: on fewer, estimates are of little use
PRIOR_WEIGHT, PRIOR = 4.0, (0.5, 0.5, 0.0)  # of the regression: a margin lies between the lowest and the reference's


class Look(NamedTuple):
    """What is known of one network's accuracy."""
    accuracy: float  # on all images; an estimate unless all were seen
    seen: int  # images
    sd: float = 0.0  # standard deviation of the estimate; 0: all images were seen
    enough: bool = True  # False: it was given up, since it needed more than `accuracy` can be

    @property
    def whole(self) -> bool:
        """Was it measured on all images?"""
        return self.sd == 0


def margins_of(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Logit of the right class less the highest other one, float32 [n], of logits [n, classes]; an image is right where
    it is above 0."""
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return (right[:, 0] - others.amax(dim=1)).cpu().numpy().astype(np.float32)


@dataclass
class Hardness:
    """What is known of a set of n images."""
    reference_margins: np.ndarray  # float32 [n], of the network that others are derived from
    lowest_margins: np.ndarray  # float32 [n], of all networks so far; a look brings them up to date


def look(logits_of: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, hardness: Hardness, batch_size: int,
         needed: float = 0.0, quiet_share: float = 1.0) -> Look:
    """Look at one network.

    `logits_of(index [B])` runs it on these images; `labels` [n]. `needed`: accuracy (fraction of 1) below which the
    network is of no use; `quiet_share` 1: nothing is taken as right.
    """
    count = len(labels)
    order = torch.as_tensor(np.argsort(hardness.lowest_margins, kind='stable'))
    allowed = count * (1 - needed) + 1e-9  # errors
    found, errors, quiet = [], 0, 0
    for part in batches(count, batch_size):
        index = order[part]
        found.append(margins_of(logits_of(index), labels[index]))
        wrong = int((found[-1] <= 0).sum())
        errors, quiet = errors + wrong, 0 if wrong else quiet + len(index)
        if part.stop >= LEAST_SHARE * count if errors > allowed else quiet >= quiet_share * count:
            break
    margins = np.concatenate(found)
    seen, rest = order[:len(margins)].numpy(), order[len(margins):].numpy()
    result = Look((count - errors) / count, len(seen), 0.5 / count if len(rest) else 0.0, errors <= allowed)
    if len(rest) and not result.enough:
        more, sd = errors_to_come(hardness, seen, margins, rest)
        result = Look((count - errors - more) / count, len(seen), sd / count, False)
    hardness.lowest_margins[seen] = np.minimum(hardness.lowest_margins[seen], margins)
    return result


def errors_to_come(hardness: Hardness, seen: np.ndarray, margins: np.ndarray, rest: np.ndarray) -> Tuple[float, float]:
    """(expected errors on the images `rest`, standard deviation) of a network with these margins on those `seen`."""
    lowest = hardness.lowest_margins
    known = np.stack([lowest, hardness.reference_margins, np.ones(len(lowest))], axis=1)
    x, prior = known[seen].astype(float), np.diag([PRIOR_WEIGHT, PRIOR_WEIGHT, 0.0])
    weights = np.linalg.solve(x.T @ x + prior + 1e-9 * np.eye(3), x.T @ margins + prior @ PRIOR)
    spread = (margins - x @ weights).std() + 1e-6
    wrong = cumulative(-known[rest] @ weights / spread)
    more = float(wrong.sum())
    return more, math.sqrt(1 + float((wrong * (1 - wrong)).sum()) + (more / 2) ** 2)
