"""Task 2: FLOPs of every branch, and its importance |α| / GFLOPs in every domain.

    python code2_calculate_flops_importance.py

Reads task 1's α. Writes branch_flops.json (convolutions checked against the FLOP counter of PyTorch),
importance_scores.json, importance_rankings.json (low to high) and importance_heatmap.png to
task2_importance_rankings_{MODEL_NAME}/. FLOPs are for one image, 2 per multiply-add, BatchNorm 4 an element.
"""
from __future__ import annotations

import os
from typing import Optional, Sequence

import cli
from costs.checks import check_settings
from pipeline import fingerprints, kinds

KINDS = ('branch_flops', 'importance_scores', 'importance_rankings')
PICTURE = 'importance_heatmap.png'


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    args, settings = cli.parse(parser, argv)
    check_settings(settings, weights=False)
    inputs = fingerprints.inputs_of('branch_flops', settings)
    paths = {kind: kinds.path_of(kind, settings) for kind in KINDS}
    folder = os.path.dirname(paths['branch_flops'])
    picture = os.path.join(folder, PICTURE)
    there = [fingerprints.found_at(kind, settings) for kind in KINDS]
    shown = os.path.dirname(there[0])
    if args.if_changed and fingerprints.is_current([*there, os.path.join(shown, PICTURE)], inputs):
        cli.say(f'{shown} is up to date')
        return
    from steps import importance  # loads PyTorch and matplotlib, which --help does not need
    importance.rank(settings, inputs, paths, picture)
    print(f'-> {folder}')


if __name__ == '__main__':
    cli.run(main)
