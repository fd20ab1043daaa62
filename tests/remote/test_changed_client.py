"""A table measured on a client is used again while the device is the same in all that its times depend on."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np
import pytest
import torch
from random_cases import tier_costs

import lut_manager
from config import Settings
from costs.cost_model import Link
from remote import session as real_mode
from remote.client import OtherDevice
from remote.link import MeasuredLink
from tier import devices
from wire.frames import Kind, Message

FACTS: Dict[str, Any] = {'name': 'a board', 'device': 'cuda', 'threads': 1, 'torch': '1.10.0',
                         'power_mode': 'pmode:0000', 'cpu_max_mhz': 2035.2, 'gpu_max_mhz': None,
                         'temperature_c': 40.0, 'host': 'a'}
MEASURED_ANEW = 5.0  # ms a block


class FakeClient:
    """A client that says of itself what a test wants."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def facts(self) -> Dict[str, Any]:
        return {**FACTS, **self.changed}

    def request(self, op: str, read: Any) -> Any:
        assert op == 'roofline'
        return read(Message(Kind.REPLY, {'peak_gflops': 10.0, 'bandwidth_gbs': 10.0}))


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Settings:
    """Settings with the tables of the board, and a session that measures nothing for long."""
    settings = Settings(RESULTS_DIR=str(tmp_path), DEVICE_PROFILE='')
    info = {**FACTS, 'simulated': False, 'slowdown': 1.0}
    tiers = [tier_costs('server', settings, 1, {'name': 'a server', 'simulated': False}),
             tier_costs('client', settings, 2, info)]
    for costs in tiers:
        lut_manager.save_tier(costs, settings)
    lut_manager.save(lut_manager.merge(*tiers, settings, Link(7.0, 3.0, True)), settings)

    def costs_of(tier, timing, info, roofline):
        costs = tier_costs(tier, settings, 3, info)
        return lut_manager.TierCosts(**{**vars(costs), 'block_ms': np.where(np.isnan(costs.block_ms), np.nan,
                                                                           MEASURED_ANEW)})

    monkeypatch.setattr(real_mode.Session, 'time_client', lambda self, facts: None)
    monkeypatch.setattr(lut_manager, 'costs_of', costs_of)
    return settings


@pytest.mark.parametrize('changed', [{}, {'temperature_c': 71.5}, {'host': 'b'}])
def test_the_same_device_is_not_measured_again(measured, changed, capsys):
    session = real_mode.Session(FakeClient(**changed), measured)
    assert session.table(0).link == Link(7.0, 3.0, True)
    assert not (session.client_costs(False).block_ms == MEASURED_ANEW).any()
    assert 'used again' in capsys.readouterr().err


@pytest.mark.parametrize('changed, said', [
    ({'threads': 2}, 'threads 1, now 2'), ({'torch': '2.0.1'}, 'torch 1.10.0, now 2.0.1'),
    ({'name': 'another'}, 'name a board, now another'), ({'power_mode': 'pmode:0002'}, 'now pmode:0002'),
    ({'cpu_max_mhz': 1200.0}, 'cpu_max_mhz 2035.2, now 1200.0'), ({'gpu_max_mhz': 900.0}, 'now 900.0'),
    ({'cpu_governor': 'powersave'}, 'cpu_governor unknown, now powersave')])
def test_a_device_that_changed_is_measured_again_and_the_line_says_why(measured, changed, said, capsys):
    session = real_mode.Session(FakeClient(**changed), measured)
    costs = session.client_costs(False)
    assert np.nanmax(costs.block_ms) == np.nanmin(costs.block_ms) == MEASURED_ANEW
    line, = capsys.readouterr().err.splitlines()
    assert said in line and line.endswith('measuring the client again')
    session.client_costs(False)  # its facts are those of the file now
    assert capsys.readouterr().err == ''


def test_clocks_and_power_mode_are_read_where_the_system_tells(tmp_path, monkeypatch):
    for number, khz in enumerate((1200000, 2035200)):
        (tmp_path / f'cpu{number}').write_text(f'{khz}\n')
    (tmp_path / 'mode').write_text('pmode:0002 fmode:fanNull\n')
    (tmp_path / 'odd').write_text('unsupported\n')
    for name, pattern in (('CPU_CLOCKS', 'cpu*'), ('POWER_MODE', 'mode'), ('GOVERNORS', 'none*')):
        monkeypatch.setattr(devices, name, str(tmp_path / pattern))
    facts = devices.facts_of(torch.device('cpu'), 3)
    assert facts['cpu_max_mhz'] == 2035.2 and facts['cpu_governor'] is None
    assert facts['power_mode'] == 'pmode:0002 fmode:fanNull'
    assert facts['gpu_max_mhz'] is None and facts['threads'] == 3 and facts['torch'] == torch.__version__
    monkeypatch.setattr(devices, 'CPU_CLOCKS', str(tmp_path / 'odd'))
    assert devices.facts_of(torch.device('cpu'), 3)['cpu_max_mhz'] is None


def test_a_table_holds_times_of_one_device(measured, monkeypatch, capsys):
    """The client is lost while a table is measured, and another one comes: everything is measured again with that one.
    Where a third and a fourth come, too, it ends with a line."""
    comes, asked, client = ['b'], [], FakeClient(threads=3)

    def time_client(self, facts):
        asked.append((facts['name'], facts['threads']))
        if comes:
            client.changed['name'] = comes.pop(0)
            raise OtherDevice('another client came')

    monkeypatch.setattr(real_mode.Session, 'time_client', time_client)
    monkeypatch.setattr(real_mode, 'measure_link', lambda client: MeasuredLink(7.0, 7.0, 3.0))
    monkeypatch.setattr(real_mode.Session, 'wire_costs', lambda *rest: None)
    table = real_mode.Session(client, measured).table(0)
    assert asked == [('a board', 3), ('b', 3)] and table.tier_info['client']['name'] == 'b'
    assert 'measuring the one that is here from the beginning' in capsys.readouterr().err
    comes += ['c', 'd', 'e']
    client.changed['threads'] = 4
    with pytest.raises(OtherDevice):
        real_mode.Session(client, measured).table(0)
