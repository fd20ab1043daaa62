"""Where frames come from: pixels as they are, nothing lost from files, the oldest dropped of live sources."""
from __future__ import annotations

import io
import os
import threading

import numpy as np
import pytest
import torch
from client_process import batch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from service_cases import images_in

import cli
import config
from config import UserError
from domains import torchvision_sources
from tier import sources
from tier.sources import Picture, Reader


def test_a_folder_gives_its_images_in_order_and_names_those_that_cannot_be_read(tmp_path, capsys):
    images = images_in(tmp_path, 1, 5)
    (tmp_path / '0002x.png').write_bytes(b'no image')
    os.mkfifo(tmp_path / '0001x.png')
    found = list(sources.open_source(str(tmp_path), 32))
    assert torch.equal(torch.stack([picture.image for picture in found]), images)
    assert [os.path.basename(picture.name) for picture in found] == [f'{i:04}.png' for i in range(5)]
    assert [line.split(':')[0] for line in capsys.readouterr().err.splitlines()] == [
        str(tmp_path / '0001x.png'), str(tmp_path / '0002x.png')]


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([16, 32, 48]))
def test_images_of_other_sizes_are_cropped_like_those_that_accuracy_is_measured_on(width, height, size):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = torchvision_sources.resize_and_crop(Image.fromarray(pixels), size, round(size * 256 / 224))
    if (width, height) != (size, size):
        assert torch.equal(sources.fit(pixels, size), expected)


@given(st.integers(0, 5), st.integers(0, 3 * 8 * 8 - 1))
def test_raw_frames_are_taken_as_they_are_and_half_a_frame_is_a_users_error(count, rest):
    images = batch(3, count)[0][:, :, :8, :8]
    data = b''.join(image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images) + bytes(rest)
    frames = sources.raw_frames(io.BytesIO(data), 8)
    assert [torch.equal(next(frames).image, image) for image in images] == [True] * count
    with pytest.raises(UserError if rest else StopIteration):
        next(frames)


def test_a_python_file_is_a_source():
    found = list(sources.open_source(os.path.join(config.ROOT, 'examples', 'moving_square.py'), 32))
    assert len(found) == 100 and found[0].image.shape == (3, 32, 32)
    assert not torch.equal(found[0].image, found[1].image)


@pytest.mark.parametrize('text, says', [('x = 1', 'no function frames'),
                                        ('def frames(size): yield [1]', 'uint8 array')])
def test_a_python_file_that_is_no_source_is_a_users_error(tmp_path, text, says):
    (tmp_path / 'source.py').write_text(text)
    with pytest.raises(UserError, match=says):
        list(sources.open_source(str(tmp_path / 'source.py'), 32))


def test_what_is_missing_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        sources.check_source(str(tmp_path / 'nothing'))
    with pytest.raises(UserError, match='no images'):
        sources.open_source(str(tmp_path), 32)
    with pytest.raises(UserError, match='pip install'):
        cli.optional('no_such_module', 'no-such-package', 'videos')


def taken(reader: Reader):
    """All frames of a reader, in order."""
    found = []
    while (part := reader.take(5.0)) is not None:
        found += part
    return found


def test_a_source_of_files_waits_and_a_live_one_drops_the_oldest():
    pictures = [Picture(torch.full((3, 2, 2), i, dtype=torch.uint8)) for i in range(50)]
    assert [frame.picture for frame in taken(Reader(iter(pictures), live=False))] == pictures
    read_all = threading.Event()

    def all_of_them():
        yield from pictures
        read_all.set()

    reader = Reader(all_of_them(), live=True)
    assert read_all.wait(5)
    found = taken(reader)
    assert [frame.number for frame in found] == list(range(50))
    assert found[-1].picture is pictures[-1] and reader.dropped == sum(frame.picture is None for frame in found)
    assert reader.dropped >= 48


def test_what_a_source_raises_is_raised_where_frames_are_taken():
    def broken():
        yield Picture(torch.zeros(3, 2, 2, dtype=torch.uint8))
        raise UserError('the camera is gone')

    reader = Reader(broken(), live=False)
    assert len(reader.take(5.0)) == 1
    with pytest.raises(UserError, match='camera is gone'):
        reader.take(5.0)
