"""What does a short training of α win back where some channels of the cut are not sent?

    python -m benchmarks.channel_recovery --splits 4,6,8                    # after run_pipeline.sh; ten domains
    PROFILE=photos DATA_PATH=... python -m benchmarks.channel_recovery --splits 6,13,20 --domains 3

The unpruned network with the α of each domain sends a share of its channels as uint4, at each split,
  left out      as it is
  trained       after the recovery that step 3 gives such a network: α trained with these channels missing
  in full       after a recovery of the same length that knows nothing of the cut, all channels there
Validation images choose in each training, test images report: points lost against the same network without a loss on
its way, all domains together, with half of a 95 % interval (paired, normal approximation). Seconds of the processor.

Quick start, domains 0, 3, 9 (2-core Intel Xeon virtual machine, Python 3.11, PyTorch 2.14): a recovery wins 3.5 ± 1.8,
2.0 ± 1.6 and 7.6 ± 2.9 points at a quarter of the channels after block 4, 6 and 8, about half of what is lost, and
nothing at half of the channels, where 0.9 to 2.0 are lost; in full: nothing. A training takes 3.2 seconds.
Photographs, domain 3, 303 test images, weights of commit 66f4ee1: 6.3 ± 3.5 points at half of the channels after block
6, 5.6 ± 6.3 at a quarter; 1.7 ± 3.1 and 2.6 ± 4.2 after block 13; nothing after block 20, where 0.3 and 1.3 are lost.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--splits', required=True, metavar='L,...')
PARSER.add_argument('--shares', default='0.5,0.25', metavar='S,...', help='of the channels (default: %(default)s)')
PARSER.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
PARSER.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import time
from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

import lut_manager
from benchmarks.bytes_accuracy import lost
from benchmarks.wire_formats import splits_of
from config import Settings, with_shares
from costs.cost_model import FLOAT32, Configuration, HardwareTable
from domain_dataset import load_domain
from pipeline import kinds
from search.alpha_training import seed_of
from search.domain_search import problem_of
from search.recovery import Recovery
from search.wire_loss import WireLoss, classified_right

Case = Tuple[int, str]  # split, wire format
WAYS = ('left out', 'trained', 'in full')


def measured_in(domain: int, table: HardwareTable, cases: Sequence[Case], settings: Settings,
                ) -> Tuple[np.ndarray, Dict[Case, Dict[str, np.ndarray]], List[float]]:
    """Which test images a domain's network classifies correctly: without a loss, and of each case by WAYS, bool [n];
    processor seconds of each training."""
    problem, test = problem_of(domain, table, settings), load_domain(settings, domain, 'test')
    recovery = Recovery(problem)
    network = recovery.measure(problem.unpruned)
    in_full = recovery.train(problem.unpruned, seed_of(settings.SEED, domain), network)
    measured = WireLoss(problem.model, problem.val, settings, choice=problem.channel_choice)

    def right(alpha: np.ndarray, split: int, wire: str) -> np.ndarray:
        chosen = Configuration(alpha, (), split, wire, measured.channels(alpha, split, wire))
        return classified_right(problem.model, chosen, test, settings)

    whole, found, seconds = right(network.alpha, 0, FLOAT32), {}, []
    for split, wire in cases:
        start = time.process_time()
        before = replace(network, accuracy=measured.accuracy(network.alpha, split, wire, network.accuracy),
                         formats=(wire,))
        trained = recovery.train_at_cut(before, split, wire, measured)
        seconds.append(time.process_time() - start)
        found[split, wire] = {way: right(one.alpha, split, wire)
                              for way, one in zip(WAYS, (network, trained, in_full))}
        cli.say(f'domain {domain}, λ = {split}, {wire}: validation {100 * before.accuracy:.1f} -> '
                f'{100 * trained.accuracy:.1f} %, without a loss {100 * network.accuracy:.1f} -> '
                f'{100 * trained.lossless_accuracy:.1f} %')
    return whole, found, seconds


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    table = lut_manager.load(args.lut_file or kinds.path_of('lut', settings), settings)
    wires = with_shares(('uint4',), tuple(float(share) for share in args.shares.split(',')))
    cases = [(split, wire) for split in splits_of(args.splits, settings) for wire in wires]
    domains = [measured_in(domain, table, cases, settings) for domain in cli.domains(args.domains, settings)]
    whole = np.concatenate([found[0] for found in domains])
    print(f'{settings.MODEL_NAME}, {len(domains)} domains, {len(whole)} test images, {100 * whole.mean():.1f} % right '
          'without a loss; points lost on the wire\n\n| cut | format | left out | trained | in full | trained wins | '
          'of what was lost |\n|---|---|---|---|---|---|---|')
    shares = []
    for case in cases:
        by_way = {way: np.concatenate([found[1][case][way] for found in domains]) for way in WAYS}
        losses = [lost(whole, by_way[way]) for way in WAYS]
        shares.append(1 - losses[1][0] / losses[0][0] if losses[0][0] > 0 else np.nan)
        won = lost(by_way['trained'], by_way['left out'])
        print(f'| λ = {case[0]} | {case[1]} | ' + ' | '.join(f'{points:.1f} ± {half:.1f}' for points, half in (
            *losses, won)) + f' | {shares[-1]:.2f} |')
    seconds = [second for found in domains for second in found[2]]
    print(f'\nof what was lost, median: {np.nanmedian(shares):.2f}; a training takes {np.median(seconds):.1f} s')


if __name__ == '__main__':
    cli.run(main)
