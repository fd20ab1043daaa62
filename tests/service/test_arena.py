"""Shared memory: another process sees what was written, and nothing outlives the processes."""
from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.arena import Arena, Slots

TENSORS = st.lists(st.sampled_from(['uint8', 'float16', 'float32']).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=4, max_side=5))), max_size=3)


@given(st.lists(TENSORS, min_size=1, max_size=4))
def test_slots_hold_what_was_written(frames):
    arena = Arena(8192, 4)
    written = [({str(k): torch.from_numpy(value) for k, value in enumerate(frame)}) for frame in frames]
    layouts = [arena.write(slot, tensors) for slot, tensors in enumerate(written)]
    for slot, (tensors, layout) in enumerate(zip(written, layouts)):
        found = arena.read(slot, layout)
        assert list(found) == list(tensors)
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name].numpy(), value.numpy())
    del found
    arena.close()


def test_a_frame_that_is_too_large_is_refused_and_no_other_slot_is_touched():
    arena = Arena(100, 2)
    layout = arena.write(1, {'z': torch.full((128,), 7, dtype=torch.uint8)})
    with pytest.raises(ValueError):
        arena.write(0, {'z': torch.zeros(200, dtype=torch.uint8)})
    assert bool((arena.read(1, layout)['z'] == 7).all())


def double(arena: Arena, layout, connection) -> None:
    arena.read(1, layout)['z'].mul_(2)
    connection.send(True)


def test_another_process_has_the_same_memory():
    arena, context = Arena(4096, 2), multiprocessing.get_context('spawn')
    layout = arena.write(1, {'z': torch.arange(9, dtype=torch.float32).reshape(3, 3)})
    here, there = context.Pipe()
    process = context.Process(target=double, args=(arena, layout, there))
    process.start()
    assert here.recv()
    process.join()
    assert torch.equal(arena.read(1, layout)['z'], 2 * torch.arange(9, dtype=torch.float32).reshape(3, 3))


@given(st.lists(st.booleans(), max_size=40))
def test_no_slot_is_given_to_two_frames(takes):
    slots, taken = Slots(5), []
    for take in takes:
        if take:
            slot = slots.take()
            assert (slot is None) == (len(taken) == 5) and slot not in taken
            taken += [] if slot is None else [slot]
        elif taken:
            slots.give_back(taken.pop(0))
    assert len(slots) == 5 - len(taken)
