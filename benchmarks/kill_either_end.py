"""Kills client or server at random moments of a real-mode run, again and again: the result must not change.

    python -m benchmarks.kill_either_end --kills 50 --folder /tmp/kills

Prepares the built-in example once (partition, α, importance, measured table), runs `step_3_joint.py --mode real`
undisturbed, then repeats it while SIGKILLing either end after 1 to 9 s, each time starting the killed one again, until
there were enough kills. Every finished result must equal the undisturbed one, times aside.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

import cli
from config import ROOT

SETTINGS = ['IMAGES_PER_SUBSET=200', 'MAX_PRUNING_ROUNDS=6', 'LUT_ROUNDS=2', 'NUM_DOMAINS=4', 'ALPHA_EPOCHS=1']
# Not compared: times, and work, since a killed end computes again what it had in memory.
TIMED = {'wall_s', 'metadata', 'predicted', 'block_evaluations'}
KEPT_OF_MEASURED = ('accuracy', 'ci95', 'n_test', 'stream_agrees_with_evaluation', 'n_frames_total', 'lambda', 'wire')


class Run:
    """Both ends of one run."""

    def __init__(self, folder: str, port: int) -> None:
        self.folder, self.port = folder, port
        self.ends: Dict[str, Optional[subprocess.Popen]] = {'client': None, 'server': None}

    def start(self, end: str) -> None:
        """Start one end."""
        command = {'client': ['client_worker.py', '--control_port', '0', '--cache_dir', 'client_cache'],
                   'server': ['step_3_joint.py', '--mode', 'real', '--domain_id', '3']}[end]
        with open(os.path.join(self.folder, f'{end}.log'), 'ab') as log:
            self.ends[end] = subprocess.Popen(
                [sys.executable, os.path.join(ROOT, command[0]), *command[1:], '--port', str(self.port), '--set',
                 *SETTINGS], cwd=self.folder, stdout=log, stderr=log)

    def kill(self, end: str) -> None:
        """SIGKILL it."""
        self.ends[end].kill()
        self.ends[end].wait()

    def finished(self) -> bool:
        """Has the server written its result? Raises when it failed."""
        code = self.ends['server'].poll()
        if code not in (None, 0):
            raise RuntimeError(f'the server failed with status {code}; see {self.folder}/server.log')
        return code == 0


def result_of(folder: str) -> Dict[str, Any]:
    """The result file without times; the file is removed."""
    path = os.path.join(folder, 'results', 'joint_optimization', 'domain_3_joint.json')
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    os.unlink(path)
    measured = {name: content['measured'][name] for name in KEPT_OF_MEASURED}
    return {**{name: value for name, value in content.items() if name not in TIMED}, 'measured': measured}


def prepare(folder: str) -> None:
    """The built-in example in a folder of its own, up to α and importance."""
    os.makedirs(folder)
    shutil.copytree(os.path.join(ROOT, 'data'), os.path.join(folder, 'data'))
    for script in ('create_noniid_partition.py', 'code1_train_and_record_weights.py',
                   'code2_calculate_flops_importance.py'):
        subprocess.run([sys.executable, os.path.join(ROOT, script), '--set', *SETTINGS], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def undisturbed(run: Run) -> Dict[str, Any]:
    """One run without kills."""
    run.start('client')
    run.start('server')
    while not run.finished():
        time.sleep(0.2)
    return result_of(run.folder)


def main() -> None:
    """The command line."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--folder', required=True, help='a new folder to work in')
    parser.add_argument('--port', type=cli.port, default=7401)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    rng, run = random.Random(args.seed), Run(args.folder, args.port)
    prepare(args.folder)
    expected = undisturbed(run)  # also measures the table, which later runs use again
    kills: List[str] = []
    runs = 0
    run.start('server')
    while len(kills) < args.kills or not run.finished():
        until = time.monotonic() + rng.uniform(1, 9)
        while time.monotonic() < until and not run.finished():
            time.sleep(0.05)
        if run.finished():
            runs += 1
            found = result_of(args.folder)
            different = [name for name in expected if found.get(name) != expected[name]]
            if different or len(found) != len(expected):
                sys.exit(f'the result after {len(kills)} kills differs: {", ".join(different)}')
            print(f'{len(kills)} kills, {runs} runs finished, all results equal', flush=True)
            if len(kills) >= args.kills:
                break
            run.start('server')
        elif len(kills) < args.kills:
            end = rng.choice(('client', 'server'))
            run.kill(end)
            run.start(end)
            kills.append(end)
    run.kill('client')
    print(f"{kills.count('client')} kills of the client, {kills.count('server')} of the server, in {runs} runs: "
          'every result equals the undisturbed one')


if __name__ == '__main__':
    main()
