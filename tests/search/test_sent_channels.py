"""The channels that a configuration sends are part of its result, and what is served sends the same ones."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fleets import made_settings, table_of
from made_results import make_result

from config import UserError
from costs.cost_model import scenario_of, times
from network.channels import CutChannels
from network.shapes import architecture, block_shapes
from pipeline import kinds
from search import result_file
from service.entries import entry_of

WIRE, SPLIT = 'uint4@0.5', 5


@pytest.fixture
def made(tmp_path):
    """(settings, table, a result that sends half of the channels)."""
    settings = made_settings(tmp_path, WIRE_FORMATS=('float32', WIRE))
    table, rng = table_of(settings), np.random.default_rng(0)
    count = block_shapes(architecture(settings.MODEL_NAME), settings.INPUT_SIZE)[1][SPLIT - 1].out_channels
    channels = CutChannels(tuple(sorted(rng.permutation(count)[:count // 2].tolist())),
                           tuple(rng.normal(size=count).astype(np.float32).tolist()))
    result = make_result(table, dataclasses.replace(settings, WIRE_FORMATS=('float32',)), 0, False)
    chosen = dataclasses.replace(result.configuration, split=SPLIT, wire=WIRE, channels=channels)
    result = dataclasses.replace(result, configuration=chosen, frontier={},
                                 times=times(table, chosen, scenario_of(settings, table)))
    return settings, table, result


def test_the_channels_are_read_back_as_they_were_and_are_what_a_client_is_served(made):
    settings, table, result = made
    result_file.save('joint', result, settings, 'inputs')
    found = result_file.load_anyhow(0, table, settings)
    assert found.configuration.channels == result.configuration.channels and found.configuration.wire == WIRE
    entry = entry_of('domain_0', found, table, settings)
    assert (entry.first.split, entry.first.wire) == (SPLIT, WIRE)
    assert entry.first.n_bytes == table.block_bytes[WIRE][SPLIT - 1]
    assert entry.network.channels_at(SPLIT, WIRE) == found.configuration.channels
    for choice in entry.choices:  # its accuracy is known for these channels alone
        assert (choice.split, choice.wire) == (SPLIT, WIRE) and choice.network == 0


@pytest.mark.parametrize('damage', [
    {'sent': []}, {'sent': [0.5]}, {'sent': None}, {'fill': [1.0]}, {'fill': 'x'}, {'repeat': True}, {'beyond': True},
    None])
def test_channels_that_cannot_be_are_refused_in_one_line(made, damage):
    settings, table, result = made
    path = result_file.save('joint', result, settings, 'inputs')
    with open(path, encoding='utf-8') as stream:
        content = json.load(stream)
    sent = content['channels']['sent']
    changed = {'repeat': {'sent': [sent[1], *sent[1:]]}, 'beyond': {'sent': [*sent[:-1], len(content['channels'][
        'fill'])]}}.get(next(iter(damage or {}), ''), damage)
    if damage == {'sent': [0.5]}:
        changed = {'sent': [sent[0] + 0.5, *sent[1:]]}
    content['channels'] = None if damage is None else {**content['channels'], **changed}
    with open(path, 'w', encoding='utf-8') as stream:
        json.dump(content, stream)
    with pytest.raises(UserError, match='channels') as caught:
        result_file.load_anyhow(0, table, settings)
    assert '\n' not in str(caught.value) and kinds.path_of('joint', settings, 0) in str(caught.value)
