"""Head and tail of a split as TorchScript, with normalisation and the wire's quantiser inside.

The modules are traced: what runs are the operators that PyTorch runs, in the order in which γ runs them.
"""
from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from export.boundary import DTYPES, TensorSpec
from export.chosen import ChosenSplit, NamedUnits
from wire import codec
from wire.formats import AS_COMPUTED


class Units(nn.Module):
    """Units of a network, one after another; uint8 images are normalised on entering."""

    def __init__(self, units: NamedUnits, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.units = nn.ModuleList(unit for _, unit in units)
        self.register_buffer('scale', torch.tensor([1 / (255 * s) for s in std])[:, None, None])
        self.register_buffer('shift', torch.tensor([-m / s for m, s in zip(mean, std)])[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.uint8:
            x = torch.addcmul(self.shift, x.float(), self.scale)
        for unit in self.units:
            x = unit(x.mean(dim=(2, 3)) if isinstance(unit, nn.Linear) else x)
        return x


class Head(Units):
    """Images -> what is sent."""

    def __init__(self, chosen: ChosenSplit) -> None:
        super().__init__(chosen.head_units, chosen.mean, chosen.std)
        self.wire = chosen.wire

    def forward(self, x: torch.Tensor):
        z = super().forward(x)
        if self.wire == AS_COMPUTED:
            return z
        sent = tuple(codec.encode(z, self.wire).values())
        return sent if len(sent) > 1 else sent[0]


class Tail(Units):
    """What was sent -> logits."""

    def __init__(self, chosen: ChosenSplit) -> None:
        super().__init__(chosen.tail_units, chosen.mean, chosen.std)
        self.quantised = chosen.wire == 'uint8'
        self.halved = chosen.wire == 'float16'

    def forward(self, z: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if self.quantised:
            scale, offset = rest
            z = z.float() * codec.beside(scale, z) + codec.beside(offset, z)
        return super().forward(z.float() if self.halved else z)


def head_bytes(chosen: ChosenSplit) -> Optional[bytes]:
    """Images -> what is sent. None where the images themselves are (λ = 0)."""
    return _traced(Head(chosen), examples_of([chosen.images])) if chosen.head_units else None


def tail_bytes(chosen: ChosenSplit) -> Optional[bytes]:
    """What was sent -> logits. None where these are what is sent (λ = N)."""
    return _traced(Tail(chosen), examples_of(chosen.sent)) if chosen.tail_units else None


def examples_of(specs: Sequence[TensorSpec]) -> Tuple[torch.Tensor, ...]:
    """Inputs for tracing, two images of each."""
    return tuple(torch.ones(2, *spec.shape).to(DTYPES[spec.dtype]) for spec in specs)


def _traced(module: nn.Module, examples: Tuple[torch.Tensor, ...]) -> bytes:
    data = io.BytesIO()
    with no_deprecation(), torch.no_grad():
        torch.jit.save(torch.jit.trace(module.eval(), examples, check_trace=False), data)
    return data.getvalue()


def load(data: bytes) -> Callable[..., Any]:
    """The module in the bytes of a file."""
    with no_deprecation():
        return torch.jit.load(io.BytesIO(data))


@contextmanager
def no_deprecation() -> Iterator[None]:
    """Within: nothing is said of tracing and TorchScript, which PyTorch 2.14 warns of and PyTorch 1.10 reads."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
