"""A fleet's plan as a table for people: one line for clients that do the same, however many there are."""
from __future__ import annotations

from collections import Counter, defaultdict
from typing import Dict, List, Optional, Sequence, Tuple

from fleet.plan import Plan, PlannedClient

MOST_LINES = 40  # of a table; where groups are more, lines stand for all clients of a split

VALUES = {'max_min': 'every client gets at least {:.2f} frames a second', 'max_total': '{:.1f} frames a second in all',
          'fewest_servers': '{:.0f} servers are needed', 'max_accuracy': 'mean accuracy {:.4f} (validation images)'}
BOUNDS = {'max_min': 'no plan gives all of them more than {:.2f}', 'max_total': 'no plan gives more than {:.1f}',
          'fewest_servers': 'no plan needs fewer than {:.0f}', 'max_accuracy': 'no plan has more than {:.4f}'}


def text_of(plan: Plan) -> str:
    """The table of clients, the servers' load, what limits whom, and how good the plan is."""
    return '\n'.join([*client_lines(plan), '', *server_lines(plan), '', *limit_lines(plan), certificate(plan)])


def certificate(plan: Plan) -> str:
    """The plan's value, and the bound on that of any plan."""
    value = VALUES[plan.objective].format(plan.value)
    if plan.proven:
        return f'{plan.objective}: {value}: the optimum'
    return f'{plan.objective}: {value}; {BOUNDS[plan.objective].format(plan.bound)} (gap {100 * plan.gap:.2f} %)'


def client_lines(plan: Plan) -> List[str]:
    """One line for equal clients that do the same; where that is too many, for all that have the same split."""
    lines: Dict[Tuple[str, ...], List[PlannedClient]] = defaultdict(list)
    for merged in (False, True):
        lines.clear()
        for client in plan.clients:
            point = plan.points[client.point]
            server = '-' if client.server is None else plan.servers[client.server].group
            who = 'all' if merged else plan.groups[client.group].name
            network = '' if merged else point.network if point.domain is None else f'{point.domain} {point.network}'
            lines[who, server, str(point.split), point.wire if point.uses_link else '-', network].append(client)
        if len(lines) <= MOST_LINES:
            break
    found = [f"{'clients':20} {'number':>7} {'server':14} {'λ':>3} {'wire':10} {'network':22} {'fps':>15} "
             f"{'latency, ms':>15}  limited by"]
    for (who, server, split, wire, network), clients in lines.items():
        fps = _range([client.fps for client in clients])
        latency = _range([client.latency_ms for client in clients])
        by = Counter(client.limited_by for client in clients).most_common(1)[0][0]
        found.append(f'{_cut(who, 20):20} {len(clients):7} {_cut(server, 14):14} {split:>3} {wire:10} '
                     f'{_cut(network or "several", 22):22} {fps:>15} {latency:>15}  {by}')
    return found


def server_lines(plan: Plan) -> List[str]:
    """One line a group of servers."""
    found = [f"{'servers':20} {'number':>7} {'used':>7} {'clients':>9} {'load':>13} {'link':>13} {'wait, ms':>15}"]
    for name in dict.fromkeys(server.group for server in plan.servers):
        servers = [server for server in plan.servers if server.group == name]
        used = [server for server in servers if server.n_clients]
        found.append(f"{_cut(name, 20):20} {len(servers):7} {len(used):7} {sum(s.n_clients for s in servers):9} "
                     f"{_range([100 * s.load for s in servers], '%'):>13} "
                     f"{_range([100 * s.link_load for s in servers], '%') if servers[0].bandwidth_mbps else '-':>13} "
                     f"{_range([s.wait_ms for s in servers]):>15}")
    return found


def limit_lines(plan: Plan) -> List[str]:
    """Who is limited by what."""
    by = Counter(client.limited_by for client in plan.clients)
    return ['limited by ' + ', '.join(f'{what}: {number}' for what, number in by.most_common())]


def _range(values: Sequence[Optional[float]], unit: str = '') -> str:
    known = [value for value in values if value is not None]
    if not known:
        return 'no end'
    low, high = (f'{value:.1f}' for value in (min(known), max(known)))
    more = '' if len(known) == len(values) else '+'
    return (low if low == high else f'{low}-{high}') + unit + more


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest - 1] + '…'
