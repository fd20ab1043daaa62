"""Trains the base model of the built-in example: RepVGG-Micro on the training pool of the 5,000 digits.

    python train_base_model.py                 # the weights in data/weights; a few minutes
    python train_base_model.py --report_only   # measure the weights at WEIGHT_PATH_SERVER again

Claim: after 171 s of training on one thread of a two-core AMD EPYC machine (408 s with both cores busy with
other work; Python 3.11, torch 2.15, CPU), 98.3 % of the clean test images are right (n = 1,250, 95 % interval
97.4 to 98.9), between 95.6 and 98.9 % in the ten domains, and 7 of 11 blocks can do without their 3x3 branch
for at most two points (validation, no α trained). Two runs with seed 0 gave the same weights, bit for bit; no
other seed was tried. How it is done: steps/base_model_training.py.

Writes WEIGHT_PATH_SERVER and, beside it, a report (.json), which names the images of the training pool: under no
partition will they be validated or tested on. The validation pool decided everything that was chosen (recipe, branch
order); the test pool is only reported. The same machine, versions and TORCH_THREADS (0: one here, because two threads
wait for each other on a busy machine) give the same file.
"""
from __future__ import annotations

import os
from typing import Optional, Sequence

import cli
from config import Settings, UserError
from costs.checks import check_settings
from pipeline import kinds


def main(argv: Optional[Sequence[str]]) -> None:
    """Train, save, measure, report."""
    parser = cli.parser(__doc__)
    parser.add_argument('--report_only', action='store_true', help='do not train')
    args, settings = cli.parse(parser, argv)
    check_settings(settings, weights=False)
    weights = kinds.weights_to_write(settings)
    if not weights:
        raise UserError('WEIGHT_PATH_SERVER is empty: set it to the file to write')
    changed = kinds.overrides_of(settings, 'base_model')
    if os.path.abspath(weights) == os.path.abspath(Settings.WEIGHT_PATH_SERVER) and changed:
        raise UserError(f'{weights} ships with the repository, made under the default settings: with '
                        f"{', '.join(changed)} set WEIGHT_PATH_SERVER or RESULTS_DIR to write elsewhere")
    from steps import base_model_report, base_model_training  # load PyTorch, which --help does not need
    recipe, seconds = base_model_training.Recipe(seed=settings.SEED), None
    if not args.report_only:
        seconds = base_model_training.train_and_save(weights, recipe, settings)
        cli.say(f'{weights}: trained in {seconds:.0f} s')
    report, path = base_model_report.write(settings, recipe, seconds)
    base_model_report.show(report)
    print(f'wrote {"" if args.report_only else weights + " and "}{path}')


if __name__ == '__main__':
    cli.run(main)
