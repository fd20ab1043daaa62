"""Head and tail of a split as ONNX graphs, with normalisation and the wire's quantiser inside.

Units of RepVGG are written as γ runs them (tier/onnx_graph.py). A part with any other module is traced by PyTorch.
"""
from __future__ import annotations

import io
from typing import Optional, Sequence

import torch
import torch.nn as nn

from export.as_torchscript import Head, Tail, examples_of, no_deprecation
from export.boundary import DTYPES, TensorSpec
from export.chosen import ChosenSplit, NamedUnits
from tier.onnx_graph import BATCH, OPSET, Graph, is_written, onnx_package


def head_bytes(chosen: ChosenSplit) -> Optional[bytes]:
    """Images -> what is sent. None where the images themselves are (λ = 0)."""
    if not chosen.head_units:
        return None
    if not all(is_written(unit) for _, unit in chosen.head_units):
        return traced(Head(chosen), [chosen.images], chosen.sent)
    graph = Graph('head')
    x = _normalised_units(graph, chosen, chosen.head_units)
    if chosen.wire == 'uint8':
        sent = graph.quantise(x)
    else:
        sent = (graph.to_half(x) if chosen.wire == 'float16' else x,)
    for name, spec in zip(sent, chosen.sent):
        graph.output(name, spec.name, DTYPES[spec.dtype], spec.shape)
    return graph.serialised()


def tail_bytes(chosen: ChosenSplit) -> Optional[bytes]:
    """What was sent -> logits. None where these are what is sent (λ = N)."""
    if not chosen.tail_units:
        return None
    if not all(is_written(unit) for _, unit in chosen.tail_units):
        return traced(Tail(chosen), chosen.sent, [chosen.logits])
    graph = Graph('tail')
    if not chosen.head_units:
        x = _normalised_units(graph, chosen, chosen.tail_units)
    else:
        x, *rest = (graph.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in chosen.sent)
        if chosen.wire == 'uint8':
            x = graph.dequantise(x, *rest)
        elif chosen.wire == 'float16':
            x = graph.from_half(x)
        for name, unit in chosen.tail_units:
            x = graph.unit(name, unit, x)
    graph.output(x, chosen.logits.name, DTYPES[chosen.logits.dtype], chosen.logits.shape)
    return graph.serialised()


def _normalised_units(graph: Graph, chosen: ChosenSplit, units: NamedUnits) -> str:
    x = graph.normalise(graph.input(chosen.images.name, DTYPES[chosen.images.dtype], chosen.images.shape), chosen.mean,
                        chosen.std)
    for name, unit in units:
        x = graph.unit(name, unit, x)
    return x


def traced(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """A module as PyTorch's exporter writes it, which folds BatchNorm into convolutions."""
    onnx_package()
    data, every = io.BytesIO(), (*inputs, *outputs)
    with no_deprecation():
        torch.onnx.export(module.eval(), examples_of(inputs), data, dynamo=False, opset_version=OPSET,
                          input_names=[spec.name for spec in inputs], output_names=[spec.name for spec in outputs],
                          dynamic_axes={spec.name: {0: BATCH} for spec in every})
    return data.getvalue()
