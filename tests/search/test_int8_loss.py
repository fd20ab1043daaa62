"""What int8 loses counts wherever accuracy decides; it is kept in the file; what is not known of it is refused."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from fleets import made_settings, table_of
from made_results import make_result
from search_cases import first_images, slow_client_table, trained_model, with_settings

from config import INT8, UserError
from costs.cost_model import Configuration
from hyper_repvgg import deploy
from network.alpha import unpruned_alpha
from network.inputs import normalise
from search import answers, result_assembly, result_file
from search.confirmation import Calibration
from search.cut_channels import ChannelChoice
from search.int8_loss import IMAGES, Peaks
from search.one_tier import SentImages, without_split
from search.wire_loss import WireLoss, classified_right
from service.entries import entry_of

TABLE = slow_client_table()
ALPHA = unpruned_alpha(TABLE.n_branches)
IN_INT8 = with_settings(CLIENT_ENGINE=INT8)


@pytest.fixture(scope='module')
def choice():
    return ChannelChoice(trained_model(), first_images(3, 'train', IMAGES), IN_INT8)


def test_peaks_are_the_largest_values_on_training_images_and_none_where_no_tier_needs_them(choice):
    model, train = trained_model(), choice.train
    model.set_alpha_array(ALPHA)
    x = normalise(train.images, IN_INT8.NORM_MEAN, IN_INT8.NORM_STD)
    with torch.no_grad():
        network, wanted = deploy(model), []
        for unit in (network.stem, *network.blocks):
            x = unit(x)
            wanted.append(float(x.max()))
    assert choice.peaks.of(ALPHA) == pytest.approx(wanted, rel=1e-5)
    assert Peaks(model, None, with_settings()).of(ALPHA) is None
    with pytest.raises(ValueError, match='training images'):
        Peaks(model, None, IN_INT8).of(ALPHA)


def coarse(choice):
    """The same, with peaks so high that every map is rounded to 0."""
    choice = ChannelChoice(choice.model, choice.train, choice.settings)
    choice.peaks.of = lambda alpha, statistics=None: (1e9,) * (TABLE.n_blocks + 1)
    return choice


def test_a_network_that_int8_ruins_is_measured_so_and_does_not_pass(choice):
    model, images = trained_model(), first_images(3, 'calibration', 120)
    exact = classified_right(model, Configuration(ALPHA, (), 5), images, IN_INT8).mean()
    for given, ruined in ((choice, False), (coarse(choice), True)):
        measured = WireLoss(model, images, IN_INT8, choice=given)
        accuracy = measured.accuracy(ALPHA, 5, 'float32', exact)
        assert (accuracy < 0.5) == ruined
        calibration = Calibration(model, ALPHA, images, dataclasses.replace(IN_INT8, EPSILON=0.1), given)
        chosen = Configuration(ALPHA, (13,) * TABLE.n_blocks, 5, peaks=given.peaks.of(ALPHA))
        found = calibration.compare(chosen)
        assert found.cal_reference == pytest.approx(exact) and found.cal_final == pytest.approx(accuracy)
        assert calibration.passes(found) != ruined
        assert calibration.is_unpruned(chosen) and not calibration.is_reference(chosen)
        if ruined:
            with pytest.raises(UserError, match='engines other than onnxruntime-int8 lose nothing'):
                answers.last_confirmed([answers.Answer(chosen, accuracy, found)], calibration)


def test_without_a_split_each_tier_has_the_accuracy_of_its_engine(choice):
    """The client is in int8, and ruined; the server is not."""
    images = SentImages(first_images(3, 'val', 30), first_images(3, 'test', 60), TABLE, IN_INT8)
    goal = result_assembly.Goal(1.0, 0.9, 0.02, 100.0, 1.0)
    for peaks, at_client in ((None, 1.0), (coarse(choice).peaks.of(ALPHA), 0.5)):
        network = result_assembly.network_of(trained_model(), ALPHA, None, peaks, goal, IN_INT8)
        found = without_split(network, '', images, TABLE, IN_INT8)
        assert found['all_server'].accuracy > 0.8
        assert (found['all_client'].accuracy == found['all_server'].accuracy) == (at_client == 1.0)
        assert found['all_client'].accuracy <= at_client


def test_peaks_are_read_back_and_damaged_ones_refused_and_a_service_does_not_take_them(tmp_path):
    settings = made_settings(tmp_path)
    table, result = table_of(settings), None
    result = make_result(table, settings, 0, False)
    peaks = tuple(np.random.default_rng(0).uniform(0, 9, table.n_blocks + 1).tolist())
    result = dataclasses.replace(result, configuration=dataclasses.replace(result.configuration, peaks=peaks))
    path = result_file.save('joint', result, settings, 'inputs')
    found = result_file.load_anyhow(0, table, settings)
    assert found.configuration.peaks == peaks
    with pytest.raises(UserError, match='a service or a plan changes splits'):
        entry_of('domain_0', found, table, dataclasses.replace(settings, CLIENT_ENGINE=INT8))
    for damage in (peaks[1:], [*peaks[1:], -1.0], [*peaks[1:], 'x']):
        with open(path, encoding='utf-8') as stream:
            content = json.load(stream)
        with open(path, 'w', encoding='utf-8') as stream:
            json.dump({**content, 'peaks': list(damage)}, stream)
        with pytest.raises(UserError, match='peaks'):
            result_file.load_anyhow(0, table, settings)
