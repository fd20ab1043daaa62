"""What formats with a share of the channels cost follows from those with all of them."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from config import Settings, load, with_shares
from costs import wire_costs
from costs.wire_costs import WireCosts, block_bytes_of
from network.shapes import architecture, block_shapes

SHAPES = block_shapes(architecture('RepVGG-Micro'), 32)[1]


def test_shares_join_every_format():
    assert load(('WIRE_FORMATS=float32,uint4+zlib', 'WIRE_CHANNELS=1,0.5'), {}).WIRE_FORMATS == (
        'float32', 'float32@0.5', 'uint4+zlib', 'uint4@0.5+zlib')
    assert load(('WIRE_FORMATS=uint4@0.25', 'WIRE_CHANNELS=0.5'), {}).WIRE_FORMATS == ('uint4@0.25',)
    assert load(('WIRE_CHANNELS=0.5',), {}).WIRE_FORMATS == ('float32@0.5',)
    again = with_shares(('float32', 'float32@0.5'), (1.0, 0.5))
    assert again == ('float32', 'float32@0.5')  # settings that were loaded before do not grow


def test_sizes_are_exact_and_times_are_a_share():
    chosen = dataclasses.replace(Settings(), WIRE_FORMATS=('float32', 'uint4@0.25', 'uint8@0.5+zlib'))
    codec = {'uint4': {tier: np.arange(2.0 * len(SHAPES)).reshape(-1, 2) for tier in ('client', 'server')}}
    found = wire_costs.with_shares(WireCosts(block_bytes_of(SHAPES), codec), SHAPES, chosen)
    for k, shape in enumerate(SHAPES):
        sent = shape.out_channels // 4
        assert found.block_bytes['uint4@0.25'][k] == sent * (shape.out_size ** 2 / 2 + 8)
        np.testing.assert_allclose(found.codec_ms['uint4@0.25']['client'][k], codec['uint4']['client'][k] / 4)
    assert 'uint8@0.5+zlib' not in found.block_bytes  # its size depends on values: it has to be measured
    with pytest.raises(KeyError):
        found.codec_ms['uint8@0.5+zlib']
