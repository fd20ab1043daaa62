"""What a device holds ready keeps within its memory, and takes the likeliest first."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from client_process import SETTINGS, batch, random_model
from hypothesis import given
from hypothesis import strategies as st
from service_cases import entry_of, random_alpha, settings_in, weights_in

from hyper_repvgg import deploy
from network.inputs import normalise
from service.entries import Choice, Entry, ServedNetwork
from service.holding import MIB, folded_mb, held
from service.tails import TailKey, Tails, base_model
from wire import codec
from wire.formats import AS_COMPUTED


def network(name: str) -> ServedNetwork:
    return ServedNetwork(name, np.zeros((0, 3)), {})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=6),
       st.lists(st.floats(0.1, 10), min_size=10, max_size=10), st.floats(0, 40), st.integers(1, 8))
def test_what_is_held_is_the_first_network_and_the_likeliest_others_that_fit(own, others, sizes, limit_mb, most):
    size_mb = {str(k): size for k, size in enumerate(sizes)}
    first = Choice(1, 'float32', 1.0, 1.0, 1.0)
    entry = Entry('own', network(str(own[0])), first, others=tuple(network(str(k)) for k in own[1:]))
    rest = [Entry(f'other {k}', network(str(k)), first) for k in others]
    found = [one.name for one in held(entry, rest, size_mb, limit_mb, most)]
    assert found[0] == str(own[0]) and len(set(found)) == len(found) <= most
    assert len(found) == 1 or sum(size_mb[name] for name in found) <= limit_mb + 1e-9
    order = [str(k) for k in (*own, *others)]
    for k, name in enumerate(order):  # one that is left out would not have fitted beside those before it
        if name not in found and len(found) < most:
            before = {one for one in order[:k] if one in found}
            assert sum(size_mb[one] for one in before) + size_mb[name] > limit_mb - 1e-9


@pytest.mark.parametrize('seed', [1, 2])
def test_the_memory_of_a_network_is_that_of_its_folded_weights(seed):
    model = random_model(seed)
    entry = entry_of('one', random_alpha(model, seed), 3)
    model.set_alpha_array(entry.network.alpha)
    weights = {value.data_ptr(): value for value in deploy(model, entry.network.gamma['client']).state_dict().values()}
    expected_mb = sum(value.numel() * value.element_size() for value in weights.values()) / MIB
    assert folded_mb(entry.network, 'client', SETTINGS) == pytest.approx(expected_mb, rel=0.01)


def test_a_worker_keeps_the_networks_that_were_used_last_within_its_memory(tmp_path):
    model = weights_in(tmp_path, 3)
    entries = [entry_of(name, random_alpha(model, k), 3) for k, name in enumerate(('a', 'b', 'c'))]
    networks = {entry.name: entry.network for entry in entries}
    size_mb = max(folded_mb(one, 'server', SETTINGS) for one in networks.values())
    settings = settings_in(tmp_path)
    images = batch(1, 1)[0]
    for limit_mb, kept in ((10 * size_mb, 'bca'), (2.1 * size_mb, 'ca'), (size_mb / 10, 'a')):
        tails = Tails(replace(settings, HELD_NETWORKS_MB=limit_mb), networks, base_model(settings))
        for name in 'abc':
            assert tails.answer(TailKey(name, 0, ''), []).frames == []
        found = tails.answer(TailKey('a', 0, 'float32'), [codec.encode(images, AS_COMPUTED)]).frames[0]
        model.set_alpha_array(entries[0].network.alpha)
        with torch.inference_mode():
            logits = deploy(model)(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD))
        assert found.label == int(logits.argmax()) and ''.join(tails._folded) == kept
