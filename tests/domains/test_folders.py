"""Claims about folders of images: what is a class, what is held out, and what identifies an image."""
from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest
from image_folders import class_tree, image_file

import config
from config import UserError
from domains import folders
from domains.division import SUBSETS
from domains.image_sources import open_source
from domains.partition import load_partition, make_partition
from domains.torchvision_sources import FolderImages
from search import result_warnings


def settings_of(tmp_path, **overrides) -> config.Settings:
    return config.Settings(**{'DATASET': 'imagefolder', 'DATA_PATH': str(tmp_path / 'images'), 'WEIGHT_PATH_SERVER': '',
                              'PARTITION_FILE': str(tmp_path / 'partition_info.json'), 'NUM_DOMAINS': 2,
                              'NUM_CLASSES': 2, **overrides})


@pytest.mark.parametrize('training, held_out', [
    ('train', ['val']), ('Train', ['Test']), ('TRAIN', ['Valid']), ('training', ['validation', 'test'])])
def test_train_and_val_are_used_as_such(training, held_out, tmp_path):
    for number, part in enumerate([training, *held_out]):
        class_tree(tmp_path / 'images' / part, first_seed=10_000 * number)
    settings = settings_of(tmp_path)
    source = open_source(settings)
    assert source.class_names == ['cat', 'dog']
    pools = load_partition(source, settings).pools
    assert [source.paths[i].split('/')[0] for i in pools['train']] == [training] * 40
    for subset in SUBSETS[1:]:
        assert len(pools[subset]) and {source.paths[i].split('/')[0] for i in pools[subset]} <= set(held_out)
    assert sum(map(len, pools.values())) == len(source) == 40 * (1 + len(held_out))


def test_a_class_may_be_called_train(tmp_path):
    class_tree(tmp_path / 'images', ('bus', 'train'))
    source = open_source(settings_of(tmp_path))
    assert source.class_names == ['bus', 'train'] and source.held_out is None


@pytest.mark.parametrize('prepare, says', [
    (lambda root: class_tree(root / 'train'), 'holds train instead of class folders.*images/train'),
    (lambda root: (class_tree(root / 'train'), class_tree(root / 'val', ('cat', 'cow'), 3, 5000)),
     'same classes; only in train/: dog; only in val/: cow'),
    (lambda root: (class_tree(root / 'train'), image_file(root / 'val' / '1.png', 1)), 'val: no class folders'),
    (lambda root: (class_tree(root / 'train'), (root / 'val' / 'cat').mkdir(parents=True),
                   (root / 'val' / 'dog').mkdir()), 'val: no images'),
])
def test_parts_that_do_not_fit_are_refused_in_one_line(prepare, says, tmp_path):
    prepare(tmp_path / 'images')
    with pytest.raises(UserError, match=says) as caught:
        open_source(settings_of(tmp_path))
    assert '\n' not in str(caught.value)


def test_test_images_without_labels_are_left_out_and_named(tmp_path):
    for number, part in enumerate(('train', 'val')):
        class_tree(tmp_path / 'images' / part, first_seed=10_000 * number)
    image_file(tmp_path / 'images' / 'test' / '1.png', 1)
    source = open_source(settings_of(tmp_path))
    assert len(source) == 80 and 'left out: test' in source.warnings[0]


def test_annotations_are_no_classes(tmp_path):
    root = tmp_path / 'images'
    class_tree(root)
    for name in ('Annotations', 'labels', '__MACOSX', '.git'):
        image_file(root / name / '._1.png', 1)
        image_file(root / name / 'mask.png', 2)
    (root / 'boxes' / 'cat').mkdir(parents=True)
    (root / 'boxes' / 'cat' / '1.xml').write_text('<box/>')
    source = open_source(settings_of(tmp_path))
    assert source.class_names == ['cat', 'dog'] and len(source) == 40
    assert 'left out: Annotations, __MACOSX, boxes, labels' in source.warnings[0]


def test_an_empty_class_folder_keeps_the_numbers_of_the_others_and_is_named(tmp_path, capsys):
    class_tree(tmp_path / 'images', ('cat', 'dog'))
    (tmp_path / 'images' / 'cow').mkdir()
    settings = settings_of(tmp_path, NUM_CLASSES=3)
    source = open_source(settings)
    assert source.class_names == ['cat', 'cow', 'dog'] and set(source.labels) == {0, 2}
    load_partition(source, settings)
    said = capsys.readouterr().err
    assert 'no train or val or calibration or test image of class cow' in said
    assert result_warnings.of_settings(dataclasses.replace(settings, NUM_CLASSES=5))[-1].startswith('the data has 3 ')
    (tmp_path / 'images' / 'cow').rmdir()  # now dogs are class 1
    assert open_source(settings).identity != source.identity


def test_numbers_that_sort_as_text_are_named(tmp_path):
    class_tree(tmp_path / 'odd', [str(number) for number in range(12)], 1)
    class_tree(tmp_path / 'even', [f'{number:02}' for number in range(12)], 1)
    odd, even = folders.read_tree(str(tmp_path / 'odd')), folders.read_tree(str(tmp_path / 'even'))
    assert '0, 1, 10, 11, 2' in odd.warnings[0] and even.warnings == []


def test_a_file_of_the_same_name_size_and_date_is_another_image(tmp_path):
    settings = settings_of(tmp_path)
    path = tmp_path / 'images' / 'cat' / '00.bmp'
    class_tree(tmp_path / 'images')
    image_file(path, 1, 64)
    before, facts = open_source(settings).identity, path.stat()
    image_file(path, 2, 64)
    assert path.stat().st_size == facts.st_size
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    folders.digest_of.cache_clear()  # another process
    assert open_source(settings).identity != before
    image_file(path, 1, 64)
    folders.digest_of.cache_clear()
    assert open_source(settings).identity == before  # whatever its date, as after another clone


def test_images_in_train_and_in_val_are_refused_by_name(tmp_path):
    class_tree(tmp_path / 'images' / 'train')
    class_tree(tmp_path / 'images' / 'val', first_seed=10_000)
    shutil.copy(tmp_path / 'images' / 'train' / 'dog' / '03.png', tmp_path / 'images' / 'val' / 'dog' / 'other.png')
    with pytest.raises(UserError, match='1 held-out .*val/dog/other.png = train/dog/03.png') as caught:
        open_source(settings_of(tmp_path))
    assert '\n' not in str(caught.value)


def test_copies_get_into_no_subset_and_are_named(tmp_path, capsys):
    class_tree(tmp_path / 'images')
    for number in range(20):
        shutil.copy(tmp_path / 'images' / 'cat' / f'{number:02}.png', tmp_path / 'images' / 'cat' / f'copy{number}.png')
    settings = settings_of(tmp_path)
    source = open_source(settings)
    pools = make_partition(source, settings).pools
    used = np.concatenate(list(pools.values()))
    assert len(used) == 40 == len(set(source.digests[used]))
    assert 'left out 20 copies' in capsys.readouterr().err


# --- what classes are called --------------------------------------------------------------------------

def test_classes_are_called_as_their_folders_or_as_classes_txt_says(tmp_path):
    class_tree(tmp_path, ('n01', 'n02', 'n03'), each=1)
    plain = FolderImages(str(tmp_path), 32)
    assert plain.class_names == ['n01', 'n02', 'n03']
    for text, names in (('n02 English springer\nn01 tench\nn03\tcassette player\nn04 unused\n',
                         ['tench', 'English springer', 'cassette player']),
                        ('\ufefftench\n\nspringer \ngas pump\n', ['tench', 'springer', 'gas pump'])):
        (tmp_path / 'classes.txt').write_text(text, encoding='utf-8')
        named = FolderImages(str(tmp_path), 32)
        assert named.class_names == names and named.identity == plain.identity
    for content in (b'tench\nspringer\n', b'n01 tench\nn02 springer\nn05 x\n', b'caf\xe9\n'):
        (tmp_path / 'classes.txt').write_bytes(content)
        with pytest.raises(UserError, match='classes.txt: ') as caught:
            FolderImages(str(tmp_path), 32)
        assert '\n' not in str(caught.value)
