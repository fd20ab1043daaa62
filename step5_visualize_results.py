"""Step 5: pictures and a summary of all domains that step 3 has finished.

    python step5_visualize_results.py                              # whatever is in results/
    python step5_visualize_results.py --set RESULTS_DIR=results_b3 PROFILE=imagenet
    python step5_visualize_results.py --service_log service.jsonl  # of serve_split.py --log_jsonl: service_log alone

Reads the table (step 1), step 2's and every domain's result. Writes to results/visualization/, each as PDF and PNG:

    accuracy_throughput_curve, accuracy_teff_curve                 two domains, large
    accuracy_throughput_all_domains, accuracy_teff_all_domains     all domains, small
    rate_by_clients, domain_comparison, split_times, lut_heatmap, domain_D_configuration

and summary.txt (also printed) and summary.json. Everything is read and checked before anything is written.
"""
from __future__ import annotations

import hashlib
import os
from typing import List, Optional, Sequence

import cli
from config import Settings, UserError
from costs.checks import check_settings
from pipeline import documents, fingerprints, kinds, writing


def domains_present(settings: Settings) -> List[int]:
    """Domains with a result file; `UserError` with the command to run when there is none."""
    found = [domain for domain in cli.domains(None, settings)
             if os.path.exists(kinds.path_of('joint', settings, domain))]
    if not found:
        raise UserError(f"no result of any domain in {os.path.dirname(kinds.path_of('joint', settings, 0))}; make "
                        f"one with `{kinds.command_for('joint', settings, 0)}`")
    return found


def inputs_of(domains: Sequence[int], lut_file: str, settings: Settings) -> str:
    """A hash of everything that is drawn."""
    paths = [lut_file, kinds.path_of('step2', settings)]
    paths += [kinds.path_of(kind, settings, domain) for domain in domains for kind in ('joint', 'sequential')]
    content = [f'{os.path.basename(path)}:{fingerprints.content_hash(path)}' for path in paths]
    own = fingerprints.inputs_of('summary', settings)
    return hashlib.sha256('\n'.join([own, *content]).encode()).hexdigest()


def earlier_pictures(path: str) -> List[str]:
    """The picture files that an earlier run's summary.json names; none when it cannot be read."""
    try:
        names = documents.read(path, '').get('pictures', list)
    except UserError:
        return []
    return [os.path.join(os.path.dirname(path), f'{name}.{suffix}') for name in names for suffix in ('pdf', 'png')]


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    parser.add_argument('--service_log', metavar='FILE', help='draw what a service did, and nothing else')
    args, settings = cli.parse(parser, argv)
    check_settings(settings, weights=False)
    path = kinds.path_of('summary', settings)
    folder = os.path.dirname(path)
    text_path = os.path.join(folder, 'summary.txt')
    if args.service_log is None:
        domains = domains_present(settings)
        lut_file = args.lut_file or kinds.path_of('lut', settings)
        inputs = inputs_of(domains, lut_file, settings)
        if args.if_changed and fingerprints.is_current([path, text_path, *earlier_pictures(path)], inputs):
            cli.say(f'{folder} is up to date')
            return
    from report import pictures, summary  # loads PyTorch and matplotlib, which --help does not need
    if args.service_log is not None:
        made = pictures.of_service(args.service_log)
        writing.check_writable(path)
        pictures.write_all(folder, made)
        print(f'-> {folder}: service_log as PDF and PNG')
        return
    found = pictures.load(domains, lut_file, settings)
    text, made = pictures.text_of(found), pictures.pictures_of(found)
    writing.check_writable(path)
    pictures.write_all(folder, made)
    with writing.replacing(text_path) as temporary:
        with open(temporary, 'w', encoding='utf-8', errors='backslashreplace') as stream:
            stream.write(text + '\n')
    content = {**summary.as_dict(found.results, settings), 'rate_by_clients': pictures.rates_to_json(found),
               'warnings': pictures.warnings_on(found), 'pictures': sorted(made)}
    writing.write(path, content, writing.make_metadata(settings, 'summary', inputs))
    print(text)
    print(f'-> {folder}: {len(made)} pictures as PDF and PNG, summary.txt, summary.json')


if __name__ == '__main__':
    cli.run(main)
