"""Energy of a frame: what the tiers draw while they compute, send and idle. Watts times ms are millijoules."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from pipeline.documents import Document

ORIGINS = ('measured', 'profile')
WATTS = ('active_w', 'idle_w', 'send_w')


@dataclass(frozen=True)
class Power:
    """What a tier draws, W, at least as much as `idle_w` whatever it does."""
    active_w: float  # while it computes; of a server while all its workers do
    idle_w: float
    send_w: float  # while its link is in use
    origin: str  # 'measured': read from a sensor by step 1 (power_sensors.py); 'profile': stated in a device profile

    def client_mj(self, T_client_ms, T_com_ms, T_cyc_ms):
        """Energy of a frame on a client, mJ: P_active·T_client + P_send·T_com + P_idle·(T_cyc - T_client - T_com).
        Written as what each adds to idling, it also holds where computing and sending overlap. Floats, arrays, tensors.
        """
        return (self.idle_w * T_cyc_ms + (self.active_w - self.idle_w) * T_client_ms +
                (self.send_w - self.idle_w) * T_com_ms)

    def server_mj(self, T_server_ms, T_cyc_ms, clients: int, workers: int):
        """Energy of one client's frame on the server, mJ; the clients share its idling, the workers what is above."""
        return self.idle_w * T_cyc_ms / clients + (self.active_w - self.idle_w) * T_server_ms / workers

    def as_dict(self) -> Dict[str, Any]:
        """As files hold it."""
        return {**{name: getattr(self, name) for name in WATTS}, 'from': self.origin}


def power_from_json(document: Document, where: str) -> Optional[Power]:
    """The watts in the object at `where`; None where there are none, as in files of earlier versions. `UserError` for
    what cannot be."""
    if 'power' not in document.content or document.find(where) is None:
        return None
    watts = [document.number(f'{where}.{name}', 0) for name in WATTS]
    origin = document.get(f'{where}.from', str)
    if not possible(*watts) or origin not in ORIGINS:
        raise document.refuse(f"field '{where}' must hold {', '.join(WATTS)} with 0 < idle_w <= the others, and from: "
                              f'{" or ".join(ORIGINS)}')
    return Power(*watts, origin)


def possible(active_w: float, idle_w: float, send_w: float) -> bool:
    """Can a device draw this?"""
    return 0 < idle_w <= min(active_w, send_w) and max(active_w, send_w) < 1e6


def energy_of(times: Any, power: Mapping[str, Power], clients: int, workers: int) -> Optional[Dict[str, Any]]:
    """Energy of a frame with these `Times`, mJ, as results hold it: of one client, of the server, of both; None for
    what is not known. `power`: by tier, as far as known; None where nothing is."""
    if not power:
        return None
    client, server = (power.get(tier) for tier in ('client', 'server'))
    client_mj = client and client.client_mj(times.T_client_ms, times.T_com_ms, times.T_cyc_ms)
    server_mj = server and server.server_mj(times.T_server_ms, times.T_cyc_ms, clients, workers)
    return {'client_mj': client_mj, 'server_mj': server_mj,
            'both_mj': client_mj + server_mj if client and server else None,
            'from': {tier: found.origin for tier, found in power.items()}}


def energy_lines(found: Mapping[str, Dict[str, Any]]) -> List[str]:
    """Energy of a frame of every configuration (by name), for people; nothing where there is none."""
    def said(energy: Dict[str, Any]) -> str:
        known = [f'{tier} {energy[f"{tier}_mj"]:.2f}' for tier in energy['from']]
        return ' + '.join(known) + (f' = {energy["both_mj"]:.2f}' if len(known) > 1 else '')

    origins = ', '.join(f'{tier}: {origin}' for energy in list(found.values())[:1]
                        for tier, origin in energy['from'].items())
    return [f'energy of a frame, mJ (watts from {origins}): ' + '; '.join(
        f'{name} {said(energy)}' for name, energy in found.items())] if found else []
