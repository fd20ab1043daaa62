"""Networks of torchvision: the chosen split against brute force over all cuts, each measured as a whole.

    python -m benchmarks.any_network                     # resnet50 and mobilenet_v3_large at 224 pixels
    python -m benchmarks.any_network --cpu_time          # on a machine that others use: this process's own time

Measured with --cpu_time: the ratio below is at most 1.022 for both networks (resnet50: 1.013), and at most 1.060 in a
second run for mobilenet_v3_large alone. Machine: one thread of a 2-core Intel Xeon virtual machine that other programs
used, Python 3.11, PyTorch 2.14.

How: step 1 makes the table of this machine, one thread; the client is the same, 6 times slower (as `edge-cpu`). The
exact method chooses λ from that table, for links of 20, 100 and 1000 Mbit/s and for 1 and 8 clients. Brute force times
the whole head and the whole tail of every cut, λ = 1 to N-1, in rounds before and after the table, takes medians, and
adds up T_eff with the same link. Both T_eff are those of brute force: the ratio is what trusting the table costs.
Bar: ratio at most 1.10 in every case. Exit status 1 where it is missed.
"""
from __future__ import annotations

import cli

PARSER = cli.plain_parser(__doc__)
PARSER.add_argument('--networks', default='resnet50,mobilenet_v3_large', metavar='A,B')
PARSER.add_argument('--size', type=cli.count, default=224, help='pixels')
PARSER.add_argument('--rounds', type=cli.count, default=6, help='of brute force; and twice as many of the table')
PARSER.add_argument('--cpu_time', action='store_true', help="the time of this process's thread, not the clock's")
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import dataclasses
import sys
import time
from typing import Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch

import config
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable, Link, Roofline, combine, round_trip_ms, scenario_of, sent_bytes
from hyper_repvgg import create_network, deploy
from network.alpha import surviving_branches, unpruned_alpha
from network.shapes import TORCHVISION
from throughput_optimizer import solve_exact
from tier.block_timing import MarkedNetwork, part_ms, thread_count

SLOWDOWN, BAR = 6.0, 1.10
LINKS_MBPS, CLIENTS = (20.0, 100.0, 1000.0), (1, 8)


class Case(NamedTuple):
    """One link and number of clients: T_eff of the chosen cut and of the best one, both by brute force, ms."""
    mbps: float
    clients: int
    chosen: int  # λ
    chosen_ms: float
    best: int
    best_ms: float

    @property
    def ratio(self) -> float:
        """What trusting the table costs."""
        return self.chosen_ms / self.best_ms


def settings_of(network: str, size: int, rounds: int) -> Settings:
    """Of one network."""
    return config.load((f'MODEL_NAME={TORCHVISION}{network}', 'WEIGHT_PATH_SERVER=', f'INPUT_SIZE={size}',
                        'NUM_CLASSES=1000', f'LUT_ROUNDS={2 * rounds}', 'SERVER_THREADS=1', 'SERVER_DEVICE=cpu'), {})


def measured_parts(settings: Settings, rounds: int) -> np.ndarray:
    """Times of the whole head and the whole tail at every split 0..N, ms, [rounds, N+1, 2]."""
    torch.manual_seed(0)
    network = deploy(create_network(None, settings.MODEL_NAME, settings.NUM_CLASSES))
    image, n = torch.rand(1, 3, settings.INPUT_SIZE, settings.INPUT_SIZE), len(network.blocks)
    found = np.zeros((rounds, n + 1, 2))
    with thread_count(1):
        for row in found:
            for split in range(1, n):
                row[split] = part_ms(network, image, 1, (0, split)), part_ms(network, image, 1, (split, n))
    return found


def table_of(settings: Settings) -> HardwareTable:
    """This machine as the server, and slowed down as the client."""
    server = lut_manager.measure_tier('server', settings, Roofline(1.0, 1.0))
    client = dataclasses.replace(
        server, tier='client', block_ms=SLOWDOWN * server.block_ms, stem_ms=SLOWDOWN * server.stem_ms,
        classifier_ms=SLOWDOWN * server.classifier_ms,
        parts=tuple(part._replace(ms=SLOWDOWN * part.ms) for part in server.parts))
    return lut_manager.merge(server, client, settings)


def cases_of(table: HardwareTable, parts_ms: np.ndarray, settings: Settings) -> Iterator[Case]:
    """All links and numbers of clients. `parts_ms`: [N+1, 2], heads and tails of this machine."""
    surviving = surviving_branches(unpruned_alpha(table.n_branches))
    for mbps in LINKS_MBPS:
        on_link = lut_manager.with_link(table, Link(mbps, settings.RTT_MS, False))
        com_ms = on_link.link.transfer_ms(sent_bytes(on_link, 'float32', scenario_of(settings, table)))
        for clients in CLIENTS:
            asked = dataclasses.replace(settings, CLIENTS=clients)
            scenario = scenario_of(asked, on_link)
            T_eff_ms = combine(SLOWDOWN * parts_ms[:, 0], com_ms, parts_ms[:, 1], round_trip_ms(on_link, scenario),
                               scenario)[2]
            best = 1 + int(np.argmin(T_eff_ms[1:-1]))
            chosen = solve_exact(on_link, surviving, asked).split
            yield Case(mbps, clients, chosen, float(T_eff_ms[chosen]), best, float(T_eff_ms[best]))


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args = PARSER.parse_args(argv)
    if args.cpu_time:
        MarkedNetwork.clock = staticmethod(time.process_time)
    ratios: List[float] = []
    for name in args.networks.split(','):
        settings = settings_of(name, args.size, args.rounds)
        before = measured_parts(settings, -(-args.rounds // 2))
        table = table_of(settings)
        parts_ms = np.median(np.concatenate([before, measured_parts(settings, max(1, args.rounds // 2))]), axis=0)
        n, held_out = table.n_blocks, table.correction['server'].held_out
        print(f'{name}: {n} blocks; whole heads and tails are {100 * held_out.median:.1f} % off the sums of the table '
              f'(median), at most {100 * held_out.worst:.1f} %')
        print(f"{'Mbit/s':>8} {'clients':>8} {'chosen λ':>9} {'ms':>8} {'best λ':>7} {'ms':>8} {'ratio':>7}")
        for case in cases_of(table, parts_ms, settings):
            ratios.append(case.ratio)
            print(f'{case.mbps:8g} {case.clients:8} {case.chosen:9} {case.chosen_ms:8.2f} {case.best:7} '
                  f'{case.best_ms:8.2f} {case.ratio:7.3f}')
    print(f'worst ratio {max(ratios):.3f}, the bar is {BAR:.2f}; PyTorch '
          f'{torch.__version__}, Python {sys.version.split()[0]}')
    return 0 if max(ratios) <= BAR else 1


if __name__ == '__main__':
    cli.run(main)
