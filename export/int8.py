"""Post-training static quantisation to int8 (onnxruntime.quantization): Conv and Gemm, weights per output channel.

Values of feature maps get a scale and an offset for each tensor, from the smallest and largest one that training images
of the domain give (`RANGE_IMAGES`, without labels). Calibration images are left alone: they confirm results, and could
not any more. Blocks that lose much can be kept in float.
"""
from __future__ import annotations

import importlib
import os
import tempfile
from dataclasses import replace
from typing import Collection, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch

from config import UserError
from export.check import ONNX, runner
from export.chosen import ChosenSplit, Point
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from network.inputs import batches
from tier.block_timing import only_errors_of
from tier.onnx_graph import is_written, onnx_package
from tier.onnx_session import onnxruntime_package

RANGE_IMAGES = 128  # training images
BATCH_SIZE = 32
QUANTISED = ['Conv', 'Gemm']


class Feeds:
    """Inputs of a graph, one batch after another, as `quantize_static` reads them."""

    def __init__(self, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
        self._rows: Iterator[Dict[str, np.ndarray]] = iter([
            {name: tensor[part].numpy() for name, tensor in zip(names, tensors)}
            for part in batches(len(tensors[0]), BATCH_SIZE)])

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        """The next batch; None at the end."""
        return next(self._rows, None)


def fused(point: Point) -> Point:
    """The point with every block fused: what is quantised is one convolution a block, and γ changes no result."""
    gamma = tuple(fused_gamma(tuple(row)) for row in surviving_branches(point.configuration.alpha))
    return replace(point, configuration=replace(point.configuration, gamma=gamma))


def check_kept(kept: Collection[str], chosen: ChosenSplit) -> None:
    """Raise `UserError` for a unit that there is not."""
    units = dict((*chosen.head_units, *chosen.tail_units))
    names = list(units)
    if kept and not all(map(is_written, units.values())):
        raise UserError('--keep_float knows the units of RepVGG only: a traced graph does not name them')
    for name in kept:
        if name not in names:
            raise UserError(f'--keep_float {name}: the units are {", ".join(names)}')


def quantised_parts(chosen: ChosenSplit, parts: Dict[str, Optional[bytes]], images: torch.Tensor,
                    kept: Collection[str]) -> Dict[str, Optional[bytes]]:
    """'head' and 'tail' (float, ONNX) in int8, except the units that are kept. `images`: uint8 [n, 3, S, S], that the
    ranges come from; those of the tail from what the float head sends of them."""
    sent = run_in_batches(parts['head'], [images])
    found = {}
    for name, inputs, specs in (('head', [images], [chosen.images]), ('tail', sent, chosen.sent)):
        data = parts[name]
        found[name] = None if data is None else quantised(data, Feeds([spec.name for spec in specs], inputs), kept)
    return found


def quantised(graph: bytes, feeds: Feeds, kept: Collection[str] = ()) -> bytes:
    """A graph in int8, except the units that are kept."""
    onnxruntime_package()
    package = importlib.import_module('onnxruntime.quantization')
    model = onnx_package().load_from_string(graph)
    excluded = [node.name for node in model.graph.node if node.name.partition('/')[0] in kept]
    with only_errors_of(''), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'int8.onnx')  # it warns that units could be merged before
        package.quantize_static(model, path, feeds, quant_format=package.QuantFormat.QDQ, per_channel=True,
                                op_types_to_quantize=QUANTISED, activation_type=package.QuantType.QUInt8,
                                weight_type=package.QuantType.QInt8, nodes_to_exclude=excluded)
        with open(path, 'rb') as stream:
            return stream.read()


def run_in_batches(data: Optional[bytes], inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """All outputs of a part for these inputs."""
    run = runner(data, ONNX)
    rows = [run(*(tensor[part] for tensor in inputs)) for part in batches(len(inputs[0]), BATCH_SIZE)]
    return [torch.cat(column) for column in zip(*rows)]


def logits_of(parts: Dict[str, Optional[bytes]], images: torch.Tensor) -> torch.Tensor:
    """Images -> logits, through both parts."""
    return run_in_batches(parts['tail'], run_in_batches(parts['head'], [images]))[0]
