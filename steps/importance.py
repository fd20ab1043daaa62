"""Task 2: FLOPs of every branch, its importance in every domain and the ranking, written and drawn."""
from __future__ import annotations

from typing import Dict, Optional

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import Settings
from costs.importance import importance_of, model_branch_flops, ranking
from costs.work import BN_FLOPS, out_elements
from network.alpha import alpha_by_block
from network.outline import outline_for
from network.shapes import BlockShape
from pipeline import writing
from report import preparation_figures, style
from repvgg import RepVGG
from search.domain_inputs import load_alphas


def rank(settings: Settings, inputs: str, paths: Dict[str, str], picture: str) -> None:
    """Write branch_flops, importance_scores and importance_rankings (`paths`, by kind) and the picture; say what the
    check of the FLOPs found and which branches come first."""
    alphas = load_alphas(settings)
    for path in paths.values():
        writing.check_writable(path)
    names = outline_for(settings).block_names
    flops = model_branch_flops(settings)
    difference = largest_difference(flops, settings)
    scores = {domain: importance_of(entry.alpha, flops) for domain, entry in alphas.items()}
    ranked = {domain: ranking(values, names) for domain, values in scores.items()}
    metadata = writing.make_metadata(settings, 'branch_flops', inputs)
    writing.write(paths['branch_flops'], {'flops': alpha_by_block(flops, names),
                                          'largest_difference_from_flop_counter': difference}, metadata)
    writing.write(paths['importance_scores'], {'domains': {
        d: {'domain_name': alphas[d].domain_name, 'scores': alpha_by_block(scores[d], names)} for d in scores}},
        metadata)
    writing.write(paths['importance_rankings'], {'domains': {
        d: {'domain_name': alphas[d].domain_name, 'ranking': ranked[d]} for d in scores}}, metadata)
    order = sorted(scores, key=int)
    style.save(preparation_figures.importance(np.stack([scores[domain] for domain in order]), names), picture)
    if difference is not None:
        print(f'convolution FLOPs differ from torch.utils.flop_counter by at most {difference:.2e} (relative)')
    print(f'domain {order[0]}, least important first: {", ".join(ranked[order[0]][:5])}, ...')


def largest_difference(flops: np.ndarray, settings: Settings) -> Optional[float]:
    """Largest relative difference between our convolution FLOPs (those of [N, 3] branches) and PyTorch's; None where
    PyTorch counted them."""
    shapes = outline_for(settings).blocks
    if not isinstance(shapes[0], BlockShape):
        return None
    bn = np.array([BN_FLOPS * out_elements(shape) for shape in shapes])[:, None]
    counted = counted_conv_flops(settings)
    return float(np.max(np.abs(flops[:, :2] - bn - counted) / counted))


def counted_conv_flops(settings: Settings) -> np.ndarray:
    """FLOPs [N, 2] of the 3x3 and 1x1 convolutions as PyTorch counts them; runs on shapes alone ('meta' device)."""
    shapes = outline_for(settings).blocks
    with torch.device('meta'):
        model = RepVGG(settings.MODEL_NAME, settings.NUM_CLASSES)
    counted = np.zeros((len(shapes), 2))
    for k, (block, shape) in enumerate(zip(model.blocks, shapes)):
        x = torch.empty(1, shape.in_channels, shape.in_size, shape.in_size, device='meta')
        for b, branch in enumerate((block.rbr_dense, block.rbr_1x1)):
            with FlopCounterMode(display=False) as counter:
                branch.conv(x)
            counted[k, b] = counter.get_total_flops()
    return counted
