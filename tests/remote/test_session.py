"""What a session measures a table with: validation images, the server's own threads, and the client over the wire."""
from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from client_process import SETTINGS, N, batch, random_model
from random_cases import tier_costs

import split_trainer
from config import UserError
from costs.cost_model import Configuration, Link, Times
from domain_dataset import load_domain
from domains.image_sets import ImageSet
from lut_manager import same_work
from remote import session as real_mode
from steps import real_mode as real_mode_step
from tier import block_timing, devices, tasks
from wire import formats
from wire.frames import Kind, Message, ProtocolError


def test_the_wire_formats_are_timed_on_the_servers_own_number_of_threads(served, monkeypatch):
    found, of_wire = [], tasks.wire_ms
    monkeypatch.setattr(tasks, 'wire_ms', lambda *rest: found.append(torch.get_num_threads()) or of_wire(*rest))
    for threads, now in ((2, 1), (1, 2)):
        torch.set_num_threads(now)
        settings = dataclasses.replace(SETTINGS, SERVER_THREADS=threads)
        real_mode.Session(served[0], settings).wire_costs(batch(0)[0])
        assert found == [threads] * N and torch.get_num_threads() == now
        del found[:]
    torch.set_num_threads(1)


@pytest.fixture
def session_without_measuring(served, tmp_path, monkeypatch):
    """A session whose measurements are made up, and the images that it was given to measure with."""
    settings = dataclasses.replace(SETTINGS, RESULTS_DIR=str(tmp_path))
    session, given = real_mode.Session(served[0], settings), []
    monkeypatch.setattr(session, 'server_costs', lambda *rest: tier_costs('server', settings, 1, {'name': 'a'}))
    monkeypatch.setattr(session, 'client_costs', lambda *rest: tier_costs('client', settings, 2, {'name': 'b'}))

    class MadeLink:
        up_mbps, down_mbps, rtt_ms = 50.0, 50.0, 1.0

        def towards_tail(self, head_tier):
            return Link(50.0, 1.0, True)

    monkeypatch.setattr(real_mode, 'measure_link', lambda client: MadeLink())
    monkeypatch.setattr(session, 'wire_costs', lambda images: given.append(images))
    monkeypatch.setattr(real_mode.image_formats, 'codec_ms', lambda images: given.append(images) or {})
    return session, settings, given


def test_what_decides_is_measured_on_validation_images(session_without_measuring, monkeypatch):
    """Also where only a stream is asked for: its table is the one that searches decide by."""
    session, settings, given = session_without_measuring
    monkeypatch.setattr(real_mode_step, 'connected', lambda *rest: session)
    monkeypatch.setattr(real_mode_step, 'measure', lambda *rest: {})
    monkeypatch.setattr(session.client, '__exit__', lambda *rest: None, raising=False)
    monkeypatch.setattr(type(session), '__exit__', lambda *rest: None)
    real_mode_step.stream_unpruned(settings, real_mode_step.cli.ServerFlags(real_mode_step.cli.Listening(), True), 20)
    validation = load_domain(settings, 0, 'val').images
    assert len(given) == 2 and all(torch.equal(images, validation[:len(images)]) for images in given)


def test_a_client_on_this_machine_is_known_as_such(served, monkeypatch):
    session = real_mode.Session(served[0], SETTINGS)
    assert session.on_this_machine()
    here = devices.machine_facts()
    monkeypatch.setattr(devices, 'machine_facts', lambda: {**here, 'memory_bytes': 1})
    assert not session.on_this_machine()


def test_a_clients_table_has_parts_and_their_correction(served, tmp_path):
    settings = dataclasses.replace(SETTINGS, LUT_ROUNDS=1, RESULTS_DIR=str(tmp_path))
    costs = real_mode.Session(served[0], settings).client_costs(remeasure=True)
    assert len(costs.parts) == 12 and all(part.ms > 0 for part in costs.parts)
    assert costs.correction().held_out.n == 12
    assert (np.isfinite(costs.block_ms) == (same_work(settings) >= 0)).all()


@pytest.mark.parametrize('ms', [torch.ones(2, 3, N + 1), torch.ones(3, 3, N + 2), torch.zeros(2, 3, N + 2),
                                torch.full((2, 3, N + 2), float('nan')), torch.ones(2, 0, N + 2)])
def test_impossible_times_of_a_client_are_refused(ms):
    class Client:
        def request(self, op, read, fields, tensors, progress=None, steps=0):
            return read(Message(Kind.REPLY, {}, {'ms': ms.double()}))

    with pytest.raises(ProtocolError):
        real_mode._ClientMachine(Client(), SETTINGS).visits([[4] * N] * 2, lambda done: None)


@pytest.mark.parametrize('op, tensors', [
    ('time_visits', {'gamma': torch.full((1, N), 13)}), ('time_visits', {'gamma': torch.zeros(1, N - 1)}),
    ('time_visits', {'gamma': torch.zeros(0, N)}), ('time_parts', {'gamma': torch.zeros(2, N)}),
    ('time_parts', {'gamma': torch.zeros(1, N), 'span': torch.tensor([[3, N + 1]])}),
    ('time_parts', {'gamma': torch.zeros(1, N), 'span': torch.tensor([[0, 1], [0, 2]])})])
def test_a_client_refuses_what_the_network_cannot_run(served, op, tensors):
    fields = {'model': 'RepVGG-Micro', 'classes': 10, 'input_size': 32}
    with pytest.raises(real_mode.UserError, match='missing'):
        served[0].request(op, lambda reply: reply, fields, {name: value.long() for name, value in tensors.items()})
    assert block_timing.draw_parts([2]) != []  # and lives on
    assert served[0].facts()['threads'] >= 1


def test_a_stream_runs_where_the_table_was_measured_whatever_the_search_runs_on(monkeypatch):
    """On the server's device within `measure`, and back behind it."""
    moved, model = [], random_model(1)
    monkeypatch.setattr(type(model), 'to', lambda self, device: moved.append(str(device)))
    monkeypatch.setattr(split_trainer.devices, 'device_of', lambda name: torch.device({'auto': 'cuda:1'}[name]))
    monkeypatch.setattr(split_trainer, 'predict', lambda *rest: moved.append('predicts') or torch.zeros(4))
    monkeypatch.setattr(split_trainer, 'run_stream', lambda *rest: moved.append('streams') or ({}, [0] * 16))
    monkeypatch.setattr(split_trainer, 'times', lambda *rest: Times(*[1.0] * len(Times.__dataclass_fields__)))
    monkeypatch.setattr(split_trainer, 'scenario_of', lambda *rest: SimpleNamespace(of_one_client=None))
    session = SimpleNamespace(settings=SETTINGS, client=None, on_this_machine=lambda: True)
    alpha = model.alpha_array()
    split_trainer.measure(session, model, Configuration(alpha, (4,) * N, 3, 'float32'), None, ImageSet(*batch(1)), 16)
    assert moved == ['cuda:1', 'predicts', 'streams', 'cpu']


def test_a_client_that_lacks_a_compression_is_told_before_anything_is_measured(monkeypatch):
    said = []

    class Client:
        def facts(self):
            return {'compressions': 'zlib'}

        def close(self, text):
            said.append(text)

    monkeypatch.setattr(real_mode, 'wait_for_client', lambda *rest, **flags: Client())
    monkeypatch.setattr(formats, 'available', lambda: ('zlib', 'zstd', 'lz4'))
    settings = dataclasses.replace(SETTINGS, DEVICE_PROFILE='', WIRE_FORMATS=('uint8+zlib', 'uint4+lz4'))
    with pytest.raises(UserError, match=r'uint4\+lz4 needs the package lz4 on the client'):
        real_mode.open_session(settings, real_mode.cli.Listening())
    assert len(said) == 1 and 'lz4' in said[0]
    settings = dataclasses.replace(settings, WIRE_FORMATS=('uint4', 'uint8+zlib'))
    real_mode.open_session(settings, real_mode.cli.Listening())
