"""The command: from a fleet's file to a plan, a table and a picture; mistakes are one line and leave nothing behind."""
from __future__ import annotations

import json
import os
import sys

import pytest
from fleets import client, made_settings, plan_of, server

import cli
import plan_fleet
from config import UserError
from fleet import plan_file
from pipeline import kinds
from report import fleet_figures, fleet_summary


def test_the_command_writes_a_plan_and_a_picture_and_prints_a_table(tmp_path, capsys):
    settings = made_settings(tmp_path / 'results')
    fleet = tmp_path / 'fleet.csv'
    fleet.write_text('kind,name,count,bandwidth_mbps,workers\nclient,gate,5,80,\nclient,hall,2,10,\nserver,rack,1,,2\n')
    plan_fleet.main([str(fleet), '--set', f'RESULTS_DIR={settings.RESULTS_DIR}', 'CLIENTS=1'])
    out = capsys.readouterr().out
    plan = plan_file.load(settings)
    assert [one.name for one in plan.clients] == [f'gate-{k}' for k in range(1, 6)] + ['hall-1', 'hall-2']
    assert 'max_min: every client gets at least' in out and 'gate' in out and 'hall' in out and 'limited by' in out
    assert os.path.getsize(os.path.join(settings.RESULTS_DIR, 'visualization', 'fleet_load.png')) > 1000


def test_a_bad_fleet_is_one_line_and_status_2_and_the_plan_of_before_stays(tmp_path, monkeypatch, capsys):
    settings = made_settings(tmp_path / 'results')
    plan_file.save(plan_of([client()], [server()], settings), settings, {})
    fleet = tmp_path / 'fleet.json'
    fleet.write_text('{"clients": [{"name": "a", "fps": -1}], "servers": [{"name": "b"}]}')
    monkeypatch.setattr(sys, 'argv', ['plan_fleet.py', str(fleet), '--set', f'RESULTS_DIR={settings.RESULTS_DIR}'])
    with pytest.raises(SystemExit) as ended:
        cli.run(plan_fleet.main)
    assert ended.value.code == 2 and capsys.readouterr() == ('', (
        f'plan_fleet.py: error: {fleet}: client 1: fps is -1.0, must be above 0 and at most 1e+09\n'))
    assert plan_file.load(settings).clients[0].name == 'gate'


def test_a_table_of_many_kinds_of_clients_stays_readable(tmp_path):
    settings = made_settings(tmp_path / 'results')
    clients = [client(f'camera{k}', mbps=5 + k) for k in range(300)]
    plan = plan_of(clients, [server(count=100)], settings)
    lines = fleet_summary.text_of(plan).splitlines()
    assert len(lines) < 60 and max(map(len, lines)) < 140
    assert sum(int(line[21:28]) for line in fleet_summary.client_lines(plan)[1:]) == 300
    fleet_figures.load_by_server(plan)  # of more servers than bars


def test_damaged_plans_are_read_or_refused_in_one_line(tmp_path):
    settings = made_settings(tmp_path / 'results')
    path = plan_file.save(plan_of([client(count=2)], [server()], settings), settings, {})
    with open(path, encoding='utf-8') as stream:
        text = stream.read()
    for field in ('servers', 'clients', 'groups', 'points', 'point_sets', 'value'):
        for value in (None, [], [1], {}, -1, 10 ** 400, 'x', [{}], [[77]], [None]):
            content = json.loads(text)
            content[field] = value
            with open(path, 'w', encoding='utf-8') as stream:
                json.dump(content, stream)
            with pytest.raises(UserError) as caught:
                plan_file.load(settings)
            assert '\n' not in str(caught.value)
    for field in ('servers', 'clients', 'groups', 'points'):
        for name in json.loads(text)[field][0]:
            for value in (None, [], [1], {}, -1, 99, 10 ** 400, 'x'):
                content = json.loads(text)
                content[field][0][name] = value
                with open(path, 'w', encoding='utf-8') as stream:
                    json.dump(content, stream)
                try:
                    plan_file.load(settings)
                except UserError as error:
                    assert '\n' not in str(error)
    assert kinds.path_of('fleet_plan', settings) == path
