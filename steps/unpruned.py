"""γ and λ of the unpruned network (step 2): both methods, their certificate, baselines and limits, as the result file
holds them and as a table for people."""
from __future__ import annotations

from types import MappingProxyType
from typing import Any, Dict, Mapping

import numpy as np

import cli
import lut_manager
import throughput_optimizer
from config import Settings, UserError
from costs.cost_model import HardwareTable, ImageFormat, Solution, Times, other_tier
from costs.energy import energy_lines, energy_of
from costs.limits import NothingFits, limited_to_json, limits_of, nearest_to_json
from costs.verdict import OneTier, sentences, verdict_of
from domain_dataset import load_clean
from domains.image_sets import ImageSet
from network.alpha import surviving_branches, unpruned_alpha
from search import alpha_training
from search.domain_inputs import base_model
from search.one_tier import SentImages, solve_end
from throughput_optimizer_limit import check_possible, solve_limited


IMAGES = 128  # validation images on which PNG and JPEG are measured: enough for a size, and for ε of 2 points


def optimise(table: HardwareTable, settings: Settings, pruning_follows: bool = False,
             sent_as: Mapping[str, ImageFormat] = MappingProxyType({})) -> Dict[str, Any]:
    """Everything that the output file holds, from a table. `sent_as`: how else the image may travel, by name.

    Raises `NothingFits`; with `pruning_follows` only when no pruned network can be within the limits either.
    """
    surviving = surviving_branches(unpruned_alpha(table.n_branches))

    def to_json(solution: Solution) -> Dict[str, Any]:
        return {'wire': solution.wire, 'lambda': solution.split, 'gamma': dict(zip(table.block_names, solution.gamma)),
                **solution.times.as_dict(), 'energy': energy_of(solution.times, table.power, settings.CLIENTS,
                                                                settings.SERVER_WORKERS)}

    exact = throughput_optimizer.solve_exact(table, surviving, settings)
    gradient = throughput_optimizer.solve_gradient(table, surviving, settings)
    per_split = throughput_optimizer.times_with_fastest(table, surviving, exact.wire, settings)
    splits = throughput_optimizer.split_range(table.n_blocks, settings)
    tail = other_tier(settings.HEAD_TIER)
    sending = {f'all_{tail}_{name}': {
        **to_json(solve_end(table, surviving, 0, image, settings)),
        'image': vars(image)} for name, image in sent_as.items()}
    result = {
        'head_tier': settings.HEAD_TIER, 'objective': settings.OBJECTIVE, 'omega': settings.OMEGA, 'wire': exact.wire,
        'lambda_range': [splits[0], splits[-1]],
        'clients': settings.CLIENTS, 'fleet_fps': settings.CLIENTS * exact.times.throughput_fps,
        'exact': to_json(exact),
        'gradient': {**to_json(gradient.solution), 'steps': gradient.steps, 'wall_s': gradient.wall_s},
        'optimality_gap': gradient.solution.times.T_eff_ms / exact.times.T_eff_ms - 1,
        'optimal_lambda': exact.split, 'optimal_gamma': dict(zip(table.block_names, exact.gamma)),
        'per_split': [{'lambda': split, **per_split.at(split).as_dict()} for split in range(table.n_blocks + 1)],
        'baselines': {**{name: to_json(found) for name, found in
                         throughput_optimizer.baselines(table, surviving, settings).items()}, **sending},
        'history': [{'step': step, 'T_eff_ms': value} for step, value in gradient.history],
    }
    if limits_of(settings).any:
        result['limited'] = limited(table, surviving, settings, pruning_follows)
    return result


def optimise_from(lut_file: str, settings: Settings, pruning_follows: bool = False) -> Dict[str, Any]:
    """`optimise` with the table in a file, and with the image as PNG and JPEG as far as that can be measured."""
    table = lut_manager.load(lut_file, settings)
    return optimise(table, settings, pruning_follows, image_formats_of(table, settings))


def image_formats_of(table: HardwareTable, settings: Settings) -> Dict[str, ImageFormat]:
    """PNG and JPEG, measured on clean validation images; the JPEG of the lowest quality at which the network stays
    within ε of its accuracy on them. Without images neither, without trained weights no JPEG; a line says so."""
    try:
        images = load_clean(settings, 'val', IMAGES)
    except UserError as error:
        cli.say(f'note: no comparison with the image as PNG or JPEG: {error}')
        return {}
    sent = SentImages(images, images, table, settings)
    found = {'png': sent.format(None)}
    if not settings.WEIGHT_PATH_SERVER:
        cli.say('note: random weights (WEIGHT_PATH_SERVER is empty), so no comparison with the image as JPEG, whose '
                'quality depends on them')
        return found
    model = base_model(settings)
    device = next(model.parameters()).device

    def accuracy_on(data: ImageSet) -> float:
        return alpha_training.accuracy(model, data.to(device), settings)

    quality = sent.jpeg_within(accuracy_on, accuracy_on(images) - settings.EPSILON)
    return found if quality is None else {**found, 'jpeg': sent.format(quality)}


def limited(table: HardwareTable, surviving: np.ndarray, settings: Settings, pruning_follows: bool) -> Dict[str, Any]:
    """The best within the limits; with `pruning_follows` the nearest where only a pruned network can fit."""
    limits = limits_of(settings)
    try:
        return limited_to_json(solve_limited(table, surviving, settings), limits, table)
    except NothingFits as error:
        if not pruning_follows:
            raise
        check_possible(table, settings)
        return nearest_to_json(error, limits, table)


def summary(result: Dict[str, Any]) -> str:
    """A table for people: the answers beside the baselines, and whether splitting pays."""
    rows = [('exact', result['exact']), ('gradient', result['gradient'])]
    if 'limited' in result:
        rows.insert(0, ('limited' if result['limited']['fits'] else 'nearest', result['limited']))
    rows += [(name.replace('_', ' '), entry) for name, entry in result['baselines'].items()]
    lines = [f"{'':15} {'λ':>3} " + ' '.join(f'{word:>8}' for word in ('client', 'link', 'server', 'T_lat', 'T_cyc',
                                                                       'T_eff', 'fps'))]
    for name, entry in rows:
        lines.append(f"{name:15} {entry['lambda']:>3} " + ' '.join(
            f'{entry[key]:8.2f}' for key in ('T_client_ms', 'T_com_ms', 'T_server_ms', 'T_lat_ms', 'T_cyc_ms',
                                             'T_eff_ms')) + f" {entry['throughput_fps']:8.1f}")
    lines.append(f"(ms per image) gradient method {100 * result['optimality_gap']:.2f} % above the exact optimum")
    if result['clients'] > 1:
        lines.append(f"{result['clients']} clients share the server; exact: {result['exact']['throughput_fps']:.1f} "
                     f"frames/s for each, {result['fleet_fps']:.1f} in all; T_lat and {result['exact']['wait_ms']:.2f} "
                     "ms of waiting for each other")
    lines += energy_lines({name: entry['energy'] for name, entry in rows if entry.get('energy')})
    if 'limited' in result:
        lines.append(limits_used(result['limited']))
    lines.append(whether_splitting_pays(result))
    return '\n'.join(lines)


def limits_used(limited: Dict[str, Any]) -> str:
    """One line: how much of each limit the answer uses and what proves it; or what the nearest misses."""
    if not limited['fits']:
        return f"nothing unpruned is within the limits; the nearest has {', '.join(limited['exceeded'])}: step 3 prunes"
    used = ', '.join(f"{100 * factor:.1f} % of {name}={limited['limits'][name]:g}"
                     for name, factor in limited['used'].items())
    proof = 'optimal within the limits' if limited['certificate']['proven'] else 'best found within the limits'
    return f"limited: uses {used}; {proof} (nothing that fits is below {limited['certificate']['bound_ms']:.3f} ms)"


def whether_splitting_pays(result: Dict[str, Any]) -> str:
    """Plainly: the best split against everything on one tier, both unpruned."""
    def times(entry: Dict[str, Any]) -> Times:
        return Times(**{field: entry[field] for field in Times.__dataclass_fields__})

    ways = [OneTier(name, times(entry), entry['lambda'] == 0)
            for name, entry in result['baselines'].items() if name.startswith('all_')]
    verdict = verdict_of(times(result['exact']), ways, images_stay=result['lambda_range'][0] > 0)
    return '\n'.join(sentences([verdict]))
