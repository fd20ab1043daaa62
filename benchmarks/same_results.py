"""Does another commit write the same files? Runs both on one measured table and compares every JSON file.

    python -m benchmarks.same_results --old 59dbf52                  # steps 2 to 4 and tasks 1 and 2, all domains
    python -m benchmarks.same_results --old HEAD~1 --domains 0,3 --joint    # step 3 of these domains, too

Needs a finished step 1 in RESULTS_DIR. The old commit is checked out into a temporary folder; both commits read a copy
of that table and write into folders of their own. Left out of the comparison: dates, seconds, versions, fingerprints
and the names of settings, and `block_evaluations`, which counts work, not results. A field that differs is named with
both values. Step 3's result is listed by J and accuracy as well, for commits that search differently on purpose. Exit
status 1 when a file differs.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import cli
from config import ROOT, UserError
from pipeline import kinds

IGNORED = ('created', 'software', 'inputs', 'search_inputs', 'config', 'made_from', 'wall_s', 'block_evaluations')
TABLES = ('hardware_lut_complete.json', 'lut_server.json', 'lut_client.json')
SHOWN = 5  # fields of one file


def commands(folder: str, domains: Optional[str], joint: bool) -> Iterator[List[str]]:
    """The command lines to run in a checkout, all files of which go to `folder`."""
    some = ['--domains', domains] if domains else []
    many = some or ['--domains', '0-9']
    overrides = ['--set', f'RESULTS_DIR={folder}/results', f'PARTITION_FILE={folder}/partition.json']
    yield ['create_noniid_partition.py', *overrides]
    yield ['code1_train_and_record_weights.py', *some, *overrides]
    yield ['code2_calculate_flops_importance.py', *overrides]
    yield ['step2_initial_throughput_opt.py', *overrides]
    yield ['step3_accuracy_opt.py', *many, *overrides]
    yield ['step4_final_throughput_opt.py', *many, *overrides]
    if joint:
        yield ['step_3_joint.py', *many, *overrides]


def run_commit(checkout: str, folder: str, tables: str, domains: Optional[str], joint: bool) -> None:
    """Run a checkout's steps on a copy of the tables; its files of tasks 1 and 2 are copied to `folder`, too."""
    os.makedirs(os.path.join(folder, 'results'))
    for name in TABLES:
        if os.path.exists(os.path.join(tables, name)):
            shutil.copy(os.path.join(tables, name), os.path.join(folder, 'results'))
    for command in commands(folder, domains, joint):
        cli.say(f'{checkout}: {" ".join(command[:1])}')
        done = subprocess.run([sys.executable, *command], cwd=checkout, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f'{checkout}: {command[0]} failed: {done.stderr.strip().splitlines()[-1]}')
    for place in (os.path.join(folder, 'results'), checkout):  # earlier commits write them at the top
        for name in os.listdir(place):
            if name.startswith(('task1_', 'task2_')) and not os.path.exists(os.path.join(folder, name)):
                shutil.move(os.path.join(place, name), os.path.join(folder, name))


def check_out(commit: str, folder: str) -> None:
    """This repository at a commit, in a folder of its own; of the working tree where `commit` is empty."""
    subprocess.run(['git', 'clone', '-q', ROOT, folder], check=True)
    if commit:
        subprocess.run(['git', '-C', folder, 'checkout', '-q', commit], check=True)
        return
    tracked = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split('\n')
    for path in subprocess.run(['git', '-C', folder, 'ls-files'], check=True, stdout=subprocess.PIPE,
                               text=True).stdout.split('\n')[:-1]:
        os.unlink(os.path.join(folder, path))
    for path in filter(None, tracked):
        if os.path.isfile(os.path.join(ROOT, path)):
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            shutil.copy(os.path.join(ROOT, path), os.path.join(folder, path))


def differences(old: Any, new: Any, at: str = '') -> Iterator[Tuple[str, Any, Any]]:
    """(field, old value, new value) wherever two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in IGNORED:
                yield from differences(old.get(name), new.get(name), f'{at}.{name}' if at else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new)):
            yield from differences(*pair, f'{at}[{index}]')
    elif old != new:
        yield at, old, new


def json_files(folder: str) -> List[str]:
    """Every JSON file under a folder, by its path in it."""
    return sorted(os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder)
                  for name in names if name.endswith('.json'))


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument('--old', required=True, metavar='COMMIT', help='the commit to compare with')
    parser.add_argument('--new', default='', metavar='COMMIT', help='the other one (default: the working tree)')
    parser.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
    parser.add_argument('--joint', action='store_true', help='step 3 as well')
    args, settings = cli.parse(parser, argv)
    tables = os.path.dirname(kinds.path_of('lut', settings))
    if not os.path.exists(kinds.path_of('lut', settings)):
        raise UserError(f"{kinds.path_of('lut', settings)}: no such file; run step 1 first")
    with tempfile.TemporaryDirectory() as top:
        for name, commit in (('old', args.old), ('new', args.new)):
            check_out(commit, os.path.join(top, f'{name}_code'))
            run_commit(os.path.join(top, f'{name}_code'), os.path.join(top, name), tables, args.domains, args.joint)
        return compare(os.path.join(top, 'old'), os.path.join(top, 'new'))


def compare(old_folder: str, new_folder: str) -> int:
    """Print what differs between the JSON files of two folders; 1 where something does, else 0."""
    status, J = 0, []
    for name in sorted({*json_files(old_folder), *json_files(new_folder)}):
        try:
            old, new = (json.load(open(os.path.join(folder, name), encoding='utf-8'))
                        for folder in (old_folder, new_folder))
        except FileNotFoundError as error:
            print(f'{name}: only on one side ({error.filename} is missing)')
            status = 1
            continue
        found = list(differences(old, new))
        if name.endswith('_joint.json'):
            J.append((old['J'], new['J']))
            print(f"{name}: J {old['J']:.4f} -> {new['J']:.4f}, test accuracy {old['accuracy']['final']:.3f} -> "
                  f"{new['accuracy']['final']:.3f}")
        if found:
            status = 1
            shown = '; '.join(f'{field}: {before!r} -> {after!r}'[:120] for field, before, after in found[:SHOWN])
            print(f'{name}: {len(found)} fields differ: {shown}')
        else:
            print(f'{name}: the same')
    if J:
        means = [sum(column) / len(J) for column in zip(*J)]
        print(f'J of step 3, mean of {len(J)} domains: {means[0]:.4f} -> {means[1]:.4f}')
    return status


if __name__ == '__main__':
    cli.run(main)
