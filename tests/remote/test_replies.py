"""What a client answers is checked for meaning: shapes that were asked for, numbers that physics allows, one device."""
from __future__ import annotations

import time
import zlib

import numpy as np
import pytest
import torch
from client_process import SETTINGS, random_model, stream_case
from scripted_client import FACTS, ScriptedClient, listener

from config import UserError
from remote import client as client_module
from remote import replies
from remote.client import ClientPart, OtherDevice, RemoteClient, folded_specs
from remote.split_network import SplitNetwork
from tier import tasks
from tier.part import cut_shape
from wire import codec, stream
from wire.frames import ConnectionLost, Kind, Message, ProtocolError
from wire.stream import FrameRecord, StreamRecord

ODD = (None, True, -1, 1e308, 10 ** 18, '', 'x' * 4000, [1], float('nan'))
ms = torch.ones(2, 3, 4, dtype=torch.float64)
SET_UP = {'have': lambda message: ({'bytes': [0] * len(message.fields['hashes'])}, {}),
          'put': lambda message: ({'bytes': message.fields['size']}, {}), 'part': lambda message: ({}, {})}
FIGURES = {tasks.FIGURE + name: 1.0 for name in stream.FIGURES}


@pytest.mark.parametrize('read, fields, tensors', [
    (lambda reply: replies.roofline(reply), {'peak_gflops': 10.0, 'bandwidth_gbs': 10}, {}),
    (lambda reply: replies.stream_figures(reply), FIGURES, {}),
    (lambda reply: replies.kept_bytes(reply, 2), {'bytes': [0, 5]}, {}),
    (lambda reply: replies.echo(reply, 3), {}, {'data': torch.zeros(3, dtype=torch.uint8)}),
    (lambda reply: replies.times(reply, (2, 4)), {}, {'ms': ms}),
    (lambda reply: replies.codec_times(reply, 2), {}, {'ms': ms[:, 0, :2]}),
    (lambda reply: replies.feature_map(reply, (2, 3, 4), 'as_computed', torch.float64), {'shape': [2, 3, 4]},
     {'z': ms}),
    (lambda reply: replies.gradients(reply, 3, ms, torch.float64), {},
     {'alpha_grad': torch.ones(3, 3, dtype=torch.float64), 'x_grad': ms})])
def test_a_reply_with_any_field_or_tensor_missing_or_odd_is_refused(read, fields, tensors):
    read(Message(Kind.REPLY, fields, tensors))
    for name in fields:
        for value in ODD:
            with pytest.raises(ProtocolError):
                read(Message(Kind.REPLY, {**fields, name: value}, tensors))
        with pytest.raises(ProtocolError):
            read(Message(Kind.REPLY, {other: fields[other] for other in fields if other != name}, tensors))
    for name, value in tensors.items():
        for odd in (None, value[:0], value[:1], value[None], value.int(), torch.full_like(value, 200)[:1],
                    *([torch.full_like(value, wrong) for wrong in (float('nan'), float('inf'))]
                      if value.is_floating_point() and name != 'z' else []),
                    *([torch.full_like(value, wrong) for wrong in (-1, 1e300)] if name == 'ms' else [])):
            with pytest.raises(ProtocolError):
                read(Message(Kind.REPLY, fields, {**tensors, name: odd} if odd is not None else {}))


@pytest.mark.parametrize('wrong', [{'name': None}, {'threads': -1}, {'threads': 1e300}, {'temperature_c': 1e300},
                                   {'name': 'x' * 1000}, {'cores': [1, 2]}])
def test_impossible_facts_are_refused(wrong):
    assert replies.facts(Message(Kind.REPLY, {'id': 3, **FACTS})) == FACTS
    with pytest.raises(ProtocolError):
        replies.facts(Message(Kind.REPLY, {**FACTS, **wrong}))


def test_figures_of_a_stream_are_those_that_are_accepted():
    record = StreamRecord([FrameRecord(float(i), done=i + 0.5) for i in range(stream.LEAST_FRAMES)])
    assert tuple(record.figures()) == stream.FIGURES


def remote(*answers, said=None):
    """A server's view of scripted clients, the first of which is connected while the others wait."""
    server, clients = listener(), []
    for answer in answers:
        clients.append(ScriptedClient(server.address, answer))
        while server._ready.qsize() < len(clients):  # two handshakes at a time may end in either order
            time.sleep(0.001)
    return RemoteClient(server, (said if said is not None else []).append, return_s=5), clients


def test_a_reply_that_makes_no_sense_costs_its_client_the_connection_and_the_next_one_works():
    said = []
    good = {'roofline': lambda message: ({'peak_gflops': 10.0, 'bandwidth_gbs': 10.0}, {})}
    lies = {'roofline': lambda message: ({'peak_gflops': 1e308, 'bandwidth_gbs': 10.0}, {})}
    client, (liar, honest) = remote(lies, good, said=said)
    liar_at = '%s:%s' % liar.connection._sock.getsockname()
    assert client.request('roofline', replies.roofline).peak_gflops == 10
    line, = [line for line in said if 'lost' in line]
    assert liar_at in line and 'peak_gflops' in line and 'roofline' in honest.asked
    client.close('done')


def test_a_small_reply_is_not_decompressed_to_more_than_was_asked_for(monkeypatch):
    """Two megabytes that unpack to four gigabytes, with the shape that they would have."""
    model, configuration, images, _ = stream_case(1, 4)
    packed = torch.from_numpy(np.frombuffer(zlib.compress(bytes(1 << 20)), np.uint8).copy())
    answers = {**SET_UP, 'forward': lambda message: ({'shape': [4, 64, 256, 256]}, {'z': packed})}
    monkeypatch.setattr(client_module, 'MAX_REPEATS', 1)
    monkeypatch.setattr(codec, 'decode', lambda *arguments: pytest.fail('decoded'))
    client, _ = remote(answers, answers)  # the first one got on: it was sent weights
    part = ClientPart(client, model, folded_specs(configuration.alpha, configuration.gamma, (0, 5), SETTINGS), 32)
    with pytest.raises(UserError, match='broke off 1 times'):
        part.forward(x=images[:4], wire_back='float32+zlib')
    client.close('done')


def test_gradients_that_are_none_do_not_end_in_a_traceback(monkeypatch):
    """alpha_grad is missing, then of another shape."""
    monkeypatch.setattr(client_module, 'MAX_REPEATS', 1)
    grads = iter([{}, {'alpha_grad': torch.zeros(1, 3)}])
    y = torch.zeros(2, *cut_shape(SETTINGS.MODEL_NAME, 10, 32, 3))
    answers = {**SET_UP, 'forward': lambda message: ({'shape': list(y.shape)}, {'z': y}),
               'backward': lambda message: ({}, next(grads))}
    client, _ = remote(answers, answers)
    network = SplitNetwork(random_model(1), client, 2, SETTINGS)
    with pytest.raises(UserError, match='broke off 1 times'):
        network(torch.zeros(2, 3, 32, 32)).sum().backward()
    client.close('done')


def test_another_device_is_noticed_at_its_first_word():
    other = {'facts': lambda message: ({**FACTS, 'name': 'a slower board'}, {})}
    client, (first, second) = remote({}, other)
    assert client.facts()['name'] == 'a board'
    first.connection.close()
    with pytest.raises(OtherDevice, match='name a board, now a slower board'):
        client.facts()
    assert client.facts()['name'] == 'a slower board'  # asked again, it is the one that is meant
    client.close('done')


def test_progress_without_end_is_no_answer(monkeypatch):
    """Reports that tell nothing new do not keep the server waiting, however many come."""
    client, (talker,) = remote({})
    connection = client.connected()
    talker.answers['time_visits'] = lambda message: [talker.connection.send(
        Kind.PROGRESS, {'id': message.fields['id'], 'done': i, 'total': 10 ** 9}) for i in range(5000)] and ({}, {})
    with pytest.raises(client_module.NetworkError, match='reports nothing new'):
        client.ask(connection, 'time_visits', steps=2, timeout_s=0.0)
    client.close('done')


def test_a_stream_that_gets_on_survives_any_number_of_breaks(monkeypatch):
    monkeypatch.setattr(client_module, 'MAX_REPEATS', 3)
    client, _ = remote(*[{}] * 8)
    breaks = iter(range(7))

    def work(connection):
        for number in breaks:
            client.progress_made += number < 7 and gets_on
            connection.close()
            raise ConnectionLost('a break')
        return 'done'

    gets_on = True
    assert client.retry_until_answered(work) == 'done' and client.interruptions == 7
    client.close('done')
    client, _ = remote(*[{}] * 4)
    gets_on, breaks = False, iter(range(7))
    with pytest.raises(UserError, match='broke off 3 times'):
        client.retry_until_answered(work)
    client.close('done')
