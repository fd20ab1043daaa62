"""Networks as numbers: the RepVGG variants by depths, widths and strides, the shape of every block, and what is known
of a unit of any other network. No PyTorch."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Tuple

from config import UserError

BRANCHES = ('dense', '1x1', 'identity')  # the order of every array over branches
DENSE, ONE, IDENTITY = range(3)
TORCHVISION = 'torchvision:'  # a MODEL_NAME that begins so is one of torchvision's classifiers


@dataclass(frozen=True)
class Architecture:
    """Depths, widths and strides of one variant; `grouped` is the group count of every second block."""
    depths: Tuple[int, int, int, int]
    channels: Tuple[int, int, int, int, int]  # stem, stage1..stage4
    strides: Tuple[int, int, int, int, int] = (2, 2, 2, 2, 2)  # stem, first block of stage1..stage4
    grouped: int = 1
    use_se: bool = False


def _paper(depths: Tuple[int, int, int, int], a: float, b: float, grouped: int = 1, use_se: bool = False,
           ) -> Architecture:
    """A variant by the paper's width multipliers: a for stages 0..3 (stem at most 64), b for stage 4."""
    return Architecture(depths, (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b)),
                        grouped=grouped, use_se=use_se)
_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)
ARCHITECTURES: Dict[str, Architecture] = {
    'RepVGG-A0': _paper(_A, 0.75, 2.5), 'RepVGG-A1': _paper(_A, 1, 2.5), 'RepVGG-A2': _paper(_A, 1.5, 2.75),
    'RepVGG-B0': _paper(_B, 1, 2.5),
    'RepVGG-B1': _paper(_B, 2, 4), 'RepVGG-B1g2': _paper(_B, 2, 4, 2), 'RepVGG-B1g4': _paper(_B, 2, 4, 4),
    'RepVGG-B2': _paper(_B, 2.5, 5), 'RepVGG-B2g2': _paper(_B, 2.5, 5, 2), 'RepVGG-B2g4': _paper(_B, 2.5, 5, 4),
    'RepVGG-B3': _paper(_B, 3, 5), 'RepVGG-B3g2': _paper(_B, 3, 5, 2), 'RepVGG-B3g4': _paper(_B, 3, 5, 4),
    'RepVGG-D2se': _paper((8, 14, 24, 1), 2.5, 5, use_se=True),
    # The built-in example: 11 blocks and 0.5 M parameters for 32x32 images.
    'RepVGG-Micro': Architecture((3, 4, 3, 1), (32, 32, 64, 96, 128), strides=(2, 1, 2, 2, 1)),
}


def architecture(name: str) -> Architecture:
    """The variant of this name; `UserError` names the known ones (case and 'RepVGG-' may be left out)."""
    if is_graph(name):
        raise UserError(f'MODEL_NAME={name}: this works with RepVGG networks only (docs/any_network.md)')
    known = {key.lower(): key for key in ARCHITECTURES}
    key = name.lower().replace('_', '-')
    key = key if key in known else 'repvgg-' + key
    if key not in known:
        raise UserError(f'unknown MODEL_NAME {name!r}: choose one of {", ".join(ARCHITECTURES)}; or '
                        f'{TORCHVISION}resnet50 and the like, which is cut and not pruned')
    return ARCHITECTURES[known[key]]


def is_graph(name: str) -> bool:
    """Is a MODEL_NAME that of a network that runs as it is, cut along its graph?"""
    return name.startswith(TORCHVISION)


class BlockShape(NamedTuple):
    """What the cost of a block depends on, for one image."""
    in_channels: int
    out_channels: int
    in_size: int  # pixels, height = width
    stride: int
    groups: int
    has_identity: bool
    se_channels: int  # squeezed width; 0: no SE

    @property
    def out_size(self) -> int:
        """Height = width of the output, pixels (3x3 with padding 1 and 1x1 agree)."""
        return (self.in_size - 1) // self.stride + 1

    @property
    def out_shape(self) -> Tuple[int, ...]:
        """Of the output, without the batch."""
        return self.out_channels, self.out_size, self.out_size

    @property
    def n_branches(self) -> int:
        """The first so many of BRANCHES."""
        return 3 if self.has_identity else 2


class GraphShape(NamedTuple):
    """What the cost of a unit of any other network depends on, for one image. It runs as it is: under γ 0, as if it had
    one branch, 'dense', whose α is 1."""
    operators: str  # 'conv2d batch_norm': of equal ones with equal costs the times are equal
    out_shape: Tuple[int, ...]  # without the batch
    flops: float
    moved_bytes: float  # inputs + weights + outputs of all its operators
    weight_bytes: float
    activation_bytes: float  # alive at the worst moment, the input included
    n_branches: int = 1
    has_identity: bool = False

    @property
    def out_channels(self) -> int:
        """The first axis of the output; a vector is one channel."""
        return self.out_shape[0] if len(self.out_shape) > 1 else 1


class ClassifierShape(NamedTuple):
    """Global average pool of [channels, feature_size, feature_size] and a linear layer; no channels: there is none."""
    channels: int
    num_classes: int
    feature_size: int


def block_shapes(arch: Architecture, input_size: int) -> Tuple[BlockShape, List[BlockShape]]:
    """Shapes of the stem and of the N blocks for square images of `input_size` pixels."""
    stem = BlockShape(3, arch.channels[0], input_size, arch.strides[0], 1,
                      arch.channels[0] == 3 and arch.strides[0] == 1,
                      arch.channels[0] // SE_REDUCTION if arch.use_se else 0)
    shapes: List[BlockShape] = []
    previous, size, layer = arch.channels[0], stem.out_size, 1
    for stage, depth in enumerate(arch.depths, start=1):
        for index in range(depth):
            stride = arch.strides[stage] if index == 0 else 1
            width = arch.channels[stage]
            groups = arch.grouped if layer % 2 == 0 and layer <= 26 else 1  # the authors' override list: 2, 4 .. 26
            shapes.append(BlockShape(previous, width, size, stride, groups, previous == width and stride == 1,
                                     width // SE_REDUCTION if arch.use_se else 0))
            previous, size, layer = width, shapes[-1].out_size, layer + 1
    return stem, shapes


def block_names(arch: Architecture) -> List[str]:
    """['stage1.0', ..., 'stage4.0'], in order of execution."""
    return [f'stage{stage}.{index}' for stage, depth in enumerate(arch.depths, start=1) for index in range(depth)]
SE_REDUCTION = 16  # RepVGG-D2se: the squeezed width is a sixteenth of the block's
