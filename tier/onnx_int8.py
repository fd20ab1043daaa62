"""A part of the network as an ONNX graph in int8, with the numbers of tier/rounding.py.

QuantizeLinear and DequantizeLinear stand around each convolution; onnxruntime merges the three into one of integers.
"""
from __future__ import annotations

from typing import Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

from tier.onnx_graph import Graph
from tier.rounding import Grid, int_kernel, is_rounded


class Int8Graph(Graph):
    """`Graph` with units in int8."""

    def on_grid(self, x: str, grid: Grid) -> str:
        """x on this grid, as numbers that are float again for the next operator."""
        how = self._constant(np.float32(grid.scale)), self._constant(np.uint8(grid.zero_point))
        return self._node('DequantizeLinear', self._node('QuantizeLinear', x, *how), *how)

    def rounded_unit(self, name: str, unit: nn.Module, x: str, x_grid: Grid, y_grid: Grid) -> str:
        """A fused stem or block whose input is on x_grid."""
        self._scope = name
        path = unit.paths[0]
        if path.is_affine:
            y = self._path(path, x)
        else:
            whole = int_kernel(path, x_grid)
            kernel = self._whole_numbers(whole.kernel, whole.scale)
            y = self._convolution(x, path, [kernel, self._whole_numbers(whole.bias, whole.scale * x_grid.scale)])
        return self.on_grid(self._node('Relu', self._squeeze_and_excite(unit.se, y)), y_grid)

    def _whole_numbers(self, values: torch.Tensor, scale: torch.Tensor) -> str:
        zeros = torch.zeros(len(scale), dtype=values.dtype)
        return self._node('DequantizeLinear', *map(self._constant, (values, scale, zeros)), axis=0)


def int8_part_graph(units: Sequence[Tuple[str, nn.Module]], dtype: torch.dtype, shape: Sequence[int],
                    normalised: Optional[Tuple[Sequence[float], Sequence[float]]], grids: Sequence[Grid]) -> bytes:
    """`onnx_graph.part_graph` in int8. `grids`: of what goes into each unit, and out of the last but the classifier."""
    graph = Int8Graph('part')
    x = graph.input('x', dtype, shape)
    if normalised is not None:
        x = graph.normalise(x, *normalised)
    if is_rounded(units[0][1]):
        x = graph.on_grid(x, grids[0])
    for index, (name, unit) in enumerate(units):
        x = graph.rounded_unit(name, unit, x, grids[index], grids[index + 1]) if is_rounded(unit) else graph.unit(
            name, unit, x)
    graph.output(x, 'y', torch.float32)
    return graph.serialised()
