"""Play a fleet's plan frame by frame: jitter, links that change, servers that fail, clients that come and go.

    python simulate_fleet.py                                            # results/fleet_plan.json for a minute
    python simulate_fleet.py --seconds 120 --fail rack-1:40-80          # that server is down for 40 s
    python simulate_fleet.py --away gate-7:20-50 --away gate-8:30-60    # these clients leave and come back
    python simulate_fleet.py --link_trace examples/trace_4g_walk.csv    # links that the plan took for constant

Reads the plan of plan_fleet.py (and the link traces that it names); writes results/fleet_simulation.json and prints
rates, latency percentiles and dropped frames beside what the plan predicts. The service's own decision functions decide
(fleet/decisions.py). The same seed (SEED) gives the same run.
"""
from __future__ import annotations

import argparse
import re

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--seconds', type=cli.above_0, default=60.0, metavar='S', help='how long (default: 60)')
PARSER.add_argument('--warm_up', type=float, default=None, metavar='S',
                    help='frames before count for nothing (default: a tenth)')
PARSER.add_argument('--jitter', type=float, default=0.1, metavar='C',
                    help='coefficient of variation of stage times and of the intervals of sources (default: 0.1)')
PARSER.add_argument('--files', action='store_true', help='sources are files, whose frames are never dropped')


def absence(text: str) -> tuple:
    """'rack-1:40-80' -> ('rack-1', 40.0, 80.0)."""
    found = re.fullmatch(r'(.+):(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)', text, re.ASCII)
    if not found or float(found[2]) >= float(found[3]):
        raise argparse.ArgumentTypeError(f'{text!r}: write it as NAME:FROM-TO, in seconds')
    return found[1], float(found[2]), float(found[3])


cli.add_link_trace(PARSER)
PARSER.add_argument('--fail', type=absence, action='append', default=[], metavar='SERVER:FROM-TO')
PARSER.add_argument('--away', type=absence, action='append', default=[], metavar='CLIENT:FROM-TO')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load NumPy

from dataclasses import replace
from typing import Iterable, Optional, Sequence

from config import UserError
from costs.checks import check_settings
from fleet import outcome, plan_file
from fleet.links import read_trace
from fleet.plan import Plan
from fleet.simulation import Absence, Scenario, Simulation
from pipeline import fingerprints, kinds, writing


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    check_settings(settings)
    warm_up_s = args.seconds / 10 if args.warm_up is None else args.warm_up
    if not 0 <= warm_up_s < args.seconds or not 0 <= args.jitter <= 2:
        raise UserError(f'--warm_up {warm_up_s:g} must be 0 or more and less than --seconds {args.seconds:g}, --jitter '
                        f'{args.jitter:g} between 0 and 2')
    path = kinds.path_of('fleet_simulation', settings)
    writing.check_writable(path)
    plan = plan_file.load(settings)
    check_known([name for name, _, _ in args.fail], [server.name for server in plan.servers], 'server')
    check_known([name for name, _, _ in args.away], [client.name for client in plan.clients], 'client')
    plan = with_traces(plan, settings.LINK_TRACE)
    traces = {group.link_trace: read_trace(group.link_trace) for group in plan.groups if group.link_trace}
    scenario = Scenario(args.seconds, warm_up_s, args.jitter, tuple(Absence(*item) for item in args.fail),
                        tuple(Absence(*item) for item in args.away), not args.files)
    with cli.step(f'{len(plan.clients)} clients for {args.seconds:g} s'):
        simulation = Simulation(plan, traces, scenario, settings)
        simulation.run()
    found = outcome.outcome_of(simulation)
    writing.write(path, {'scenario': {**vars(scenario), 'failures': args.fail, 'absences': args.away},
                         **found.as_dict()},
                  writing.make_metadata(settings, 'fleet_simulation',
                                        fingerprints.inputs_of('fleet_simulation', settings)))
    print(outcome.text_of(found))
    print(f'-> {path}')


def with_traces(plan: Plan, link_trace: str) -> Plan:
    """The plan with this trace ('': none) for groups whose links it took for constant."""
    return replace(plan, groups=tuple(replace(group, link_trace=group.link_trace or link_trace)
                                      for group in plan.groups))


def check_known(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `UserError` for a name that the plan has not."""
    for name in names:
        if name not in known:
            raise UserError(f'the plan has no {what} {name!r}; it has {", ".join(known[:5])}'
                            f'{", ..." if len(known) > 5 else ""}')


if __name__ == '__main__':
    cli.run(main)
