"""The image as PNG and as JPEG: what arrives, how large it is, and the quality that keeps an accuracy."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from domains import image_formats
from domains.image_formats import QUALITIES


def images(count: int, grey: bool = False) -> torch.Tensor:
    """Smooth random images uint8 [count, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (count, 1 if grey else 3, 6, 6), generator=generator).float()
    large = torch.nn.functional.interpolate(small, size=32, mode='bilinear')
    return large.to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize('grey', [True, False])
def test_a_png_arrives_as_it_left(grey):
    for image in images(5, grey):
        data = image_formats.encode(image, None)
        assert torch.equal(image_formats.decode(data), image)
        assert Image.open(io.BytesIO(data)).mode == ('L' if grey else 'RGB')  # nobody sends the same channel thrice


def test_a_jpeg_is_smaller_and_farther_from_the_image_the_lower_its_quality():
    sent = images(8)
    sizes = [image_formats.mean_bytes(sent, quality) for quality in QUALITIES]
    errors = [float((image_formats.received(sent, quality).float() - sent.float()).abs().mean())
              for quality in QUALITIES]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


def test_a_size_is_the_mean_of_what_is_sent():
    sent = images(3)
    assert image_formats.mean_bytes(sent, 50) == np.mean([len(image_formats.encode(image, 50)) for image in sent])


def test_both_formats_are_timed_on_the_images_both_ways(monkeypatch):
    timed = []

    def median_ms(work, count):
        timed.append((work(count - 1), count))
        return float(len(timed))

    monkeypatch.setattr(image_formats, 'median_ms', median_ms)
    sent = images(3)
    assert image_formats.codec_ms(sent) == {'png': (1.0, 2.0), 'jpeg': (3.0, 4.0)}
    assert {count for _, count in timed} == {3}
    assert torch.equal(timed[1][0], sent[2]) and timed[0][0] == image_formats.encode(sent[2], None)


@given(st.integers(0, 100))
def test_the_quality_is_the_lowest_that_keeps_the_accuracy(enough):
    asked = []

    def accuracy_of(quality: int) -> float:
        asked.append(quality)
        return 0.9 if quality >= enough else 0.5

    expected = next((quality for quality in QUALITIES if quality >= enough), None)
    assert image_formats.smallest_within(accuracy_of, 0.9) == expected
    assert len(asked) <= 4
