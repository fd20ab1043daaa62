"""Channels that are not sent: which they are, and what takes their place."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from client_process import SETTINGS, batch, random_model
from hypothesis import given
from hypothesis import strategies as st

from domains.image_sets import ImageSet
from hyper_repvgg import deploy
from network.channels import CutChannels
from network.inputs import normalise
from search import cut_channels
from search.cut_channels import ChannelChoice, chosen, importance, loss, ranking
from search.wire_loss import through_wire

cuts = st.integers(1, 12).flatmap(lambda n: st.tuples(
    st.sets(st.integers(0, n - 1), min_size=1), st.lists(st.floats(-9, 9, width=32), min_size=n, max_size=n)))


@given(cuts, st.integers(1, 3), st.integers(1, 4))
def test_what_is_sent_arrives_and_the_rest_is_filled(cut, n_images, size):
    channels = CutChannels(tuple(sorted(cut[0])), tuple(cut[1]))
    z = torch.randn(n_images, len(cut[1]), size, size)
    sent = channels.take(z)
    assert tuple(sent.shape) == (n_images, *channels.shape(z.shape[1:]))
    back = channels.restore(sent)
    for channel, fill in enumerate(cut[1]):
        wanted = z[:, channel] if channel in cut[0] else torch.full_like(z[:, channel], fill)
        assert torch.equal(back[:, channel], wanted)


@pytest.mark.parametrize('sent, fill', [((), (1.0,)), ((0, 0), (1.0, 2.0)), ((1, 0), (1.0, 2.0)), ((2,), (1.0, 2.0)),
                                        ((-1,), (1.0,)), ((0,), (float('nan'), 1.0))])
def test_channels_that_cannot_be_are_refused(sent, fill):
    with pytest.raises(ValueError):
        CutChannels(sent, fill)


def made_maps(seed: int, n_channels: int = 6):
    """Feature maps of two batches, and labels."""
    torch.manual_seed(seed)
    return [(torch.relu(torch.randn(8, n_channels, 3, 3)), torch.randint(0, 4, (8,))) for _ in range(2)]


@pytest.mark.parametrize('seed', range(5))
def test_channels_that_the_tail_does_not_use_are_not_sent(seed):
    used = sorted(np.random.default_rng(seed).permutation(6)[:3].tolist())
    torch.manual_seed(seed)
    weights = torch.randn(4, 3)

    def tail(z):
        return F.linear(z[:, used].mean(dim=(2, 3)), weights)

    maps = made_maps(seed)
    found = chosen(tail, maps, ranking(tail, maps), 3)
    assert list(found.sent) == used


@pytest.mark.parametrize('seed', range(3))
def test_the_importance_of_a_channel_is_the_square_of_what_moving_it_to_its_mean_would_change(seed):
    """By finite differences, one image and one channel at a time, in float64."""
    torch.manual_seed(seed)
    layer = torch.nn.Conv2d(6, 4, 3).double()
    maps = [(z.double(), labels) for z, labels in made_maps(seed)]

    def tail(z):
        return torch.tanh(layer(z)).flatten(1)

    mean, step = torch.cat([z for z, _ in maps]).mean(dim=(0, 2, 3)), 1e-5
    wanted = np.zeros(6)
    for z, labels in maps:
        for image, label in zip(z, labels):
            for channel in range(6):
                towards = torch.zeros_like(image)
                towards[channel] = image[channel] - mean[channel]
                ends = [F.cross_entropy(tail((image + sign * step * towards)[None]), label[None]).item()
                        for sign in (1, -1)]
                wanted[channel] += ((ends[0] - ends[1]) / (2 * step)) ** 2
    np.testing.assert_allclose(importance(tail, maps, mean), wanted, rtol=1e-5)


@pytest.mark.parametrize('offset', [0.0, 5.0])
def test_the_rest_is_filled_with_what_loses_less(offset):
    """Means or zeros, on channels that few images move."""
    torch.manual_seed(0)
    weights = torch.randn(4, 6)
    maps = []
    for _ in range(4):
        rare = torch.zeros(8, 6, 3, 3)
        rare[0] = 40.0  # one image in eight: it alone moves the mean
        z = rare + torch.rand(8, 6, 3, 3) * 0.1 + offset
        maps.append((z, F.linear(z.mean(dim=(2, 3)), weights).argmax(dim=1)))

    def tail(z):
        return F.linear(z.mean(dim=(2, 3)), weights)

    found = chosen(tail, maps, ranking(tail, maps), 2)
    fills = [torch.cat([z for z, _ in maps]).mean(dim=(0, 2, 3)), torch.zeros(6)]
    losses = []
    for fill in fills:
        channels = CutChannels(found.sent, tuple(fill.tolist()))
        losses.append(loss(lambda z, channels=channels: tail(channels.restore(channels.take(z))), maps))
    assert losses[0] != losses[1] and (losses[0] < losses[1]) == (any(found.fill))
    np.testing.assert_allclose(found.fill, fills[int(losses[1] < losses[0])], rtol=1e-5)


def test_a_choice_is_a_function_of_network_split_and_training_images():
    model, data = random_model(3), ImageSet(*batch(3, 24))
    alpha = model.alpha_array()
    found = [ChannelChoice(random_model(3), data, SETTINGS).at(alpha, 4, wire)
             for wire in ('uint4@0.5', 'uint8@0.5+zlib')]
    assert found[0] == found[1] and len(found[0].sent) == len(found[0].fill) // 2
    choice = ChannelChoice(model, data, SETTINGS)
    few, half = choice.at(alpha, 4, 'uint4@0.25'), choice.at(alpha, 4, 'uint4@0.5')
    assert half == found[0] and set(few.sent) < set(half.sent)
    assert choice.at(alpha, 4, 'uint4') is None and choice.at(alpha, 0, 'uint4@0.5') is None
    with pytest.raises(ValueError):
        ChannelChoice(model, None, SETTINGS).at(alpha, 4, 'uint4@0.5')


def test_all_channels_as_float32_change_nothing_and_a_missing_choice_is_a_mistake():
    model = random_model(5)
    network, x = deploy(model), normalise(batch(5)[0], SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)
    count = network.head(x, 6).shape[1]
    whole = CutChannels(tuple(range(count)), (9.0,) * count)
    with torch.no_grad():
        z = network.head(x, 6)
        assert torch.equal(network.tail(whole.restore(whole.take(z)), 6), network(x))
    for wire, channels in (('uint8@0.5', None), ('uint8', whole)):
        with pytest.raises(ValueError):
            through_wire(network, 6, wire, channels)


def test_as_many_images_choose_as_memory_holds(monkeypatch):
    model, data, seen = random_model(7), ImageSet(*batch(7, 40)), []
    alpha, counted = model.alpha_array(), cut_channels.ranking
    monkeypatch.setattr(cut_channels, 'ranking', lambda tail, maps: seen.append(sum(len(z) for z, _ in maps)) or
                        counted(tail, maps))
    for limit in (cut_channels.MAPS_BYTES, 20 * 4 * 64 * 8 * 8, 1):  # a map at split 4: 64 channels of 8 by 8
        monkeypatch.setattr(cut_channels, 'MAPS_BYTES', limit)
        ChannelChoice(model, data, SETTINGS).at(alpha, 4, 'uint4@0.5')
    assert seen == [40, 16, SETTINGS.BATCH_SIZE]
