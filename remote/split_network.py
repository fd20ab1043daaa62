"""A network whose forward and backward pass run partly on the client."""
from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np
import torch

from config import Settings
from hyper_repvgg import HyperRepVGG
from remote import replies
from remote.client import ClientPart, RemoteClient
from tier.part import DTYPES, NetworkPart, PartSpec, client_units, part_of, server_units
from wire import formats
from wire.connection import Connection
from wire.frames import PeerError

_NAMES = {torch.float32: 'float32', torch.float64: 'float64'}


class RemoteFunction(torch.autograd.Function):
    """output = part(input; α), computed on the client."""

    @staticmethod
    def forward(ctx: 'torch.autograd.function.FunctionCtx', part: ClientPart, x: torch.Tensor, alpha: torch.Tensor,
                ) -> torch.Tensor:
        """x [B, ...] and α [k, 3] -> the part's output."""
        raw = formats.AS_COMPUTED
        keep, input_grad = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        ctx.part, ctx.x, ctx.alpha, ctx.input_grad = part, x.detach(), alpha.detach(), input_grad
        ctx.step, y = part.retry_until_answered(
            lambda connection: part.ask_forward(connection, x, None, raw, raw, alpha, keep, input_grad))
        ctx.generation = part.client.generation
        return y

    @staticmethod
    def backward(ctx: 'torch.autograd.function.FunctionCtx', grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        """Gradients of x and α; the forward step is repeated when the client no longer has it."""
        part, raw = ctx.part, formats.AS_COMPUTED

        def ask(connection: Connection) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
            if part.client.generation != ctx.generation:
                ctx.step, _ = part.ask_forward(connection, ctx.x, None, raw, raw, ctx.alpha, True,
                                               ctx.input_grad)
                ctx.generation = part.client.generation
            try:
                reply = part.client.ask(connection, 'backward', {'step': ctx.step}, {'grad': grad},
                                        reply_bytes=ctx.x.numel() * ctx.x.element_size())
            except PeerError:
                ctx.generation = -1
                raise
            return replies.gradients(reply, len(ctx.alpha), ctx.x if ctx.input_grad else None,
                                     DTYPES[part.spec.dtype])

        x_grad, alpha_grad = part.retry_until_answered(ask)
        return None, x_grad, alpha_grad.to(ctx.alpha.dtype)


class SplitNetwork:
    """A `HyperRepVGG` whose forward pass runs partly on the client; everything else is the model's own.

    `split` and HEAD_TIER say which part. Calling it on normalised images [B, 3, S, S] gives logits [B, num_classes],
    through which gradients flow to all of the model's α.
    """

    def __init__(self, model: HyperRepVGG, client: RemoteClient, split: int, settings: Settings) -> None:
        self.model, self.split, self._head_tier = model, split, settings.HEAD_TIER
        n = len(model.blocks)
        dtype = _NAMES[next(model.parameters()).dtype]

        def spec(units: Tuple[int, int]) -> PartSpec:
            return PartSpec(model.model_name, model.num_classes, *units, dtype=dtype, mean=tuple(settings.NORM_MEAN),
                            std=tuple(settings.NORM_STD))

        device = next(model.parameters()).device
        self._client, self._client_spec = client, spec(client_units(split, n, settings.HEAD_TIER))
        self._input_size = settings.INPUT_SIZE
        self._remote = ClientPart(client, model, self._client_spec, self._input_size)
        self._local: NetworkPart = part_of(model, spec(server_units(split, n, settings.HEAD_TIER)), device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_batchnorm(self, statistics: np.ndarray) -> None:
        """As the model's; units that changed have another hash and travel with the next step."""
        self.model.set_batchnorm(statistics)
        self._remote = ClientPart(self._client, self.model, self._client_spec, self._input_size)

    def _remote_alpha(self) -> torch.Tensor:
        """α of the client's blocks, [k, 3], differentiable; NaN where there is no branch."""
        rows = [torch.cat([alpha, alpha.new_full((3 - alpha.numel(),), float('nan'))])
                for alpha in (self.model.blocks[k].alpha for k in self._remote.spec.blocks)]
        return torch.stack(rows) if rows else torch.zeros(0, 3)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images -> logits."""
        def remote(x: torch.Tensor) -> torch.Tensor:
            return RemoteFunction.apply(self._remote, x, self._remote_alpha()).to(x.device)

        return self._local(remote(images)) if self._head_tier == 'client' else remote(self._local(images))
