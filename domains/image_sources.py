"""Where images come from: the built-in digits, an ImageFolder tree, a torchvision dataset, or nowhere: drawn.

    source = open_source(settings)
    image = source.read(0)      # uint8 [3, INPUT_SIZE, INPUT_SIZE]

Opening a source reads names and labels, not pixels (except where a dataset keeps them in one file).
Nothing is ever downloaded. Sources can be sent to data loading processes.
"""
from __future__ import annotations

import hashlib
import os
import zipfile

import numpy as np
import torch
import torch.nn.functional as F

from config import Settings, UserError
from domains.source_base import ImageSource

MNIST5K_BYTES = 8 << 20  # more than the digits take; an archive that claims more is another one


def open_source(settings: Settings) -> ImageSource:
    """The dataset of these settings. Raises `UserError` when it is missing, unknown, or has too many classes."""
    name = settings.DATASET.lower()
    if name == 'mnist5k':
        source: ImageSource = Mnist5k(settings.DATA_PATH, settings.INPUT_SIZE)
    elif name == 'generated':
        source = GeneratedImages(settings.NUM_CLASSES, settings.INPUT_SIZE)
    else:
        from domains import torchvision_sources  # torchvision takes a second to load, and the digits do without it
        source = torchvision_sources.FolderImages(settings.DATA_PATH, settings.INPUT_SIZE) \
            if name == 'imagefolder' else torchvision_sources.open_torchvision(settings)
    if len(source.class_names) > settings.NUM_CLASSES:
        raise UserError(f'{source.name} has {len(source.class_names)} classes, the model only '
                        f'NUM_CLASSES={settings.NUM_CLASSES}; set NUM_CLASSES or choose other data')
    return source


class Mnist5k(ImageSource):
    """The built-in digits: 28x28 with a margin of two pixels, then resized if INPUT_SIZE is not 32."""

    def __init__(self, folder: str, size: int) -> None:
        path = os.path.join(folder, 'mnist5k.npz')
        try:
            with open(path, 'rb') as stream:
                identity = hashlib.sha256(stream.read()).hexdigest()
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MNIST5K_BYTES:
                    raise ValueError('it unpacks to more than the digits')
            with np.load(path, allow_pickle=False) as arrays:
                images, labels = arrays['images'], arrays['labels']
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; DATASET 'mnist5k' ships with the repository: run from its top "
                            'folder, or set DATASET for other data') from None
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged archive provokes
            raise UserError(f'{path}: is damaged ({error}); restore it from the repository') from None
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise UserError(f'{path}: is not the file of the repository; restore it')
        super().__init__(path, [str(digit) for digit in range(10)], labels.astype(np.int64), identity)
        self.images, self.size = images, size

    def read(self, index: int) -> torch.Tensor:
        image = F.pad(torch.from_numpy(self.images[index]), [2] * 4)[None]  # (1, 32, 32)
        if self.size != 32:
            image = F.interpolate(image[None].float(), size=(self.size, self.size), mode='bilinear',
                                  align_corners=False, antialias=True)[0].round().to(torch.uint8)
        return image.repeat(3, 1, 1)


class GeneratedImages(ImageSource):
    """Stripes, each class in a colour and a direction of its own on a random ground: images of any size and number of
    classes, to try things without data."""

    def __init__(self, classes: int, size: int, of_each: int = 200) -> None:
        labels = np.tile(np.arange(classes), of_each)
        identity = hashlib.sha256(f'generated {classes} {size} {of_each}'.encode()).hexdigest()
        super().__init__('generated images', [f'stripes {label}' for label in range(classes)], labels, identity)
        self.size = size

    def read(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng(index)
        share = self.labels[index] / len(self.class_names)
        y, x = np.mgrid[:self.size, :self.size] / self.size
        wave = np.sin(2 * np.pi * (2 * (x * np.cos(np.pi * share) + y * np.sin(np.pi * share)) + rng.random()))
        colour = 127 + 100 * np.cos(2 * np.pi * (share + np.arange(3) / 3))[:, None, None]  # (3, 1, 1), a hue
        ground = rng.uniform(0, 255, (3, 1, 1))
        return torch.from_numpy((ground + (colour - ground) * (wave + 1) / 2).round().astype(np.uint8))
