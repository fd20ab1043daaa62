"""Plans of large fleets: how long they take, how much memory, and how far from the bound that no plan can beat.

    python -m benchmarks.fleet_scale                     # needs the table of step 1 in RESULTS_DIR

Claim (2-core Intel Xeon virtual machine, Python 3.11, NumPy 2.4, SciPy 1.17, one thread; the machine was busy with
much other work): for 10,000 clients on 100 servers a plan takes at most 1 s where clients are of 6 kinds and at most
26 s where no two are alike; gap at most 0.1 %, memory of the process 0.8 GB.

Servers: half with 4 workers, half with 2 and a link of 1 Gbit/s that is shared. Clients: 2 devices (RESULTS_DIR's and
jetson-tx2) on links of 10, 30 and 90 Mbit/s, or each on a link of its own (log-normal around 30 Mbit/s). Every client
asks for 1.05 times the rate that it could have alone, and takes up to 4 times that. Each objective that needs no result
of step 3 is planned once; the plan of max_min is then played for a second.

Bars: a plan in at most 60 s and 2 GB, a gap of at most 2 % (of few servers, one); exit status 1 where one is missed.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--clients', type=int, default=10_000)
PARSER.add_argument('--servers', type=int, default=100)

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import resource
import sys
import time
from typing import List, Optional, Sequence

import numpy as np

from config import Settings
from fleet import planning
from fleet.fleet_file import ClientGroup, Fleet, ServerGroup
from fleet.objectives import OBJECTIVES
from fleet.outcome import outcome_of
from fleet.plan import Plan
from fleet.simulation import Scenario, Simulation

BARS = {'seconds': 60.0, 'gigabytes': 2.0, 'gap': 0.02}
DEVICES = ('', 'profile jetson-tx2')


def with_rates(groups: List[ClientGroup], servers: Sequence[ServerGroup], settings: Settings) -> Fleet:
    """The fleet, each client asking for a little more than it could have alone."""
    problem = planning.model_of(Fleet('fleet', tuple(groups), tuple(servers)), settings).problem
    no_server = np.where(problem.server_ms + problem.mbit == 0, problem.own_fps, 0.0).max(axis=(1, 2))
    asked = np.minimum(1.05 * no_server, 0.99 * problem.own_fps.max(axis=(1, 2)))
    return Fleet('fleet', tuple(ClientGroup(**{**vars(group), 'fps': fps, 'max_fps': 4 * fps})
                                for group, fps in zip(groups, asked.tolist())), tuple(servers))


def group(name: str, count: int, device: str, mbps: float) -> ClientGroup:
    """Equal clients on links of their own."""
    return ClientGroup(name, count, device, mbps, 5.0, None, '', None, None, None, None)


def fleets(clients: int, servers: int, settings: Settings) -> List[Fleet]:
    """Of few kinds of clients, and of clients that are all different."""
    racks = (ServerGroup('rack', servers // 2, '', 4, None), ServerGroup('desk', servers - servers // 2, '', 2, 1000.0))
    links = np.random.default_rng(settings.SEED).lognormal(np.log(30), 0.6, clients).tolist()
    few = [group(f'kind{k}', clients // 6, DEVICES[k % 2], (10.0, 30.0, 90.0)[k // 2]) for k in range(6)]
    many = [group(f'client{k}', 1, DEVICES[k % 2], mbps) for k, mbps in enumerate(links)]
    return [with_rates(groups, racks, settings) for groups in (few, many)]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Plan both fleets for every objective, and play a plan."""
    args, settings = cli.parse(PARSER, argv)
    missed, plan = 0, None
    print(f"{'groups':>7} {'objective':15} {'seconds':>8} {'GB so far':>10} {'value':>12} {'bound':>12} {'gap, %':>7}")
    for fleet in fleets(args.clients, args.servers, settings):
        for objective in (name for name in OBJECTIVES if name != 'max_accuracy'):  # that needs results of step 3
            start = time.perf_counter()
            found = planning.make_plan(planning.model_of(fleet, settings), objective)
            seconds = time.perf_counter() - start
            gigabytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
            print(f'{len(fleet.clients):7} {objective:15} {seconds:8.1f} {gigabytes:10.2f} {found.value:12.2f} '
                  f'{found.bound:12.2f} {100 * found.gap:7.2f}', flush=True)
            one_server = objective == 'fewest_servers' and found.value - found.bound <= 1
            missed += seconds > BARS['seconds'] or gigabytes > BARS['gigabytes'] or (
                found.gap > BARS['gap'] and not one_server)
            plan = found if objective == 'max_min' and plan is None else plan
    play(plan, settings)
    return 1 if missed else 0


def play(plan: Plan, settings: Settings) -> None:
    """Play a plan for a second."""
    start = time.perf_counter()
    simulation = Simulation(plan, {}, Scenario(1.0, 0.2, 0.1), settings)
    simulation.run()
    seconds, found = time.perf_counter() - start, outcome_of(simulation)
    frames = sum(one.frames for one in found.groups)
    rate = max(abs(one.fps / one.planned_fps - 1) for one in found.groups)
    print(f'played: {frames} frames in {seconds:.1f} s, rates of kinds within {100 * rate:.1f} % of the plan')


if __name__ == '__main__':
    sys.exit(main())
