"""RepVGG with one trainable scale α per branch; everything else is frozen.

    model = create_hyper_repvgg('weights.pt', 'RepVGG-A0')     # logits = model(images)
    network = deploy(model)                                     # folded and fused, ready to split
    z = network.head(images, split=3); logits = network.tail(z, split=3)
"""
from __future__ import annotations

from itertools import islice
from typing import List, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from gamma_configurator import build_plan
from network import batchnorm
from network.alpha import surviving_branches
from network.checkpoints import load_checkpoint
from network.folding import fold_branch
from network.gammas import fused_gamma
from network.graph_network import GraphNetwork
from network.merged_convolution import BlockFunction, convolve, pays
from network.shapes import BRANCHES, BlockShape, is_graph
from repvgg import RepVGG, RepVGGBlock


class HyperRepVGGBlock(RepVGGBlock):
    """ReLU(SE(α_dense·BN(conv3x3(x)) + α_1x1·BN(conv1x1(x)) + α_identity·BN(x))); α = 0 is a pruned branch."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape)
        self.alpha = nn.Parameter(torch.ones(self.n_branches))
        self._folded = None  # the frozen branches without their BatchNorm, made on first use

    def fold(self) -> None:
        """Fold every branch's BatchNorm once; call again when base weights, dtype or device have changed."""
        with torch.inference_mode(False), torch.no_grad():  # usable in training, wherever the first use was
            self._folded = [fold_branch(branch) for branch in self.branches()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._folded is None:
            self.fold()
        if not pays(x, self.shape):
            return F.relu(self.se(self.sum_of_branches(x)))
        if isinstance(self.se, nn.Identity):
            return BlockFunction.apply(x, self.alpha, self._folded, self.shape, True)
        return F.relu(self.se(BlockFunction.apply(x, self.alpha, self._folded, self.shape, False)))

    def sum_of_branches(self, x: torch.Tensor) -> torch.Tensor:
        """Σ_b α_b·branch_b(x), every surviving branch on its own; autograd finds the gradients."""
        return sum(self.alpha[index] * convolve(x, branch, self.shape)
                   for index, (branch, alpha) in enumerate(zip(self._folded, self.alpha.tolist())) if alpha != 0)


class HyperRepVGG(RepVGG):
    """RepVGG whose only trainable parameters are the blocks' α; BatchNorm always in evaluation mode."""

    def __init__(self, model_name: str, num_classes: int = 1000) -> None:
        super().__init__(model_name, num_classes, block=HyperRepVGGBlock)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for alpha in self.alphas():
            alpha.requires_grad_(True)
        self.eval()

    def train(self, mode: bool = True) -> 'HyperRepVGG':
        """Stays in evaluation mode: BatchNorm statistics are part of the frozen base."""
        return super().train(False)

    def _apply(self, fn, *args, **kwargs):  # .to(), .double(), .cuda(): folded copies would be stale
        result = super()._apply(fn, *args, **kwargs)
        for block in self.blocks:
            block._folded = None
        return result

    def load_state_dict(self, *args, **kwargs):
        """As in torch; folded copies of the old weights are dropped."""
        result = super().load_state_dict(*args, **kwargs)
        for block in self.blocks:
            block._folded = None
        return result

    def alphas(self) -> List[nn.Parameter]:
        """One parameter [2 or 3] a block."""
        return [block.alpha for block in self.blocks]

    def alpha_array(self) -> np.ndarray:
        """α as float64 [N, 3] in the order of BRANCHES; NaN where a block has no identity."""
        result = np.full((len(self.blocks), len(BRANCHES)), np.nan)
        for row, alpha in zip(result, self.alphas()):
            row[:alpha.numel()] = alpha.detach().cpu().numpy()
        return result

    def set_alpha_array(self, alpha: np.ndarray) -> None:
        """Set α from [N, 3]; NaN exactly where there is no identity. Raises `ValueError` otherwise."""
        alpha = np.asarray(alpha, dtype=np.float64)
        if alpha.shape != (len(self.blocks), len(BRANCHES)):
            raise ValueError(f'α has shape {alpha.shape}, the model needs {(len(self.blocks), len(BRANCHES))}')
        if (np.isnan(alpha) != np.isnan(self.alpha_array())).any():
            raise ValueError('α must be NaN exactly where a block has no identity branch')
        with torch.no_grad():
            for parameter, row in zip(self.alphas(), alpha):
                parameter.copy_(torch.as_tensor(row[:parameter.numel()], dtype=parameter.dtype))

    def batchnorm(self) -> np.ndarray:
        """BatchNorm statistics of stem and blocks, float32 [n] (network/batchnorm.py)."""
        return batchnorm.pack(batchnorm.layers_of(self))

    def set_batchnorm(self, statistics: np.ndarray) -> None:
        """Replace them; folded copies of the old ones are dropped."""
        batchnorm.unpack(batchnorm.layers_of(self), statistics)
        for block in self.blocks:
            block._folded = None


def create_hyper_repvgg(weight_path: Optional[str], model_name: str, num_classes: int = 1000) -> HyperRepVGG:
    """Build a model and load base weights into it; `weight_path` None or '': random weights, drawn from torch's
    current generator. Raises `UserError` for an unknown model or a checkpoint that does not fit."""
    model = HyperRepVGG(model_name, num_classes)
    if weight_path:
        load_checkpoint(model, weight_path)
    return model


Network = Union[HyperRepVGG, GraphNetwork]  # what has blocks, α and units, whatever they compute


def create_network(weight_path: Optional[str], model_name: str, num_classes: int = 1000) -> Network:
    """The network of this MODEL_NAME with base weights; `weight_path` None or '': random ones. Raises `UserError`."""
    if not is_graph(model_name):
        return create_hyper_repvgg(weight_path, model_name, num_classes)
    network = GraphNetwork(model_name, num_classes)
    if weight_path:
        network.load_weights(weight_path)
    return network


def run_unit(unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A unit's output; RepVGG's classifier, the only unit that is a linear layer, takes the means of its maps."""
    return unit(x.mean(dim=(2, 3)) if isinstance(unit, nn.Linear) else x)


class DeployedNetwork(nn.Module):
    """Folded stem, one plan per block, classifier: what runs on a tier. Splits anywhere."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """What the last block gives -> [B, num_classes]."""
        return run_unit(self.classifier, x)

    def head(self, x: torch.Tensor, split: int) -> torch.Tensor:
        """Images -> what is sent at this split: the images (0), a feature map, or logits (N)."""
        return self.run(x, 0, split) if split < len(self.blocks) else self.forward(x)

    def tail(self, x: torch.Tensor, split: int) -> torch.Tensor:
        """What was sent -> logits [B, num_classes]."""
        if split == len(self.blocks):
            return x
        return self.classify(self.run(x, split, len(self.blocks)))

    def run(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Blocks [first, last); the stem goes before block 0 when any block runs."""
        if first == 0 and last > 0:
            x = self.stem(x)
        for block in islice(self.blocks, first, last):  # a slice of a ModuleList would be a new module, 25 µs
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.run(x, 0, len(self.blocks)))


def deploy(model: Network, gamma: Optional[Sequence[int]] = None) -> DeployedNetwork:
    """Fold the model under γ [N] (None: every block fully fused); α is taken as it stands.

    Raises `ValueError` when a γ is not valid for its block.
    """
    if gamma is None:
        gamma = [fused_gamma(tuple(row)) for row in surviving_branches(model.alpha_array())]
    plans = [build_plan(block, block.alpha, g) for block, g in zip(model.blocks, gamma)]
    return DeployedNetwork(fused_stem(model.stage0), plans, model.linear).eval()


def fused_stem(stem: nn.Module) -> nn.Module:
    """The stem as it runs: no γ is chosen for it."""
    return build_plan(stem, torch.ones(stem.n_branches), fused_gamma((True,) * stem.n_branches))
