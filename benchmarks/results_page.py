"""Every figure of docs/results.md: joint and sequential search against the baselines, by link and head tier.

    python -m benchmarks.results_page run --profile edge-cpu --root results/page     # 2 tiers x 3 links x 10 domains
    python -m benchmarks.results_page run --profile jetson-tx2 --root results/page
    python -m benchmarks.results_page show --profile edge-cpu --root results/page    # Markdown
    python -m benchmarks.results_page run --links 10 --wire_formats float32,float16,uint8 --root results/page_wires
    PROFILE=imagenet python -m benchmarks.results_page b3 --lut_file F               # RepVGG-B3, table from step 1

`run` measures the server (and simulates the client) once and uses the same tables for all links; what is there already
is not done again. The sequential baseline prunes blind to time, so its α is the same on every link and with every
table: it prunes once, in the first case (or in the folder `--pruned_in`), and chooses γ and λ anew in each case.
`b3` needs no data: only times are compared.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('what', choices=('run', 'show', 'b3'))
PARSER.add_argument('--profile', default='edge-cpu')
PARSER.add_argument('--root', default='results/page')
PARSER.add_argument('--links', default='10,100,1000', metavar='MBPS,...')
PARSER.add_argument('--wire_formats', default='float32', metavar='FORMAT,...')
PARSER.add_argument('--clients', type=int, default=1, metavar='K', help='that share the server')
PARSER.add_argument('--pruned_in', default='', metavar='FOLDER')
PARSER.add_argument('--lut_file')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from statistics import mean
from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

import config
import lut_manager
from benchmarks.links import LINKS_MBPS, on_link
from costs.cost_model import TIERS, Configuration, HardwareTable, Solution, Times, scenario_of, split_times
from costs.verdict import sentences, words_of
from network.alpha import surviving_branches, unpruned_alpha
from pipeline import fingerprints, kinds
from search import domain_inputs, domain_search, result_assembly, result_file
from search.answers import Answer
from search.confirmation import Comparison
from search.one_tier import solve_end, verdict_on
from search.result import Baseline, JointResult
from throughput_optimizer import baselines, solve_exact, solve_unfused, split_range
from wire.formats import is_lossless

TABLES = ('roofline_server.json', 'roofline_client.json', 'lut_server.json', 'lut_client.json')


@dataclass(frozen=True)
class Page:
    """What a page compares."""
    profile: str  # of the client
    root: str  # folder of its results
    links_mbps: Sequence[int]
    wire_formats: str
    pruned_in: str = ''
    clients: int = 1

    def folder(self, head: str, mbps: int) -> str:
        """Where the results of a case are."""
        return os.path.join(self.root, self.profile, f'{head}_{mbps}')

    def cases(self) -> Iterator[Tuple[str, int, Tuple[str, ...]]]:
        """(head tier, Mbit/s, overrides) of every case."""
        for head in TIERS:
            for mbps in self.links_mbps:
                yield head, mbps, (f'DEVICE_PROFILE={self.profile}', f'HEAD_TIER={head}', f'BANDWIDTH_MBPS={mbps}',
                                   f'WIRE_FORMATS={self.wire_formats}', f'CLIENTS={self.clients}',
                                   f'RESULTS_DIR={self.folder(head, mbps)}')


def script(overrides: Sequence[str], name: str, *arguments: str) -> None:
    """Run a step; stop when it fails."""
    subprocess.run([sys.executable, name, *arguments, '--if_changed', '--set', *overrides], cwd=config.ROOT, check=True)


def prune_as_before(pruned_in: str, overrides: Sequence[str]) -> None:
    """What step3_accuracy_opt.py would write for this case, from what it wrote for a case of another link or client."""
    settings = config.load(overrides)
    before = replace(settings, RESULTS_DIR=pruned_in)
    path = kinds.path_of('lut', settings)
    table, other = lut_manager.load(path, settings), lut_manager.read(kinds.path_of('lut', before), before)
    model, whole = domain_inputs.base_model(settings), surviving_branches(unpruned_alpha(table.n_branches))
    step2 = domain_search.solve_unpruned(table, settings)
    for domain in range(10):
        inputs = fingerprints.inputs_of('sequential_accuracy', settings, domain, lut=path)
        if fingerprints.is_current([kinds.path_of('sequential_accuracy', settings, domain)], inputs):
            continue
        pruned = result_file.load_anyhow(domain, other, before, 'sequential_accuracy')
        alpha = pruned.configuration.alpha
        best = solve_exact(table, surviving_branches(alpha), settings, splits=[step2.split])
        kept = {name: timed_again(name, baseline, whole, table, settings)
                for name, baseline in pruned.baselines.items() if 'pruned' not in name}
        pruned = replace(pruned, curve=[], baselines={**kept, 'step2': replace(kept['step2'], times=step2.times)})
        a = pruned.accuracy  # formats without loss: what was measured does not depend on the link
        answer = Answer(Configuration(alpha, best.gamma, best.split, best.wire), a.val_final,
                        Comparison(a.cal_reference, a.cal_final, a.n_cal, a.cal_p_value))
        result = result_assembly.as_chosen(pruned, answer, model,
                                         *(domain_inputs.images_of(settings, domain, subset)
                                           for subset in ('val', 'test')), table, settings)
        result_file.save('sequential_accuracy', result, settings, inputs)


def timed_again(name: str, baseline: Baseline, surviving: np.ndarray, table: HardwareTable, settings: config.Settings,
                ) -> Baseline:
    """A baseline of the unpruned network with the times that it has on this table."""
    if not name.startswith('all_'):
        return baseline
    split = table.n_blocks if name.split('_')[1] == settings.HEAD_TIER else 0
    return replace(baseline, times=solve_end(table, surviving, split, baseline.image, settings).times)


def run(page: Page) -> None:
    """All cases of one client."""
    first = ''
    for head, mbps, overrides in page.cases():
        folder = page.folder(head, mbps)
        os.makedirs(folder, exist_ok=True)
        if first:
            for name in TABLES:
                shutil.copyfile(os.path.join(first, name), os.path.join(folder, name))
        else:
            for tier in ('server', 'client'):
                script(overrides, 'roofline_measure.py', '--tier', tier)
                script(overrides, 'step1_measure_lut.py', '--mode', tier)
            first = folder
        script(overrides, 'step1_measure_lut.py', '--mode', 'merge')
        script(overrides, 'step2_initial_throughput_opt.py')
        if all(map(is_lossless, page.wire_formats.split(','))) and (page.pruned_in or folder != first):
            prune_as_before(page.pruned_in or first, overrides)
        for name in ('step3_accuracy_opt.py', 'step4_final_throughput_opt.py', 'step_3_joint.py'):
            script(overrides, name, '--domains', '0-9')


def row(name: str, accuracy: float, times: Sequence[Times], more: str = '') -> str:
    """A line of a table: means over domains."""
    return (f'| {name} | {100 * accuracy:.1f} | {mean(t.T_lat_ms for t in times):.3f} | '
            f'{1000 / mean(t.T_cyc_ms for t in times):.0f} | {mean(t.T_eff_ms for t in times):.3f} | {more} |')


def compared(joint: List[JointResult], sequential: List[JointResult]) -> str:
    """What joint search wins over the sequential baseline and over the best split without pruning."""
    T_eff = [j.times.T_eff_ms / s.times.T_eff_ms - 1 for j, s in zip(joint, sequential)]
    fps = [j.times.throughput_fps / j.baselines['step2'].times.throughput_fps - 1 for j in joint]
    better = sum(j.J <= s.J + 1e-9 for j, s in zip(joint, sequential))
    J = [j.J - s.J for j, s in zip(joint, sequential)]
    gained = mean(j.accuracy.val_final - s.accuracy.val_final for j, s in zip(joint, sequential))
    return (f'Joint against sequential: J at least as good in {better} of {len(joint)} domains (largest excess '
            f'{max(0.0, *J):.4f}, mean difference {mean(J):+.4f}), T_eff {100 * mean(T_eff):+.1f} % on average, '
            f'validation accuracy {100 * gained:+.2f} points. Joint against unpruned: throughput '
            f'{100 * mean(fps):+.1f} % on average, {100 * min(fps):+.1f} % at least.')


def least_T_eff_ms(table: HardwareTable, settings: config.Settings) -> float:
    """A bound for every pruning, whatever its accuracy: each block at the fastest of all γ that it can run at all."""
    fastest = {tier: np.nanmin(table.T_ms[tier], axis=1) for tier in TIERS}
    splits = np.asarray(split_range(table.n_blocks, settings))
    return min(float(split_times(table, fastest, wire, scenario_of(settings, table)).T_eff_ms[splits].min())
               for wire in settings.WIRE_FORMATS)


def show(page: Page) -> None:
    """The tables as Markdown."""
    for head, mbps, overrides in page.cases():
        settings = config.load(overrides)
        table = lut_manager.load(kinds.path_of('lut', settings), settings)
        joint, sequential = ([result_file.load(domain, table, settings, kind) for domain in range(10)]
                             for kind in ('joint', 'sequential'))
        print(f'\n**Head on the {head}, {mbps} Mbit/s**\n\n'
              '| method | test accuracy % | latency ms | throughput fps | T_eff ms | |\n|---|---|---|---|---|---|')
        print(row('joint', mean(r.accuracy.final for r in joint), [r.times for r in joint],
                  f'λ {sorted({r.configuration.split for r in joint})}, '
                  f'{mean(len(r.pruned) for r in joint):.1f} branches pruned'))
        print(row('sequential', mean(r.accuracy.final for r in sequential), [r.times for r in sequential],
                  f'{mean(len(r.pruned) for r in sequential):.1f} branches pruned'))
        for key in joint[0].baselines:
            found = [r.baselines[key] for r in joint if key in r.baselines]
            name = {'step2': 'unpruned, best split'}.get(key, words_of(key) if key.startswith('all_') else '')
            if name and len(found) == len(joint):
                print(row(name, mean(b.accuracy for b in found), [b.times for b in found]))
        least = least_T_eff_ms(table, settings)
        verdict = '; '.join(sentences([verdict_on(result, settings) for result in joint]))
        print(f'\n{compared(joint, sequential)} {verdict[0].upper() + verdict[1:]}. No pruning at all, whatever it '
              f'loses in accuracy, has a T_eff below {least:.3f} ms, '
              f'{100 * (1 - least / mean(s.times.T_eff_ms for s in sequential)):.1f} % below sequential.')


def b3(lut_file: str, settings: config.Settings) -> None:
    """What γ, λ and each dropped 3x3 bring RepVGG-B3, by link and head tier."""
    for head in TIERS:
        print(f'\n**Head on the {head}**\n\n| Mbit/s | unfused, best split | γ and λ | λ | all client | all server | '
              'best single 3x3 to drop | all 3x3 that save |\n|---|---|---|---|---|---|---|---|')
        for mbps in LINKS_MBPS:
            chosen = replace(settings, HEAD_TIER=head, BANDWIDTH_MBPS=float(mbps))
            table = on_link(lut_manager.load(lut_file, settings), chosen)
            whole = surviving_branches(unpruned_alpha(table.n_branches))
            best, ends = solve_exact(table, whole, chosen), baselines(table, whole, chosen)
            without: List[Tuple[float, str]] = []
            every = whole.copy()
            for k, name in enumerate(table.block_names):
                less = whole.copy()
                less[k, 0] = False
                saved = best.times.T_eff_ms - solve_exact(table, less, chosen).times.T_eff_ms
                without.append((saved, name))
                if saved > 1e-6:
                    every[k, 0] = False
            saved, name = max(without)
            last = solve_exact(table, every, chosen)
            print(f'| {mbps} | {T_eff(solve_unfused(table, whole, chosen))} | {T_eff(best)} | {best.split} | '
                  f"{T_eff(ends['all_client'])} | {T_eff(ends['all_server'])} | {name}: {-saved:.2f} ms | "
                  f'{int((whole & ~every)[:, 0].sum())} blocks: {T_eff(last)} at λ = {last.split} |')
            if mbps == 100:
                order = '; '.join(f'{name} {-saved:.2f}' for saved, name in sorted(without, reverse=True))
                print(f'<!-- at {mbps} Mbit/s, ms of T_eff by dropped 3x3: {order} -->')


def T_eff(solution: Solution) -> str:
    """For a table."""
    return f'{solution.times.T_eff_ms:.1f} ms'


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args = PARSER.parse_args(argv)
    np.seterr(all='raise')
    if args.what == 'b3':
        b3(args.lut_file, config.load(('CLIENTS=1',)))
    else:
        page = Page(args.profile, args.root, [int(mbps) for mbps in args.links.split(',')], args.wire_formats,
                    args.pruned_in, args.clients)
        {'run': run, 'show': show}[args.what](page)


if __name__ == '__main__':
    cli.run(main)
