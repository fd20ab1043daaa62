"""Everything that step 5 makes: all files read and checked, then the pictures, the text and the numbers."""
from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import cli
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable, Times
from costs.energy import energy_lines, energy_of
from costs.verdict import words_of
from pipeline import kinds
from report import client_rates, cost_figures, frontier_figures, result_figures, service_log, style, summary
from report.cost_figures import UnprunedSplits
from report.frontier_figures import T_EFF, THROUGHPUT
from search import result_file, result_warnings
from search.one_tier import PRUNED_ENDS
from search.result import JointResult

Pictures = Dict[str, Callable[[], Figure]]  # by file name without suffix


@dataclass(frozen=True)
class Inputs:
    """What the pictures show."""
    table: HardwareTable
    lut_file: str  # where the table was read
    unpruned: Optional[UnprunedSplits]  # None: step 2 has not been run
    results: Sequence[JointResult]
    sequential: Dict[int, JointResult]  # by domain, as far as the baseline has been run
    settings: Settings

    def fits(self, result: JointResult) -> bool:
        """Do a domain's times follow from this table?"""
        return summary.fits(result, self.table, self.settings)


def load(domains: Sequence[int], lut_file: str, settings: Settings) -> Inputs:
    """Read and check everything. Raises `UserError` that names the file that does not fit."""
    table = lut_manager.load(lut_file, settings)
    unpruned = load_unpruned(table, settings, lut_file)
    results = [result_file.load(domain, table, settings, lut_file=lut_file) for domain in domains]
    for result in results:
        summary.check(result, kinds.path_of('joint', settings, result.domain_id))
    return Inputs(table, lut_file, unpruned, results, load_sequential(results, table, settings, lut_file), settings)


def load_unpruned(table: HardwareTable, settings: Settings, lut_file: str) -> Optional[UnprunedSplits]:
    """Step 2's result; None, with a line that says so, when step 2 has not been run (step 3 does not need it)."""
    path = kinds.path_of('step2', settings)
    if not os.path.exists(path):
        cli.say(f"no {path}, so no split_times; make it with `{kinds.command_for('step2', settings)}`")
        return None
    return cost_figures.load_splits(table, settings, lut_file)


def load_sequential(results: Sequence[JointResult], table: HardwareTable, settings: Settings, lut_file: str,
                    ) -> Dict[int, JointResult]:
    """The sequential baseline's own results (step 4) of the domains whose joint result names just that baseline."""
    found = {}
    for result in results:
        if 'sequential' in result.baselines and os.path.exists(
                kinds.path_of('sequential', settings, result.domain_id)):
            sequential = result_file.load(result.domain_id, table, settings, 'sequential', lut_file)
            if sequential.times == result.baselines['sequential'].times:
                found[result.domain_id] = sequential
    return found


def pictures_of(inputs: Inputs) -> Pictures:
    """What to draw: the functions that make the figures."""
    results, table = inputs.results, inputs.table
    simulated = cost_figures.simulated_note(table)
    clients = inputs.settings.CLIENTS
    note = ''.join([f', for each of {clients} clients on one server' if clients > 1 else '', simulated,
                    ', with warnings: see summary.txt' if warnings_on(inputs) else ''])
    made: Pictures = {}
    for name, speed in (('throughput', THROUGHPUT), ('teff', T_EFF)):
        made[f'accuracy_{name}_curve'] = partial(frontier_figures.two_domains, results, speed, inputs.sequential, note)
        if len(results) > 2:
            made[f'accuracy_{name}_all_domains'] = partial(frontier_figures.all_domains, results, speed,
                                                           inputs.sequential, note)
    rates = rates_of(inputs)
    if rates:
        made['rate_by_clients'] = partial(client_rates.rate_by_clients, rates, table, inputs.settings, simulated)
    made['domain_comparison'] = partial(result_figures.domain_comparison, results, inputs.settings.CLIENTS, note)
    made['lut_heatmap'] = partial(cost_figures.lut_heatmap, table)
    if inputs.unpruned is not None:
        made['split_times'] = partial(cost_figures.split_times, inputs.unpruned, simulated)
    for result in filter(inputs.fits, results):
        made[f'domain_{result.domain_id}_configuration'] = partial(
            result_figures.configuration, result, table, inputs.settings.HEAD_TIER, note)
    return made


def rates_of(inputs: Inputs) -> Mapping[str, np.ndarray]:
    """Frames a second of each client by method and number of clients, of the domains whose times follow from this
    table; nothing where there is none."""
    results = [result for result in inputs.results if inputs.fits(result)]
    return client_rates.mean_rates(results, inputs.table, inputs.settings) if results else {}


def rates_to_json(inputs: Inputs) -> Dict[str, Any]:
    """`rates_of` for programs."""
    return {'clients': list(client_rates.CLIENTS),
            'fps': {name: values.tolist() for name, values in rates_of(inputs).items()}}


def of_service(path: str) -> Pictures:
    """What to draw of a service's log. Raises `UserError` for a file that is none."""
    return {'service_log': partial(service_log.figure_of, service_log.read(path))}


def write_all(folder: str, made: Pictures) -> None:
    """Draw and save every picture, with progress."""
    for name, draw in tqdm(made.items(), desc='pictures', leave=False, disable=None):
        style.save(draw(), os.path.join(folder, f'{name}.pdf'), os.path.join(folder, f'{name}.png'))


def text_of(inputs: Inputs) -> str:
    """The summary as text, with what a reader of the numbers must know; warnings stand before the numbers."""
    warnings = [f'warning: {line}' for line in warnings_on(inputs)]
    rates = rates_of(inputs)
    table = ['', *client_rates.text(rates, inputs.settings)] if rates else []
    text = '\n'.join([summary.text(inputs.results, notes_on(inputs), inputs.settings), *table])
    return '\n'.join([*warnings, '', text] if warnings else [text])


def warnings_on(inputs: Inputs) -> List[str]:
    """Why the results mean less than they seem to: what holds for all, then each domain's own."""
    return result_warnings.of_settings(inputs.settings) + [
        f'domain {result.domain_id}: {line}' for result in inputs.results for line in result.warnings]


def notes_on(inputs: Inputs) -> List[str]:
    """Which times are simulated, and which results should not be compared."""
    info = inputs.table.tier_info
    notes = [f"the {tier}'s times are simulated (profile {info[tier].get('profile', 'unknown')})"
             for tier in ('client', 'server') if info[tier].get('simulated')]
    strangers = [str(result.domain_id) for result in inputs.results if not inputs.fits(result)]
    warnings = summary.disagreements(inputs.results)
    if strangers:
        warnings.append(f"times of domain {', '.join(strangers)} do not follow from {inputs.lut_file} with HEAD_TIER="
                        f'{inputs.settings.HEAD_TIER}: made from another table or setting, so no picture of the '
                        'configuration')
    return notes + energy_notes(inputs) + [f'warning: {line}' for line in warnings]


def energy_notes(inputs: Inputs) -> List[str]:
    """Energy of a frame, mean over domains, where the table knows watts."""
    ways = {'chosen': [result.times for result in inputs.results],
            **{words_of(name): [result.baselines[name].times for result in inputs.results] for name in PRUNED_ENDS}}
    settings = inputs.settings
    found = {name: energy_of(Times(*np.mean([list(vars(times).values()) for times in all_times], axis=0)),
                             inputs.table.power, settings.CLIENTS, settings.SERVER_WORKERS)
             for name, all_times in ways.items()}  # linear in times
    return energy_lines({name: energy for name, energy in found.items() if energy})
