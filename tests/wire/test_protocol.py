"""Frames and connections: what goes in comes out, and nothing that arrives can do harm."""
from __future__ import annotations

import struct
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_ends import outcome, pair, raw_frame

from wire import frames
from wire.frames import FIXED, ConnectionLost, Kind, NetworkError, ProtocolError

names = st.from_regex(r'[a-z0-9_.]{1,64}', fullmatch=True)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2 ** 63, 2 ** 63 - 1), st.text(max_size=40),
                    st.floats(allow_nan=False, allow_infinity=False))
fields_of = st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=5)), max_size=6)
shapes = st.lists(st.integers(0, 3), max_size=6).map(tuple)


@st.composite
def tensors_of(draw):
    def tensor():
        dtype = draw(st.sampled_from(list(frames.DTYPES.values())))
        shape = draw(shapes)
        raw = np.frombuffer(draw(st.binary(min_size=64, max_size=64)) * (int(np.prod(shape)) * 8 // 64 + 1), np.uint8)
        as_numpy = torch.empty((), dtype=dtype).numpy().dtype
        return torch.from_numpy(raw.view(as_numpy)[:int(np.prod(shape))].copy().reshape(shape))
    return {name: tensor() for name in draw(st.lists(names, max_size=3, unique=True))}


def shown(fields):
    """Fields as they arrive: without control characters, which could steer a terminal or forge lines of a log."""
    def plain(value):
        return frames.printable(value) if isinstance(value, str) else value
    return {name: [plain(part) for part in value] if isinstance(value, list) else plain(value)
            for name, value in fields.items()}


@given(fields_of, tensors_of())
@settings(max_examples=200, deadline=None)
def test_every_message_arrives_as_it_was_sent(fields, tensors):
    a, b = pair()
    a.send(Kind.FRAME, fields, tensors)
    message = b.receive()
    assert message.kind == Kind.FRAME and message.fields == shown(fields) and list(message.tensors) == list(tensors)
    for name, value in tensors.items():
        got = message.tensors[name]
        assert got.dtype == value.dtype and got.shape == value.shape
        assert np.array_equal(got.numpy().view(np.uint8) if got.dim() else got.reshape(1).numpy().view(np.uint8),
                              value.numpy().view(np.uint8) if value.dim() else value.reshape(1).numpy().view(np.uint8))
    a.close(), b.close()


def test_large_and_strided_tensors_arrive_whole():
    a, b = pair(64 << 20)
    big = torch.rand(3, 1_000_003)
    sender = threading.Thread(target=a.send, args=(Kind.FRAME, {}, {'big': big, 'strided': big[:, ::7].t()}))
    sender.start()
    message = b.receive()
    sender.join()
    assert torch.equal(message.tensors['big'], big) and torch.equal(message.tensors['strided'], big[:, ::7].t())


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data):
    assert isinstance(outcome(data), NetworkError)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_frame_with_a_wrong_byte_is_refused(data):
    frame = bytearray(raw_frame(fields={'id': 7, 'op': 'forward'},
                                tensors={'x': torch.arange(300.), 'y': torch.ones(2)}))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    assert isinstance(outcome(bytes(frame)), ProtocolError)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_frame_cut_short_is_a_lost_connection(data):
    frame = raw_frame(fields={'id': 7}, tensors={'x': torch.arange(300.)})
    assert isinstance(outcome(frame[:data.draw(st.integers(0, len(frame) - 1))]), ConnectionLost)


json_like = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
                         lambda inner: st.one_of(st.lists(inner, max_size=4),
                                                 st.dictionaries(st.text(max_size=8), inner)),
                         max_leaves=12)


@given(st.one_of(json_like, st.builds(lambda f, t: {'fields': f, 'tensors': t}, json_like, json_like)),
       st.integers(0, 2 ** 64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_typed_header_is_either_within_limits_or_refused(content, payload_bytes):
    import json
    typed = json.dumps(content).encode()
    fixed = FIXED.pack(b'SPLT', frames.VERSION, Kind.REQUEST, len(typed), payload_bytes, zlib.crc32(typed))
    result = outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed)
    assert isinstance(result, NetworkError) or (set(content) == {'fields', 'tensors'} and
                                                len(result.tensors) == len(content['tensors']))


@pytest.mark.parametrize('typed', [
    b'[' * 60000, b'{"fields":' * 5000, b'{"fields":{"a":' + b'9' * 60000 + b'},"tensors":[]}',
    b'{"fields":{"a":1e999},"tensors":[]}', b'{"fields":{"a":NaN},"tensors":[]}',
    b'{"fields":{"a":1,"a":2},"tensors":[]}', b'{"fields":{"../a":1},"tensors":[]}', b'\xff\xfe', b'{}',
    b'{"fields":{},"tensors":[["x","float32",[2147483647,2147483647,2147483647,2147483647,2147483647]]]}',
    b'{"fields":{},"tensors":[["x","float32",[0,2147483647,2147483647,2147483647,2147483647]]]}',
    b'{"fields":{},"tensors":[["x","object",[1]]]}', b'{"fields":{},"tensors":[["x","float32",[-1]]]}',
    b'{"fields":{},"tensors":[["x","float32",[1,1,1,1,1,1,1]]]}', b'{"fields":{},"tensors":[["x","float32",[true]]]}',
    b'{"fields":{},"tensors":[["x","uint8",[0]],["x","uint8",[0]]]}',
])
def test_hostile_headers_are_refused_quickly(typed):
    fixed = FIXED.pack(b'SPLT', frames.VERSION, Kind.REQUEST, len(typed), 0, zlib.crc32(typed))
    start = time.thread_time()  # of the processor: other programs may keep this one waiting
    assert isinstance(outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed), ProtocolError)
    assert time.thread_time() - start < 1


def test_a_payload_above_the_limit_claims_no_memory():
    typed = b'{"fields":{},"tensors":[["x","uint8",[1000000000000]]]}'
    fixed = FIXED.pack(b'SPLT', frames.VERSION, Kind.REQUEST, len(typed), 10 ** 12, zlib.crc32(typed))
    tracemalloc.start()
    assert 'allowed' in str(outcome(fixed + struct.pack('<I', zlib.crc32(fixed)) + typed))
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_texts_arrive_without_what_steers_a_terminal():
    message = outcome(raw_frame(Kind.REPLY, {'t': 'a\x1b[2J\nerror: all lost\u202e', 'l': ['\r', 1]}))
    assert message.text('t') == 'a?[2J?error: all lost?' and message.fields['l'] == ['?', 1]


def test_fields_are_checked_where_they_are_read():
    message = frames.Message(Kind.REPLY, {'n': 5, 't': 'a', 'f': True, 'l': [1, None]}, {'z': torch.zeros(2)})
    assert message.integer('n', 0, 5) == 5 and message.text('t') == 'a' and message.flag('f')
    assert np.isnan(message.numbers('l')[1])
    for wrong in (lambda: message.integer('n', 0, 4), lambda: message.integer('f', 0, 4), lambda: message.text('n'),
                  lambda: message.number('missing'), lambda: message.integers('l', 0, 9), lambda: message.texts('l'),
                  lambda: message.tensor('z', torch.float64), lambda: message.tensor('z', rank=3),
                  lambda: message.flag('n')):
        with pytest.raises(ProtocolError):
            wrong()
