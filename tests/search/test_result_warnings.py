"""Claims about warnings: what makes a result mean less than it seems to is found."""
from __future__ import annotations

import pytest
import torch

import config
from domains.image_sets import ImageSet
from search import result_warnings
from steps import shared_warnings


def images(*class_counts: int) -> ImageSet:
    labels = torch.repeat_interleave(torch.arange(len(class_counts)), torch.tensor(class_counts))
    return ImageSet(torch.zeros((len(labels), 3, 2, 2), dtype=torch.uint8), labels)


@pytest.mark.parametrize('class_counts, A_ref, warned', [
    ((50,) * 10, 0.1, True), ((50,) * 10, 0.12, True), ((50,) * 10, 0.15, False),
    ((120, 40, 40), 0.62, True),  # far above 1 / 3, and no better than always naming the commonest class
    ((120, 40, 40), 0.70, False), ((5, 5), 0.8, True), ((50, 50), 0.8, False), ((100,), 1.0, True)])
def test_a_network_at_chance_is_named(class_counts, A_ref, warned):
    found = result_warnings.of_domain(images(*class_counts), A_ref, 0.1)
    assert any('not clearly above chance' in line for line in found) == warned


@pytest.mark.parametrize('epsilon, warned', [(0.02, False), (0.01, False), (0.0099, True), (0.0, True)])
def test_an_epsilon_of_less_than_one_image_is_named(epsilon, warned):
    found = result_warnings.of_domain(images(50, 50), 0.9, epsilon)
    assert found == [] if not warned else 'less than one of 100 validation images' in found[0]


def test_random_weights_are_called_so_once(capsys):
    shared_warnings.say(config.Settings(WEIGHT_PATH_SERVER=''))
    said = [line for line in capsys.readouterr().err.splitlines() if 'random weights' in line]
    assert len(said) == 1 and 'WEIGHT_PATH_SERVER is empty' in said[0]
