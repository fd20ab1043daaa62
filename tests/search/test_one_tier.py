"""The network without a split: times by a walk through it, JPEG by validation images, accuracy by test images."""
from __future__ import annotations

import dataclasses

import oracles
import pytest
from search_cases import SETTINGS, first_images, slow_client_table, trained_model, with_settings

from costs.cost_model import scenario_of
from domains import image_formats
from network.alpha import surviving_branches, unpruned_alpha
from search import result_assembly
from search.one_tier import Network, SentImages, without_split

TABLE = slow_client_table()


@pytest.fixture(scope='module')
def images():
    return SentImages(first_images(3, 'val', 60), first_images(3, 'test', 40), TABLE, SETTINGS)


@pytest.fixture(scope='module')
def pruned():
    """The built-in network with a block without its 3x3, and how often it is right."""
    alpha = unpruned_alpha(TABLE.n_branches)
    alpha[2, 0] = 0
    return alpha, result_assembly.correct_on(trained_model(), alpha, None, SETTINGS)


def naive_T_eff_ms(alpha, split, table, settings):
    return min(times.T_eff_ms for times in (
        oracles.naive_times(table, gamma, split, 'float32', scenario_of(settings, table))
        for gamma in ([min(oracles.valid_gammas(row), key=table.T_ms[tier][k].__getitem__)
                       for k, row in enumerate(surviving_branches(alpha))] for tier in ('client', 'server'))))


def test_every_way_takes_what_a_walk_through_the_network_takes_and_is_as_accurate_as_it_is(images, pruned):
    alpha, correct_on = pruned
    found = without_split(Network(alpha, correct_on, 0.0), '_pruned', images, TABLE, SETTINGS)
    assert list(found) == ['all_client_pruned', 'all_server_pruned', 'all_server_pruned_png', 'all_server_pruned_jpeg']
    for name, baseline in found.items():
        split = TABLE.n_blocks if 'client' in name else 0
        table = dataclasses.replace(TABLE, image=baseline.image)
        assert baseline.times.T_eff_ms == pytest.approx(naive_T_eff_ms(alpha, split, table, SETTINGS))
        assert baseline.sends_image == (split == 0)
    whole = correct_on(images.test) / len(images.test)
    assert {found[name].accuracy for name in list(found)[:3]} == {whole}


def test_the_jpeg_keeps_the_accuracy_on_validation_images_and_reports_that_on_test_images(images, pruned):
    alpha, correct_on = pruned
    least = correct_on(images.val) / len(images.val) - 0.05
    jpeg = without_split(Network(alpha, correct_on, least), '', images, TABLE, SETTINGS)['all_server_jpeg']
    received = dataclasses.replace(images.test, images=image_formats.received(images.test.images, jpeg.image.quality))
    assert jpeg.accuracy == correct_on(received) / len(received)
    assert correct_on(images.received(jpeg.image.quality, 'val')) / len(images.val) >= least
    assert jpeg.image.n_bytes < TABLE.input_bytes


def test_without_a_quality_that_keeps_the_accuracy_there_is_no_jpeg(images, pruned):
    alpha, _ = pruned
    found = without_split(Network(alpha, lambda data: 0, 0.5), '', images, TABLE, SETTINGS)
    assert list(found) == ['all_client', 'all_server', 'all_server_png']


def test_with_the_head_on_the_server_it_is_the_client_that_is_sent_the_image(images, pruned):
    alpha, correct_on = pruned
    settings = with_settings(HEAD_TIER='server')
    at_server = SentImages(images.val, images.test, TABLE, settings)
    found = without_split(Network(alpha, correct_on, 0.0), '', at_server, TABLE, settings)
    assert [name for name, baseline in found.items() if baseline.sends_image] == [
        'all_client', 'all_client_png', 'all_client_jpeg']


def test_a_simulated_client_encodes_as_slowly_as_it_computes(images):
    info = {**TABLE.tier_info, 'client': {**TABLE.tier_info['client'], 'slowdown': 6.0}}
    slow = SentImages(images.val, images.test, dataclasses.replace(TABLE, tier_info=info), SETTINGS)
    for quality, name in ((None, 'png'), (90, 'jpeg')):
        encode_ms, decode_ms = TABLE.image_codec_ms[name]
        assert (slow.format(quality).encode_ms, slow.format(quality).decode_ms) == (6 * encode_ms, decode_ms)
