"""Units of a network as an ONNX graph: what `export_split.py` writes, and what the engine `onnxruntime` runs.

    graph = Graph('head')
    x = graph.input('images', torch.uint8, (3, S, S))
    x = graph.normalise(x, mean, std)
    for name, unit in ...: x = graph.unit(name, unit, x)
    graph.output(x, 'z', torch.float32, (C, h, w)); data = graph.serialised()

A unit is written as its γ executes it: a fused path is one convolution, an unfused branch a convolution and a
BatchNorm. What an engine makes of it is the engine's business. Every node and tensor of a unit is called `unit/...`, so
that a profile or a quantiser can tell units apart. Written node by node, a network takes 10 ms (RepVGG-Micro).
"""
from __future__ import annotations

from types import ModuleType
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

import cli
from config import UserError
from gamma_configurator import BlockPlan, FoldedPath, UnfoldedPath
from se_block import SEBlock

OPSET, IR_VERSION = 13, 7  # what TensorRT 8.2 (JetPack 4.6) and the onnxruntime of Python 3.8 read
INPUT, WIRE = 'input', 'wire'  # the names of what is no unit: normalisation, quantiser
DTYPES = {torch.uint8: 'UINT8', torch.float16: 'FLOAT16', torch.float32: 'FLOAT'}
BATCH = 'batch'  # the dynamic first axis


def onnx_package() -> ModuleType:
    """The package `onnx`. Raises `UserError` where it is missing."""
    return cli.optional('onnx', 'onnx onnxruntime', 'ONNX graphs')


class Graph:
    """Grows from its inputs to its outputs. Methods take and give names of tensors; the first axis is the batch."""

    def __init__(self, name: str) -> None:
        self._onnx = onnx_package()
        self.name = name
        self._nodes: List[Any] = []
        self._weights: List[Any] = []
        self._inputs: List[Any] = []
        self._outputs: List[Any] = []
        self._scope = INPUT

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> str:
        """A tensor [batch, *shape] that comes in."""
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, x: str, name: str, dtype: torch.dtype, shape: Optional[Sequence[int]] = None) -> None:
        """A tensor [batch, *shape] that goes out under this name; without a shape the engine works it out."""
        self._nodes.append(self._onnx.helper.make_node('Identity', [x], [name], name=f'{name}/Identity'))
        self._outputs.append(self._value(name, dtype, shape))

    def serialised(self) -> bytes:
        """The graph as the bytes of an .onnx file."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
        return model.SerializeToString()

    def _value(self, name: str, dtype: torch.dtype, shape: Optional[Sequence[int]]) -> Any:
        return self._onnx.helper.make_tensor_value_info(
            name, getattr(self._onnx.TensorProto, DTYPES[dtype]), None if shape is None else [BATCH, *shape])

    def _constant(self, value: Any) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        name = f'{self._scope}/weight_{len(self._weights)}'
        self._weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f'{self._scope}/{operator}_{len(self._nodes)}'
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def _cast(self, x: str, dtype: torch.dtype) -> str:
        return self._node('Cast', x, to=getattr(self._onnx.TensorProto, DTYPES[dtype]))

    # --- images and feature maps ---

    def normalise(self, x: str, mean: Sequence[float], std: Sequence[float]) -> str:
        """network/inputs.py, `normalise`: uint8 images -> float32."""
        self._scope = INPUT
        scale = np.array([1 / (255 * s) for s in std], np.float32)[:, None, None]
        shift = np.array([-m / s for m, s in zip(mean, std)], np.float32)[:, None, None]
        return self._node('Add', self._node('Mul', self._cast(x, torch.float32), self._constant(scale)),
                          self._constant(shift))

    def quantise(self, x: str) -> Tuple[str, str, str]:
        """wire/codec.py's uint8: a float32 map [B, C, h, w] -> values uint8, scale [B, C] and offset [B, C]."""
        self._scope = WIRE
        low = self._node('ReduceMin', x, axes=[2, 3], keepdims=1)
        span = self._node('Sub', self._node('ReduceMax', x, axes=[2, 3], keepdims=1), low)
        scale = self._node('Max', self._node('Div', span, self._constant(np.float32(255))),
                           self._constant(np.finfo(np.float32).tiny))
        levels = self._node('Round', self._node('Div', self._node('Sub', x, low), scale))  # half to even, as torch's
        levels = self._node('Clip', levels, self._constant(np.float32(0)), self._constant(np.float32(255)))
        return self._cast(levels, torch.uint8), self._rows(scale), self._rows(low)

    def _rows(self, x: str) -> str:
        """[B, C, 1, 1] -> [B, C]."""
        return self._node('Flatten', x, axis=1)

    def dequantise(self, z: str, scale: str, offset: str) -> str:
        """The inverse of `quantise`: scale·z + offset."""
        self._scope = WIRE
        axes = self._constant(np.array([2, 3], np.int64))
        product = self._node('Mul', self._cast(z, torch.float32), self._node('Unsqueeze', scale, axes))
        return self._node('Add', product, self._node('Unsqueeze', offset, axes))

    def to_half(self, x: str) -> str:
        """wire/codec.py's float16: clamped to its range."""
        self._scope = WIRE
        limit = np.float32(np.finfo(np.float16).max)
        return self._cast(self._node('Clip', x, self._constant(-limit), self._constant(limit)), torch.float16)

    def from_half(self, x: str) -> str:
        """float16 -> float32."""
        self._scope = WIRE
        return self._cast(x, torch.float32)

    # --- units ---

    def unit(self, name: str, unit: nn.Module, x: str) -> str:
        """A folded unit (`NetworkPart`). Raises `UserError` for one that is none of this project's."""
        self._scope = name
        if isinstance(unit, nn.Linear):
            return self._node('Gemm', self._rows(self._node('GlobalAveragePool', x)), self._constant(unit.weight),
                              self._constant(unit.bias), transB=1)
        if not is_written(unit):
            raise UserError(f'{name} is a {type(unit).__name__}: the engine onnxruntime runs RepVGG only')
        y = self._path(unit.paths[0], x)
        for path in unit.paths[1:]:
            y = self._node('Add', y, self._path(path, x))
        return self._node('Relu', self._squeeze_and_excite(unit.se, y))

    def _path(self, path: nn.Module, x: str) -> str:
        if isinstance(path, FoldedPath):
            if path.is_affine:
                return self._batchnorm(x, path.scale, path.bias, torch.zeros_like(path.bias),
                                       torch.ones_like(path.bias), 0.0)
            return self._convolution(x, path, [self._constant(path.kernel), self._constant(path.bias)])
        assert isinstance(path, UnfoldedPath)
        if path.kernel is not None:
            x = self._convolution(x, path, [self._constant(path.kernel)])
        return self._batchnorm(x, path.weight, path.bias, path.mean, path.var, path.eps)

    def _batchnorm(self, x: str, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor,
                   eps: float) -> str:
        """A per-channel affine, too (mean 0, variance 1): engines merge it with a neighbour, and no Mul and Add."""
        values = [self._constant(value.reshape(-1)) for value in (scale, bias, mean, var)]
        return self._node('BatchNormalization', x, *values, epsilon=eps)

    def _convolution(self, x: str, path: nn.Module, weights: List[str]) -> str:
        size = path.kernel.shape[-1]
        how: Dict[str, Any] = {'kernel_shape': [size, size], 'pads': [size // 2] * 4, 'group': path.groups,
                               'strides': [path.stride, path.stride]}
        return self._node('Conv', x, *weights, **how)

    def _squeeze_and_excite(self, se: nn.Module, x: str) -> str:
        if isinstance(se, nn.Identity):
            return x
        assert isinstance(se, SEBlock)

        def layer(x: str, convolution: nn.Conv2d) -> str:
            return self._node('Conv', x, self._constant(convolution.weight), self._constant(convolution.bias),
                              kernel_shape=[1, 1])

        squeezed = self._node('Relu', layer(self._node('GlobalAveragePool', x), se.down))
        return self._node('Mul', x, self._node('Sigmoid', layer(squeezed, se.up)))


def is_written(unit: nn.Module) -> bool:
    """Can `Graph.unit` write it?"""
    return isinstance(unit, (BlockPlan, nn.Linear))


def part_graph(units: Sequence[Tuple[str, nn.Module]], dtype: torch.dtype, shape: Sequence[int],
               normalised: Optional[Tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Folded units, one after another, as the bytes of an .onnx file: 'x' [batch, *shape] in, 'y' out. `normalised`:
    mean and std of images that come in, None where something else does."""
    graph = Graph('part')
    x = graph.input('x', dtype, shape)
    if normalised is not None:
        x = graph.normalise(x, *normalised)
    for name, unit in units:
        x = graph.unit(name, unit, x)
    graph.output(x, 'y', torch.float32)
    return graph.serialised()
