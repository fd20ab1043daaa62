"""What an image source is: images with labels, read one at a time."""
from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Optional, Sequence

import numpy as np
import torch
from PIL import Image  # comes with torchvision and matplotlib


class ImageSource(ABC):
    """Images with labels. Index i always means the same image as long as `identity` is the same."""

    def __init__(self, name: str, class_names: Sequence[str], labels: np.ndarray, identity: str,
                 digests: Optional[np.ndarray] = None, held_out: Optional[np.ndarray] = None,
                 warnings: Sequence[str] = ()) -> None:
        self.name = name
        self.class_names = list(class_names)
        self.labels = labels  # int64 [n]
        self.identity = identity  # a hash that changes when the dataset on disk is another one
        self.digests = digests  # text [n]: what the images' files hold; None: not files of their own
        self.held_out = held_out  # bool [n]: never training images, the others nothing else; None: no such parts
        self.warnings = list(warnings)  # what a user should know about the data, a sentence each

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> torch.Tensor:
        """uint8 [3, S, S]; raises whatever a damaged image provokes."""

    def original(self, index: int) -> Image.Image:
        """An RGB image as it is stored, where that is more than what `read` keeps: what training crops from."""
        return Image.fromarray(self.read(index).permute(1, 2, 0).numpy())

    def describe(self, index: int) -> str:
        """A name of this image for messages."""
        return f'image {index} of {self.name}'

    def can_be_damaged(self) -> bool:
        """Are the images files of their own, to be decoded once before they are relied on?"""
        return False
