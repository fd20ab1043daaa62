"""Folders of random pictures for tests."""
from __future__ import annotations

import numpy as np
from PIL import Image


def image_file(path, seed: int, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def class_tree(root, classes=('cat', 'dog'), each: int = 20, first_seed: int = 0) -> None:
    """Class folders of random pictures, no two the same."""
    for label, name in enumerate(classes):
        for number in range(each):
            image_file(root / name / f'{number:02}.png', first_seed + 1000 * label + number)
