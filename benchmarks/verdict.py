"""Is "splitting pays" right? Step 3's verdict in random settings against a count of its own.

    python -m benchmarks.verdict --cases 20 --root results/verdict

Each case draws a domain, a link, ε, the tier of the head, where the answer is needed and whether images may leave their
tier, and runs step 3. Then everything is worked out again from the files alone, plainly: the times of the same pruned
and the unpruned network on either tier by adding up the table's entries, PNG and JPEG by encoding the validation images
at every quality and running the network as it was trained (not fused) on what arrives. The table is the one in
RESULTS_DIR; step 1 must have been run.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
from typing import Any, Dict, Optional, Sequence, Tuple

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--cases', type=int, default=20)
PARSER.add_argument('--seed', type=int, default=0)
PARSER.add_argument('--root', default='results/verdict', help='where the results of the cases are kept')
if __name__ == '__main__':
    cli.answer_help(PARSER)

import numpy as np
import torch
from PIL import Image

import config
import lut_manager
import step_3_joint
from domain_dataset import load_domain
from domains.image_formats import QUALITIES
from domains.image_sets import ImageSet
from pipeline import kinds
from search import domain_inputs, result_file
from search.one_tier import verdict_on
from steps import hardware_table

VALID = {(1, 0, 0): (0,), (0, 1, 0): (1,), (0, 0, 1): (2,), (1, 1, 0): (3, 4), (1, 0, 1): (5, 6), (0, 1, 1): (7, 8),
         (1, 1, 1): (9, 10, 11, 12, 13)}  # surviving (dense, 1x1, identity): γ
LINKS_MBPS = (2, 10, 50, 100, 1000)
Alpha = Dict[str, Dict[str, Optional[float]]]


def draw(generator: random.Random) -> Tuple[int, Tuple[str, ...]]:
    """A domain and settings."""
    low = generator.choice((0, 1))
    return generator.randrange(10), (
        f'BANDWIDTH_MBPS={generator.choice(LINKS_MBPS)}', f'RTT_MS={generator.choice((0, 2, 20))}',
        f'EPSILON={generator.choice((0.01, 0.02, 0.05))}', f"HEAD_TIER={generator.choice(('client', 'server'))}",
        f"RESULT_AT={generator.choice(('client', 'server'))}", f'LAMBDA_MIN={low}',
        f'OMEGA={generator.choice((0, 0.5, 1))}', f'CLIENTS={generator.choice((1, 4, 8))}')


def read(path: str) -> Dict[str, Any]:
    """A JSON file as it is."""
    with open(path, encoding='utf-8') as stream:
        return json.load(stream)


class Count:
    """Everything about one result worked out from its file, the table's file and images."""

    def __init__(self, table: Dict[str, Any], result: Dict[str, Any], val: ImageSet, settings: config.Settings) -> None:
        self.table, self.result, self.val, self.settings = table, result, val, settings
        self.head, self.tail = settings.HEAD_TIER, 'server' if settings.HEAD_TIER == 'client' else 'client'
        self.model = domain_inputs.base_model(settings)

    def alone_ms(self, tier: str, alpha: Alpha) -> float:
        """The whole network on one tier, each block at its fastest γ."""
        ms = self.table['stem'][f'T_{tier}'] + self.table['classifier'][f'T_{tier}']
        ms -= self.table['correction'].get(tier, {}).get('offset_ms', 0)  # in both of them, and counts once
        for name, branches in alpha.items():
            kept = tuple(int(bool(branches[branch])) for branch in ('dense', '1x1', 'identity'))
            ms += min(self.table[f'T_{tier}'][name][gamma] for gamma in VALID[kept])
        return ms

    def T_eff_ms(self, stages: Sequence[float], rtt_ms: float) -> float:
        """Of (head, link, tail) in ms."""
        omega = self.settings.OMEGA
        busy = [ms * (self.settings.CLIENTS if where == 'server' else 1)
                for where, ms in zip((self.head, 'link', self.tail), stages)]
        return omega * (sum(stages) + rtt_ms) + (1 - omega) * max(busy)

    def sent_ms(self, n_bytes: float) -> float:
        """On the link."""
        return n_bytes * 8 / (self.settings.BANDWIDTH_MBPS * 1000)

    def head_alone(self, alpha: Alpha) -> float:
        """T_eff of everything where the image is."""
        ms = self.alone_ms(self.head, alpha)
        if self.settings.RESULT_AT == self.head:
            return self.T_eff_ms((ms, 0, 0), 0)
        return self.T_eff_ms((ms, self.sent_ms(4 * self.settings.NUM_CLASSES), 0), self.settings.RTT_MS)

    def tail_alone(self, alpha: Alpha, lowest: float) -> float:
        """The least T_eff of everything on the other tier: the image raw, as PNG, or as the smallest JPEG that leaves
        at least this validation accuracy."""
        ms = self.alone_ms(self.tail, alpha)
        found = [self.T_eff_ms((0, self.sent_ms(3 * self.settings.INPUT_SIZE ** 2), ms), self.settings.RTT_MS)]
        for quality in (None, self.lowest_quality(alpha, lowest)):
            if quality is not None or not found[1:]:
                sent = [encoded(image, quality) for image in self.val.images]
                encode_ms, decode_ms = self.table['image_codec_ms']['png' if quality is None else 'jpeg']
                stages = (encode_ms * self.slower(self.head), self.sent_ms(np.mean([len(data) for data in sent])),
                          ms + decode_ms * self.slower(self.tail))
                found.append(self.T_eff_ms(stages, self.settings.RTT_MS))
        return min(found)

    def slower(self, tier: str) -> float:
        """The factor of a simulated tier."""
        return self.table['metadata'][tier].get('slowdown', 1.0)

    def lowest_quality(self, alpha: Alpha, lowest: float) -> Optional[int]:
        """Tried one after another, from the lowest on."""
        self.model.set_alpha_array(np.array([[np.nan if value is None else value for value in (
            row['dense'], row['1x1'], row['identity'])] for row in alpha.values()]))
        for quality in QUALITIES:
            arrived = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(encoded(image, quality)))
                                                             .convert('RGB'))) for image in self.val.images])
            scaled = (arrived.permute(0, 3, 1, 2) / 255 - torch.tensor(self.settings.NORM_MEAN)[:, None, None]) \
                / torch.tensor(self.settings.NORM_STD)[:, None, None]
            with torch.no_grad():
                right = (self.model(scaled.float()).argmax(1) == self.val.labels).double().mean()
            if float(right) >= lowest:
                return quality
        return None

    def pays(self) -> Tuple[bool, bool]:
        """(does splitting pay, and if images may leave their tier?)"""
        unpruned = {name: {branch: None if value is None else 1.0 for branch, value in row.items()}
                    for name, row in self.result['alpha'].items()}
        lowest = self.result['accuracy']['val_reference'] - self.settings.EPSILON
        heads = min(self.head_alone(self.result['alpha']), self.head_alone(unpruned))
        tails = min(self.tail_alone(self.result['alpha'], lowest), self.tail_alone(unpruned, lowest))
        own = self.result['T_eff_ms'] * (1 + 1e-9)
        anyway = own < min(heads, tails)
        return (anyway if self.settings.LAMBDA_MIN == 0 else own < heads), anyway


def encoded(image: torch.Tensor, quality: Optional[int]) -> bytes:
    """PNG, or JPEG of this quality; grey where all channels agree."""
    pixels, stream = image.permute(1, 2, 0).numpy(), io.BytesIO()
    grey = bool((pixels == pixels[..., :1]).all())
    picture = Image.fromarray(pixels[..., 0].copy() if grey else pixels.copy())
    picture.save(stream, **({'format': 'PNG'} if quality is None else
                            {'format': 'JPEG', 'quality': quality, 'optimize': True}))
    return stream.getvalue()


def run_case(folder: str, domain: int, overrides: Sequence[str]) -> Tuple[Tuple[bool, bool], Tuple[bool, bool]]:
    """((our verdict), (the count)) of one case."""
    settings = config.load((*overrides, f'RESULTS_DIR={folder}'))
    base = config.load()
    os.makedirs(folder, exist_ok=True)
    for tier in ('client', 'server'):
        shutil.copyfile(kinds.path_of(f'lut_{tier}', base), kinds.path_of(f'lut_{tier}', settings))
    if not os.path.exists(kinds.path_of('lut', settings)):
        hardware_table.merge(settings)
    step_3_joint.main(['--domain_id', str(domain), '--if_changed', '--set', *overrides, f'RESULTS_DIR={folder}'])
    table, result = (read(kinds.path_of(kind, settings, domain)) for kind in ('lut', 'joint'))
    count = Count(table, result, load_domain(settings, domain, 'val'), settings)
    ours = result_file.load(domain, lut_manager.load(kinds.path_of('lut', settings), settings), settings)
    verdict = verdict_on(ours, settings)
    return (verdict.pays, verdict.pays_anyway), count.pays()


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args: argparse.Namespace = PARSER.parse_args(argv)
    generator, agree = random.Random(args.seed), []
    for case in range(args.cases):
        domain, overrides = draw(generator)
        ours, counted = run_case(os.path.join(args.root, f'case_{case}'), domain, overrides)
        agree.append(ours == counted)
        print(f'{case:3} domain {domain} {" ".join(overrides)}: pays {ours[0]}, if images may leave {ours[1]}; '
              f'counted {counted[0]}, {counted[1]}', flush=True)
    print(f'the verdict agrees with the count in {sum(agree)} of {len(agree)} cases')
    return 0 if all(agree) else 1


if __name__ == '__main__':
    sys.exit(cli.run(main))
