"""Step 5: pictures and a summary of all domains that step 3 has finished.

    python step5_visualize_results.py                              # whatever is in results/
    python step5_visualize_results.py --set RESULTS_DIR=results_b3 PROFILE=imagenet

Reads the table (step 1), step 2's and every domain's result. Writes to results/visualization/, each as PDF and PNG:
accuracy_throughput_curve, accuracy_teff_curve, domain_comparison, domain_D_configuration, split_times, lut_heatmap;
and summary.txt (also printed) and summary.json. Everything is read and checked before anything is written.
"""
from __future__ import annotations

import hashlib
import os
from typing import Any, Callable, Dict, List, Optional, Sequence

import cli
from config import Settings, UserError
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
    return hashlib.sha256('\n'.join([settings.MODEL_NAME, settings.HEAD_TIER, *content]).encode()).hexdigest()


def pictures_of(path: str) -> List[str]:
    """The picture files that an earlier run's summary.json names; none when it cannot be read."""
    try:
        names = documents.read(path, '').get('pictures', list)
    except UserError:
        return []
    return [os.path.join(os.path.dirname(path), f'{name}.{suffix}') for name in names for suffix in ('pdf', 'png')]


def pictures(table: Any, step2: Any, results: Sequence[Any], sequential: Dict[int, Any], settings: Settings,
             ) -> Dict[str, Callable[[], Any]]:
    """What to draw: {file name without suffix: function that makes the figure}."""
    from report import cost_figures
    from report import result_figures as drawn
    from report.summary import fits
    note = cost_figures.simulated_note(table)
    made: Dict[str, Callable[[], Any]] = {
        'accuracy_throughput_curve': lambda: drawn.accuracy_curves(results, drawn.THROUGHPUT, sequential, note),
        'accuracy_teff_curve': lambda: drawn.accuracy_curves(results, drawn.T_EFF, sequential, note),
        'domain_comparison': lambda: drawn.domain_comparison(results, note),
        'lut_heatmap': lambda: cost_figures.lut_heatmap(table)}
    if step2 is not None:
        made['split_times'] = lambda: cost_figures.split_times(step2, note)
    for result in results:
        if fits(result, table, settings.HEAD_TIER):
            made[f'domain_{result.domain_id}_configuration'] = (
                lambda result=result: drawn.configuration(result, table, settings.HEAD_TIER, note))
    return made


def load_step2(table: Any, settings: Settings) -> Optional[Any]:
    """Step 2's result; None, with a line that says so, when step 2 has not been run (step 3 does not need it)."""
    from report import step2_result
    path = kinds.path_of('step2', settings)
    if not os.path.exists(path):
        cli.say(f"no {path}, so no split_times; make it with `{kinds.command_for('step2', settings)}`")
        return None
    return step2_result.load(table, settings)


def load_sequential(results: Sequence[Any], table: Any, settings: Settings) -> Dict[int, Any]:
    """The sequential baseline's own results (step 4) of the domains whose joint result names just that baseline."""
    from search import joint_result
    found = {}
    for result in results:
        if 'sequential' in result.baselines and os.path.exists(
                kinds.path_of('sequential', settings, result.domain_id)):
            sequential = joint_result.load(result.domain_id, table, settings, 'sequential')
            if sequential.times == result.baselines['sequential'].times:
                found[result.domain_id] = sequential
    return found


def notes_on(table: Any, lut_file: str, results: Sequence[Any], settings: Settings) -> List[str]:
    """What a reader of the numbers must know."""
    from report import summary
    simulated = [tier for tier in ('client', 'server') if table.tier_info[tier].get('simulated')]
    notes = [f"the {tier}'s times are simulated (profile {table.tier_info[tier].get('profile', 'unknown')})"
             for tier in simulated]
    strangers = [str(result.domain_id) for result in results
                 if not summary.fits(result, table, settings.HEAD_TIER)]
    warnings = summary.disagreements(results)
    if strangers:
        warnings.append(f"times of domain {', '.join(strangers)} do not follow from {lut_file} with HEAD_TIER="
                        f'{settings.HEAD_TIER}: made from another table or setting, so no picture of the configuration')
    return notes + [f'warning: {line}' for line in warnings]


def write_all(folder: str, made: Dict[str, Callable[[], Any]]) -> None:
    """Draw and save every picture, with progress."""
    from tqdm import tqdm

    from report import style
    for name, draw in tqdm(made.items(), desc='pictures', leave=False):
        style.save(draw(), os.path.join(folder, f'{name}.pdf'), os.path.join(folder, f'{name}.png'))


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--lut_file', metavar='FILE', help='the complete table (default: the one in RESULTS_DIR)')
    args, settings = cli.parse(parser, argv)
    domains = domains_present(settings)
    lut_file = args.lut_file or kinds.path_of('lut', settings)
    path, inputs = kinds.path_of('summary', settings), inputs_of(domains, lut_file, settings)
    folder = os.path.dirname(path)
    text_path = os.path.join(folder, 'summary.txt')
    if args.if_changed and fingerprints.is_current([path, text_path, *pictures_of(path)], inputs):
        cli.say(f'{folder} is up to date')
        return
    import lut_manager
    from report import summary
    from search import joint_result
    table = lut_manager.load(lut_file, settings)
    step2 = load_step2(table, settings)
    results = [joint_result.load(domain, table, settings) for domain in domains]
    for result in results:
        summary.check(result, kinds.path_of('joint', settings, result.domain_id))
    sequential = load_sequential(results, table, settings)
    writing.check_writable(path)
    text = summary.text(results, notes_on(table, lut_file, results, settings))
    made = pictures(table, step2, results, sequential, settings)
    write_all(folder, made)
    with writing.replacing(text_path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as stream:
            stream.write(text + '\n')
    content = {**summary.as_dict(results), 'pictures': sorted(made)}
    writing.write(path, content, writing.make_metadata(settings, 'summary', inputs))
    print(text)
    print(f'-> {folder}: {len(made)} pictures as PDF and PNG, summary.txt, summary.json')


if __name__ == '__main__':
    cli.run(main)
