"""A picture of what a service did, from the file of `serve_split.py --log_jsonl`: rate, latency and split over time."""
from __future__ import annotations

import collections
import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from config import UserError
from report import style

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.SKY, style.YELLOW, style.BLACK)
NUMBERS = ('fps', 'latency_p50_ms', 'lambda')  # of a client; the first two may be null
TEXT_POINTS = 12  # from one text to the one above it
MOST_NAMED = len(COLOURS)  # with more clients none is named: lines of one colour for all


@dataclass
class ClientLog:
    """One client's lines, the oldest first. Times in s since the first line of the file."""
    time_s: List[float] = field(default_factory=list)
    fps: List[float] = field(default_factory=list)  # NaN: not known
    latency_ms: List[float] = field(default_factory=list)
    split: List[int] = field(default_factory=list)  # λ
    runs: List[str] = field(default_factory=list)  # network, λ and wire format

    @property
    def switches(self) -> List[int]:
        """The numbers of the lines that say another configuration than the line before."""
        return [k for k in range(1, len(self.runs)) if self.runs[k] != self.runs[k - 1]]


def read(path: str) -> Dict[str, ClientLog]:
    """The clients of a log, by name (with its address where two have one name). Raises `UserError` for a file that is
    none; a last line that is not whole, as a service that was killed leaves it, is left out."""
    snapshots = _snapshots(path)
    names = [collections.Counter(client['name'] for client in clients) for _, clients in snapshots]
    doubled = {name for found in names for name, count in found.items() if count > 1}
    logs: Dict[str, ClientLog] = {}
    for at_s, clients in snapshots:
        for client in clients:
            name = f"{client['name']} ({client.get('peer', '')})" if client['name'] in doubled else client['name']
            log = logs.setdefault(name, ClientLog())
            log.time_s.append(at_s - snapshots[0][0])
            fps, latency_ms = (float('nan') if client[key] is None else float(client[key]) for key in NUMBERS[:2])
            log.fps.append(fps)
            log.latency_ms.append(latency_ms)
            log.split.append(client['lambda'])
            network = client.get('network', '')
            log.runs.append(f"{network + ', ' if network else ''}λ {client['lambda']}, {client['wire']}")
    if not logs:
        raise UserError(f'--service_log {path}: no client was served in it')
    return logs


def _snapshots(path: str) -> List[Tuple[float, List[Dict[str, Any]]]]:
    """(time of day in s, clients) of every line."""
    try:
        with open(path, encoding='utf-8') as stream:
            lines = stream.read().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--service_log {path}: {getattr(error, "strerror", None) or "is no text"}') from None
    found: List[Tuple[float, List[Dict[str, Any]]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith('\n'):
            break
        try:
            snapshot = json.loads(line)
            clients = snapshot['clients']
            for client in clients:
                if not isinstance(client['name'], str) or not isinstance(client['wire'], str) or not all(
                        isinstance(client[key], (int, float)) or client[key] is None and key != 'lambda'
                        for key in NUMBERS):
                    raise ValueError
            found.append((float(snapshot['server']['time_s']), clients))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'--service_log {path}: line {number} is none of serve_split.py --log_jsonl') from None
    return found


@style.styled
def figure_of(logs: Dict[str, ClientLog]) -> Figure:
    """Frames a second, median latency and λ of every client over time; a dotted line and its configuration where one
    was switched."""
    figure, axes = style.subplots(3, 1, size=(11, 9), sharex=True)
    several = len(logs) > MOST_NAMED
    for k, (name, log) in enumerate(logs.items()):
        colour = style.SKY if several else COLOURS[k]
        options = {'color': colour, 'linewidth': 0.8 if several else 1.5}
        axes[0].plot(log.time_s, log.fps, label=None if several else style.plain(name, 24), **options)
        axes[1].plot(log.time_s, log.latency_ms, **options)
        axes[2].step(log.time_s, log.split, where='post', **options)
        _mark_switches(axes, log, colour, None if several else 4 + TEXT_POINTS * (k % 4))
    for one, label in zip(axes, ('frames a second', 'latency, ms (median)', 'λ, blocks on the device')):
        one.set_ylabel(label)
        one.set_ylim(bottom=0)
    axes[2].set_ylim(top=1.25 * max(1, max(max(log.split) for log in logs.values())))
    axes[2].set_xlabel('seconds')
    if not several:
        axes[0].legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=4)
    count = sum(len(log.switches) for log in logs.values())
    style.headline(figure, f'{len(logs)} client(s) of a service, {count} switch(es)')
    return figure


def _mark_switches(axes: List[Axes], log: ClientLog, colour: str, above: Optional[float]) -> None:
    """`above`: points between a split's line and its text; None: no text."""
    for k in log.switches:
        for one in axes:
            one.axvline(log.time_s[k], color=colour, linewidth=0.8, linestyle=':')
        if above is not None:
            axes[2].annotate(style.plain(log.runs[k], 40), (log.time_s[k], log.split[k]), (4, above),
                             textcoords='offset points', fontsize=TEXT_POINTS - 3, color=colour)
