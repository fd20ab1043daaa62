"""Baseline, second half: choose γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3
    python step4_final_throughput_opt.py --domains 0-9 --jobs 4      # many at once

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

from typing import Callable, Optional, Sequence

import cli
from engines import many_domains


def load_work() -> Callable[..., None]:
    """What chooses γ and λ for one domain."""
    from steps import sequential  # loads PyTorch, which --help and files that are up to date do not need
    return sequential.split


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args, settings = cli.parse(many_domains.parser(__doc__), argv)
    return many_domains.run(load_work, 'sequential', args, settings)


if __name__ == '__main__':
    cli.run(main)
