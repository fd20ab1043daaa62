"""Files of the hardware table: what is refused, and what step 1 never overwrites; the roofline's file."""
from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cases import whole_table
from table_files import ROOFLINE, assert_same, bytes_of, content_of, run_step1, settings_in, write_text

import lut_manager
import roofline_measure
import step1_measure_lut as step1
from config import Settings, UserError
from costs.cost_model import TIERS, Roofline
from network.alpha import branches_of
from pipeline import kinds
from throughput_optimizer import solve_exact
from tier import roofline
from wire.formats import BITS

# --- what is refused ---------------------------------------------------------------------------------------------

def damaged(change) -> Any:
    """A JSON text after `change(content)`; a string is the text itself."""
    def text(content: Dict[str, Any]) -> str:
        content = copy.deepcopy(content)
        return change(content) or json.dumps(content)
    return text


def put(*keys_and_value: Any):
    """Set content[k1][k2].. = value."""
    *keys, last, value = keys_and_value

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value
    return damaged(change)


def remove(*keys: Any):
    """Delete content[k1][k2].."""
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]
    return damaged(change)


BOARD = {'schema_version': 1, 'kind': 'measured', 'name': 'my board', 'slowdown': 3.0}
BLOCK = 'stage1.1'  # has an identity branch
FIRST = 'stage3.0'  # has none

REFUSED = {
    'empty': (damaged(lambda content: ' '), 'is not valid JSON'),
    'not an object': (damaged(lambda content: '[1, 2]'), 'is not a JSON object'),
    'truncated': (damaged(lambda content: json.dumps(content)[:-7]), 'is not valid JSON'),
    'half': (damaged(lambda content: json.dumps(content)[:2000]), 'is not valid JSON'),
    'NaN': (damaged(lambda content: re.sub(r'"T_server": \{"stage1.0": \[[\d.]+', '"T_server": {"stage1.0": [NaN',
                                           json.dumps(content))), 'NaN is not a number'),
    'infinity': (put('stem', 'T_server', float('inf')), 'Infinity is not a number'),
    'too large': (damaged(lambda content: json.dumps(content).replace('"rtt_ms": 2.0', '"rtt_ms": 1e999')),
                  "'bandwidth.rtt_ms' is not a finite number"),
    'version 2': (put('schema_version', 2), 'has schema_version 2, this program reads 1'),
    'no version': (remove('schema_version'), 'has schema_version null'),
    'no metadata': (remove('metadata'), "'metadata' is missing"),
    'another model': (put('metadata', 'model', 'RepVGG-A0'), 'was made for model RepVGG-A0'),
    'another input size': (put('metadata', 'input_shape', [3, 64, 64]), r'input_shape \[3, 64, 64\]'),
    'another class count': (put('metadata', 'num_classes', 100), 'num_classes 100'),
    'another batch': (put('metadata', 'batch_size', 8), 'batch_size 8'),
    'blocks out of order': (damaged(lambda content: content['block_names'].reverse()), 'block names'),
    'a block renamed': (put('block_names', 3, 'stage2.9'), 'block names'),
    'a block too few': (damaged(lambda content: content['block_names'].pop() and None), 'block names'),
    'an identity too many': (put('has_identity', FIRST, True), 'has_identity'),
    'a block without times': (remove('T_client', BLOCK), f"'T_client.{BLOCK}' is missing"),
    '13 times': (damaged(lambda content: content['T_server'][BLOCK].pop() and None),
                 f"'T_server.{BLOCK}' has 13 entries, not 14"),
    '15 times': (damaged(lambda content: content['T_server'][BLOCK].append(1.0)),
                 f"'T_server.{BLOCK}' has 15 entries, not 14"),
    'null for a number': (put('T_client', BLOCK, 13, None), rf"'T_client.{BLOCK}\[13\]' must be a number"),
    'a number for null': (put('T_client', FIRST, 13, 0.5), rf"'T_client.{FIRST}\[13\]' must be null"),
    'a sentinel': (put('T_server', FIRST, 9, -1), rf"'T_server.{FIRST}\[9\]' is -1.0, below 0"),
    'a negative time': (put('T_server', BLOCK, 4, -0.5), rf"'T_server.{BLOCK}\[4\]' is -0.5, below 0"),
    'text for a number': (put('T_server', BLOCK, 4, '0.5'), rf"'T_server.{BLOCK}\[4\]' is \"0.5\", not a number"),
    'true for a number': (put('T_server', BLOCK, 4, True), rf"'T_server.{BLOCK}\[4\]' is true, not a number"),
    'null stem': (put('stem', 'T_client', None), "'stem.T_client' is null"),
    'no classifier': (remove('classifier'), "'classifier.*' is missing"),
    'N_stream of others': (put('N_stream', 9, 1), 'N_stream'),
    'no sizes': (remove('Comm_size', BLOCK), f"'Comm_size.{BLOCK}.float32' is missing"),
    'no float32 size': (remove('Comm_size', 'stage1.0', 'float32'), "no sizes for wire format 'float32'"),
    'an empty feature map': (put('Comm_size', BLOCK, 'float32', 0), 'is 0.0, below 1'),
    'no bandwidth': (put('bandwidth', 'bandwidth_mbps', 0), "'bandwidth.bandwidth_mbps' is 0.0"),
    'negative round trip': (put('bandwidth', 'rtt_ms', -1), "'bandwidth.rtt_ms' is -1.0"),
    'measured maybe': (put('bandwidth', 'measured', 'maybe'), "'bandwidth.measured' is \"maybe\", not true or false"),
    'no peak': (put('roofline', 'client', 'peak_gflops', 0), 'peak_gflops'),
    'no correction': (remove('correction', 'client'), "'correction.client.*' is missing"),
    'a scale of nothing': (put('correction', 'server', 'scale', 0), "'correction.server.scale' is 0.0"),
    'a nest': (damaged(lambda content: '[' * 100000), 'is not valid JSON'),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Tuple[Settings, Dict[str, Any]]:
    """Settings and the content of a complete table for them."""
    chosen = settings_in(tmp_path_factory.mktemp('good'))
    return chosen, content_of(lut_manager.save(whole_table(chosen), chosen))


def refusal(path: str, chosen: Settings) -> str:
    with pytest.raises(UserError) as caught:
        lut_manager.load(path, chosen)
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and '\n' not in message and len(message) < 500
    return message


@pytest.mark.parametrize('case', sorted(REFUSED))
def test_a_damaged_or_foreign_table_is_refused_in_one_line_that_says_why(case, good, tmp_path):
    chosen, content = good
    change, why = REFUSED[case]
    message = refusal(write_text(str(tmp_path / 'lut.json'), change(content)), chosen)
    assert re.search(why, message), message
    assert '`python step1_measure_lut.py --mode merge --set ' in message  # what to do about it


def test_a_missing_table_says_how_to_make_it(tmp_path):
    path = str(tmp_path / 'lut.json')
    message = refusal(path, settings_in(tmp_path))
    assert 'no such file; make it with `python step1_measure_lut.py --mode merge --set ' in message


def test_a_folder_in_the_place_of_the_table_is_refused(tmp_path):
    with pytest.raises(UserError, match='cannot read'):
        lut_manager.load(str(tmp_path), settings_in(tmp_path))


def test_a_table_without_the_wire_format_that_is_wanted_is_refused(good, tmp_path):
    chosen, content = good
    wanting = dataclasses.replace(chosen, WIRE_FORMATS=('float32', 'uint8+zlib'))
    assert "'uint8+zlib'" in refusal(write_text(str(tmp_path / 'lut.json'), json.dumps(content)), wanting)


def paths_in(content: Any, at: Tuple = ()) -> List[Tuple]:
    """The way to every value in a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at] * bool(at) + [path for key, value in items for path in paths_in(value, (*at, key))]


@given(st.data())
@settings(max_examples=150)
def test_whatever_one_value_is_replaced_by_the_table_is_refused_or_unharmed(good, tmp_path_factory, data):
    chosen, content = good
    path = str(tmp_path_factory.getbasetemp() / 'fuzzed.json')
    expected = lut_manager.load(write_text(path, json.dumps(content)), chosen)
    way = data.draw(st.sampled_from(paths_in(content)))
    junk = data.draw(st.sampled_from(['', 'x', [], {}, [[]], -7, True, float('nan'), 'remove']))
    text = (remove(*way) if junk == 'remove' else put(*way, junk))(content)
    try:
        found = lut_manager.load(write_text(path, text), chosen)
    except UserError as error:
        assert str(error).startswith(f'{path}: ') and '\n' not in str(error)
    else:
        # codec_ms is optional, a wire format that is not used may go, a link may well have been measured, and an offset
        # has any sign
        if way[0] not in ('codec_ms', 'Comm_size') and way != ('bandwidth', 'measured') and 'offset_ms' not in way:
            assert_same(dataclasses.replace(found, tier_info={}), dataclasses.replace(expected, tier_info={}))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_nothing_worse(tmp_path_factory, content):
    path = str(tmp_path_factory.getbasetemp() / 'bytes.json')
    with open(path, 'wb') as stream:
        stream.write(content)
    refusal(path, settings_in(tmp_path_factory.getbasetemp()))


# --- step 1's merge ------------------------------------------------------------------------------------------------

def test_merge_makes_both_tables_that_are_missing_and_says_so(made, tmp_path, capsys):
    run_step1('merge', tmp_path)
    assert sorted(made) == ['client', 'server']
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if 'lut_server.json is missing: measuring this machine' in line]
    assert [line for line in said if 'lut_client.json is missing: simulating edge-cpu' in line]
    chosen = Settings(RESULTS_DIR=str(tmp_path))
    table = lut_manager.load(kinds.path_of('lut', chosen), chosen)
    assert table.tier_info['client']['simulated'] and not table.tier_info['server']['simulated']


def test_merge_uses_tables_that_are_there(made, tmp_path):
    for mode in ('server', 'client'):
        run_step1(mode, tmp_path)
    del made[:]
    run_step1('merge', tmp_path)
    assert made == []
    chosen = Settings(RESULTS_DIR=str(tmp_path))
    table = lut_manager.load(kinds.path_of('lut', chosen), chosen)
    for tier in TIERS:
        costs = lut_manager.load_tier(tier, chosen)
        np.testing.assert_array_equal(table.T_ms[tier], costs.correction().scale * costs.block_ms)


@pytest.mark.parametrize('overrides, expected', [
    (['EDGE_CPU_SLOWDOWN=8'], 'lut_client.json: was made with EDGE_CPU_SLOWDOWN=6.0 (now 8.0); make it again with '
     '`python step1_measure_lut.py --mode client --set RESULTS_DIR={folder} EDGE_CPU_SLOWDOWN=8.0`'),
    (['SERVER_THREADS=2'], 'lut_server.json: was made with SERVER_THREADS=1 (now 2); make it again with '
     '`python step1_measure_lut.py --mode server --set RESULTS_DIR={folder} SERVER_THREADS=2`'),
    (['MODEL_NAME=RepVGG-A0'], 'was made for model RepVGG-Micro, the settings say RepVGG-A0'),
])
def test_merge_refuses_a_table_of_other_settings_by_name_and_leaves_it(made, tmp_path, overrides, expected):
    run_step1('merge', tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=re.escape(expected.format(folder=tmp_path))):
        run_step1('merge', tmp_path, *overrides)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_board_described_in_a_file_is_not_replaced_by_a_plain_merge(made, tmp_path):
    board = write_text(str(tmp_path / 'my_board.json'), json.dumps(BOARD))
    step1.main(['--mode', 'client', '--device_profile', board, '--set', f'RESULTS_DIR={tmp_path}'])
    path = os.path.join(str(tmp_path), 'lut_client.json')
    before = bytes_of(path)
    with pytest.raises(UserError, match=re.escape(f'was made with DEVICE_PROFILE={board} (now edge-cpu)')):
        run_step1('merge', tmp_path)
    run_step1('merge', tmp_path, f'DEVICE_PROFILE={board}')
    assert bytes_of(path) == before
    write_text(board, json.dumps({**BOARD, 'slowdown': 4.0}))
    with pytest.raises(UserError, match=re.escape(f'lut_client.json: was made with another {board}')):
        run_step1('merge', tmp_path, f'DEVICE_PROFILE={board}')


def test_an_unknown_profile_is_one_line_that_lists_the_choices(made, tmp_path):
    with pytest.raises(UserError, match='edge-cpu, jetson-tx2'):
        run_step1('client', tmp_path, 'DEVICE_PROFILE=jetson-tx3')


def test_with_if_changed_a_current_table_is_left_alone(made, tmp_path):
    run_step1('merge', tmp_path)
    path = os.path.join(str(tmp_path), 'hardware_lut_complete.json')
    before = bytes_of(path)
    step1.main(['--mode', 'merge', '--if_changed', '--set', f'RESULTS_DIR={tmp_path}'])
    assert bytes_of(path) == before
    step1.main(['--mode', 'merge', '--if_changed', '--set', f'RESULTS_DIR={tmp_path}', 'BANDWIDTH_MBPS=7'])
    assert content_of(path)['bandwidth']['bandwidth_mbps'] == 7


def test_a_measured_link_outlives_a_table_without_the_formats_of_now(made, tmp_path):
    run_step1('merge', tmp_path)
    path = os.path.join(str(tmp_path), 'hardware_lut_complete.json')
    content = content_of(path)
    content['bandwidth'] = {'bandwidth_mbps': 55.5, 'rtt_ms': 3.5, 'measured': True}
    for sizes in content['Comm_size'].values():
        sizes.pop('uint4', None)
    write_text(path, json.dumps(content))
    run_step1('merge', tmp_path, 'WIRE_FORMATS=float32,uint4')
    content = content_of(path)
    assert content['bandwidth'] == {'bandwidth_mbps': 55.5, 'rtt_ms': 3.5, 'measured': True}
    assert 'uint4' in content['Comm_size']['stage1.0']


def test_encoding_is_charged_where_no_client_is_connected(made, tmp_path):
    """For every format whose size is known, also one that WIRE_FORMATS names after the table was made."""
    run_step1('client', tmp_path)
    path = os.path.join(str(tmp_path), 'lut_client.json')
    write_text(path, put('metadata', 'client', 'slowdown', 6.0)(content_of(path)))
    run_step1('merge', tmp_path)
    chosen = Settings(RESULTS_DIR=str(tmp_path), WIRE_FORMATS=('uint4@0.5',))
    table = lut_manager.load(kinds.path_of('lut', chosen), chosen)
    assert {*BITS, 'uint4@0.5'} == set(table.codec_ms)
    for by_tier in table.codec_ms.values():
        assert (by_tier['server'] > 0).all()
        np.testing.assert_allclose(by_tier['client'], 6 * by_tier['server'])
    surviving, chosen = branches_of(table.n_branches), Settings(WIRE_FORMATS=('uint8',))
    charged, free = (solve_exact(each, surviving, chosen, splits=[4]).times
                     for each in (table, dataclasses.replace(table, codec_ms={})))
    encode_ms, decode_ms = table.codec_ms['uint8']['client'][3, 0], table.codec_ms['uint8']['server'][3, 1]
    assert charged.T_client_ms == pytest.approx(free.T_client_ms + encode_ms)
    assert charged.T_server_ms == pytest.approx(free.T_server_ms + decode_ms)


def test_a_format_whose_times_were_not_measured_with_the_others_is_refused_and_timed_by_a_merge(made, tmp_path):
    run_step1('merge', tmp_path)
    path = os.path.join(str(tmp_path), 'hardware_lut_complete.json')
    content = content_of(path)
    content['bandwidth']['measured'], content['codec_ms'] = True, {'float32': content['codec_ms']['float32']}
    chosen = Settings(RESULTS_DIR=str(tmp_path), WIRE_FORMATS=('float32', 'uint8'))
    assert "has no times for wire format 'uint8', only for float32" in refusal(
        write_text(path, json.dumps(content)), chosen)
    run_step1('merge', tmp_path, 'WIRE_FORMATS=float32,uint8')
    table = lut_manager.load(path, chosen)
    assert table.link.measured and (table.codec_ms['uint8']['client'] > 0).all()


# --- the roofline -----------------------------------------------------------------------------------------------------

def test_a_roofline_is_read_back_and_made_again_under_other_settings(made, tmp_path, monkeypatch):
    chosen = settings_in(tmp_path)
    assert roofline_measure.save_roofline('server', chosen) == ROOFLINE
    assert roofline_measure.load_roofline('server', chosen) == ROOFLINE
    monkeypatch.setattr(roofline, 'measure_roofline', lambda *rest: (1.0, 2.0))
    assert roofline_measure.current_roofline('server', chosen) == ROOFLINE
    other = dataclasses.replace(chosen, SERVER_THREADS=2)
    assert roofline_measure.current_roofline('server', other) == Roofline(1.0, 2.0)


def test_a_simulated_roofline_is_that_of_the_profile(made, tmp_path):
    slowed = roofline_measure.roofline_of_tier('client', settings_in(tmp_path, EDGE_CPU_SLOWDOWN=5.0))
    assert slowed == Roofline(ROOFLINE.peak_gflops / 5, ROOFLINE.bandwidth_gbs / 5)
    assert slowed.i_knee == pytest.approx(ROOFLINE.i_knee)
    tx2 = roofline_measure.roofline_of_tier('client', settings_in(tmp_path, DEVICE_PROFILE='jetson-tx2'))
    assert tx2.peak_gflops == 665.6


def test_the_arrays_behind_the_bandwidth_are_far_larger_than_the_cache(monkeypatch):
    sizes = []
    monkeypatch.setattr(roofline, 'MAX_ARRAY_BYTES', 64 << 20)  # small, for the test's sake
    monkeypatch.setattr(roofline, 'GEMM_SIZES', {'cpu': (64, 128)})
    monkeypatch.setattr(roofline, 'REPEATS', 1)
    rand = torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *size, **options: sizes.append(size) or rand(*size, **options))
    peak_gflops, bandwidth_gbs = roofline.measure_roofline(torch.device('cpu'), 1)
    assert peak_gflops > 0 and bandwidth_gbs > 0
    assert sizes[-1] == ((64 << 20) // 4,)
    assert roofline.CACHE_FACTOR >= 4
