"""α training and evaluation through the split: one part of the network here, the other on the client.

    network = SplitNetwork(model, client, split, settings)
    alpha_training.train_alpha(network, ...)          # as with the whole model: the same gradients, the same α
    predictions = predict(model, gamma, split, client, images, settings)

The client's part is a differentiable function (`RemoteFunction`): its forward sends α and the input, its backward the
gradient of the output, and what comes back are the gradients of α and of the input. α itself, the loss and the
optimiser stay here, so a break costs the step under way and nothing else.
"""
from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch

import wire_formats
from config import Settings
from evaluation import batches
from connection import Connection
from frames import PeerError
from hyper_repvgg import HyperRepVGG
from network_part import NetworkPart, PartSpec, client_units, head_units, part_of, server_units
from split_server import ClientPart, ImageSetOnClient, RemoteClient, folded_specs

_NAMES = {torch.float32: 'float32', torch.float64: 'float64'}


class RemoteFunction(torch.autograd.Function):
    """output = part(input; α), computed on the client."""

    @staticmethod
    def forward(ctx: Any, part: ClientPart, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """x [B, ...] and α [k, 3] -> the part's output."""
        raw = wire_formats.AS_COMPUTED
        keep, input_grad = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        ctx.part, ctx.x, ctx.alpha, ctx.input_grad = part, x.detach(), alpha.detach(), input_grad
        ctx.step, y = part.unit(lambda c: part.ask_forward(c, x, None, raw, raw, alpha, keep, input_grad))
        ctx.generation = part.client.generation
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        """Gradients of x and α; the forward step is repeated when the client no longer has it."""
        part, raw = ctx.part, wire_formats.AS_COMPUTED

        def ask(connection: Connection) -> Any:
            if part.client.generation != ctx.generation:
                ctx.step, _ = part.ask_forward(connection, ctx.x, None, raw, raw, ctx.alpha, True,
                                               ctx.input_grad)
                ctx.generation = part.client.generation
            try:
                return part.client.ask(connection, 'backward', {'step': ctx.step}, {'grad': grad})
            except PeerError:
                ctx.generation = -1
                raise

        reply = part.unit(ask)
        x_grad = reply.tensors.get('x_grad')
        return None, x_grad, reply.tensor('alpha_grad', rank=2).to(ctx.alpha.dtype)


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
        self._remote = ClientPart(client, model, self._client_spec)
        self._local: NetworkPart = part_of(model, spec(server_units(split, n, settings.HEAD_TIER)), device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_batchnorm(self, statistics: np.ndarray) -> None:
        """As the model's; units that changed have another hash and travel with the next step."""
        self.model.set_batchnorm(statistics)
        self._remote = ClientPart(self._client, self.model, self._client_spec)

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


def predict(model: HyperRepVGG, gamma: Sequence[int], split: int, client: RemoteClient, images: torch.Tensor,
            settings: Settings, wire: str = 'float32') -> torch.Tensor:
    """Classes [n] of uint8 images [n, 3, S, S], folded under γ [N] and α as they stand, through the split.

    With HEAD_TIER client the images are sent once and then named; an interrupted run repeats one batch.
    """
    n, alpha = len(model.blocks), model.alpha_array()
    on_set = ImageSetOnClient(images) if settings.HEAD_TIER == 'client' else None
    remote = ClientPart(client, model, folded_specs(alpha, gamma, client_units(split, n, settings.HEAD_TIER), settings),
                        on_set)
    device = next(model.parameters()).device
    local = part_of(model, folded_specs(alpha, gamma, server_units(split, n, settings.HEAD_TIER), settings), device)
    wire = wire_formats.format_at(split, n, wire)
    found: List[torch.Tensor] = []
    with torch.inference_mode():
        for part in batches(len(images), settings.BATCH_SIZE):
            if on_set is not None:
                logits = local(remote.forward(rows=torch.arange(part.start, part.stop), wire_back=wire))
            else:
                logits = remote.forward(x=local(images[part]), wire=wire)
            found.append(logits.argmax(dim=1).cpu())
    return torch.cat(found)


def accuracy(model: HyperRepVGG, gamma: Sequence[int], split: int, client: RemoteClient, images: torch.Tensor,
             labels: torch.Tensor, settings: Settings, wire: str = 'float32') -> float:
    """Accuracy (fraction of 1) through the split, with the wire format's effect in it."""
    return float(np.mean((predict(model, gamma, split, client, images, settings, wire) == labels).numpy()))


def sent_shape(split: int, model: HyperRepVGG, input_size: int) -> Tuple[int, ...]:
    """Shape of what one frame sends at this split, with its batch of 1."""
    from network_part import cut_shape
    unit = head_units(split, len(model.blocks))[1]
    return (1, *cut_shape(model.model_name, model.num_classes, input_size, unit))
