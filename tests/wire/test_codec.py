"""Feature maps as bytes: what arrives is within a format's error of what left, and nothing that arrives can do harm."""
from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import UserError, with_shares
from wire import codec, compression, formats

HERE = [wire for wire in formats.WIRE_FORMATS if formats.can_be_packed(wire, compression.available())]
maps = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99),
                 st.floats(1e-6, 1e6)).map(
    lambda a: torch.relu(torch.randn(*a[:4], generator=torch.Generator().manual_seed(a[4]))) * a[5])


@given(maps, st.sampled_from(HERE))
@settings(max_examples=200, deadline=None)
def test_feature_maps_survive_every_format_within_its_error(z, wire):
    tensors = codec.encode(z, wire)
    back = codec.decode(tensors, wire, z.shape)
    error = (back - z).abs().amax(dim=(2, 3))
    span = z.amax(dim=(2, 3)) - z.amin(dim=(2, 3))
    peak = z.amax(dim=(2, 3))
    bound = {'float32': 0 * span, 'float16': peak.clamp(max=65504) / 1024 + (peak - 65504).clamp(0),
             'uint8': span / 255 * 0.501 + 1e-6 * peak,
             'uint4': span / 15 * 0.501 + 1e-6 * peak}[formats.numbers_of(wire)]
    assert (error <= bound + 1e-7).all()
    size = formats.wire_bytes(wire, z.numel(), z.shape[0] * z.shape[1])
    assert size is None or size == codec.encoded_bytes(tensors)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=50))
def test_four_bits_hold_any_number_of_values_two_a_byte(values):
    """A map whose values are those that 4 bits can say arrives as it left, also where their number is odd."""
    z = torch.tensor([0.0, 15.0, *values]).reshape(1, 1, 1, -1)
    tensors = codec.encode(z, 'uint4')
    assert tensors['z'].numel() == (len(values) + 3) // 2 and tensors['z'].dtype == torch.uint8
    assert torch.equal(codec.decode(tensors, 'uint4', z.shape), z)


@given(maps, st.sampled_from(HERE), st.data())
@settings(max_examples=100, deadline=None)
def test_maps_of_another_shape_are_refused(z, wire, data):
    tensors = codec.encode(z, wire)
    shape = list(z.shape)
    shape[data.draw(st.integers(0, 3))] += 2  # with 1, as many bytes of two values may be needed
    with pytest.raises(ValueError):
        codec.decode(tensors, wire, shape)
    with pytest.raises(ValueError):
        codec.decode({}, wire, z.shape)
    for name in tensors:
        with pytest.raises(ValueError):
            codec.decode({**tensors, name: tensors[name].double()}, wire, z.shape)
        with pytest.raises(ValueError):
            codec.decode({**tensors, name: tensors[name].reshape(-1)[:-1]}, wire, z.shape)


@given(maps, st.sampled_from([wire for wire in HERE if formats.compression_of(wire)]), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_are_refused_or_make_a_map_of_the_right_shape(z, wire, data):
    tensors = codec.encode(z, wire)
    packed = tensors['z'].clone()
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = codec.decode({**tensors, 'z': packed}, wire, z.shape)
    except ValueError as error:
        assert '\n' not in str(error)
    else:  # the frame's own checksum finds what no compression can
        assert back.shape == z.shape and back.dtype == torch.float32
    for shorter in (packed[:0], tensors['z'][:-1]):
        with pytest.raises(ValueError):
            codec.decode({**tensors, 'z': shorter}, wire, z.shape)


@pytest.mark.parametrize('name', compression.available())
def test_a_compression_bomb_is_refused_before_it_fills_the_memory(name):
    data = compression.COMPRESSIONS[name].compress(bytes(64 << 20))
    bomb = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    tracemalloc.start()
    with pytest.raises(ValueError):
        codec.decode({'z': bomb}, f'float32+{name}', (1, 4, 8, 8))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_zlib_compresses_as_it_always_did():
    """A peer that has only zlib reads it."""
    z = torch.zeros(1, 2, 3, 3)
    assert zlib.decompress(codec.encode(z, 'float32+zlib')['z'].numpy().tobytes()) == bytes(4 * z.numel())


def test_a_format_whose_package_is_not_there_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(formats, 'available', lambda: ('zlib',))
    assert formats.formats_of(['uint4', 'uint8+zlib']) == ('uint4', 'uint8+zlib')
    with pytest.raises(UserError, match=r'^wire format uint4\+zstd needs the package zstandard on this machine: .*$'):
        formats.formats_of(['float32', 'uint4+zstd'])
    with pytest.raises(UserError, match='unknown wire format'):
        formats.formats_of(['uint4+gzip'])


# --- names -------------------------------------------------------------------------------------------

@given(st.sampled_from(formats.WIRE_FORMATS), st.integers(1, 100), st.integers(1, 300), st.integers(1, 9))
def test_a_share_of_the_channels_is_part_of_a_formats_name(whole, percent, channels, size):
    share = percent / 100
    wire, = with_shares((whole,), (share,))
    assert formats.exists(wire) and formats.encoding_of(wire) == whole and formats.share_of(wire) == share
    assert formats.is_lossless(wire) == (share == 1 and formats.is_lossless(whole))
    assert formats.without_compression(wire) == wire.partition('+')[0]
    sent = formats.channels_sent(wire, channels)
    assert sent == max(1, -(-percent * channels // 100))
    if not formats.compression_of(wire):
        assert formats.wire_bytes(wire, channels * size ** 2, channels) == formats.wire_bytes(
            whole, sent * size ** 2, sent)


@pytest.mark.parametrize('wire', ['', 'uint4@', 'uint4@0', 'uint4@1', 'uint4@1.5', 'uint4@0.50', 'uint4@nan', 'uint4@a',
                                  'uint4@0.5@0.5', 'uint5', 'uint4+zlib@0.5', 'uint4@0.5+gzip', '@0.5'])
def test_other_names_are_no_formats(wire):
    assert not formats.exists(wire)
