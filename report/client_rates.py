"""How many frames a second each client gets, by the number of clients that share the server: every method's best."""
from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from config import Settings
from costs.cost_model import HardwareTable, ImageFormat, other_tier
from network.alpha import surviving_branches, unpruned_alpha
from report.style import BLACK, BLUE, ORANGE, RED, SKY, headline, styled, subplots
from search.result import JointResult
from throughput_optimizer import solve_exact

CLIENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHOWN = (1, 2, 4, 8, 16, 32)  # in the table
LABEL_GAP = 0.055  # least distance of two labels, in heights of the axes


class Look(NamedTuple):
    """One line of the picture."""
    label: str  # {who}: a camera, or what clients are where the server has the images; {tail}: who is sent the image
    colour: str
    style: str
    marker: str


METHODS: Dict[str, Look] = {
    'split': Look('split and pruned', RED, '-', 'o'),
    'split_unpruned': Look('split, not pruned', BLACK, '-', 's'),
    'all_client': Look('the {who} alone', ORANGE, '--', 'v'),
    'all_server': Look('the server alone', BLUE, '--', '^'),
    'all_tail_jpeg': Look('the {tail} alone, sent a JPEG', SKY, '--', 'D')}


def rates(result: JointResult, table: HardwareTable, settings: Settings, clients: Sequence[int] = CLIENTS,
          ) -> Dict[str, List[float]]:
    """Frames a second of each client, by method and for every number of clients; each method takes the γ, λ and wire
    format that give the most. All but `split_unpruned` run the network that was chosen for the domain."""
    pruned = surviving_branches(result.configuration.alpha)
    whole = surviving_branches(unpruned_alpha(table.n_branches))
    n, head = table.n_blocks, settings.HEAD_TIER
    ends = {f'all_{head}': [n], f'all_{other_tier(head)}': [0]}
    jpeg = jpeg_of(result)
    ways: Dict[str, Tuple[HardwareTable, np.ndarray, Optional[List[int]]]] = {
        'split': (table, pruned, None), 'split_unpruned': (table, whole, None),
        **{name: (table, pruned, splits) for name, splits in sorted(ends.items())}}
    if jpeg is not None:
        ways['all_tail_jpeg'] = replace(table, image=jpeg), pruned, [0]
    return {name: [solve_exact(at, surviving, replace(settings, CLIENTS=k), splits, 'T_cyc_ms').times.throughput_fps
                   for k in clients] for name, (at, surviving, splits) in ways.items()}


def jpeg_of(result: JointResult) -> Optional[ImageFormat]:
    """The JPEG that keeps the accuracy of the chosen network; None: no quality does."""
    return next((found.image for name, found in result.baselines.items()
                 if '_pruned' in name and found.image is not None and found.image.name == 'jpeg'), None)


def mean_rates(results: Sequence[JointResult], table: HardwareTable, settings: Settings) -> Dict[str, np.ndarray]:
    """`rates`, mean over the domains that have the method, [len(CLIENTS)]."""
    found = [rates(result, table, settings) for result in results]
    return {name: np.mean([of[name] for of in found if name in of], axis=0) for name in METHODS
            if any(name in of for of in found)}


@styled
def rate_by_clients(found: Mapping[str, np.ndarray], table: HardwareTable, settings: Settings, note: str = '',
                    ) -> Figure:
    """Frames a second of each client over the number of clients, a line a method; returns the figure. `found`:
    `mean_rates`; `note` is added below the picture."""
    figure, axes = subplots(size=(11.5, 6.6))
    for name, values in found.items():
        look, chosen = METHODS[name], name == 'split'
        axes.plot(CLIENTS, values, look.style, color=look.colour, marker=look.marker, markersize=7,
                  linewidth=3 if chosen else 2, zorder=4 if chosen else 3)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.xaxis.set_major_locator(FixedLocator(SHOWN))
    axes.yaxis.set_major_locator(FixedLocator([digit * 10.0 ** power for power in range(-2, 6) for digit in (1, 2, 5)]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axis.set_minor_locator(NullLocator())
    axes.grid(color='0.88', linewidth=0.6)
    axes.set_xlim(0.93, CLIENTS[-1] * 1.06)
    axes.set_xlabel(f'{who(settings)}s that share one server\n{method_note(table, settings)}{note}')
    axes.set_ylabel(f'frames a second for each {who(settings)}')
    label_lines(axes, found, settings)
    headline(figure, rate_message(found, settings))
    return figure


def text(found: Mapping[str, np.ndarray], settings: Settings) -> List[str]:
    """The picture as a table, for the numbers of clients in SHOWN."""
    columns = [CLIENTS.index(k) for k in SHOWN]
    labels = {name: label_of(name, settings) for name in found}
    width = max(map(len, labels.values()))
    return [f"frames/s of each {who(settings)}, by how many share the server (mean; each method at its best γ, λ and "
            'wire format)', ' ' * width + ''.join(f'{k:8}' for k in SHOWN),
            *(f'{labels[name]:{width}}' + ''.join(f'{found[name][at]:8.1f}' for at in columns) for name in found)]


def label_of(name: str, settings: Settings) -> str:
    """A method in words."""
    return METHODS[name].label.format(who=who(settings), tail=other_tier(settings.HEAD_TIER))


def who(settings: Settings) -> str:
    """What a client is: the tier that has the images is a camera."""
    return 'camera' if settings.HEAD_TIER == 'client' else 'client'


def method_note(table: HardwareTable, settings: Settings) -> str:
    """What the rates hold for."""
    link = f"{table.link.bandwidth_mbps:g} Mbit/s {'for all together' if settings.LINK_SHARED else 'each'}"
    return f'{link}; each method at its best γ, λ and wire format for each number'


def label_lines(axes: Axes, found: Mapping[str, np.ndarray], settings: Settings) -> None:
    """The methods' names at the right ends of their lines, moved apart where they would overlap."""
    bottom, top = np.log(axes.get_ylim())
    below = -np.inf
    for name in sorted(found, key=lambda name: found[name][-1]):
        look, last = METHODS[name], found[name][-1]
        below = max((np.log(last) - bottom) / (top - bottom), below + LABEL_GAP)
        axes.annotate(label_of(name, settings), (1.01, below), xycoords='axes fraction', va='center', color=look.colour,
                      fontweight='bold' if name == 'split' else 'normal', annotation_clip=False)


def rate_message(found: Mapping[str, np.ndarray], settings: Settings) -> str:
    """What the picture shows: from how many clients on the split is ahead of everything else, and by how much."""
    others = np.max([values for name, values in found.items() if not name.startswith('split')], axis=0)
    ahead = [k for k, split, other in zip(CLIENTS, found['split'], others) if split > other]
    if not ahead:
        return f'One machine alone gives each {who(settings)} more frames than a split, however many share the server'
    shown = settings.CLIENTS if settings.CLIENTS in ahead else ahead[-1]
    at = CLIENTS.index(shown)
    all_after = ahead == list(CLIENTS[CLIENTS.index(ahead[0]):])
    which = f'{ahead[0]} or more' if all_after else f'{ahead[0]} to {ahead[-1]}'
    return (f'{which} {who(settings)}s on one server: splitting the network beats either machine alone '
            f'({found["split"][at]:.0f} against {others[at]:.0f} frames a second for each of {shown})')
