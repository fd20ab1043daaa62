"""A stream beside its prediction: what is shown, which stage is named, and the likely cause."""
from __future__ import annotations

import copy
import dataclasses

import pytest
from made_results import make_result, make_table

from config import Settings, UserError
from report import measured, summary


def stream(head=(2.0, 2.0, 2.0), link=(1.0, 1.0, 1.0), tail=(3.0, 3.0, 3.0), outside_ms=0.5, fps=None, **changed):
    """`measured` of a result file: each stage's (predicted, lone frame, in the stream) ms, head on the client."""
    stages = {'head': head, 'link': link, 'tail': tail}
    predicted = dict(zip(('T_client_ms', 'T_com_ms', 'T_server_ms'), (stage[0] for stage in stages.values())))
    slowest = max(stage[0] for stage in stages.values())
    return {'throughput_fps': fps or 1000 / max(stage[2] for stage in stages.values()), 'n_frames': 286,
            'lockstep_latency_ms': outside_ms + sum(stage[1] for stage in stages.values()), 'latency_p50_ms': 8.0,
            'bytes_per_frame': 16384.0, 'wire': 'float32', 'head_tier': 'client', 'same_machine': False,
            **{f'{name}_ms': stage[2] for name, stage in stages.items()},
            **{f'lockstep_{name}_ms': stage[1] for name, stage in stages.items()},
            **{f'{name}_busy': 0.5 for name in stages},
            'predicted': {**predicted, 'T_lat_ms': 0.5 + sum(predicted.values()), 'T_cyc_ms': slowest,
                          'T_eff_ms': 5.0, 'throughput_fps': 1000 / slowest}, **changed}


def test_measured_stands_beside_predicted_for_rate_latency_and_every_stage():
    rows = measured.comparison(stream(head=(2.0, 2.1, 2.2), tail=(3.0, 3.1, 3.2)))
    cells = {line[:24].strip(): line[24:].split() for line in rows}
    assert cells['frames a second'] == ['333.33', '312.50']
    assert cells['latency, ms'] == ['6.50', '6.70', '8.00']
    assert cells['head (client), ms'] == ['2.00', '2.10', '2.20'] and cells['link, ms'] == ['1.00'] * 3
    assert cells['tail (server), ms'] == ['3.00', '3.10', '3.20']
    assert not [line for line in rows if 'differ' in line]  # 6 % is no news



def test_what_was_measured_with_one_client_is_not_called_a_measurement_of_eight():
    said = [line for line in measured.comparison(stream(clients=8)) if 'one client' in line]
    assert len(said) == 1 and '8 clients is predicted' in said[0]
    assert not [line for line in measured.comparison(stream(clients=1)) if 'one client' in line]


CASES = {
    'head slow even alone': (dict(head=(2.0, 5.0, 5.0)), 'the head (client) is off:', 'the client is slower than when'),
    'head slow, one machine': (dict(head=(2.0, 5.0, 5.0), same_machine=True), 'the head (client) is off:',
                               'shared cores: client and server run on one machine'),
    'tail slow in the stream': (dict(tail=(3.0, 3.0, 6.0)), 'the tail (server) is off in the stream:', 'shared cores'),
    'link slow': (dict(link=(1.0, 9.0, 9.0)), 'the link is off:', 'the link: it has changed or carries other traffic'),
    'link fast': (dict(link=(9.0, 1.0, 1.0)), 'the link is off:', 'buffers on the way'),
    'between the stages': (dict(outside_ms=4.0), 'no stage is off: 4.00 ms', 'shared cores'),
    'waiting': (dict(fps=100.0), 'no stage is off', 'shared cores'),
    'the table was too slow': (dict(head=(9.0, 2.0, 2.0)), 'the head (client) is off:', 'was slower when the table'),
}


@pytest.mark.parametrize('case', sorted(CASES))
def test_the_stage_that_is_off_is_named_with_the_likely_cause(case):
    changed, stage, cause = CASES[case]
    lines = measured.differences(stream(**changed))
    assert lines[0].startswith('measured and predicted differ: ')
    assert len(lines) == 3 and stage in lines[1] and 'likely cause: ' in lines[2] and cause in lines[2], lines
    assert lines == measured.comparison(stream(**changed))[-3:]


def test_the_tail_is_the_clients_where_the_head_is_the_servers():
    figures = stream(tail=(3.0, 9.0, 9.0), head_tier='server')
    figures['predicted'].update(T_client_ms=3.0, T_server_ms=2.0)
    assert any('the tail (client) is off' in line for line in measured.differences(figures))


def test_a_stage_that_is_off_and_too_short_to_matter_is_not_blamed():
    lines = measured.differences(stream(head=(2.0, 5.0, 5.0), link=(0.02, 0.1, 0.1)))
    assert not [line for line in lines if 'the link' in line]


def test_a_stream_of_too_few_frames_says_so():
    assert 'too few frames' in measured.comparison({'wire': 'float32'})[0]
    assert measured.differences({}) == [] and measured.one_line({}) == 'too few frames'


@pytest.mark.parametrize('change', [{'throughput_fps': 'fast'}, {'lockstep_latency_ms': None}, {'head_ms': -1.0},
                                    {'predicted': {}}, {'predicted': None}, {'head_tier': 'both'}])
def test_a_result_with_other_fields_is_refused(change):
    with pytest.raises(UserError, match='domain_0.json: field .measured.'):
        measured.check({**stream(), **change}, 'domain_0.json')
    measured.check(stream(), 'domain_0.json')


def test_step_5s_summary_shows_the_measured_rate_beside_the_predicted_one():
    settings = Settings()
    made = make_result(make_table(settings), settings, 0)
    found = dataclasses.replace(made, measured=stream(head=(2.0, 5.0, 5.0)))
    text = summary.text([found], [], settings)
    assert '200.0 frames/s measured, 333.3 predicted; lone frame 9.50 ms measured, 6.50 predicted' in text
    assert 'the head (client) is off' in text and 'likely cause' in text
    assert 'measured' not in summary.text([made], [], settings)
    wrong = copy.deepcopy(found.measured)
    del wrong['tail_ms']
    with pytest.raises(UserError, match='measured.tail_ms'):
        summary.check(dataclasses.replace(found, measured=wrong), 'a file')
