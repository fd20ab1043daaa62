"""Images that torchvision reads or resizes: an ImageFolder tree, and torchvision's own datasets.

Slow to import: `image_sources.open_source` does so only where they are asked for.
"""
from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import warnings
from typing import Any, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import datasets

from config import Settings, UserError
from domains import folders
from domains.source_base import ImageSource
from network.inputs import crop_box

EMNIST_SPLITS = {62: 'byclass', 47: 'balanced', 27: 'letters', 10: 'digits'}  # by NUM_CLASSES
NO_TEST_LABELS = ('ImageNet', 'Places365', 'Imagenette', 'CLEVRClassification')  # or no test images at all
TIFF_BITS = 258  # the tag BitsPerSample
IDENTITY_SAMPLES = 64  # images of a torchvision dataset that are hashed into its identity


class FolderImages(ImageSource):
    """An ImageFolder tree: one folder per class, classes in alphabetical order, images at any depth; or train/ and val/
    of such folders (`folders`)."""

    def __init__(self, root: str, size: int) -> None:
        tree = folders.read_tree(root)
        identity = hashlib.sha256('\n'.join(tree.class_names).encode('utf-8', 'surrogateescape'))
        for path, digest, held_out in zip(tree.paths, tree.digests, tree.held_out or [None] * len(tree.paths)):
            identity.update(f'{path}\0{digest}\0{held_out}\n'.encode('utf-8', 'surrogateescape'))
        names = folders.titles(root, tree.class_names)  # another name is not another data set
        super().__init__(root, names, np.array(tree.labels, dtype=np.int64), identity.hexdigest(),
                         np.array(tree.digests), np.array(tree.held_out) if tree.held_out else None, tree.warnings)
        self.root, self.size, self.paths = root, size, tree.paths

    def read(self, index: int) -> torch.Tensor:
        return resize_and_crop(self.original(index), self.size, round(self.size * 256 / 224))

    def decodes(self, index: int) -> bool:
        """Can this image be read to its last pixel?"""
        try:
            self.original(index)
        except Exception:  # decoders raise many things: OSError, SyntaxError, ValueError, DecompressionBombError, ...
            return False
        return True

    def original(self, index: int) -> Image.Image:
        path = os.path.join(self.root, self.paths[index])
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise FileNotFoundError(f'{path}: no such file')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what Pillow thinks of a file's metadata and size: lines for each image
            with Image.open(path) as image:
                return as_seen(image)

    def describe(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    def can_be_damaged(self) -> bool:
        return True


def as_seen(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it: turned as its camera was held (EXIF), RGB, 8 bits a channel. Raises `ValueError`
    for pixels without a known range."""
    mode, bits = image.mode, getattr(image, 'tag_v2', {}).get(TIFF_BITS, (16,))[0]
    if mode == 'F' or (mode == 'I' and image.format not in ('PNG', 'PPM')):  # older versions of Pillow: PNGs of 16 bits
        raise ValueError(f'its pixels are numbers without a known range (mode {mode})')
    try:
        image = ImageOps.exif_transpose(image) or image
    except Exception:  # damaged EXIF data: the pixels may be sound; where they are not, the next lines say so
        pass
    if mode.startswith('I'):
        grey = np.asarray(image, dtype=np.float64) * 255 / (2 ** bits - 1)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    return image.convert('RGB')


def resize_and_crop(image: Image.Image, size: int, shorter_side: int) -> torch.Tensor:
    """A PIL image -> uint8 [3, size, size]: resize so that the shorter side has `shorter_side` pixels, crop the centre
    (256 and 224 is how the RepVGG authors evaluate). Only what is kept is computed: a PNG of 20000x1 pixels would have
    1.3 billion of them."""
    box = crop_box(*image.size, size, shorter_side)
    resized = image.resize((size, size), Image.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


# --- torchvision ----------------------------------------------------------------------------------

class TorchvisionImages(ImageSource):
    """A torchvision dataset, its held-out part where it has parts (base weights have usually seen the other)."""

    def __init__(self, name: str, dataset: Dataset, class_names: Sequence[str], labels: np.ndarray, size: int) -> None:
        super().__init__(name, class_names, labels, '')
        self.dataset, self.size = dataset, size
        digest = hashlib.sha256(labels.tobytes())
        if isinstance(getattr(dataset, 'data', None), (np.ndarray, torch.Tensor)):  # all images in memory
            digest.update(np.ascontiguousarray(dataset.data))
        for index in np.linspace(0, len(labels) - 1, min(IDENTITY_SAMPLES, len(labels))).astype(int):
            digest.update(self.read(int(index)).numpy().tobytes())
        self.identity = digest.hexdigest()

    def original(self, index: int) -> Image.Image:
        return as_seen(self.dataset[index][0])

    def read(self, index: int) -> torch.Tensor:
        image = self.original(index)
        if image.size == (self.size, self.size):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        # an image that has to grow has no margin to give away
        grows = min(image.size) <= self.size
        return resize_and_crop(image, self.size, self.size if grows else round(self.size * 256 / 224))


def open_torchvision(settings: Settings) -> TorchvisionImages:
    """A torchvision classification dataset by name, whatever its case. Raises `UserError`."""
    general = ('ImageFolder', 'DatasetFolder', 'VisionDataset')  # no data of their own
    known = {name.lower(): name for name in datasets.__all__
             if inspect.isclass(getattr(datasets, name)) and name not in general}
    name = known.get(settings.DATASET.lower())
    if name is None:
        near = difflib.get_close_matches(settings.DATASET.lower(), ['mnist5k', 'imagefolder', *known], n=1, cutoff=0.5)
        hint = f'did you mean {known.get(near[0], near[0])}?' if near else \
            "use 'mnist5k', 'imagefolder' or the name of a torchvision dataset such as CIFAR10"
        raise UserError(f'unknown DATASET {settings.DATASET!r}: {hint}')
    made = getattr(datasets, name)
    arguments = _held_out_arguments(made, settings)
    try:
        dataset = made(**arguments)
    except Exception as error:  # each dataset has its own way of saying that it is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        not_there = isinstance(error, (RuntimeError, OSError))  # others: it cannot be opened in this way at all
        hint = ' (nothing is downloaded: put the dataset there first)' if not_there else ''
        raise UserError(f'{name} cannot be opened at DATA_PATH {settings.DATA_PATH}: {reason}{hint}') from None
    labels = _labels(dataset, name)
    names = [str(item) for item in getattr(dataset, 'classes', [])]
    if len(names) <= labels.max():
        names = [str(label) for label in range(labels.max() + 1)]
    return TorchvisionImages(name, dataset, names, labels, settings.INPUT_SIZE)


def _held_out_arguments(made: type, settings: Settings) -> dict:
    """Constructor arguments: the data's folder, the held-out part, no download."""
    known = inspect.signature(made.__init__).parameters
    arguments: dict = {}
    if 'root' in known and known['root'].default is inspect.Parameter.empty:
        arguments['root'] = settings.DATA_PATH
    if 'train' in known:
        arguments['train'] = False
    elif made.__name__ == 'EMNIST':
        if settings.NUM_CLASSES not in EMNIST_SPLITS:
            raise UserError('DATASET EMNIST: NUM_CLASSES must be ' + ', '.join(
                f'{count} ({split})' for count, split in EMNIST_SPLITS.items()) + f', not {settings.NUM_CLASSES}')
        arguments.update(split=EMNIST_SPLITS[settings.NUM_CLASSES], train=False)
    elif 'split' in known:
        arguments['split'] = 'val' if made.__name__ in NO_TEST_LABELS else 'test'
    if 'download' in known:
        arguments['download'] = False
    if made.__name__ == 'FakeData':
        arguments.update(image_size=(3, settings.INPUT_SIZE, settings.INPUT_SIZE), num_classes=settings.NUM_CLASSES)
    return arguments


def _labels(dataset: Dataset, name: str) -> np.ndarray:
    """int64 [n]; `UserError` when the dataset is not one of images with one class each."""
    not_classes = UserError(f'DATASET {name}: not a dataset of images with one class each')
    if not hasattr(dataset, '__len__') or len(dataset) == 0:
        raise not_classes
    labels: Any = next((getattr(dataset, field) for field in ('targets', 'labels', '_labels')
                        if len(getattr(dataset, field, ())) == len(dataset)), None)
    try:
        if not hasattr(dataset[0][0], 'convert'):  # no PIL image
            raise not_classes
        if labels is None:
            labels = [dataset[index][1] for index in range(len(dataset))]
        found = np.asarray([int(label) for label in labels], dtype=np.int64)
    except (TypeError, ValueError, KeyError, IndexError):
        raise not_classes from None
    if found.min() < 0:
        raise not_classes
    return found
