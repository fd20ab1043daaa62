"""Head and tail of a split as ONNX graphs, with normalisation and the wire's quantiser inside."""
from __future__ import annotations

from typing import Optional

from export.boundary import DTYPES, TensorSpec
from export.chosen import ChosenSplit
from tier.onnx_graph import Graph


def head_bytes(chosen: ChosenSplit) -> Optional[bytes]:
    """Images -> what is sent. None where the images themselves are (λ = 0)."""
    if not chosen.head_units:
        return None
    graph = Graph('head')
    x = _normalised_units(graph, chosen, chosen.images, chosen.head_units)
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
    graph = Graph('tail')
    if not chosen.head_units:
        x = _normalised_units(graph, chosen, chosen.images, chosen.tail_units)
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


def _normalised_units(graph: Graph, chosen: ChosenSplit, images: TensorSpec, units) -> str:
    x = graph.normalise(graph.input(images.name, DTYPES[images.dtype], images.shape), chosen.mean, chosen.std)
    for name, unit in units:
        x = graph.unit(name, unit, x)
    return x
