"""The image as anybody would send it: as it is, as PNG (no loss) or as JPEG; sizes and times on images of the data set.

Times are processor time of this machine on one thread. They stand for a tier of this machine, or for a simulated one
that is slower by a known factor; for a device of which no such factor is known they are a bound from below, in favour
of sending the image.
"""
from __future__ import annotations

import io
import time
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from PIL import Image  # comes with torchvision and matplotlib

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)  # of a JPEG, smallest first
TIMED = 64  # images whose encoding and decoding are timed; the median counts
TIMED_QUALITY = 75  # of their JPEG: from 30 to 95 the time differs by a tenth


def encode(image: torch.Tensor, quality: Optional[int]) -> bytes:
    """uint8 [3, S, S] as JPEG of this quality, or as PNG (None); one channel where all three are the same."""
    pixels = image.permute(1, 2, 0).cpu().numpy()  # (S, S, 3)
    grey = (pixels[..., :1] == pixels).all()
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    if quality is None:
        picture.save(stream, 'PNG')
    else:
        picture.save(stream, 'JPEG', quality=quality, optimize=True)  # a third smaller at 32 pixels for 10 % more time
    return stream.getvalue()


def decode(data: bytes) -> torch.Tensor:
    """The inverse: uint8 [3, S, S]."""
    with Image.open(io.BytesIO(data)) as picture:
        return torch.from_numpy(np.array(picture.convert('RGB'))).permute(2, 0, 1)


def received(images: torch.Tensor, quality: int) -> torch.Tensor:
    """What is left of uint8 images [n, 3, S, S] that travel as JPEG."""
    return torch.stack([decode(encode(image, quality)) for image in images.cpu()]).to(images.device)


def mean_bytes(images: torch.Tensor, quality: Optional[int]) -> float:
    """The mean size of uint8 images [n, 3, S, S] as JPEG of this quality (None: as PNG)."""
    return float(np.mean([len(encode(image, quality)) for image in images.cpu()]))


def codec_ms(images: torch.Tensor) -> Dict[str, Tuple[float, float]]:
    """How long one of these uint8 images [n, 3, S, S] takes this machine, by format: (encoding, decoding), ms."""
    found = {}
    for name, quality in (('png', None), ('jpeg', TIMED_QUALITY)):
        sent = [encode(image, quality) for image in images[:TIMED].cpu()]
        found[name] = (median_ms(lambda index, quality=quality: encode(images[index], quality), len(sent)),
                       median_ms(lambda index, sent=sent: decode(sent[index]), len(sent)))
    return found


def median_ms(work: Callable[[int], object], count: int) -> float:
    """The median processor time of `work(0)`, `work(1)`, ..., `count` of them, ms."""
    taken: List[float] = []
    for index in range(count):
        start = time.thread_time()
        work(index)
        taken.append(1000 * (time.thread_time() - start))
    return float(np.median(taken))


def smallest_within(accuracy_of: Callable[[int], float], lowest: float) -> Optional[int]:
    """The lowest quality of QUALITIES at which a network has at least this accuracy; None where the best has less.
    By bisection, `accuracy_of(quality)` taken as rising with quality: three or four evaluations."""
    low, high = 0, len(QUALITIES)  # everything below `low` is too little, everything from `high` on is enough
    while low < high:
        middle = (low + high) // 2
        if accuracy_of(QUALITIES[middle]) >= lowest:
            high = middle
        else:
            low = middle + 1
    return QUALITIES[high] if high < len(QUALITIES) else None
