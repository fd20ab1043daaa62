"""Exported bytes against PyTorch, on real images, before anything is written.

The reference is what this project runs: the same units in PyTorch, and wire/codec.py between them. A head's feature map
and a tail's logits may differ by TOLERANCE of the largest value; a map sent as uint8 or float16 besides by one step,
where a value lies on the edge between two. All classes must be the same, for the whole batch and for one image alone.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence

import numpy as np
import torch

from config import UserError
from export import as_torchscript
from export.chosen import ChosenSplit
from tier.onnx_session import Session
from wire import codec
from wire.formats import AS_COMPUTED

TOLERANCE = 1e-4  # of the largest value
HALF_STEPS = 1024  # float16: between a number and twice that number
ONNX, TORCHSCRIPT = FORMATS = ('onnx', 'torchscript')
Run = Callable[..., List[torch.Tensor]]


class NotEqual(UserError):
    """An exported part computes something else than PyTorch."""


@dataclass(frozen=True)
class Checked:
    """What was compared."""
    images: torch.Tensor  # uint8 [n, 3, S, S]
    logits: torch.Tensor  # PyTorch's, float32 [n, classes]
    head_difference: float  # largest, relative to the largest value; beyond a step of the format
    tail_difference: float  # relative
    classes: torch.Tensor  # PyTorch's, int64 [n]


def runner(data: Optional[bytes], file_format: str) -> Run:
    """A part from the bytes of its file; none passes on what it gets."""
    if data is None:
        return lambda *x: list(x)
    if file_format == ONNX:
        return Session(data).run
    module = as_torchscript.load(data)

    def run(*x: torch.Tensor) -> List[torch.Tensor]:
        with torch.no_grad():
            found = module(*x)
        return [found] if isinstance(found, torch.Tensor) else list(found)

    return run


class Reference:
    """The split as this project runs it in PyTorch."""

    def __init__(self, chosen: ChosenSplit) -> None:
        self._chosen = chosen
        self._head, self._tail = (as_torchscript.Units(units, chosen.mean, chosen.std).eval() if units else
                                  (lambda x: x) for units in (chosen.head_units, chosen.tail_units))

    def sent(self, images: torch.Tensor) -> List[torch.Tensor]:
        """Images -> what crosses the cut."""
        with torch.no_grad():
            return list(codec.encode(self._head(images), self._chosen.wire).values())

    def received(self, sent: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the tail's first unit gets of it."""
        tensors = dict(zip((spec.name for spec in self._chosen.sent), sent))
        z = sent[0]
        return z if self._chosen.wire == AS_COMPUTED else codec.decode(tensors, self._chosen.wire, z.shape)

    def logits(self, sent: Sequence[torch.Tensor]) -> torch.Tensor:
        """What was sent -> logits."""
        with torch.no_grad():
            return self._tail(self.received(sent))


def check(chosen: ChosenSplit, head: Optional[bytes], tail: Optional[bytes], file_format: str, images: torch.Tensor,
          ) -> Checked:
    """Run both on images [n, 3, S, S]. Raises `NotEqual`."""
    reference = Reference(chosen)
    run_head, run_tail = runner(head, file_format), runner(tail, file_format)
    sent = reference.sent(images)
    logits = reference.logits(sent)
    found = run_head(images)
    head_difference = _head_difference(reference, chosen, sent, found)
    tail_difference = _relative(run_tail(*sent)[0], logits)
    for name, value in (('head', head_difference), ('tail', tail_difference)):
        if not value <= TOLERANCE:
            raise NotEqual(f'the exported {name} differs from PyTorch by {value:.1e} of the largest value, more than '
                           f'{TOLERANCE:g}; nothing was written')
    classes = logits.argmax(dim=1)
    single = [run_tail(*run_head(image[None]))[0].argmax(dim=1) for image in images]
    for answers in (run_tail(*found)[0].argmax(dim=1), torch.cat(single)):
        if not torch.equal(answers, classes):
            wrong = int((answers != classes).sum())
            raise NotEqual(f'{wrong} of {len(images)} images get another class than from PyTorch; nothing was written')
    return Checked(images, logits, head_difference, tail_difference, classes)


def _head_difference(reference: Reference, chosen: ChosenSplit, sent: Sequence[torch.Tensor],
                     found: Sequence[torch.Tensor]) -> float:
    """The largest relative difference of the feature map, of a quantised one beyond one step."""
    wanted = reference.received(sent)
    step = {'uint8': lambda: sent[1][:, :, None, None], 'float16': lambda: wanted.abs() / HALF_STEPS}
    one_step = step[chosen.wire]() if chosen.wire in step else 0
    return _over(((reference.received(found) - wanted).abs() - one_step).clamp(min=0), wanted)


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return _over((found.float() - wanted.float()).abs(), wanted)


def _over(difference: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(difference.max() / wanted.float().abs().max().clamp(min=float(np.finfo(np.float32).tiny)))
