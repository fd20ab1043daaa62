"""Task 1: train α for every domain and record it.

    python code1_train_and_record_weights.py                 # all domains
    python code1_train_and_record_weights.py --domains 0,3

Writes trained_hyper_weights.json, training_results.json (losses, accuracy before and after, what losing each 3x3
costs) and hyper_weights_heatmap.png to task1_trained_weights_{MODEL_NAME}/. The α kept is that of the epoch with the
best validation accuracy. A domain is written when it is done; a killed run goes on with the next one.
"""
from __future__ import annotations

import os
import re
from itertools import product
from typing import Any, Dict, Optional, Sequence

import cli
from config import Settings, UserError
from costs.checks import check_settings
from network.outline import outline_for
from network.shapes import BRANCHES
from pipeline import documents, fingerprints, kinds, provenance, writing

PICTURE = 'hyper_weights_heatmap.png'


def recorded(settings: Settings, inputs: str) -> Dict[str, Dict[str, Dict[str, Any]]]:
    """Domains already trained from the same inputs: {kind: {domain: entry}}; empty when there are none."""
    paths = {kind: fingerprints.found_at(kind, settings) for kind in ('alpha', 'alpha_training')}
    if not fingerprints.is_current(list(paths.values()), inputs):
        return {'alpha': {}, 'alpha_training': {}}
    try:
        return {kind: checked(provenance.read_anyhow(kind, settings), kind, settings) for kind in paths}
    except UserError:  # damaged: made again
        return {'alpha': {}, 'alpha_training': {}}


def checked(document: documents.Document, kind: str, settings: Settings) -> Dict[str, Dict[str, Any]]:
    """What a file of this task holds, by domain; `UserError` where a field that is shown later is damaged."""
    domains = document.get('domains')
    for domain in domains:
        if not re.fullmatch(r'\d{1,9}', domain, re.ASCII):
            raise document.refuse(f'{domain!r} is no domain')
        document.get(('domains', domain, 'domain_name'), str)
        if kind == 'alpha':
            for block, branch in product(outline_for(settings).block_names, BRANCHES):
                if document.find(('domains', domain, 'alpha', block, branch)) is not None:
                    document.number(('domains', domain, 'alpha', block, branch))
        else:
            for name in ('val_before', 'val_after', 'test_before', 'test_after'):
                document.number(('domains', domain, 'accuracy', name))
            document.numbers(('domains', domain, 'accuracy', 'test_after_ci95'), 2)
    return dict(domains)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
    args, settings = cli.parse(parser, argv)
    check_settings(settings)
    wanted = cli.domains(args.domains, settings)
    inputs = fingerprints.inputs_of('alpha', settings)
    paths = {kind: kinds.path_of(kind, settings) for kind in ('alpha', 'alpha_training')}
    folder = os.path.dirname(paths['alpha'])
    picture = os.path.join(folder, PICTURE)
    done = recorded(settings, inputs)
    missing = [d for d in wanted if not all(str(d) in done[kind] for kind in done)]
    there = os.path.dirname(fingerprints.found_at('alpha', settings))
    if args.if_changed and not missing and os.path.exists(os.path.join(there, PICTURE)):
        cli.say(f'{there} is up to date')
        return
    writing.check_writable(paths['alpha'])
    from steps import trained_alpha  # loads PyTorch and matplotlib, which --help does not need
    trained_alpha.train_all(missing if missing or args.if_changed else wanted, done, settings, inputs, paths)
    trained_alpha.draw(picture, done['alpha'], settings)
    print_table(done['alpha_training'])
    print(f'-> {folder}')


def print_table(domains: Dict[str, Dict[str, Any]]) -> None:
    """Accuracy before and after, a line per domain."""
    print(f"{'domain':28} {'val before':>10} {'after':>7} {'test before':>12} {'after':>7}  95 % interval")
    for domain in sorted(domains, key=int):
        entry = domains[domain]
        a = entry['accuracy']
        print(f"{domain + ' ' + entry['domain_name']:28} {a['val_before']:10.3f} {a['val_after']:7.3f} "
              f"{a['test_before']:12.3f} {a['test_after']:7.3f}  "
              f"[{a['test_after_ci95'][0]:.3f}, {a['test_after_ci95'][1]:.3f}]")


if __name__ == '__main__':
    cli.run(main)
