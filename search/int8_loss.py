"""What the engine `onnxruntime-int8` costs in accuracy: a network with its int8 tiers rounded as that engine rounds.

Rounding is computed in PyTorch (tier/rounding.py), so that no graph is made for each network of a search.
"""
from __future__ import annotations

from typing import Dict, Optional, Tuple

import numpy as np
import torch

from config import INT8, Settings
from costs.cost_model import Configuration
from domains.image_sets import ImageSet
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network import batchnorm
from network.inputs import batches, normalise
from tier.part import client_units, server_units
from tier.rounding import grids_of, peaks_of, rounded

IMAGES = 128  # training images, without labels, that give the peaks


def uses_int8(settings: Settings) -> bool:
    """Does a tier run in int8?"""
    return INT8 in (settings.CLIENT_ENGINE, settings.SERVER_ENGINE)


def as_it_runs(network: DeployedNetwork, chosen: Configuration, settings: Settings) -> DeployedNetwork:
    """A network whose blocks are all fused, as its tiers run it at the chosen split; without peaks in float."""
    if chosen.peaks is None:
        return network
    n, grids = len(network.blocks), grids_of(chosen.peaks, settings.NORM_MEAN, settings.NORM_STD)
    for units, engine in ((client_units, settings.CLIENT_ENGINE), (server_units, settings.SERVER_ENGINE)):
        if engine == INT8:
            network = rounded(network, units(chosen.split, n, settings.HEAD_TIER), grids)
    return network


class Peaks:
    """The largest values of the feature maps of networks of one model, by training images of one domain."""

    def __init__(self, model: HyperRepVGG, train: Optional[ImageSet], settings: Settings) -> None:
        """`train` may be missing where no tier runs in int8."""
        self._model, self._train, self._settings = model, train, settings
        self._known: Dict[Tuple[bytes, bytes], Tuple[float, ...]] = {}

    def of(self, alpha: np.ndarray, statistics: Optional[np.ndarray] = None) -> Optional[Tuple[float, ...]]:
        """[N + 1] under this α [N, 3] and these BatchNorm statistics (None: the model's own); None where no tier runs
        in int8. The model keeps the α."""
        settings = self._settings
        if not uses_int8(settings):
            return None
        key = alpha.tobytes(), b'' if statistics is None else statistics.tobytes()
        if key not in self._known:
            if self._train is None:
                raise ValueError('peaks come from training images, and there are none')
            self._model.set_alpha_array(alpha)
            images = self._train.images[:IMAGES]
            with batchnorm.using(self._model, statistics), torch.no_grad():
                network = deploy(self._model)
                found = [peaks_of(network, normalise(images[part], settings.NORM_MEAN, settings.NORM_STD))
                         for part in batches(len(images), settings.BATCH_SIZE)]
            self._known[key] = tuple(map(max, zip(*found)))
        return self._known[key]
