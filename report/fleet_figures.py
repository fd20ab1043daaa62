"""Pictures of a fleet."""
from __future__ import annotations

from typing import List

import numpy as np
from matplotlib.figure import Figure

from fleet.plan import Plan
from report import style
from report.fleet_summary import certificate

MOST_BARS = 60  # single servers; of more the distribution is drawn


@style.styled
def load_by_server(plan: Plan) -> Figure:
    """How much of its time, and of its link, every server is busy."""
    figure, axes = style.subplots(size=(9, 4.5))
    load = np.array([100 * server.load for server in plan.servers])
    link = np.array([100 * server.link_load for server in plan.servers])
    if len(plan.servers) <= MOST_BARS:
        _bars(axes, plan, load, link)
    else:
        order = np.argsort(-load, kind='stable')
        axes.fill_between(np.arange(len(load)), load[order], step='mid', color=style.TIER_COLOURS['server'],
                          label='work')
        if link.any():
            axes.plot(np.sort(link)[::-1], color=style.LINK_COLOUR, label='link')
        axes.set_xlabel(f'{len(load)} servers, the busiest first')
    axes.axhline(100 * plan.max_load, color=style.BLACK, linewidth=1, linestyle='--', label='MAX_LOAD')
    axes.set_ylabel('load of the servers, %')
    axes.set_ylim(0, max(118.0, 1.15 * float(max(load.max(), link.max()))))
    axes.legend(loc='upper left', ncols=3)
    style.headline(figure, certificate(plan))
    return figure


def _bars(axes, plan: Plan, load: np.ndarray, link: np.ndarray) -> None:
    at = np.arange(len(load))
    width = 0.4 if link.any() else 0.8
    axes.bar(at - (0.2 if link.any() else 0), load, width, color=style.TIER_COLOURS['server'], label='work')
    if link.any():
        axes.bar(at + 0.2, link, width, color=style.LINK_COLOUR, label='link')
    names: List[str] = [f'{style.plain(server.name, 14)}\n{server.n_clients}' for server in plan.servers]
    axes.set_xticks(at, names if len(names) <= 12 else [''] * len(names))
    axes.set_xlabel('server, and how many clients it has')
