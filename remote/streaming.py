"""A stream from the server's side: configure both ends once, let frames flow, and report what was measured.

    measured, predictions = run_stream(client, model, configuration, images, 500, settings)

`measured` is what stands beside the prediction in the result files.
"""
from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from config import Settings
from costs.cost_model import Configuration
from hyper_repvgg import HyperRepVGG
from remote import replies
from remote.client import (
    HEADROOM_BYTES,
    LARGEST_ITEM_BYTES,
    ClientPart,
    ImageSetOnClient,
    RemoteClient,
    folded_specs,
)
from tier.part import PartSpec, client_units, cut_shape, head_units, part_of, server_units
from wire import formats
from wire.connection import Connection
from wire.frames import ProtocolError
from wire.stream import LEAST_FRAMES, head_compute, stream_head, stream_tail, tail_compute


def run_stream(client: RemoteClient, model: HyperRepVGG, configuration: Configuration, images: torch.Tensor,
               n_frames: int, settings: Settings, on_frame: Optional[Callable[[int, float], None]] = None,
               ) -> Tuple[Dict[str, Any], List[int]]:
    """Stream `n_frames` frames (the uint8 images [n, 3, S, S], over and over) under a configuration. `on_frame` is told
    each frame's number and the latest latency that is known, s (NaN at first).

    Returns the figures and the class of every frame, in order. After a break the stream goes on behind the last frame
    whose result is here; the figures are then those of the frames after the break, of which there are always enough:
    a few more frames are sent where it came near the end.
    """
    stream = _Stream(client, model, configuration, images, n_frames, settings, on_frame)
    before = client.interruptions
    figures = stream.remote.retry_until_answered(stream.attempt)
    return {**figures, 'interruptions': client.interruptions - before, 'wire': configuration.wire,
            'lambda': configuration.split, 'head_tier': settings.HEAD_TIER, 'bytes_total': stream.bytes_total,
            'n_frames_total': n_frames}, stream.predictions[:n_frames]


class _Stream:
    """What stays the same over breaks, and the results so far."""

    def __init__(self, client: RemoteClient, model: HyperRepVGG, configuration: Configuration, images: torch.Tensor,
                 n_frames: int, settings: Settings, on_frame: Optional[Callable[[int, float], None]]) -> None:
        n, split = len(model.blocks), configuration.split
        self.client, self.n_frames, self.head_tier = client, n_frames, settings.HEAD_TIER
        self.predictions: List[int] = []
        self.bytes_total = 0  # on the wire, both directions, everything included
        self._on_frame = on_frame
        self._wire = formats.encoding_at(split, n, configuration.wire)
        unit = head_units(split, n)[1]
        self._classes = model.num_classes
        shape, channels = cut_shape(model.model_name, model.num_classes, images.shape[-1], unit), configuration.channels
        self._shape = (1, *(shape if channels is None else channels.shape(shape)))

        def spec(units: Tuple[int, int], engine: str) -> PartSpec:
            return folded_specs(configuration.alpha, configuration.gamma, units, settings, engine, channels,
                                configuration.peaks)

        on_client = ImageSetOnClient(images) if self.head_tier == 'client' else None
        self.remote = ClientPart(client, model, spec(client_units(split, n, self.head_tier),
                                                     settings.CLIENT_ENGINE), images.shape[-1], on_client)
        device = next(model.parameters()).device
        self._local = part_of(model, spec(server_units(split, n, self.head_tier), settings.SERVER_ENGINE), device)
        self._images = images

    def _seen(self, i: int, prediction: List[int], latency_s: float) -> None:
        if i != len(self.predictions) or len(prediction) != 1 or prediction[0] >= self._classes:
            raise ProtocolError(f'stream: the result of frame {i} is none')
        self.client.progress_made += 1
        self.predictions.extend(prediction)
        if self._on_frame is not None:
            self._on_frame(i, latency_s)

    def attempt(self, connection: Connection) -> Dict[str, Any]:
        """The rest of the stream, over one connection."""
        first, before = len(self.predictions), connection.bytes_sent + connection.bytes_received
        last = max(self.n_frames, first + LEAST_FRAMES)
        fields: Dict[str, Any] = {'first': first, 'last': last, 'total': last, 'wire': self._wire}
        if self.head_tier == 'client':
            fields.update(role='head', **self.remote.images.fields)
        else:
            fields.update(role='tail', shape=list(self._shape))
        number = self.client.begin(connection, 'stream', fields)
        connection.max_payload_bytes = HEADROOM_BYTES + LARGEST_ITEM_BYTES * math.prod(self._shape)
        try:
            if self.head_tier == 'client':
                stream_tail(connection, tail_compute(self._local, self._wire, self._shape), first, last,
                            self._seen)
                return dict(replies.stream_figures(self.client.finish(connection, 'stream', number)))
            record = stream_head(connection, head_compute(self._local, self._images, self._wire), first, last,
                                 self._seen)
            self.client.finish(connection, 'stream', number)
            return record.figures()
        finally:
            self.bytes_total += connection.bytes_sent + connection.bytes_received - before
