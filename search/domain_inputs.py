"""What the search of one domain reads: task 1's α, task 2's ranking, the network and the images."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from config import Settings, UserError
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from hyper_repvgg import HyperRepVGG, create_network
from network.alpha import alpha_from_blocks, unpruned_alpha
from network.outline import outline_for
from network.shapes import BRANCHES
from pipeline import fingerprints, kinds, provenance
from search import alpha_training
from tier import devices


@dataclass(frozen=True)
class TrainedAlpha:
    """Task 1's α of one domain."""
    domain_name: str
    alpha: np.ndarray  # [N, 3]


def load_alphas(settings: Settings) -> Dict[str, TrainedAlpha]:
    """Task 1's α by domain id; `UserError` when missing or damaged."""
    outline = outline_for(settings)
    document = provenance.read_kind('alpha', settings)
    result = {}
    for domain, entry in document.get('domains').items():
        try:
            alpha = alpha_from_blocks(entry['alpha'], outline.block_names)
            result[domain] = TrainedAlpha(str(entry['domain_name']), alpha)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise document.refuse(f'domain {domain} does not hold the α of {settings.MODEL_NAME}') from None
        if (np.isnan(alpha) != np.isnan(unpruned_alpha(outline.n_branches))).any():
            raise document.refuse(f'domain {domain}: α must be null exactly where a block has no such branch')
    return result


def importance_ranking(domain: int, names: Sequence[str], settings: Settings) -> List[Tuple[int, int]]:
    """Task 2's ranking as (block, branch) indices, least important first."""
    document = provenance.read_kind('importance_rankings', settings)
    index = branch_index(names)
    entries = document.get(('domains', str(domain), 'ranking'), list)
    unknown = [entry for entry in entries if not isinstance(entry, str) or entry not in index]
    if unknown:
        raise document.refuse(f'{unknown[0]!r} is no branch of {settings.MODEL_NAME}')
    return [index[entry] for entry in entries]


def branch_index(names: Sequence[str]) -> Dict[str, Tuple[int, int]]:
    """'stage1.0.dense' -> (block, branch)."""
    return {f'{name}.{branch}': (k, b) for k, name in enumerate(names) for b, branch in enumerate(BRANCHES)}


def reference_alpha(model: HyperRepVGG, val: ImageSet, domain: int, settings: Settings) -> Tuple[np.ndarray, float]:
    """(α [N, 3], A_ref): task 1's α for the domain, or α = 1 where that is more accurate on validation images."""
    alphas = load_alphas(settings)
    if str(domain) not in alphas:
        command = kinds.command_for('alpha', settings).replace('.py', f'.py --domains {domain}', 1)
        raise UserError(f"{fingerprints.found_at('alpha', settings)}: has no domain {domain}; make it with `{command}`")
    return trained_or_ones(model, val, alphas[str(domain)].alpha, settings)


def trained_or_ones(model: HyperRepVGG, val: ImageSet, trained: np.ndarray, settings: Settings,
                    ) -> Tuple[np.ndarray, float]:
    """(α [N, 3], its accuracy): a domain's trained α, or α = 1 where that is more accurate on validation images."""
    found = []
    for alpha in (trained, unpruned_alpha([block.n_branches for block in model.blocks])):
        model.set_alpha_array(alpha)
        found.append((alpha_training.accuracy(model, val, settings), model.alpha_array()))
    value, alpha = max(found, key=lambda item: item[0])
    return alpha, value


def base_model(settings: Settings) -> HyperRepVGG:
    """The network that is pruned, on TRAIN_DEVICE."""
    return create_network(kinds.weights_file(settings), settings.MODEL_NAME,
                          settings.NUM_CLASSES).to(devices.device_of(settings.TRAIN_DEVICE))


def images_of(settings: Settings, domain: int, subset: str) -> ImageSet:
    """A domain's images, on TRAIN_DEVICE."""
    return load_domain(settings, domain, subset).to(devices.device_of(settings.TRAIN_DEVICE))
