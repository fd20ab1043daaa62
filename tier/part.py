"""A contiguous part of a network: what one tier holds and runs, for training α or folded under γ.

Units are numbered 0 = stem, 1..N = blocks, N+1 = classifier. A part is the units [first, last); it may be empty and
then passes its input on. Weights travel unit by unit under the SHA-256 of their bytes, so a tier is sent only what it
lacks, and a changed split costs only the units that move.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

from config import INT8, TORCH, UserError
from gamma_configurator import build_plan
from hyper_repvgg import HyperRepVGGBlock, Network, fused_stem, run_unit
from network.channels import CutChannels
from network.gammas import fused_gamma
from network.graph_network import new_unit
from network.inputs import normalise
from network.outline import ANY_SIZE, n_blocks_of, outline_of
from network.shapes import architecture, block_shapes, is_graph
from repvgg import RepVGGBlock
from tier.onnx_graph import onnx_package, part_graph
from tier.onnx_int8 import int8_part_graph
from tier.onnx_session import Session, onnxruntime_package
from tier.rounding import grids_of

STATISTICS = 'statistics'  # the tensor of a service's frame that holds `channel_statistics` of its stem, [2, C]
DTYPES = {'float32': torch.float32, 'float64': torch.float64}


def head_units(split: int, n_blocks: int) -> Tuple[int, int]:
    """Units [first, last) of the head."""
    return 0, 0 if split == 0 else n_blocks + 2 if split == n_blocks else split + 1


def tail_units(split: int, n_blocks: int) -> Tuple[int, int]:
    """Units [first, last) of the tail."""
    return head_units(split, n_blocks)[1], n_blocks + 2


def client_units(split: int, n_blocks: int, head_tier: str) -> Tuple[int, int]:
    """The client's units at this split."""
    return head_units(split, n_blocks) if head_tier == 'client' else tail_units(split, n_blocks)


def server_units(split: int, n_blocks: int, head_tier: str) -> Tuple[int, int]:
    """The server's units at this split."""
    return tail_units(split, n_blocks) if head_tier == 'client' else head_units(split, n_blocks)


def units_of(model: Network) -> List[nn.Module]:
    """All N + 2 units of a model, not copied."""
    return [model.stage0, *model.blocks, model.linear]


# --- weights as bytes -------------------------------------------------------------------------------

def _travelling(unit: nn.Module) -> Dict[str, torch.Tensor]:
    """The tensors of a unit that are weights: not α, which is sent with the work, nor BatchNorm's step counter. A unit
    without any has one number all the same: a blob has at least one byte."""
    found = {name: value for name, value in unit.state_dict().items()
             if name != 'alpha' and not name.endswith('num_batches_tracked')}
    return found or {'': torch.zeros(1)}


def pack_unit(unit: nn.Module) -> np.ndarray:
    """A unit's weights as uint8 [n]: float32, little-endian, in the order of its state dict."""
    values = [value.detach().cpu().float().numpy().reshape(-1) for value in _travelling(unit).values()]
    return np.concatenate(values).astype('<f4').view(np.uint8)


def load_unit(unit: nn.Module, data: np.ndarray) -> None:
    """The inverse of `pack_unit`, in place. Raises `ValueError` when the number of bytes is not the unit's."""
    state = _travelling(unit)
    wanted = 4 * sum(value.numel() for value in state.values())
    if data.nbytes != wanted:
        raise ValueError(f'weights of {data.nbytes} bytes, the unit needs {wanted}')
    numbers, start = data.view('<f4'), 0
    with torch.no_grad():
        for value in state.values():
            part = np.ascontiguousarray(numbers[start:start + value.numel()], dtype=np.float32)
            value.copy_(torch.from_numpy(part.copy()).reshape(value.shape))
            start += value.numel()


def empty_unit(model_name: str, num_classes: int, index: int) -> nn.Module:
    """Unit `index` of a model, frozen (but for α), with arbitrary weights."""
    if is_graph(model_name):
        return new_unit(model_name, num_classes, index)
    arch = architecture(model_name)
    stem, shapes = block_shapes(arch, input_size=224)  # modules do not depend on the input size
    if index == 0:
        unit: nn.Module = RepVGGBlock(stem)
    elif index <= len(shapes):
        unit = HyperRepVGGBlock(shapes[index - 1])
    else:
        unit = nn.Linear(arch.channels[4], num_classes)
    for name, parameter in unit.named_parameters():
        parameter.requires_grad_(name == 'alpha')
    return unit.eval()


def cut_shape(model_name: str, num_classes: int, input_size: int, unit: int) -> Tuple[int, ...]:
    """Shape, without the batch, of what flows into unit `unit` (N + 2: the logits)."""
    return outline_of(model_name, num_classes, input_size).cut_shape(unit)


def channel_statistics(z: torch.Tensor) -> torch.Tensor:
    """Feature maps [B, C, h, w] -> float32 [B, 2, C] on the CPU: mean and variance of every channel."""
    mean = z.mean(dim=(2, 3))
    return torch.stack([mean, (z * z).mean(dim=(2, 3)) - mean * mean], dim=1).float().cpu()


# --- running a part -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class PartSpec:
    """Which part, and how it runs. `gamma` and `alpha` (rows of the part's blocks, NaN: no such branch) are given for
    a folded part; a part without them is for training and gets its α with every step."""
    model_name: str
    num_classes: int
    first: int
    last: int
    dtype: str  # of DTYPES
    mean: Tuple[float, ...]  # normalisation of uint8 images, for a part that starts with the stem
    std: Tuple[float, ...]
    gamma: Optional[Tuple[int, ...]] = None  # of the part's blocks
    alpha: Optional[Tuple[Tuple[float, ...], ...]] = None
    engine: str = TORCH  # of ENGINES; a part for training runs in PyTorch
    channels: Optional[CutChannels] = None  # that cross the cut, behind a head or before a tail; None: all
    peaks: Optional[Tuple[float, ...]] = None  # of all N + 1 maps of the network (tier/rounding.py); the int8 engine's

    @property
    def unit_names(self) -> List[str]:
        """Of the part's units: 'stem', 'stage1.0', ..., 'classifier'."""
        names = outline_of(self.model_name, self.num_classes, ANY_SIZE).block_names
        return ['stem', *names, 'classifier'][self.first:self.last]

    @property
    def n_blocks(self) -> int:
        """N of the whole model."""
        return n_blocks_of(self.model_name, self.num_classes)

    @property
    def blocks(self) -> range:
        """Indices k of the blocks in the part."""
        return range(max(self.first, 1) - 1, min(self.last, self.n_blocks + 1) - 1)


class NetworkPart:
    """A part of a network, ready to run. `units`: its modules, in order; they are used as they are, not copied."""

    def __init__(self, spec: PartSpec, units: Sequence[nn.Module], device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.units = [unit.to(device=device, dtype=DTYPES[spec.dtype]) for unit in units]
        self.blocks = self.units[spec.blocks.start + 1 - spec.first:spec.blocks.stop + 1 - spec.first]
        for block in self.blocks:
            block._folded = None  # weights, dtype or device may have changed
        self._plans = None if spec.gamma is None else self._folded()
        self._sessions: Dict[Tuple[object, ...], Session] = {}  # of onnxruntime, by units and input; made on first use
        check_engine(spec.engine, device, spec.dtype)
        if spec.engine == INT8 and spec.gamma is not None and len(spec.peaks or ()) != spec.n_blocks + 1:
            raise UserError(f'the engine {INT8} needs the peaks of the feature maps of this network: it runs what step '
                            '3 found with this engine')

    def _folded(self) -> List[nn.Module]:
        plans: List[nn.Module] = []
        rows = iter(zip(self.spec.gamma or (), self.spec.alpha or ()))
        for index, unit in enumerate(self.units, start=self.spec.first):
            if index == 0:
                plans.append(fused_stem(unit))
            elif index <= self.spec.n_blocks:
                gamma, alpha = next(rows)
                scales = torch.tensor(alpha[:unit.n_branches], dtype=torch.float64).to(unit.alpha)
                if self.spec.engine == INT8:
                    gamma = fused_gamma(tuple(value != 0 for value in alpha[:unit.n_branches]))
                plans.append(build_plan(unit, scales, gamma))
            else:
                plans.append(unit)
        return plans

    def folded_units(self) -> List[Tuple[str, nn.Module]]:
        """The units of a folded part as they run, with their names; the classifier (nn.Linear) takes means of maps."""
        return list(zip(self.spec.unit_names, self._plans or []))

    def set_alpha(self, alpha: torch.Tensor) -> None:
        """Set α of the part's blocks from [k, 3]; entries of branches that a block has not are ignored."""
        with torch.no_grad():
            for block, row in zip(self.blocks, alpha):
                block.alpha.copy_(row[:block.n_branches])

    def alpha_grad(self) -> torch.Tensor:
        """The α gradients of the part's blocks, [k, 3]; zero where there is no branch or no gradient."""
        result = torch.zeros(len(self.blocks), 3, dtype=DTYPES[self.spec.dtype])
        for row, block in zip(result, self.blocks):
            if block.alpha.grad is not None:
                row[:block.n_branches] = block.alpha.grad.cpu()
        return result

    def prepare(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Input of unit `first` on the device in the part's dtype; uint8 images are normalised on entering the stem."""
        x = x.to(self.device)
        if x.dtype == torch.uint8 and first == 0:
            x = normalise(x.cpu(), self.spec.mean, self.spec.std).to(self.device)
        return x.to(DTYPES[self.spec.dtype])

    def __call__(self, x: torch.Tensor, first: Optional[int] = None, last: Optional[int] = None) -> torch.Tensor:
        """[B, ...] into the first unit -> [B, ...] out of the last; with `first` or `last` the units [first, last) of
        the part alone, which all have their place in the whole network's numbers."""
        first, last = self.spec.first if first is None else first, self.spec.last if last is None else last
        if first == last:
            return x
        channels = self.spec.channels
        y = self._run(channels.restore(x) if channels is not None and first > 0 else x, first, last)
        return channels.take(y) if channels is not None and first == 0 else y

    def _run(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        units = (self.units if self._plans is None else self._plans)[first - self.spec.first:last - self.spec.first]
        if self.spec.engine != TORCH and self._plans is not None:
            return self._session(first, last, x)(x)
        x = self.prepare(x, first)
        for unit in units:
            x = run_unit(unit, x)
        return x

    def _session(self, first: int, last: int, x: torch.Tensor) -> Session:
        """What runs the units [first, last) on inputs like this one in onnxruntime: all of them in one graph."""
        key = first, last, x.dtype, tuple(x.shape[1:])
        if key not in self._sessions:
            units = self.folded_units()[first - self.spec.first:last - self.spec.first]
            spec = self.spec
            how = x.dtype, x.shape[1:], None if x.dtype != torch.uint8 else (spec.mean, spec.std)
            self._sessions[key] = Session(part_graph(units, *how) if spec.engine != INT8 else int8_part_graph(
                units, *how, grids_of(spec.peaks or (), spec.mean, spec.std)[first:]))
        return self._sessions[key]


def check_engine(engine: str, device: torch.device, dtype: str = 'float32') -> None:
    """Raise `UserError` where an engine cannot run a part: onnxruntime elsewhere than on the CPU, or where it is
    missing."""
    if engine == TORCH:
        return
    if device.type != 'cpu' or dtype != 'float32':
        raise UserError(f"the engine {engine} takes and gives float32 on the CPU here, not {dtype} on {device}: set "
                        "the tier's device to cpu, or its engine to torch")
    onnx_package(), onnxruntime_package()


def part_of(model: Network, spec: PartSpec, device: torch.device) -> NetworkPart:
    """The part of a model that this spec names; it shares the model's modules."""
    return NetworkPart(spec, units_of(model)[spec.first:spec.last], device)
