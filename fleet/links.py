"""A client's link: constant, or changing over time as a trace says.

A trace is a CSV file with the columns seconds, mbps and rtt_ms. Each row holds until the next one; behind the last row
it starts again. docs/fleet_planning.md says how public 4G and 5G traces are converted.
"""
from __future__ import annotations

import bisect
import csv
import io
import math
from dataclasses import dataclass
from typing import List, Tuple

from config import UserError
from pipeline import documents

TRACE_COLUMNS = ('seconds', 'mbps', 'rtt_ms')
MAX_TRACE_BYTES = 64 << 20
SUSTAINED_SHARE = 0.9  # of the time: a plan counts on the rate that a trace holds for so much of it


@dataclass(frozen=True)
class Trace:
    """A link over time. Row k holds from `start_s[k]` to `start_s[k + 1]`; the trace repeats every `period_s`."""
    start_s: Tuple[float, ...]  # rising, the first is 0
    mbps: Tuple[float, ...]
    rtt_ms: Tuple[float, ...]
    period_s: float

    def at(self, second: float) -> Tuple[float, float]:
        """Mbit/s and round-trip time in ms at this second."""
        k = bisect.bisect_right(self.start_s, second % self.period_s) - 1
        return self.mbps[k], self.rtt_ms[k]

    def sustained(self, share: float = SUSTAINED_SHARE) -> Tuple[float, float]:
        """Mbit/s that the link reaches, and the round-trip time in ms that it keeps to, for this share of the time."""
        return (self._quantile(self.mbps, 1 - share), self._quantile(self.rtt_ms, share))

    def _quantile(self, values: Tuple[float, ...], share: float) -> float:
        """The smallest value that at least this share of the time is not above."""
        ends = (*self.start_s[1:], self.period_s)
        lasting = sorted(zip(values, (end - start for start, end in zip(self.start_s, ends))))
        passed = 0.0
        for value, seconds in lasting:
            passed += seconds
            if passed >= share * self.period_s * (1 - 1e-9):
                return value
        return lasting[-1][0]


def read_trace(path: str) -> Trace:
    """Read a trace. Raises `UserError`, naming the line, for anything that is not one."""
    rows: List[Tuple[float, float, float]] = []
    for number, row in enumerate(read_csv(path, TRACE_COLUMNS, MAX_TRACE_BYTES), start=2):
        try:
            seconds, mbps, rtt_ms = (float(row[name]) for name in TRACE_COLUMNS)
        except ValueError:
            raise UserError(f'{path}: line {number}: {", ".join(TRACE_COLUMNS)} must be numbers') from None
        if not (math.isfinite(seconds) and 0 < mbps < math.inf and 0 <= rtt_ms < math.inf):
            raise UserError(f'{path}: line {number}: mbps must be above 0, rtt_ms 0 or more (a link that is down: a '
                            'rate of 0.001)')
        if rows and seconds <= rows[-1][0]:
            raise UserError(f'{path}: line {number}: seconds must rise from line to line')
        rows.append((seconds, mbps, rtt_ms))
    if len(rows) < 2:
        raise UserError(f'{path}: a trace has at least two lines of numbers')
    first, last = rows[0][0], rows[-1][0]
    period_s = (last - first) * len(rows) / (len(rows) - 1)  # the last row lasts as long as the others on average
    seconds, mbps, rtt_ms = zip(*rows)
    return Trace(tuple(second - first for second in seconds), mbps, rtt_ms, period_s)


def read_csv(path: str, columns: Tuple[str, ...], max_bytes: int) -> List[dict]:
    """The rows of a CSV file by column, all text, none missing ('' for an empty cell). Raises `UserError` for a file
    that cannot be read or has other columns; a column may be left out."""
    data = documents.read_bytes(path, max_bytes)
    try:
        text = data.decode('utf-8-sig')  # editors of some systems put a mark in front
        lines = [line for line in csv.reader(io.StringIO(text, newline=''), strict=True) if any(map(str.strip, line))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path}: is not a CSV file ({error})') from None
    if not lines:
        raise UserError(f'{path}: is empty; its first line names the columns ({", ".join(columns)})')
    header = [name.strip() for name in lines[0]]
    for name in header:
        if name not in columns or header.count(name) > 1:
            what = 'twice' if name in columns else 'unknown'
            raise UserError(f'{path}: column {name[:40]!r} is {what}; the columns are {", ".join(columns)}')
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise UserError(f'{path}: line {number} has {len(line)} cells, the first line names {len(header)} columns')
    return [{**dict.fromkeys(columns, ''), **dict(zip(header, (cell.strip() for cell in line)))} for line in lines[1:]]
