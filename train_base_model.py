"""Trains a base network on the training pool, so that it later does without many of its branches.

    python train_base_model.py                 # the built-in digits: the weights in data/weights; a few minutes
    python train_base_model.py --report_only   # measure the weights at WEIGHT_PATH_SERVER again
    python train_base_model.py --epochs 120 --set DATASET=imagefolder DATA_PATH=/data/photos MODEL_NAME=RepVGG-A0 \\
        NUM_CLASSES=10 INPUT_SIZE=128 RESULTS_DIR=results_photos TRAIN_DEVICE=auto NUM_WORKERS=8     # photographs
    python train_base_model.py --smoke         # under a minute, on generated images: does everything work here?

The digits have a recipe of their own (steps/base_model_training.py). Any other images (folders of classes, train/ and
val/ of such folders, a torchvision data set) are trained on by the recipe for photographs (training/photographs.py): a
line an epoch, the best epoch by images held out of the training pool, and the same command goes on where it was killed.

Claim for the digits: after 171 s of training on one thread of a two-core AMD EPYC machine (408 s with both cores busy
with other work; Python 3.11, torch 2.15, CPU), 98.0 % of the clean test images are right (n = 500, 95 % interval
96.4 to 98.9), between 95.6 and 98.4 % in the ten domains, and 5 of 11 blocks can do without their 3x3 branch
for at most two points (validation, no α trained). Two runs with seed 0 gave the same weights, bit for bit; no
other seed was tried.

Writes WEIGHT_PATH_SERVER and, beside it, a report (.json), which names the images of the training pool: under no
partition will they be validated or tested on. The validation pool decided everything that was chosen (recipe, branch
order); the test pool is only reported. The same machine, versions and TORCH_THREADS give the same file.
"""
from __future__ import annotations

import argparse
import os
from typing import List, Optional, Sequence

import cli
import config
from config import Settings, UserError
from costs.checks import check_settings
from pipeline import kinds

SMOKE = ('DATASET=generated', 'NUM_CLASSES=4', 'NUM_DOMAINS=1', 'RESULTS_DIR=results_smoke')
SMOKE_RECIPE = ('epochs=2', 'frozen_epochs=1', 'batch_size=32', 'ema_epochs=0.5')
FINE_TUNING = ('epochs=30', 'frozen_epochs=10', 'lr=0.02')


def main(argv: Optional[Sequence[str]]) -> None:
    """Train, save, measure, report."""
    parser = cli.parser(__doc__)
    parser.add_argument('--report_only', action='store_true', help='do not train')
    parser.add_argument('--smoke', action='store_true', help='a small network on generated images, into results_smoke/')
    group = parser.add_argument_group('photographs (any DATASET but mnist5k)')
    group.add_argument('--epochs', type=cli.count, metavar='N', help='passes over the images (default: 125, with '
                       '--from 40); a fifth of them with frozen BatchNorm')
    group.add_argument('--recipe', nargs='+', default=[], metavar='NAME=VALUE', help='change the recipe '
                       '(training/photographs.py): lr=0.05, flip=0 for letters and signs, ...')
    group.add_argument('--from', dest='start_from', metavar='FILE', default='', help='begin with these weights, of any '
                       'number of classes')
    group.add_argument('--half', action='store_true', help='write kernels in half precision: half the file')
    args, settings = cli.parse(parser, argv)
    if args.smoke:
        settings = config.load((*SMOKE, *(item for given in args.overrides for item in given)))
    check_settings(settings, weights=False)
    weights = kinds.weights_to_write(settings)
    if not weights:
        raise UserError('WEIGHT_PATH_SERVER is empty: set it to the file to write')
    changed = kinds.overrides_of(settings, 'base_model')
    shipped = [os.path.abspath(profile.get('WEIGHT_PATH_SERVER') or Settings.WEIGHT_PATH_SERVER)
               for profile in config.PROFILES.values()]
    if os.path.abspath(weights) in shipped and changed:
        raise UserError(f'{weights} ships with the repository, made under the default settings: with '
                        f"{', '.join(changed)} set WEIGHT_PATH_SERVER or RESULTS_DIR to write elsewhere")
    digits, flags = settings.DATASET.lower() == 'mnist5k', recipe_flags(args)
    if digits and (flags or args.start_from or args.half):
        raise UserError('the built-in digits have a recipe of their own: --epochs, --recipe, --from and --half '
                        'are for other images (DATASET)')
    from steps import base_model, base_model_report  # load PyTorch, which --help does not need
    if args.report_only:
        report, path = base_model_report.write(settings)
    else:
        report, path = base_model.train(settings, flags, args.start_from, args.half)
    base_model_report.show(report)
    print(f'wrote {"" if args.report_only else weights + " and "}{path}')


def recipe_flags(args: argparse.Namespace) -> List[str]:
    """What the flags change in the recipe for photographs, as NAME=VALUE."""
    found = list(FINE_TUNING if args.start_from else SMOKE_RECIPE if args.smoke else ())
    if args.epochs:
        found += [f'epochs={args.epochs - args.epochs // 5}', f'frozen_epochs={args.epochs // 5}']
    return found + args.recipe


if __name__ == '__main__':
    cli.run(main)
