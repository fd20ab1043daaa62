"""Images of every sort from a folder: bit depths, rotation, odd shapes, odd files; and what loading processes say."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_folders import class_tree, image_file
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import functional

import config
from config import UserError
from domain_dataset import DomainDataset, load_clean
from domains import folders, loading, torchvision_sources
from domains.image_sources import open_source
from domains.partition import find_readable
from domains.torchvision_sources import FolderImages, resize_and_crop


def pixels_of(path, size: int = 32) -> np.ndarray:
    """uint8 [S, S, 3] of the only image of a folder."""
    return FolderImages(str(path.parent.parent), size).read(0).permute(1, 2, 0).numpy()


def one_image(tmp_path, name: str = 'a.png'):
    (tmp_path / 'cat').mkdir(exist_ok=True)
    return tmp_path / 'cat' / name


# --- pixels -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bits_of_grey_are_scaled_to_eight(name, tmp_path):
    grey = np.tile(np.linspace(0, 65535, 37).astype(np.uint16), (37, 1))  # 37: no resizing
    Image.fromarray(grey).save(one_image(tmp_path, name))
    found = pixels_of(one_image(tmp_path, name))
    expected = functional.center_crop(Image.fromarray((grey / 257).round().astype(np.uint8)).convert('RGB'), 32)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    assert found.min() < 20 and found.max() > 230


def test_pixels_without_a_known_range_are_named_and_left_out(tmp_path, capsys):
    for name, pixels in (('float.tif', np.ones((8, 8), np.float32)), ('int.tif', np.ones((8, 8), np.int32))):
        Image.fromarray(pixels).save(one_image(tmp_path, name))
    image_file(one_image(tmp_path, 'fine.png'), 1)
    assert find_readable(FolderImages(str(tmp_path), 32))[0].tolist() == [0]
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'float.tif' in said and 'int.tif' in said


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_images_are_turned_as_their_camera_was_held(orientation, name, tmp_path):
    upright = Image.fromarray(np.kron(np.array([[250, 90], [10, 170]], np.uint8), np.ones((16, 16), np.uint8)))
    how = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
           6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}
    stored = upright.transpose(how[orientation]) if orientation in how else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(one_image(tmp_path, name), exif=exif)
    found = pixels_of(one_image(tmp_path, name), 28)
    for row, column, value in ((6, 6, 250), (6, 22, 90), (22, 6, 10), (22, 22, 170)):
        assert abs(int(found[row, column, 0]) - value) < 12


def test_damaged_rotation_data_costs_no_image(tmp_path):
    Image.new('RGB', (40, 40), (200, 10, 10)).save(one_image(tmp_path, 'a.jpg'), exif=b'Exif\0\0MM\0*' + b'\xff' * 40)
    assert abs(int(pixels_of(one_image(tmp_path, 'a.jpg'))[0, 0, 0]) - 200) < 5


@pytest.mark.parametrize('seed', range(20))
def test_cropping_while_resizing_gives_the_pixels_of_resizing_first(seed):
    rng = np.random.default_rng(seed)
    width, height, size = int(rng.integers(1, 500)), int(rng.integers(1, 500)), int(rng.choice([24, 32, 96]))
    shorter = int(rng.integers(size, 2 * size))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = np.asarray(functional.center_crop(functional.resize(image, shorter), size)).astype(int)
    found = resize_and_crop(image, size, shorter).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1 and np.abs(found - expected).mean() < 0.05


WIDE = '''
import resource, sys
from PIL import Image
from domains.torchvision_sources import resize_and_crop
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shape in ((20000, 1), (1, 20000)):
    assert resize_and_crop(Image.new('RGB', shape, (9, 8, 7)), 224, 256)[:, 5, 5].tolist() == [9, 8, 7]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
'''


def test_an_image_of_20000_by_1_pixels_takes_no_more_memory_than_others():
    done = subprocess.run([sys.executable, '-c', WIDE], cwd=config.ROOT, stdout=subprocess.PIPE, check=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)))
    assert int(done.stdout) < 100  # MiB


# --- files and folders --------------------------------------------------------------------------------

def test_a_loop_of_links_adds_no_images(tmp_path):
    class_tree(tmp_path, each=2)
    (tmp_path / 'cat' / 'more').mkdir()
    for link, target in (('cat/self', 'cat'), ('cat/more/up', 'cat'), ('cat/all', '.'), ('dog/other', 'cat/more')):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / 'cat' / 'more' / 'back').symlink_to(tmp_path / 'dog')  # dog/other/back is dog
    paths = folders.read_tree(str(tmp_path)).paths
    assert [path for path in paths if path.startswith('dog/')].count('dog/00.png') == 1
    assert not [path for path in paths if path.count('00.png') and path.count('/') > 3], paths
    assert len(paths) <= 8


def test_a_link_to_nowhere_a_pipe_and_an_unreadable_file_are_named_and_left_out(tmp_path, capsys):
    class_tree(tmp_path, each=2)
    (tmp_path / 'cat' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
    (tmp_path / 'cat' / 'gone').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(str(tmp_path / 'cat' / 'pipe.png'))
    source = FolderImages(str(tmp_path), 32)
    assert [source.paths[index] for index in find_readable(source)[0]] == [
        'cat/00.png', 'cat/01.png', 'dog/00.png', 'dog/01.png']
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'gone.png' in said and 'pipe.png' in said


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is made up."""
    class_tree(tmp_path, each=2)
    image_file(tmp_path / 'dog' / 'locked' / '1.png', 9)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith('locked') or closed and path == str(tmp_path):
            raise PermissionError(13, 'Permission denied', path)
        return listed(path)

    closed = False
    monkeypatch.setattr(os, 'scandir', scandir)
    tree = folders.read_tree(str(tmp_path))
    assert len(tree.paths) == 4 and tree.warnings == [
        f'{tmp_path}: folders that cannot be read, left out: {tmp_path}/dog/locked']
    closed = True
    with pytest.raises(UserError, match='cannot be read .Permission denied.$'):
        folders.read_tree(str(tmp_path))


# --- loading processes --------------------------------------------------------------------------------

@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_image_damaged_later_is_one_line_whoever_reads_it(num_workers, tmp_path):
    class_tree(tmp_path, each=4)
    source = FolderImages(str(tmp_path), 32)
    (tmp_path / 'dog' / '01.png').write_bytes(b'damaged')
    with pytest.raises(UserError) as caught:
        list(loading.batches(DomainDataset(source, np.arange(8), 1, 0), 2, num_workers, 'domain 1'))
    assert str(caught.value).startswith(f'{tmp_path}/dog/01.png: can no longer be read (')
    assert str(caught.value).endswith('create_noniid_partition.py`') and '\n' not in str(caught.value)


class Failing(Dataset):
    """Its loading process ends as one that finds no room in /dev/shm, or as told."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.how == 'signal':
            os.kill(os.getpid(), signal.SIGBUS)
        raise RuntimeError('unable to write to file </torch_1_2_3>: No space left on device (28)\nmore')


@pytest.mark.parametrize('how', ['signal', 'error'])
def test_a_loading_process_that_ends_is_one_line_with_a_way_out(how):
    with pytest.raises(UserError, match='^domain 1: a loading process failed .*NUM_WORKERS=0') as caught:
        list(loading.batches(Failing(how), 2, 1, 'domain 1'))
    assert '\n' not in str(caught.value)


# --- names of classes ---------------------------------------------------------------------------------

def test_any_name_of_a_class_is_printed_drawn_and_written(tmp_path, capsys):
    from steps import partition
    names = ['$0_$10', os.fsdecode(b'caf\xe9'), 'a' * 200, '\u6f22\u5b57', 'tab\tin it', 'line\nend', '\x1b[31mred']
    class_tree(tmp_path / 'images', names, each=12)
    settings = config.Settings(DATASET='imagefolder', DATA_PATH=str(tmp_path / 'images'), NUM_DOMAINS=2,
                               NUM_CLASSES=len(names), WEIGHT_PATH_SERVER='',
                               PARTITION_FILE=str(tmp_path / 'partition_info.json'))
    partition.make(settings)
    assert (tmp_path / 'partition_info.png').stat().st_size > 10_000
    assert load_clean(settings, 'val').images.shape[1:] == (3, 32, 32)
    out, err = capsys.readouterr()
    table = out.splitlines()[1:-1]
    assert len(table) == 3 and max(map(len, table)) < 120
    assert '\x1b' not in out + err and '\udce9' not in out + err and err.count('\n') == 1


# --- torchvision's data sets --------------------------------------------------------------------------

@pytest.mark.parametrize('classes, split', [(62, 'byclass'), (47, 'balanced'), (27, 'letters'), (10, 'digits')])
def test_emnist_is_opened_by_its_number_of_classes(classes, split):
    from torchvision import datasets
    found = torchvision_sources._held_out_arguments(datasets.EMNIST, config.Settings(NUM_CLASSES=classes))
    assert found == {'root': 'data', 'split': split, 'train': False, 'download': False} or found == {
        'root': 'data', 'split': split, 'train': False}


def test_emnist_of_another_number_of_classes_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r'NUM_CLASSES must be 62 \(byclass\), 47 .*, not 100'):
        open_source(config.Settings(DATASET='emnist', DATA_PATH=str(tmp_path), NUM_CLASSES=100))
    with pytest.raises(UserError, match='EMNIST cannot be opened.*nothing is downloaded'):
        open_source(config.Settings(DATASET='emnist', DATA_PATH=str(tmp_path)))


@pytest.mark.parametrize('name', ['UCF101', 'Kinetics'])
def test_a_data_set_that_is_no_classification_of_images_gets_no_hint_to_put_it_there(name, tmp_path):
    with pytest.raises(UserError) as caught:
        open_source(config.Settings(DATASET=name, DATA_PATH=str(tmp_path)))
    assert 'put the dataset there' not in str(caught.value) and '\n' not in str(caught.value)
