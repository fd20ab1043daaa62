"""When to stop measuring an accuracy: an exact sequential test on nested subsets of a finite set of images.

Images are drawn in random order without replacement, so the correct ones among the first m follow a hypergeometric
distribution. A network is given up after m images when so few correct ones would be seen with probability at most
level / (number of peeks) even if its accuracy on all images were just `needed`. With the union bound over the peeks, a
network that is accurate enough is given up with probability at most `level` (Bonferroni; no approximation).
"""
from __future__ import annotations

import math
from typing import List

SMALLEST_SHARE = 8  # the first peek is at 1/8 of the images, each later one at twice as many


def peeks(count: int, batch_size: int) -> List[int]:
    """Numbers of images after which to look: count/8, /4, /2, in whole batches; not at the end, where all is known."""
    sizes = (-(-count // (share * batch_size)) * batch_size for share in (SMALLEST_SHARE, 4, 2))
    return sorted({size for size in sizes if size < count})


def log_choose(n: int, k: int) -> float:
    """log of the binomial coefficient; -inf where it is 0."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if 0 <= k <= n else -math.inf


def probability_of_so_few(correct: int, seen: int, count: int, correct_in_all: int) -> float:
    """P(at most `correct` among `seen` drawn of `count`) when `correct_in_all` of all are correct."""
    whole = log_choose(count, seen)
    return min(1.0, sum(math.exp(log_choose(correct_in_all, c) + log_choose(count - correct_in_all, seen - c) - whole)
                        for c in range(correct + 1)))


def hopeless(correct: int, seen: int, count: int, needed: float, level: float) -> bool:
    """Give up? `needed`: accuracy (fraction of 1) on all `count` images below which the network is of no use. True with
    probability at most `level` / number of peeks when the accuracy on all images is `needed` or more."""
    correct_in_all = max(0, math.ceil(needed * count - 1e-9))
    return correct_in_all > count or probability_of_so_few(correct, seen, count, correct_in_all) <= level


def sampling_sd(accuracy: float, seen: int, count: int) -> float:
    """Standard deviation of an accuracy measured on `seen` of `count` images; one error more counts, so that it is not
    0 for a perfect subset (Agresti and Coull's correction in its simplest form)."""
    p = (accuracy * seen + 1) / (seen + 2)
    return math.sqrt(p * (1 - p) / seen * (count - seen) / max(1, count - 1))
