"""What every domain's images look like to the stem: measured when the service starts, on training images."""
from __future__ import annotations

from typing import Mapping

import numpy as np
import torch

from config import Settings
from domain_dataset import load_domain
from hyper_repvgg import HyperRepVGG
from network.alpha import unpruned_alpha
from network.gammas import fused_gamma
from remote.client import folded_specs
from service.shift import References, references_of
from tier.part import channel_statistics, part_of

IMAGES = 256  # of a domain, at most
BATCH = 32


def references_for(domains: Mapping[str, int], model: HyperRepVGG, settings: Settings) -> References:
    """The references of these domains, by the names of their entries. Raises `UserError` where the images are not
    here: a device need not have any."""
    return references_of({name: statistics_of(load_domain(settings, domain, 'train').images[:IMAGES], model, settings)
                          for name, domain in domains.items()})


def statistics_of(images: torch.Tensor, model: HyperRepVGG, settings: Settings) -> np.ndarray:
    """Images uint8 [n, 3, S, S] -> [n, 2, C], as a device measures them on every frame."""
    alpha = unpruned_alpha([block.n_branches for block in model.blocks])
    gamma = [fused_gamma((True, True, block.n_branches == 3)) for block in model.blocks]
    stem = part_of(model, folded_specs(alpha, gamma, (0, 1), settings), torch.device('cpu'))
    with torch.inference_mode():
        return torch.cat([channel_statistics(stem(images[start:start + BATCH]))
                          for start in range(0, len(images), BATCH)]).numpy()
