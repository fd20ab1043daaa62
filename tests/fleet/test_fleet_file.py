"""Fleets and link traces as people write them: read as they are meant, or refused in one line that says where."""
from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config import Settings, UserError
from fleet.fleet_file import names_of, read_fleet
from fleet.links import read_trace

CLIENT, SERVER = {'name': 'gate'}, {'name': 'rack'}
TRACE = 'seconds,mbps,rtt_ms\n0,10,5\n6,2,50\n8,20,10\n'


def written(folder, content, name: str = 'fleet.json') -> str:
    path = os.path.join(str(folder), name)
    data = content if isinstance(content, (str, bytes)) else json.dumps(content)
    with open(path, 'wb') as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
    return path


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        read_fleet(path, Settings())
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_json_and_csv_say_the_same(tmp_path):
    fleet = {'clients': [{'name': 'gate', 'count': 3, 'profile': 'jetson-tx2', 'bandwidth_mbps': 40, 'rtt_ms': 6.5,
                          'domain': 2, 'min_accuracy': 0.9, 'fps': 15, 'max_fps': 30}, {'name': 'hall'}],
             'servers': [{'name': 'rack', 'count': 2, 'table': 'a.json', 'workers': 4, 'bandwidth_mbps': 1000}]}
    rows = ('kind,name,count,profile,table,bandwidth_mbps,rtt_ms,domain,min_accuracy,fps,max_fps,workers\n'
            'client,gate,3,jetson-tx2,,40,6.5,2,0.9,15,30,\nclient,hall,,,,,,,,,,\n\nserver,rack,2,,a.json,1000,,,,,,4\n')
    as_json = read_fleet(written(tmp_path, '\ufeff' + json.dumps(fleet)), Settings())  # with a byte-order mark
    as_csv = read_fleet(written(tmp_path, '\ufeff' + rows, 'fleet.csv'), Settings())
    assert (as_json.clients, as_json.servers) == (as_csv.clients, as_csv.servers)
    assert (as_json.n_clients, as_json.n_servers) == (4, 2)
    assert as_json.clients[0].tier == 'profile jetson-tx2' and as_json.servers[0].tier == 'table a.json'
    assert (as_json.clients[1].bandwidth_mbps, as_json.clients[1].rtt_ms) == (100.0, 2.0)  # the settings' link
    assert list(names_of('gate', 3)) == ['gate-1', 'gate-2', 'gate-3'] and list(names_of('hall', 1)) == ['hall']


@pytest.mark.parametrize('clients, what', [
    ([], 'names no clients'), (['x'], 'not an object'), ([{}], 'has no name'), ([{'name': ''}], 'name must be'),
    ([{'name': 'a\x1b[31m'}], 'name must be'), ([{'name': 'a' * 61}], 'at most 60'), ([{'name': 3}], 'not text'),
    ([{**CLIENT, 'fps': -1}], 'above 0'), ([{**CLIENT, 'fps': 0}], 'above 0'),
    ([{**CLIENT, 'fps': '5'}], 'not a number'),
    ([{**CLIENT, 'fps': 10 ** 400}], 'finite'), ([{**CLIENT, 'fps': True}], 'not a number'),
    ([{**CLIENT, 'bandwidth_mbps': 0}], 'above 0'), ([{**CLIENT, 'rtt_ms': -0.1}], '0 or more'),
    ([{**CLIENT, 'count': 0}], '1 or more'), ([{**CLIENT, 'count': 1.5}], 'whole number'),
    ([{**CLIENT, 'count': 10 ** 400}], 'at most'), ([{**CLIENT, 'count': 100_000}, {'name': 'b'}], 'at most 100000'),
    ([CLIENT, CLIENT], "two clients are called 'gate'"), ([{'name': 'a', 'count': 2}, {'name': 'a-2'}], "called 'a-2'"),
    ([{**CLIENT, 'fsp': 5}], "did you mean 'fps'?"), ([{**CLIENT, 'workers': 2}], 'unknown for clients'),
    ([{**CLIENT, 'fps': 9, 'max_fps': 5}], 'above max_fps'), ([{**CLIENT, 'min_accuracy': 0.9}], 'needs a domain'),
    ([{**CLIENT, 'domain': 10}], 'at most 9'), ([{**CLIENT, 'domain': 0, 'min_accuracy': 90}], 'at most 1'),
    ([{**CLIENT, 'profile': 'edge-cpu', 'table': 'x'}], 'not by both'),
    ([{**CLIENT, 'link_trace': 'x', 'rtt_ms': 3}], 'not by both'), ([{**CLIENT, 'link_trace': 'no such'}], 'no such'),
])
def test_a_bad_client_is_one_line(tmp_path, clients, what):
    assert what in refused(written(tmp_path, {'clients': clients, 'servers': [SERVER]}))


@pytest.mark.parametrize('content, what', [
    ('', 'not valid JSON'), ('[1]', 'not a JSON object'), ('{"clients": [', 'not valid JSON'), ('[' * 100_000, 'JSON'),
    ({'clients': [CLIENT]}, "field 'servers' is missing"), ({'clients': [CLIENT], 'servers': []}, 'names no servers'),
    ({'clients': CLIENT, 'servers': [SERVER]}, 'not a list'),
    ({'client': [CLIENT], 'clients': [CLIENT], 'servers': [SERVER]}, "did you mean 'clients'?"),
    ({'clients': [CLIENT], 'servers': [{**SERVER, 'workers': 0}]}, '1 or more'),
    ({'clients': [CLIENT], 'servers': [SERVER, SERVER]}, "two servers are called 'rack'"), (b'\xff\xfe{}', 'JSON'),
])
def test_a_bad_file_is_one_line(tmp_path, content, what):
    assert what in refused(written(tmp_path, content))


@pytest.mark.parametrize('content, what', [
    ('', 'is empty'), ('kind;name\nclient;a\n', "column 'kind;name' is unknown"), ('kind,name\n', 'names no clients'),
    ('kind,name,name\n', 'is twice'), ('kind,name\nclient,a,b\n', 'has 3 cells'), ('kind,name\ncamera,a\n', "'camera'"),
    ('kind,name,fps\nclient,a,fast\n', 'line 2: fps'), ('kind,name,count\nclient,a,1.5\n', 'line 2: count'),
    ('kind,name,workers\nclient,a,3\n', 'unknown for clients'), (b'kind,name\nclient,\xff\n', 'not a CSV file'),
    ('kind,name\nclient,"a\n', 'not a CSV file'), ('kind,name,fps\nclient,a,nan\n', 'finite'),
])
def test_a_bad_csv_is_one_line(tmp_path, content, what):
    assert what in refused(written(tmp_path, content, 'fleet.csv'))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(['clients', 'servers', 'name', 'count', 'fps', 'x']), inner, max_size=4),
                    max_leaves=12))
def test_any_json_is_a_fleet_or_one_line(tmp_path_factory, content):
    path = written(tmp_path_factory.getbasetemp(), {'clients': content, 'servers': content})
    try:
        read_fleet(path, Settings())
    except UserError as error:
        assert '\n' not in str(error)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe.json'))
    assert 'is no file' in refused(str(tmp_path / 'pipe.json')) and 'Is a directory' in refused(str(tmp_path))
    assert 'No such file' in refused(str(tmp_path / 'none.json'))


# --- traces ----------------------------------------

def test_a_trace_holds_each_row_until_the_next_and_repeats(tmp_path):
    trace = read_trace(written(tmp_path, TRACE, 'trace.csv'))
    assert trace.period_s == 12.0  # two steps took 8 s, the last row lasts 4
    assert [trace.at(second) for second in (0, 5.9, 6, 7.9, 8, 11.9, 12, 18.5)] == [
        (10, 5), (10, 5), (2, 50), (2, 50), (20, 10), (20, 10), (10, 5), (2, 50)]


def test_a_plan_counts_on_what_a_trace_sustains(tmp_path):
    trace = read_trace(written(tmp_path, TRACE, 'trace.csv'))  # 2 Mbit/s for a sixth of the time
    assert trace.sustained(0.8) == (10, 10) and trace.sustained(0.9) == (2, 50) and trace.sustained(0.99) == (2, 50)
    path = written(tmp_path, {'clients': [{**CLIENT, 'link_trace': str(tmp_path / 'trace.csv')}, {
        'name': 'hall', 'bandwidth_mbps': 7}], 'servers': [SERVER]})
    gate, hall = read_fleet(path, Settings(LINK_TRACE='does not matter')).clients
    assert (gate.bandwidth_mbps, gate.rtt_ms, gate.trace) == (2, 50, trace) and hall.trace is None
    path = written(tmp_path, {'clients': [CLIENT], 'servers': [SERVER]})
    assert read_fleet(path, Settings(LINK_TRACE=str(tmp_path / 'trace.csv'))).clients[0].trace == trace


@pytest.mark.parametrize('content, what', [
    ('', 'is empty'), ('seconds,mbps,rtt_ms\n', 'at least two lines'), ('seconds,mbps,rtt_ms\n0,1,1\n', 'at least two'),
    ('seconds,mbps,rtt_ms\n0,1,1\n0,1,1\n', 'line 3: seconds must rise'),
    ('seconds,mbps,rtt_ms\n0,1,1\n1,0,1\n', 'line 3: mbps must be above 0'), ('seconds,mbps\n0,1\n1,2\n', 'numbers'),
    ('seconds,mbps,rtt_ms\n0,x,1\n', 'line 2'), ('time,mbps,rtt_ms\n', "column 'time' is unknown")])
def test_a_bad_trace_is_one_line(tmp_path, content, what):
    with pytest.raises(UserError) as caught:
        read_trace(written(tmp_path, content, 'trace.csv'))
    assert what in str(caught.value) and '\n' not in str(caught.value)


def test_the_examples_are_fleets():
    for name in sorted(os.listdir(os.path.join(config.ROOT, 'examples'))):
        path = os.path.join(config.ROOT, 'examples', name)
        if name.startswith('fleet_'):
            assert read_fleet(path, Settings()).n_clients == 200
        elif name.startswith('trace_'):
            assert read_trace(path).period_s > 30
