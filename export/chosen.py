"""The point of a domain's result that is exported, and its two parts."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn

from config import Settings, UserError
from costs.cost_model import Configuration, HardwareTable
from domains.image_sets import ImageSet
from export.boundary import TensorSpec, image_spec, logits_spec, sent_specs, wire_in_graph
from fleet.points import UNPRUNED
from hyper_repvgg import HyperRepVGG
from network.batchnorm import using
from remote.client import folded_specs
from search.domain_inputs import reference_alpha
from search.domain_search import solve_unpruned
from search.frontier import OBJECTIVES
from search.result import JointResult
from tier.part import cut_shape, head_units, part_of, tail_units

NamedUnits = Sequence[Tuple[str, nn.Module]]
RESULT = 'result'


@dataclass(frozen=True)
class Point:
    """What of a result is exported."""
    name: str  # 'result', 'unpruned' or 'frontier.T_eff[2]'
    configuration: Configuration
    accuracy: float  # fraction of 1
    n_images: int  # that it was measured on
    subset: str  # of which subset of the domain
    batchnorm: Optional[np.ndarray]  # re-estimated statistics; None: the model's own


@dataclass(frozen=True)
class ChosenSplit:
    """Two parts of a network and what crosses between them. Units are ready to run, in order, under their names."""
    head_units: NamedUnits
    tail_units: NamedUnits
    wire: str  # whose quantiser is part of the graphs; AS_COMPUTED: none
    images: TensorSpec
    sent: List[TensorSpec]
    logits: TensorSpec
    mean: Tuple[float, ...]  # of the normalisation of images in [0, 1], per channel
    std: Tuple[float, ...]


def point_of(result: JointResult, name: str, n_val: int) -> Point:
    """The point of this name. `n_val`: validation images of the domain. Raises `UserError` where there is none."""
    accuracy = result.accuracy
    if name == RESULT:
        return Point(name, result.configuration, accuracy.final, accuracy.n_test, 'test', result.batchnorm)
    found = re.fullmatch(r'frontier\.(\w+)\[(\d{1,6})\]', name, re.ASCII)
    points = result.frontier.get(found[1], []) if found else []
    if found is None or int(found[2]) >= len(points):
        held = ', '.join(f'frontier.{objective}[0] to [{len(result.frontier[objective]) - 1}]'
                         for objective in OBJECTIVES if result.frontier.get(objective))
        raise UserError(f'--point {name}: there are {RESULT}, {UNPRUNED}{" and " + held if held else ""}')
    point = points[int(found[2])]
    if point.recalibrated:
        raise UserError(f'--point {name}: its BatchNorm statistics were re-estimated, and the result keeps only those '
                        'of its own choice')
    return Point(name, point.configuration, point.accuracy, n_val, 'val', None)


def unpruned_point(result: JointResult, model: HyperRepVGG, val: ImageSet, table: HardwareTable, settings: Settings,
                   ) -> Point:
    """What a result is compared with: the network behind A_ref, under the γ, λ and wire format of step 2. `val`: the
    domain's validation images, which decide between task 1's α and α = 1, as they did in the search."""
    alpha, _ = reference_alpha(model, val, result.domain_id, settings)
    step2 = solve_unpruned(table, settings)
    return Point(UNPRUNED, Configuration(alpha, step2.gamma, step2.split, step2.wire),
                 result.baselines['step2'].accuracy, result.accuracy.n_test, 'test', None)


def split_of(model: HyperRepVGG, point: Point, settings: Settings) -> ChosenSplit:
    """The two parts of a point, folded under its γ; copies, which do not share weights with the model."""
    chosen, n = point.configuration, len(model.blocks)
    wire = wire_in_graph(chosen.wire, chosen.split, n)
    parts = []
    with using(model, point.batchnorm):
        for units in (head_units(chosen.split, n), tail_units(chosen.split, n)):
            spec = folded_specs(chosen.alpha, chosen.gamma, units, settings)
            parts.append(part_of(model, spec, torch.device('cpu')).folded_units())
    cut = cut_shape(settings.MODEL_NAME, settings.NUM_CLASSES, settings.INPUT_SIZE, head_units(chosen.split, n)[1])
    return ChosenSplit(*parts, wire, image_spec(settings.INPUT_SIZE), sent_specs(wire, cut, chosen.split == 0),
                       logits_spec(settings.NUM_CLASSES), tuple(settings.NORM_MEAN), tuple(settings.NORM_STD))
