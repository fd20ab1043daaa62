"""The sequential baseline, second half: γ and λ for the network that step3_accuracy_opt.py left.

    python step4_final_throughput_opt.py --domain_id 3
    python step4_final_throughput_opt.py --domains 0-9 --jobs 4      # many at once

Reads results/sequential/domain_D_accuracy.json and the table; writes results/sequential/domain_D_sequential.json and,
where the joint result of the domain exists, adds itself to the baselines there.
"""
from __future__ import annotations

from typing import Optional, Sequence

import cli
from engines import many_domains


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args, settings = cli.parse(many_domains.parser(__doc__), argv)
    from steps import sequential  # loads PyTorch, which --help does not need
    return many_domains.run(sequential.split, 'sequential', args, settings)


if __name__ == '__main__':
    cli.run(main)
