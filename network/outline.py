"""A network as its table, its costs and its files need it: names and shapes of its units, without weights.

Every network is a chain of units: a stem, N blocks, a classifier. RepVGG's are described by network/shapes.py. Any
other network (`MODEL_NAME=torchvision:resnet50`) is cut where one tensor alone crosses its graph, and what lies between
two cuts is a block; its stem and its classifier are empty (network/graph_network.py).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import List, Tuple, Union

from config import Settings
from network.shapes import BlockShape, ClassifierShape, GraphShape, architecture, block_names, block_shapes, is_graph

Shape = Union[BlockShape, GraphShape]
ANY_SIZE = 224  # pixels; for names and numbers of blocks, which do not depend on them


@dataclass(frozen=True)
class Outline:
    """Units of a network for square images of one size."""
    block_names: Tuple[str, ...]
    stem: Shape
    blocks: Tuple[Shape, ...]
    classifier: ClassifierShape
    input_size: int  # pixels
    num_classes: int

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.blocks)

    @property
    def n_branches(self) -> List[int]:
        """Of every block: the first so many of BRANCHES."""
        return [shape.n_branches for shape in self.blocks]

    @property
    def has_identity(self) -> List[bool]:
        """Which blocks have an identity branch."""
        return [shape.has_identity for shape in self.blocks]

    def cut_shape(self, unit: int) -> Tuple[int, ...]:
        """Shape, without the batch, of what flows into unit `unit` (N + 2: the logits)."""
        if unit == 0:
            return 3, self.input_size, self.input_size
        if unit == self.n_blocks + 2:
            return (self.num_classes,)
        return (self.stem, *self.blocks)[unit - 1].out_shape


@functools.lru_cache(maxsize=8)
def outline_of(model_name: str, num_classes: int, input_size: int) -> Outline:
    """The outline of a network. Raises `UserError` for one that there is not, or that cannot be cut."""
    if is_graph(model_name):
        from network import graph_network  # loads PyTorch, which RepVGG's outline and `--help` do not need
        return Outline(*graph_network.measured(model_name, num_classes, input_size), input_size, num_classes)
    arch = architecture(model_name)
    stem, shapes = block_shapes(arch, input_size)
    classifier = ClassifierShape(arch.channels[4], num_classes, shapes[-1].out_size)
    return Outline(tuple(block_names(arch)), stem, tuple(shapes), classifier, input_size, num_classes)


def n_blocks_of(model_name: str, num_classes: int) -> int:
    """N, which does not depend on the size of images. Raises `UserError`."""
    return outline_of(model_name, num_classes, ANY_SIZE).n_blocks


def outline_for(settings: Settings) -> Outline:
    """The outline of the settings' network."""
    return outline_of(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE)
