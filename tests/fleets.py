"""Tables, results and fleets made up for tests."""
from __future__ import annotations

import dataclasses
from typing import Any, List, Optional

from made_results import make_table, save_domain

import config
import lut_manager
from config import Settings
from costs.cost_model import HardwareTable
from fleet import planning
from fleet.fleet_file import ClientGroup, Fleet, ServerGroup
from fleet.plan import Plan


def made_settings(folder: Any, *domains: int, **changed: Any) -> Settings:
    """Settings whose RESULTS_DIR holds a table and the results of these domains."""
    settings = dataclasses.replace(config.load((f'RESULTS_DIR={folder}',), {}), CLIENTS=1, **changed)
    table = make_table(settings)
    lut_manager.save(table, settings)
    for domain in domains:
        save_domain(table, settings, domain)
    return settings


def table_of(settings: Settings) -> HardwareTable:
    """The table that `made_settings` wrote."""
    return make_table(settings)


def client(name: str = 'gate', count: int = 1, mbps: float = 100.0, fps: Optional[float] = None, **changed: Any,
           ) -> ClientGroup:
    """A group of clients."""
    return dataclasses.replace(ClientGroup(name, count, '', mbps, 2.0, None, '', None, None, fps, None), **changed)


def server(name: str = 'rack', count: int = 1, workers: int = 1, mbps: Optional[float] = None) -> ServerGroup:
    """A group of servers."""
    return ServerGroup(name, count, '', workers, mbps)


def plan_of(clients: List[ClientGroup], servers: List[ServerGroup], settings: Settings, objective: str = 'max_min',
            ) -> Plan:
    """The plan of a fleet that was never a file."""
    fleet = Fleet('fleet', tuple(clients), tuple(servers))
    return planning.make_plan(planning.model_of(fleet, settings), objective)
