"""Step 2: choose γ and λ of the unpruned network, by gradient and exactly, with a certificate and baselines.

    python step2_initial_throughput_opt.py
    python step2_initial_throughput_opt.py --lut_file results/hardware_lut_complete.json --min_fps 30

Reads the table (step 1); writes results/initial_throughput_config.json.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
from config import UserError
from costs.checks import check_settings
from pipeline import documents, fingerprints, kinds, writing


def fits(path: str) -> bool:
    """Is what a file of ours reports within its limits? Not if it is damaged: it is made again then."""
    document = documents.read(path, '')
    try:
        return document.get('limited.fits', bool) if 'limited' in document.content else True
    except UserError:
        return False


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    cli.add_limits(parser)
    parser.add_argument('--pruning_follows', action='store_true',
                        help='limits that only a pruned network can meet are no error: report the nearest')
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    check_settings(settings)
    path, lut_file = kinds.path_of('step2', settings), args.lut_file or kinds.path_of('lut', settings)
    inputs = fingerprints.inputs_of('step2', settings, lut=lut_file)
    if args.if_changed and fingerprints.is_current([path], inputs) and (args.pruning_follows or fits(path)):
        cli.say(f'{path} is up to date')
        return
    from steps import unpruned  # loads PyTorch, which --help does not need
    writing.check_writable(path)
    result = unpruned.optimise_from(lut_file, settings, args.pruning_follows)
    writing.write(path, result, writing.make_metadata(settings, 'step2', inputs, lut=lut_file))
    print(unpruned.summary(result))
    print(f'-> {path}')


if __name__ == '__main__':
    cli.run(main)
