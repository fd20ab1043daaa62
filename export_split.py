"""Export a domain's result: head and tail as files that run without this project (docs/deployment.md).

    python export_split.py --domain_id 3 --out deployed                        # ONNX: onnxruntime, TensorRT, ...
    python export_split.py --domain_id 3 --out deployed --format torchscript   # PyTorch from 1.10 on, C++ or Python
    python export_split.py --domain_id 3 --out deployed --point 'frontier.T_eff[2]'
    python export_split.py --domain_id 3 --out before --point unpruned         # what the result is compared with
    python export_split.py --domain_id 3 --out deployed --int8 --keep_float stage1.0,classifier

Both files are held against PyTorch on real images before they are written.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domain_id', type=int, required=True)
PARSER.add_argument('--out', metavar='DIR', required=True, help='a new folder, or one of an earlier export')
PARSER.add_argument('--format', choices=('onnx', 'torchscript'), default='onnx')
PARSER.add_argument('--point', default='result', metavar='NAME',
                    help="'result' (default), 'unpruned' (all branches, split by step 2), or a point of a frontier in "
                    "it: 'frontier.T_eff[2]'")
PARSER.add_argument('--int8', action='store_true', help='quantise both parts (ONNX), every block fused')
PARSER.add_argument('--keep_float', metavar='UNITS', help='these stay in float: stage1.0,classifier')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

from typing import Optional, Sequence

from config import UserError
from costs.checks import check_settings
from export import run


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    check_settings(settings)
    if args.int8 and args.format != 'onnx':
        raise UserError('--int8 needs --format onnx')
    if args.keep_float and not args.int8:
        raise UserError('--keep_float says what --int8 leaves alone: give both')
    kept = tuple(name.strip() for name in (args.keep_float or '').split(',') if name.strip())
    domain = cli.domains(str(args.domain_id), settings)[0]
    run.export(run.Wanted(domain, args.point, args.format, args.int8, kept), args.out, settings)


if __name__ == '__main__':
    cli.run(main)
