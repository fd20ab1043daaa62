"""α training and evaluation through the split: one part of the network here, the other on the client.

    network = SplitNetwork(model, client, split, settings)
    alpha_training.train_alpha(network, ...)          # as with the whole model: the same gradients, the same α
    predictions = predict(model, gamma, split, client, images, settings)

The client's part is a differentiable function (`RemoteFunction`): its forward sends α and the input, its backward the
gradient of the output, and what comes back are the gradients of α and of the input. α itself, the loss and the
optimiser stay here, so a break costs the step under way and nothing else.
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from tqdm import tqdm

from config import Settings
from costs.cost_model import Configuration, HardwareTable, scenario_of, times
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import HyperRepVGG
from network.alpha import surviving_branches, unpruned_alpha
from network.channels import CutChannels
from network.inputs import batches
from remote.client import ClientPart, ImageSetOnClient, RemoteClient, folded_specs
from remote.session import Session
from remote.split_network import SplitNetwork
from remote.streaming import run_stream
from throughput_optimizer import solve_exact
from tier import devices
from tier.block_timing import thread_count
from tier.part import client_units, part_of, server_units
from wire import formats

STREAM_FRAMES = 300


def predict(model: HyperRepVGG, gamma: Sequence[int], split: int, client: RemoteClient, images: torch.Tensor,
            settings: Settings, wire: str = 'float32', channels: Optional[CutChannels] = None,
            peaks: Optional[Tuple[float, ...]] = None) -> torch.Tensor:
    """Classes [n] of uint8 images [n, 3, S, S], folded under γ [N] and α as they stand, through the split; `channels`:
    those that are sent (None: all); `peaks`: see `PartSpec`.

    With HEAD_TIER client the images are sent once and then named; an interrupted run repeats one batch.
    """
    n, alpha = len(model.blocks), model.alpha_array()
    on_set = ImageSetOnClient(images) if settings.HEAD_TIER == 'client' else None
    engines = (client_units, settings.CLIENT_ENGINE), (server_units, settings.SERVER_ENGINE)
    there, here = (folded_specs(alpha, gamma, units(split, n, settings.HEAD_TIER), settings, engine, channels,
                                peaks)
                   for units, engine in engines)
    remote = ClientPart(client, model, there, images.shape[-1], on_set)
    local = part_of(model, here, next(model.parameters()).device)
    wire = formats.encoding_at(split, n, wire)
    found: List[torch.Tensor] = []
    with torch.inference_mode():
        for part in batches(len(images), min(settings.BATCH_SIZE, remote.largest_batch)):
            if on_set is not None:
                logits = local(remote.forward(rows=torch.arange(part.start, part.stop), wire_back=wire))
            else:
                logits = remote.forward(x=local(images[part]), wire=wire)
            found.append(logits.argmax(dim=1).cpu())
    return torch.cat(found)


# --- training and measuring through the client -----------------------------------------------------------

def split_network(session: Session, table: HardwareTable) -> Callable[[HyperRepVGG], SplitNetwork]:
    """What turns a model into one that trains its α through the split that is best for the unpruned network."""
    settings = session.settings
    split = solve_exact(table, surviving_branches(unpruned_alpha(table.n_branches)), settings).split
    return lambda model: SplitNetwork(model, session.client, split, settings)


@contextmanager
def _on_server_device(model: HyperRepVGG, settings: Settings) -> Iterator[None]:
    """Within: the model is where the table was measured; the search has it on TRAIN_DEVICE."""
    before = next(model.parameters()).device
    model.to(devices.device_of(settings.SERVER_DEVICE))
    try:
        yield
    finally:
        model.to(before)


def measure(session: Session, model: Union[HyperRepVGG, SplitNetwork], configuration: Configuration,
            table: HardwareTable, data: ImageSet, n_frames: int = STREAM_FRAMES,
            statistics: Optional[np.ndarray] = None) -> Dict[str, Any]:
    """Run a configuration on the two devices: accuracy on `data` with the wire format's effect, and a stream;
    the prediction beside it. `statistics`: BatchNorm statistics to run with (None: the model's)."""
    settings = session.settings
    model = model.model if isinstance(model, SplitNetwork) else model
    model.set_alpha_array(configuration.alpha)
    if statistics is not None:
        model.set_batchnorm(statistics)
    data = data.to(torch.device('cpu'))  # where frames come from
    with thread_count(settings.threads(settings.SERVER_THREADS)), _on_server_device(model, settings):  # as the table
        classes = predict(model, configuration.gamma, configuration.split, session.client, data.images, settings,
                          configuration.wire, configuration.channels, configuration.peaks)
        with tqdm(desc='stream', total=n_frames, unit=' frames', leave=False, disable=None) as bar:  # with its rate
            def on_frame(i: int, latency_s: float) -> None:
                bar.set_postfix_str(f'latency {1000 * latency_s:.1f} ms', refresh=False)
                bar.update()

            figures, streamed = run_stream(session.client, model, configuration, data.images, n_frames, settings,
                                           on_frame)
    correct = int((classes == data.labels).sum())
    predicted = times(table, configuration, scenario_of(settings, table).of_one_client)  # as it is measured
    agree = sum(int(a) == b for a, b in zip(classes.repeat(n_frames // len(classes) + 1).tolist(), streamed))
    return {**figures, 'accuracy': correct / len(data), 'ci95': list(wilson_interval(correct, len(data))),
            'n_test': len(data), 'stream_agrees_with_evaluation': agree / n_frames,
            'same_machine': session.on_this_machine(), 'predicted': predicted.as_dict(),
            'clients': settings.CLIENTS}
