"""The picture of a service's log shows what the file says; a file that is none is refused in one line."""
from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import step5_visualize_results as step5
from config import UserError
from report import service_log
from service.figures import ClientFigures


def client_at(name: str, k: int, split: int, wire: str = 'float32', peer: str = 'a:1'):
    return {**ClientFigures().snapshot(0.0), 'name': name, 'peer': peer, 'entry': 'domain_0', 'network': 'domain_0',
            'lambda': split, 'wire': wire, 'fps': 10.0 + k, 'latency_p50_ms': None if k == 0 else 5.0}


def written(path, snapshots) -> str:
    """A log of these clients, one line a second."""
    with open(path, 'w', encoding='utf-8') as stream:
        for k, clients in enumerate(snapshots):
            stream.write(json.dumps({'server': {'time_s': 1e9 + k}, 'clients': clients}) + '\n')
    return str(path)


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from(['float32', 'uint8'])), min_size=1, max_size=20),
       st.integers(1, 12))
@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_of_every_client_is_drawn_and_its_switches_are_marked(tmp_path, ran, n_clients):
    path = written(tmp_path / 'log', [[client_at(f'gate {c}', k, *one) for c in range(n_clients)]
                                      for k, one in enumerate(ran)])
    logs = service_log.read(path)
    assert list(logs) == [f'gate {c}' for c in range(n_clients)]
    changes = [k for k in range(1, len(ran)) if ran[k] != ran[k - 1]]
    for log in logs.values():
        assert log.time_s == list(range(len(ran))) and log.split == [split for split, _ in ran]
        assert log.fps == [10.0 + k for k in range(len(ran))] and np.isnan(log.latency_ms[0])
        assert log.switches == changes
    figure = service_log.figure_of(logs)
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == ':']
    assert len(marks) == n_clients * len(changes) and len(figure.axes[0].lines) == len(marks) + n_clients
    assert len(figure.axes[2].texts) == (len(marks) if n_clients <= service_log.MOST_NAMED else 0)
    assert f'{n_clients} client(s)' in figure.get_suptitle()


def test_clients_of_one_name_are_told_apart_and_a_last_line_that_is_not_whole_is_left_out(tmp_path):
    path = written(tmp_path / 'log', [[client_at('gate', 0, 3), client_at('gate', 0, 5, peer='b:2')]])
    with open(path, 'a', encoding='utf-8') as stream:
        stream.write('{"server": {"time_s": 1')
    assert {name: log.split for name, log in service_log.read(path).items()} == {'gate (a:1)': [3], 'gate (b:2)': [5]}


@pytest.mark.parametrize('text, reason', [
    ('', 'no client was served'), ('[]\n', 'line 1 is none'), ('nonsense\n', 'line 1'),
    ('{"server": {"time_s": 1}, "clients": [{}]}\n', 'line 1'), ('{"server": {}, "clients": []}\n', 'line 1'),
    ('[' * 100_000 + '\n', 'line 1'),
    (json.dumps({'server': {'time_s': 1}, 'clients': [{'name': 'a', 'wire': 'x', 'fps': 'fast', 'latency_p50_ms': 1,
                                                       'lambda': 3}]}) + '\n', 'line 1')])
def test_a_file_that_is_no_log_is_refused(tmp_path, text, reason):
    path = tmp_path / 'log'
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        service_log.read(str(path))


def test_step_5_draws_it_without_any_result(tmp_path):
    path = written(tmp_path / 'log', [[client_at('gate', k, 3 + k // 2)] for k in range(4)])
    step5.main(['--service_log', path, '--set', f'RESULTS_DIR={tmp_path}'])
    assert sorted(os.listdir(tmp_path / 'visualization')) == ['service_log.pdf', 'service_log.png']
    with pytest.raises(UserError, match='No such file'):
        step5.main(['--service_log', str(tmp_path / 'none'), '--set', f'RESULTS_DIR={tmp_path}'])
