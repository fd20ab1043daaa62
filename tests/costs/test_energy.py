"""Energy of a frame, and the sensors behind it, on made-up trees of files."""
from __future__ import annotations

import dataclasses
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import whole_table
from table_files import content_of, settings_in, write_text

import lut_manager
from config import Settings, UserError
from costs import power_sensors
from costs.cost_model import Times
from costs.device_profiles import load_profile
from costs.energy import Power, energy_lines, energy_of
from costs.limits import NothingFits
from steps import unpruned
from throughput_optimizer_limit import check_possible

PROFILE = {'schema_version': 1, 'kind': 'measured', 'name': 'a board', 'slowdown': 3, 'active_w': 10, 'idle_w': 2,
           'send_w': 4}
ms = st.floats(0.01, 50)


def tree(root, files) -> str:
    for path, text in files.items():
        os.makedirs(os.path.dirname(os.path.join(str(root), path)), exist_ok=True)
        with open(os.path.join(str(root), path), 'w', encoding='ascii') as stream:
            stream.write(text)
    return str(root)


@given(ms, ms, ms, st.floats(0, 30), st.integers(1, 9))
def test_a_client_idles_in_what_is_left_of_its_period_and_clients_share_what_the_server_idles(
        client_ms, com_ms, server_ms, slack_ms, clients):
    cycle_ms = client_ms + com_ms + clients * server_ms + slack_ms
    times = Times(client_ms, server_ms, com_ms, 0.0, cycle_ms, 0.0)
    power = {'client': Power(10.0, 2.0, 4.0, 'profile'), 'server': Power(200.0, 50.0, 50.0, 'measured')}
    found = energy_of(times, power, clients, 1)
    assert found['client_mj'] == pytest.approx(10 * client_ms + 4 * com_ms + 2 * (cycle_ms - client_ms - com_ms))
    of_a_period = 200 * clients * server_ms + 50 * (cycle_ms - clients * server_ms)  # mJ of the server, for all clients
    assert found['server_mj'] == pytest.approx(of_a_period / clients)
    assert found['both_mj'] == pytest.approx(found['client_mj'] + found['server_mj'])
    assert found['from'] == {'client': 'profile', 'server': 'measured'}


def test_what_is_not_known_is_null_and_marked():
    times = Times(2.0, 1.0, 1.0, 4.0, 5.0, 4.0)
    assert energy_of(times, {}, 1, 1) is None and energy_lines({}) == []
    found = energy_of(times, {'client': Power(10.0, 2.0, 4.0, 'profile')}, 1, 1)
    assert found == {'client_mj': 28.0, 'server_mj': None, 'both_mj': None, 'from': {'client': 'profile'}}
    assert energy_lines({'exact': found}) == ['energy of a frame, mJ (watts from client: profile): exact client 28.00']


@pytest.mark.parametrize('changed', [{'idle_w': 11}, {'idle_w': 0}, {'send_w': 1}, {'active_w': -1}, {'active_w': 1e9},
                                     {'active_w': '10'}, {'idle_w': None}])
def test_watts_that_cannot_be_are_one_line(tmp_path, changed):
    path = tree(tmp_path, {'board.json': json.dumps({**PROFILE, **changed})})
    with pytest.raises(UserError, match='_w') as caught:
        load_profile(os.path.join(path, 'board.json'))
    assert '\n' not in str(caught.value)


def test_a_profiles_watts_go_through_the_table_to_the_results(tmp_path):
    settings = settings_in(tmp_path, DEVICE_PROFILE=os.path.join(tree(tmp_path, {'board.json': json.dumps(PROFILE)}),
                                                                'board.json'), THROUGHPUT_OPTIM_STEPS=1)
    power = load_profile(settings.DEVICE_PROFILE).power
    assert power == Power(10.0, 2.0, 4.0, 'profile')
    table = dataclasses.replace(whole_table(settings), power={'client': power})
    assert lut_manager.read(lut_manager.save(table, settings), settings).power == {'client': power}
    result = unpruned.optimise(table, settings)
    assert result['exact']['energy']['from'] == {'client': 'profile'}
    assert 'watts from client: profile' in unpruned.summary(result)
    least = unpruned.optimise(table, dataclasses.replace(settings, OBJECTIVE='energy'))
    per_frame = [least[name]['energy']['client_mj'] for name in ('exact', 'gradient')]
    assert per_frame[0] <= result['exact']['energy']['client_mj'] and per_frame[0] <= per_frame[1] + 1e-9
    assert least['exact']['T_eff_ms'] == pytest.approx(per_frame[0] / 10)
    with pytest.raises(NothingFits, match='client energy .* mJ .MAX_CLIENT_MJ=0.01 exceeded'):
        check_possible(table, dataclasses.replace(settings, MAX_CLIENT_MJ=0.01))


@pytest.mark.parametrize('changed', [dict(OBJECTIVE='energy'), dict(MAX_CLIENT_MJ=5.0)])
def test_without_watts_energy_is_refused_in_one_line(changed):
    settings = Settings(THROUGHPUT_OPTIM_STEPS=1, **changed)
    with pytest.raises(UserError, match='no watts of the client') as caught:
        unpruned.optimise(whole_table(settings), settings)
    assert '\n' not in str(caught.value)


def test_a_jetson_is_read_in_both_layouts_of_the_driver(tmp_path):
    old = {'rail_name_0': 'VDD_SYS_GPU\n', 'in_power0_input': '1200\n', 'rail_name_1': 'VDD_IN\n',
           'in_power1_input': '7350\n'}
    chip = 'bus/i2c/drivers/ina3221x/0-0041/iio:device1/'
    assert power_sensors.board_w(tree(tmp_path / 'old', {chip + name: text for name, text in old.items()})) == 7.35
    new = {'in1_label': 'VDD_IN\n', 'in1_input': '5000\n', 'curr1_input': '1500\n', 'in2_label': 'VDD_SOC\n',
           'in2_input': '5000\n', 'curr2_input': '400\n'}
    chip = 'bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/'
    root = tree(tmp_path / 'new', {chip + name: text for name, text in new.items()})
    assert power_sensors.board_w(root) == 7.5
    assert power_sensors.watts_during(lambda: None, root, seconds=0.01) == 7.5


def test_a_processors_counter_is_read_while_it_counts_and_starts_anew(tmp_path):
    package = 'class/powercap/intel-rapl:0/'
    root = tree(tmp_path, {package + 'energy_uj': '900\n', package + 'max_energy_range_uj': '1000\n',
                           'class/powercap/intel-rapl:0:0/energy_uj': '5\n'})  # the cores alone: part of the package

    def count() -> None:
        tree(tmp_path, {package + 'energy_uj': '400\n'})

    watts = power_sensors.watts_during(count, root, seconds=0.01)
    assert 0 < watts <= 500e-6 / 0.01


@pytest.mark.parametrize('files', [{}, {'class/powercap/intel-rapl:0/energy_uj': 'nonsense'},
                                   {'bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0/in1_label': 'VDD_CPU'}])
def test_where_no_sensor_can_be_read_nothing_is_said_to_be_measured(tmp_path, files):
    assert power_sensors.watts_of(lambda: pytest.fail('nothing to measure'), tree(tmp_path, files)) is None


def test_a_table_of_an_earlier_version_has_no_watts(tmp_path):
    settings = settings_in(tmp_path)
    path = lut_manager.save(whole_table(settings), settings)
    content = content_of(path)
    del content['power']
    assert lut_manager.read(write_text(path, json.dumps(content)), settings).power == {}
