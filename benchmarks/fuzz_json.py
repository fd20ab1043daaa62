"""Gives every reader of a JSON file thousands of damaged ones: each is read, or refused in one line.

    python -m benchmarks.fuzz_json --mutations 10000

Runs the pipeline of the built-in example for one domain, short, in a folder of its own, and then damages each kind of
file that it wrote, in turn: truncated, with flipped bits, replaced by something else, or with one or two values, at a
random depth, replaced by what they must not be or left out. Everything that reads the kind then reads it, with what
stands behind it taken for unchanged, so that nothing else shields it. Allowed are a correct run and a `UserError` of
one line; anything else ends the benchmark, with the seed and the damage.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--mutations', type=int, default=10000, help='damaged files in all')
PARSER.add_argument('--seed', type=int, default=0)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import contextlib
import copy
import dataclasses
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, Sequence, Tuple
from unittest import mock

import code1_train_and_record_weights as code1
import config
import lut_manager
import roofline_measure
import step2_initial_throughput_opt as step2
import step5_visualize_results as step5
from config import Settings, UserError
from costs.device_profiles import load_profile
from domains import partition, trained_images
from domains.image_sources import open_source
from fleet import plan_file
from fleet.fleet_file import read_fleet
from network.outline import outline_for
from pipeline import fingerprints, kinds, measured, provenance, writing
from report import cost_figures, pictures, summary
from search import domain_inputs, result_file, result_warnings, state_file
from service import entries
from steps import hardware_table

SHORT = ['LUT_ROUNDS=1', 'MAX_EVALUATIONS=10', 'RECOVERY_STEPS=1', 'THROUGHPUT_OPTIM_STEPS=3', 'ALPHA_EPOCHS=1']
ODD = (None, True, -1, 0, 3, 10 ** 400, 10 ** 30, 10 ** 28, 1e308, -0.5, 'x', '', [], {}, [1, 2], [[1]], {'a': 1},
       {'0': [1]}, '\ud800', [None], '../../x', '\0', '\x1b[2J\n')
TEXTS = ('[' * 100_000, '{"a":' * 100_000, '{"a":' * 3000 + '1' + '}' * 3000, '[' * 3000 + ']' * 3000, '[1, 2]', 'null',
         '"x"', '3', '', '\ufeff{}', '[]', '{}', '{"schema_version": 1, "metadata": []}', '9' * 5000)
FLEET = {'clients': [{'name': 'gate', 'count': 3, 'bandwidth_mbps': 40, 'domain': 0}, {'name': 'yard', 'fps': 5}],
         'servers': [{'name': 'rack', 'workers': 2}]}
Readers = Dict[str, Tuple[str, Sequence[Callable[[], object]]]]


def mutated(text: str, rng: random.Random) -> bytes:
    """Truncated, with flipped bits, something else, or with one or two values replaced or left out."""
    how = rng.random()
    if how < 0.05:
        return text[:rng.randrange(len(text))].encode()
    if how < 0.1:
        found = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        return bytes(found)
    if how < 0.15:
        return rng.choice(TEXTS).encode()
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        replace_somewhere(content, rng)
    return json.dumps(content).encode()


def replace_somewhere(node: object, rng: random.Random) -> None:
    """Replace a value at a random depth, or leave it out."""
    parent, key = None, None
    for _ in range(rng.randint(1, 7)):
        if not isinstance(node, (dict, list)) or not node:
            break
        parent, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = parent[key]
    if parent is not None and rng.random() < 0.15:
        del parent[key]
    elif parent is not None:
        parent[key] = copy.deepcopy(rng.choice(ODD))


def readers_of(settings: Settings, profile: str, fleet: str) -> Readers:
    """{kind: (path, everything that reads it)}; `profile` and `fleet` are the paths of a device profile and a fleet."""
    source, names = open_source(settings), list(outline_for(settings).block_names)
    unknown = dataclasses.replace(settings, DATASET='imagefolder')
    table = lut_manager.read(kinds.path_of('lut', settings), settings)
    simulated = dataclasses.replace(settings, DEVICE_PROFILE=profile)

    def path(kind: str) -> str:
        return kinds.path_of(kind, settings, 0)

    def result(kind: str) -> Sequence[Callable[[], object]]:
        return (lambda: result_file.load(0, table, settings, kind), lambda: result_file.search_inputs_of(path(kind)),
                lambda: step2.fits(path(kind)), lambda: step5.earlier_pictures(path(kind)), report_on_results)

    def report_on_results() -> None:
        found = pictures.load([0], path('lut'), settings)
        pictures.text_of(found)
        json.dumps(summary.as_dict(found.results, settings), allow_nan=False)

    def tier(name: str) -> Sequence[Callable[[], object]]:
        file = path(f'lut_{name}')
        return (lambda: lut_manager.load_tier(name, settings), lambda: hardware_table.check_tier(name, file, settings),
                lambda: measured.is_measured('lut_client', settings), lambda: fingerprints.inputs_of('lut', settings))

    return {
        'partition': (path('partition'), (
            lambda: partition.load_partition(source, settings), lambda: result_warnings.of_settings(settings),
            lambda: fingerprints.inputs_of('alpha', settings))),
        'alpha': (path('alpha'), (
            lambda: domain_inputs.load_alphas(settings), lambda: code1.recorded(settings, ''),
            lambda: fingerprints.inputs_of('joint', settings, 0))),
        'alpha_training': (path('alpha_training'), (
            lambda: code1.print_table(code1.recorded(settings, '')['alpha_training']),)),
        'importance_rankings': (path('importance_rankings'), (
            lambda: domain_inputs.importance_ranking(0, names, settings),
            lambda: fingerprints.inputs_of('joint', settings, 0))),
        'base_model': (kinds.report_on_weights(settings), (
            lambda: trained_images.read(settings), lambda: trained_images.why_unknown(unknown, 'x'))),
        'roofline_server': (path('roofline_server'), (lambda: roofline_measure.load_roofline('server', settings),)),
        'roofline_client': (path('roofline_client'), (
            lambda: roofline_measure.load_roofline('client', settings),
            lambda: measured.is_measured('roofline_client', settings))),
        'lut_server': (path('lut_server'), tier('server')), 'lut_client': (path('lut_client'), tier('client')),
        'lut': (path('lut'), (lambda: lut_manager.load(path('lut'), settings),
                              lambda: hardware_table.measured_before(settings),
                              lambda: fingerprints.inputs_of('step2', settings))),
        'step2': (path('step2'), (
            lambda: cost_figures.load_splits(table, settings), lambda: step2.fits(path('step2')))),
        'joint': (path('joint'), result('joint')), 'sequential': (path('sequential'), result('sequential')),
        'joint_state': (path('joint_state'), (
            lambda: state_file.load('joint_state', 0, table, settings, ''),)),
        'fleet': (fleet, (lambda: read_fleet(fleet, settings),)),
        'fleet_plan': (path('fleet_plan'), (
            lambda: plan_file.load(settings), lambda: entries.entries_of_plan('rack', settings))),
        'profile': (profile, (lambda: load_profile(profile),
                              lambda: fingerprints.inputs_of('lut_client', simulated))),
    }


def fuzz(kind: str, path: str, read: Sequence[Callable[[], object]], mutations: int, seed: int) -> Dict[str, int]:
    """Damage the file at `path` again and again; how often a reader took it or refused it. Raises `AssertionError`
    where one did neither; the file is as before in the end."""
    rng, counts = random.Random(f'{kind} {seed}'), {'read': 0, 'refused': 0}
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    try:
        with mock.patch.object(provenance, 'require', lambda *args, **options: None), \
                mock.patch.object(fingerprints, 'is_current', lambda paths, inputs: True), \
                contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for number in range(mutations):
                damaged = mutated(text, rng)
                with open(path, 'wb') as stream:
                    stream.write(damaged)
                for reader in read:
                    try:
                        reader()
                        counts['read'] += 1
                    except UserError as error:
                        assert '\n' not in str(error), f'{kind}: {error}'
                        counts['refused'] += 1
                    except Exception as error:
                        raise AssertionError(f'{kind}: seed {seed}, mutation {number}: {damaged[:200]!r}') from error
    finally:
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write(text)
    return counts


def prepared(folder: str) -> Readers:
    """The pipeline's files in this folder, and a device profile."""
    overrides = [*SHORT, f'RESULTS_DIR={folder}']
    pipeline = os.path.join(config.ROOT, 'run_pipeline.sh')
    subprocess.run(['bash', pipeline, '--domains', '0', '--with_sequential', '--set', *overrides], check=True,
                   stdout=subprocess.DEVNULL)
    profile = os.path.join(folder, 'profile.json')
    writing.write(profile, {'kind': 'measured', 'name': 'a phone', 'slowdown': 2.5, 'threads': 2}, {})
    fleet = os.path.join(folder, 'fleet.json')
    with open(fleet, 'w', encoding='utf-8') as stream:
        json.dump(FLEET, stream)
    subprocess.run([sys.executable, os.path.join(config.ROOT, 'plan_fleet.py'), fleet, '--set', *overrides], check=True,
                   stdout=subprocess.DEVNULL)
    settings = config.load(overrides, {})
    weights = os.path.join(folder, 'weights.pt')
    for source, target in (  # what ships is not to be damaged
            (kinds.report_on_weights(settings), os.path.join(folder, 'weights.json')),
            (settings.WEIGHT_PATH_SERVER, weights),
            *((fingerprints.found_at(kind, settings), kinds.path_of(kind, settings)) for kind in kinds.SHIPPED)):
        if source != target:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(source, target)
    return readers_of(dataclasses.replace(settings, WEIGHT_PATH_SERVER=weights), profile, fleet)


def main() -> None:
    """The command line."""
    args = PARSER.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = prepared(folder)
        del readers['joint_state']  # a finished search leaves none
        for kind, (path, read) in readers.items():
            start, share = time.perf_counter(), -(-args.mutations // len(readers))
            counts = fuzz(kind, path, read, share, args.seed)
            print(f"{kind:20} {share} damaged files, {len(read)} readers: read {counts['read']} times, refused "
                  f"{counts['refused']} times in one line; {time.perf_counter() - start:.0f} s", flush=True)
    print('no traceback')


if __name__ == '__main__':
    main()
