"""Plan a fleet: which client runs what at which server, for many different clients and a few servers.

    python plan_fleet.py examples/fleet_cameras.json
    python plan_fleet.py examples/fleet_cameras.csv --fleet_objective fewest_servers

Objectives: max_min (the largest frame rate that every client gets), max_total (most frames a second in all),
fewest_servers and max_accuracy (for the rates that clients ask for). Reads the fleet (docs/fleet_planning.md shows its
format), the tables of step 1 and, where they are there, the networks of step 3. Writes results/fleet_plan.json, and the
load by server as results/visualization/fleet_load.png and .pdf. Each plan comes with a bound that no plan can beat.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('fleet', metavar='FLEET_FILE', help='clients and servers, JSON or CSV')
cli.add_fleet(PARSER)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import os
from typing import Optional, Sequence

from costs.checks import check_settings
from fleet import plan_file, planning
from fleet.fleet_file import read_fleet
from pipeline import kinds, writing
from pipeline.fingerprints import content_hash
from report import fleet_figures, fleet_summary, style


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    check_settings(settings)
    writing.check_writable(kinds.path_of('fleet_plan', settings))
    fleet = read_fleet(args.fleet, settings)
    with cli.step(f'{fleet.n_clients} clients on {fleet.n_servers} servers'):
        plan = planning.make_plan(planning.model_of(fleet, settings), settings.FLEET_OBJECTIVE)
    path = plan_file.save(plan, settings, {args.fleet: content_hash(args.fleet)})
    picture = os.path.join(settings.RESULTS_DIR, 'visualization', 'fleet_load')
    style.save(fleet_figures.load_by_server(plan), f'{picture}.pdf', f'{picture}.png')
    print(fleet_summary.text_of(plan))
    print(f'-> {path}, {picture}.png')


if __name__ == '__main__':
    cli.run(main)
