"""Runs many domains: one after another here, in worker processes of this machine, or on a Ray cluster."""
from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import cli
from config import Settings, UserError
from costs.checks import check_settings
from engines.jobs import Job, Outcome, attempt
from engines.processes import run_in_processes, train_devices
from pipeline import fingerprints, kinds, writing

ENGINES = ('serial', 'processes', 'ray')


def add_flags(to: argparse.ArgumentParser) -> None:
    """The flags of scripts that do one domain or many."""
    which = to.add_mutually_exclusive_group(required=True)
    which.add_argument('--domain_id', type=int, metavar='D', help='one domain')
    which.add_argument('--domains', metavar='0-9', help='many, as 0-9 or 0,3,7')
    add_engine(to)


def add_engine(to: argparse.ArgumentParser) -> None:
    """How many at a time, and where."""
    to.add_argument('--jobs', type=int, metavar='N', help='domains at a time (default: what the cores allow)')
    to.add_argument('--engine', choices=ENGINES, help='where they run (default with --domains: processes)')


def check_flags(args: argparse.Namespace) -> None:
    """Raise `UserError` for what argparse lets pass."""
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f'--jobs {args.jobs}: must be 1 or more')
    if args.engine == 'ray' and importlib.util.find_spec('ray') is None:
        raise UserError('--engine ray needs Ray, which is not installed here; get it with `pip install ray`')


def parser(docstring: str) -> argparse.ArgumentParser:
    """The command line of a script that does one domain or many and has no flags of its own."""
    made = cli.parser(docstring)
    cli.add_if_changed(made)
    add_flags(made)
    cli.add_limits(made)
    return made


def run(load_work: Callable[[], Callable[..., None]], kind: str, args: argparse.Namespace, settings: Settings,
        lut_file: Optional[str] = None, options: Callable[[int], Dict[str, Any]] = lambda domain: {}) -> int:
    """Make the files of this kind for the domains that `args` names; the exit status.

    `load_work()` imports and returns the work (`Job.work`); it is called when a file is not up to date.
    `options(domain)`: what else the work is told (`Job.options`). One domain without --engine runs in this process and
    raises what it raises.
    """
    check_settings(settings)
    check_flags(args)
    domains = cli.domains(str(args.domain_id) if args.domains is None else args.domains, settings)
    lut_file = lut_file or kinds.path_of('lut', settings)
    missing: List[Tuple[int, str]] = []  # domain, fingerprint of its inputs
    for domain in domains:
        path = kinds.path_of(kind, settings, domain)
        inputs = fingerprints.inputs_of(kind, settings, domain, lut=lut_file)
        if args.if_changed and fingerprints.is_current([path], inputs):
            cli.say(f'{path} is up to date')
        else:
            writing.check_writable(path)
            missing.append((domain, inputs))
    work = load_work() if missing else None
    jobs = [Job(work, domain, settings, inputs, lut_file, options(domain)) for domain, inputs in missing]
    if args.domains is None and args.engine is None:
        for job in jobs:
            job.run()
        return 0
    failures = run_jobs(jobs, args.engine or 'processes', args.jobs)
    if not failures:
        return 0
    names = ', '.join(str(failure.domain) for failure in sorted(failures, key=lambda failure: failure.domain))
    flag = '' if args.if_changed else ' with --if_changed'
    cli.say(f'{cli.command_name()}: error: domain {names} failed, {len(domains) - len(failures)} of {len(domains)} '
            f'done; the same command{flag} goes on with what is missing')
    return cli.EXIT_BAD_INPUT if all(failure.bad_input for failure in failures) else cli.EXIT_FAILED


def run_jobs(jobs: Sequence[Job], engine: str, at_once: Optional[int] = None) -> List[Outcome]:
    """Run jobs, saying how each ends; the outcomes of those that failed. `at_once`: None: what the cores allow."""
    failures: List[Outcome] = []

    def report(outcome: Outcome) -> None:
        print(outcome.printed, end='', flush=True)
        if outcome.error:
            cli.say(f'domain {outcome.domain}: error: {outcome.error}')
            failures.append(outcome)

    if engine == 'ray':
        from engines import ray_cluster  # loads Ray, which is optional
        ray_cluster.run_on_ray(jobs, at_once, report)
    elif engine == 'processes' and jobs:
        settings, devices = jobs[0].settings, train_devices(jobs[0].settings)
        on_cores = max(1, settings.threads(0) // settings.threads(settings.TORCH_THREADS))
        run_in_processes(jobs, at_once or (on_cores if devices == ['cpu'] else len(devices)), report, devices)
    else:
        for job in jobs:
            report(attempt(job))
    return failures


def print_domains(argv: Optional[Sequence[str]]) -> None:
    """Check settings and flags and print the chosen domains: run_pipeline.sh's first step."""
    made = cli.parser('Check settings and flags, and print the chosen domains.')
    made.add_argument('--domains', metavar='0-9')
    add_engine(made)
    args, settings = cli.parse(made, argv)
    check_settings(settings)
    check_flags(args)
    print(*cli.domains(args.domains, settings), sep=',')


if __name__ == '__main__':
    sys.argv[0] = 'run_pipeline.sh'  # the command that was typed, for messages
    cli.run(print_domains)
