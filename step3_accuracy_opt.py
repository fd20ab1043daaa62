"""Baseline, first half: prune a domain by importance alone, blind to time.

    python step3_accuracy_opt.py --domain_id 3
    python step3_accuracy_opt.py --domains 0-9 --jobs 4      # many at once

Reads what step_3_joint.py reads; writes results/sequential/domain_D_accuracy.json (the same fields), in which the
pruned network runs at the split that step 2 chose for the unpruned one. step4_final_throughput_opt.py then chooses γ
and λ for it. A killed run goes on from its last round.
"""
from __future__ import annotations

from typing import Callable, Optional, Sequence

import cli
from config import Settings
from engines import many_domains


def load_work(settings: Settings) -> Callable[..., None]:
    """What prunes one domain. Warnings that hold for all domains are said now, once."""
    from steps import sequential, shared_warnings  # load PyTorch, which --help does not need
    shared_warnings.say(settings)
    return sequential.prune


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args, settings = cli.parse(many_domains.parser(__doc__), argv)
    return many_domains.run(lambda: load_work(settings), 'sequential_accuracy', args, settings)


if __name__ == '__main__':
    cli.run(main)
