"""Divide the dataset among the domains: who holds which image, for training, validation, calibration and test.

    python create_noniid_partition.py                          # the built-in digits
    python create_noniid_partition.py --set PROFILE=imagenet DATA_PATH=/path/to/imagenet/val
    python create_noniid_partition.py --if_changed             # only when the data or a setting has changed

Writes data/noniid_partitions/partition_info.json and a picture of it beside it (.png). Every image file of
an ImageFolder is decoded once; unreadable ones are named and left out. The built-in data takes two seconds.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
from costs.checks import check_settings


def main(argv: Optional[Sequence[str]]) -> None:
    """Make the partition and its picture."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    args, settings = cli.parse(parser, argv)
    check_settings(settings, weights=False)
    from steps import partition  # loads PyTorch and matplotlib, which --help does not need
    partition.make(settings, args.if_changed)


if __name__ == '__main__':
    cli.run(main)
