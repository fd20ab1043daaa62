"""What was measured on a device is used as it is, and replaced with --force alone."""
from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from table_files import bytes_of, content_of, measured_client, run_step1, write_text

import config
import lut_manager
import roofline_measure
import step1_measure_lut as step1
from config import Settings, UserError
from costs.cost_model import TIERS, Link
from pipeline import kinds


@pytest.mark.parametrize('overrides', [[], ['LUT_ROUNDS=99'], ['DEVICE_PROFILE='],
                                       ['DEVICE_PROFILE=', 'CLIENT_THREADS=4']])
def test_merge_never_overwrites_a_client_table_that_was_measured(made, tmp_path, capsys, overrides):
    path = measured_client(tmp_path)
    before = bytes_of(path)
    run_step1('merge', tmp_path, *overrides)
    assert bytes_of(path) == before and made == ['server']
    chosen = config.load((f'RESULTS_DIR={tmp_path}', *overrides), {})
    table = lut_manager.load(kinds.path_of('lut', chosen), chosen)
    assert table.tier_info['client']['name'] == 'my board' and not table.tier_info['client']['simulated']
    assert 'was measured on my board: using it' in capsys.readouterr().err


@pytest.mark.parametrize('overrides', [[], ['DEVICE_PROFILE='], ['DEVICE_PROFILE=', 'CLIENT_THREADS=4'],
                                       ['DEVICE_PROFILE=jetson-tx2']])
def test_what_was_measured_on_a_device_is_replaced_with_force_alone(made, tmp_path, overrides):
    path = measured_client(tmp_path)
    before = bytes_of(path)
    with pytest.raises(UserError, match='lut_client.json: was measured on my board.*--force'):
        run_step1('client', tmp_path, *overrides)
    assert bytes_of(path) == before and made == []
    step1.main(['--mode', 'client', '--force', '--set', f'RESULTS_DIR={tmp_path}', *overrides])
    assert bytes_of(path) != before and made == ['client']


def test_a_simulated_client_that_is_named_does_not_mix_with_a_measured_one(made, tmp_path):
    path = measured_client(tmp_path)
    before = bytes_of(path)
    for mode in ('client', 'merge'):
        with pytest.raises(UserError, match='was measured on my board, and DEVICE_PROFILE=jetson-tx2 means'):
            step1.main(['--mode', mode, '--keep_measured', '--set', f'RESULTS_DIR={tmp_path}',
                        'DEVICE_PROFILE=jetson-tx2'])
    assert bytes_of(path) == before


def test_the_pipeline_uses_a_copied_table_whatever_the_client_settings_say(made, tmp_path, capsys):
    """As run_pipeline.sh calls the steps: the device's file alone was copied, no roofline."""
    path = measured_client(tmp_path)
    before = bytes_of(path)
    chosen = ['--keep_measured', '--if_changed', '--set', f'RESULTS_DIR={tmp_path}', 'DEVICE_PROFILE=',
              'CLIENT_THREADS=4']
    roofline_measure.main(['--tier', 'client', *chosen])
    step1.main(['--mode', 'client', *chosen])
    said = capsys.readouterr().err
    assert "the client's roofline stands in" in said and 'was measured on my board' in said
    assert bytes_of(path) == before and made == []
    assert not os.path.exists(os.path.join(str(tmp_path), 'roofline_client.json'))


@pytest.mark.parametrize('script, tier', [(step1, '--mode'), (roofline_measure, '--tier')])
def test_the_pipeline_never_takes_this_machine_for_the_device(made, tmp_path, script, tier):
    arguments = [tier, 'client', '--keep_measured', '--set', f'RESULTS_DIR={tmp_path}', 'DEVICE_PROFILE=']
    with pytest.raises(UserError, match='no such file, and DEVICE_PROFILE is empty.*on the device and copy'):
        script.main(arguments)
    assert made == [] and list(tmp_path.iterdir()) == []


def test_a_roofline_measured_on_a_device_is_replaced_with_force_alone(made, tmp_path):
    chosen = ['--tier', 'client', '--set', f'RESULTS_DIR={tmp_path}']
    roofline_measure.main([*chosen, 'DEVICE_PROFILE='])
    path = os.path.join(str(tmp_path), 'roofline_client.json')
    before = bytes_of(path)
    with pytest.raises(UserError, match='--force replaces it'):
        roofline_measure.main(chosen)
    with pytest.raises(UserError, match='--force replaces it'):
        run_step1('client', tmp_path)
    assert bytes_of(path) == before
    roofline_measure.main(['--force', *chosen])
    assert content_of(path)['simulated'] is True


def test_a_measured_link_and_its_wire_formats_survive_a_merge(made, tmp_path):
    path, chosen = measured_client(tmp_path), Settings(RESULTS_DIR=str(tmp_path), DEVICE_PROFILE='')
    run_step1('server', tmp_path)
    tiers = {tier: lut_manager.load_tier(tier, chosen) for tier in TIERS}
    n_blocks = len(tiers['client'].block_ms)
    codec = {'float32': {tier: np.full((n_blocks, 2), 0.25) for tier in TIERS}}
    plain = lut_manager.merge(tiers['server'], tiers['client'], chosen)
    lut_manager.save(lut_manager.merge(tiers['server'], tiers['client'], chosen, Link(7.0, 3.0, True),
                                       lut_manager.WireCosts(plain.block_bytes, codec)), chosen)
    run_step1('merge', tmp_path)
    found = lut_manager.load(kinds.path_of('lut', chosen), chosen)
    assert found.link == Link(7.0, 3.0, True) and found.codec_ms['float32']['client'][0, 0] == 0.25
    named = lut_manager.load(kinds.path_of('lut', chosen), dataclasses.replace(chosen, RTT_MS=50.0))
    assert named.link == Link(100.0, 50.0, False)
    os.unlink(path)
    measured_client(tmp_path)
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    content['stem']['T_client'] += 1  # another device
    write_text(path, json.dumps(content))
    run_step1('merge', tmp_path)
    assert not lut_manager.load(kinds.path_of('lut', chosen), chosen).link.measured


def test_merge_refuses_a_measured_client_table_of_another_model_and_leaves_it(made, tmp_path):
    path = measured_client(tmp_path, MODEL_NAME='RepVGG-A0')
    before = bytes_of(path)
    with pytest.raises(UserError, match='was made for model RepVGG-A0'):
        run_step1('merge', tmp_path)
    assert bytes_of(path) == before


@pytest.mark.parametrize('text', ['', '{', '{"schema_version": 1, "metadata": {}}'])
def test_merge_refuses_a_damaged_client_table_and_leaves_it(made, tmp_path, text):
    path = measured_client(tmp_path)
    write_text(path, text)
    with pytest.raises(UserError, match='lut_client.json'):
        run_step1('merge', tmp_path)
    assert bytes_of(path) == text.encode()


def test_without_a_profile_a_missing_client_table_is_an_error_that_says_how_to_get_it(made, tmp_path):
    with pytest.raises(UserError) as caught:
        run_step1('merge', tmp_path, 'DEVICE_PROFILE=')
    message = str(caught.value)
    assert 'lut_client.json: no such file' in message and '\n' not in message
    assert '`python step1_measure_lut.py --mode client --set DEVICE_PROFILE=`' in message
    assert not os.path.exists(os.path.join(str(tmp_path), 'lut_client.json'))


def test_without_a_profile_a_simulated_client_table_is_not_taken_for_a_real_one(made, tmp_path):
    run_step1('client', tmp_path)
    path = os.path.join(str(tmp_path), 'lut_client.json')
    before = bytes_of(path)
    with pytest.raises(UserError, match='is simulated, but DEVICE_PROFILE is empty'):
        run_step1('merge', tmp_path, 'DEVICE_PROFILE=')
    assert bytes_of(path) == before
