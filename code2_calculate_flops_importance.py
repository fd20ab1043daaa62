"""Task 2: FLOPs of every branch, and its importance |α| / GFLOPs in every domain.

    python code2_calculate_flops_importance.py

Reads task 1's α. Writes branch_flops.json (convolutions checked against torch.utils.flop_counter),
importance_scores.json, importance_rankings.json (low to high) and importance_heatmap.png to
task2_importance_rankings_{MODEL_NAME}/. FLOPs are for one image, 2 per multiply-add, BatchNorm 4 an element.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence

import cli
from config import Settings
from pipeline import fingerprints, kinds, writing

KINDS = ('branch_flops', 'importance_scores', 'importance_rankings')


def model_branch_flops(settings: Settings) -> Any:
    """FLOPs [N, 3] of the model's branches for one image; NaN without identity."""
    import numpy as np

    from costs.work import branch_flops
    from network.shapes import architecture, block_shapes
    _, shapes = block_shapes(architecture(settings.MODEL_NAME), settings.INPUT_SIZE)
    rows = [branch_flops(shape) for shape in shapes]
    return np.array(rows, dtype=float)


def counted_conv_flops(settings: Settings) -> Any:
    """FLOPs [N, 2] of the 3x3 and 1x1 convolutions as PyTorch counts them; runs on shapes alone ('meta' device)."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from network.shapes import architecture, block_shapes
    from repvgg import RepVGG
    _, shapes = block_shapes(architecture(settings.MODEL_NAME), settings.INPUT_SIZE)
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


def check_flops(flops: Any, settings: Settings) -> float:
    """Largest relative difference between our convolution FLOPs and PyTorch's."""
    import numpy as np

    from costs.work import BN_FLOPS, out_elements
    from network.shapes import architecture, block_shapes
    _, shapes = block_shapes(architecture(settings.MODEL_NAME), settings.INPUT_SIZE)
    bn = np.array([BN_FLOPS * out_elements(shape) for shape in shapes])[:, None]
    counted = counted_conv_flops(settings)
    return float(np.max(np.abs(flops[:, :2] - bn - counted) / counted))


def importance_of(alpha: Any, flops: Any) -> Any:
    """|α| / (FLOPs / 1e9), [N, 3]; NaN where there is no branch, or one of zero FLOPs."""
    import numpy as np
    return np.abs(alpha) / np.where(flops > 0, flops / 1e9, np.nan)


def ranking(scores: Any, names: Sequence[str]) -> List[str]:
    """['stage1.0.dense', ...] from least to most important; branches without a score are left out."""
    import numpy as np

    from network.shapes import BRANCHES
    flat = scores.ravel()
    order = [i for i in np.argsort(flat, kind='stable') if not np.isnan(flat[i])]
    return [f'{names[i // len(BRANCHES)]}.{BRANCHES[i % len(BRANCHES)]}' for i in order]


def draw(path: str, scores: Dict[str, Any], domain_names: Dict[str, str], names: Sequence[str]) -> None:
    """log10 importance of every branch, a row a domain and a column a block."""
    import numpy as np

    from report import style
    order = sorted(scores, key=int)
    values = np.log10(np.maximum(np.stack([scores[d] for d in order]), 1e-12))  # (domains, N, 3)
    style.save(style.branch_heatmaps(
        values, [f'{d}  {style.plain(domain_names[d])}' for d in order], names,
        'Importance |α| / GFLOPs of every branch: dark ones cost most for what they weigh (hatched: no such branch)',
        'log10 of the importance (1/GFLOP)', 'viridis', (np.nanmin(values), np.nanmax(values)), digits=1), path)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    args, settings = cli.parse(parser, argv)
    inputs = fingerprints.inputs_of('branch_flops', settings)
    paths = {kind: kinds.path_of(kind, settings) for kind in KINDS}
    folder = os.path.dirname(paths['branch_flops'])
    picture = os.path.join(folder, 'importance_heatmap.png')
    if args.if_changed and fingerprints.is_current([*paths.values(), picture], inputs):
        cli.say(f'{folder} is up to date')
        return
    from search.domain_search import load_alphas
    alphas = load_alphas(settings)
    for path in paths.values():
        writing.check_writable(path)
    from lut_manager import blocks_of
    from network.alpha import alpha_by_block
    names, _ = blocks_of(settings)
    flops = model_branch_flops(settings)
    difference = check_flops(flops, settings)
    scores = {domain: importance_of(entry.alpha, flops) for domain, entry in alphas.items()}
    domain_names = {domain: entry.domain_name for domain, entry in alphas.items()}
    metadata = writing.make_metadata(settings, 'branch_flops', inputs)
    writing.write(paths['branch_flops'], {'flops': alpha_by_block(flops, names),
                                             'largest_difference_from_flop_counter': difference}, metadata)
    writing.write(paths['importance_scores'], {'domains': {
        d: {'domain_name': domain_names[d], 'scores': alpha_by_block(scores[d], names)} for d in scores}}, metadata)
    writing.write(paths['importance_rankings'], {'domains': {
        d: {'domain_name': domain_names[d], 'ranking': ranking(scores[d], names)} for d in scores}}, metadata)
    draw(picture, scores, domain_names, names)
    first = min(scores, key=int)
    print(f'convolution FLOPs differ from torch.utils.flop_counter by at most {difference:.2e} (relative)')
    print(f'domain {first}, least important first: {", ".join(ranking(scores[first], names)[:5])}, ...')
    print(f'-> {folder}')


if __name__ == '__main__':
    cli.run(main)
