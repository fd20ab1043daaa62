"""What folders of photographs hold in the wild: every file is an image of its class, or is named in one warning."""
from __future__ import annotations

import io
import os
from typing import Callable, Dict

import numpy as np
import pytest
import torch
from image_folders import class_tree
from PIL import Image

import config
import create_noniid_partition
from domain_dataset import load_clean
from domains.image_sources import open_source
from domains.partition import find_readable
from domains.torchvision_sources import FolderImages

SIZE = 32
X = np.linspace(40, 215, 48).astype(np.uint8)
SCENE = np.stack([np.tile(X, (40, 1)), np.tile(X[:40, None], (1, 48)), np.full((40, 48), 90, np.uint8)], axis=2)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(SCENE)


def turned(kind: str) -> bytes:
    """The scene lying on its side, and the EXIF entry that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    return saved(rgb().transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **lossless(kind))


def lossless(kind: str) -> dict:
    return {'JPEG': {'quality': 100, 'subsampling': 0}, 'WEBP': {'lossless': True}}.get(kind, {})


def grey() -> np.ndarray:
    return np.asarray(rgb().convert('L'))


GREY_16 = (grey().astype(np.uint16) * 257)
SHOWS_THE_SCENE: Dict[str, Callable[[], bytes]] = {  # in colour
    'rgb.jpg': lambda: saved(rgb(), 'JPEG', **lossless('JPEG')),
    'UPPER.JPEG': lambda: saved(rgb(), 'JPEG', **lossless('JPEG')),
    'progressive.jpg': lambda: saved(rgb(), 'JPEG', progressive=True, **lossless('JPEG')),
    'cmyk.jpg': lambda: saved(rgb().convert('CMYK'), 'JPEG', **lossless('JPEG')),
    'cmyk.tif': lambda: saved(rgb().convert('CMYK'), 'TIFF'),
    'palette.png': lambda: saved(rgb().quantize(256), 'PNG'),
    'palette with transparency.png': lambda: saved(rgb().quantize(255), 'PNG', transparency=3),
    'alpha.png': lambda: saved(rgb().convert('RGBA'), 'PNG'),
    'alpha.webp': lambda: saved(rgb().convert('RGBA'), 'WEBP', lossless=True),
    'turned.jpg': lambda: turned('JPEG'), 'turned.png': lambda: turned('PNG'), 'turned.webp': lambda: turned('WEBP'),
    'a bmp called.jpg': lambda: saved(rgb(), 'BMP'),
    'name \u6f22\u5b57 e\u0301 \U0001f600.png': lambda: saved(rgb(), 'PNG'),
    os.fsdecode(b'latin caf\xe9.png'): lambda: saved(rgb(), 'PNG'),
    'line\nend.png': lambda: saved(rgb(), 'PNG'),
    'lab.tif': lambda: saved(Image.merge('LAB', [Image.new('L', (48, 40), v) for v in (128, 128, 128)]), 'TIFF'),
}
SHOWS_IT_IN_GREY: Dict[str, Callable[[], bytes]] = {
    'grey.jpg': lambda: saved(rgb().convert('L'), 'JPEG', quality=100),
    'grey and alpha.png': lambda: saved(rgb().convert('LA'), 'PNG'),
    '16 bits.png': lambda: saved(Image.fromarray(GREY_16), 'PNG'),
    '16 bits.tif': lambda: saved(Image.fromarray(GREY_16), 'TIFF'),
}
LOADED_ANYHOW: Dict[str, Callable[[], bytes]] = {
    'one bit.png': lambda: saved(rgb().convert('1'), 'PNG'),
    'one pixel.png': lambda: saved(Image.new('RGB', (1, 1)), 'PNG'),
    'damaged exif.jpg': lambda: saved(rgb(), 'JPEG', exif=b'Exif\x00\x00MM\x00*\x00\x00\xff\xff'),
    'animated.webp': lambda: saved(rgb(), 'WEBP', save_all=True, append_images=[Image.new('RGB', (48, 40))]),
}
NAMED: Dict[str, Callable[[], bytes]] = {  # in the warning
    'truncated.jpg': lambda: saved(rgb(), 'JPEG', quality=95)[:-200],
    'truncated.png': lambda: saved(rgb(), 'PNG')[:-60],
    'empty.jpg': lambda: b'',
    'text.jpg': lambda: b'<html>404 not found</html>',
    'float.tif': lambda: saved(Image.fromarray(grey().astype(np.float32)), 'TIFF'),
}
PASSED_OVER: Dict[str, Callable[[], bytes]] = {  # not images of the class at all
    '.hidden.jpg': lambda: saved(rgb(), 'JPEG'), '._apple double.jpg': lambda: b'\x00\x05\x16\x07',
    'Thumbs.db': lambda: b'x', 'notes.txt': lambda: b'x', 'film.mp4': lambda: b'x', '.DS_Store': lambda: b'x'}


@pytest.fixture
def odd(tmp_path) -> str:
    """A class of odd images beside one of ordinary ones, with links and a folder that is called like an image."""
    root = tmp_path / 'images'
    class_tree(root, ('zebra',), each=30)
    (root / 'odd').mkdir()
    for group in (SHOWS_THE_SCENE, SHOWS_IT_IN_GREY, LOADED_ANYHOW, NAMED, PASSED_OVER):
        for name, content in group.items():
            (root / 'odd' / name).write_bytes(content())
    (tmp_path / 'elsewhere.png').write_bytes(saved(rgb(), 'PNG', compress_level=1))
    (root / 'odd' / 'link.png').symlink_to(tmp_path / 'elsewhere.png')
    (root / 'odd' / 'link to nowhere.png').symlink_to(tmp_path / 'nowhere.png')
    (root / 'odd' / 'folder.jpg').mkdir()
    (root / 'odd' / 'folder.jpg' / 'inside.png').write_bytes(saved(rgb(), 'PNG', compress_level=2))
    return str(root)


def shown_by(source: FolderImages) -> Dict[str, torch.Tensor]:
    return {os.path.basename(path): source.read(index).float() for index, path in enumerate(source.paths)
            if path.startswith('odd/') and source.decodes(index)}


def test_every_odd_file_is_loaded_as_a_viewer_shows_it_or_named_in_one_warning(odd, capsys):
    source = FolderImages(odd, SIZE)
    loaded = shown_by(source)
    skipped = {*NAMED, 'link to nowhere.png'}
    assert set(loaded) == {*SHOWS_THE_SCENE, *SHOWS_IT_IN_GREY, *LOADED_ANYHOW, 'link.png', 'inside.png'}
    colours, greys = loaded['rgb.jpg'], loaded['grey.jpg']
    for name in (*SHOWS_THE_SCENE, 'link.png', 'inside.png'):
        if name != 'lab.tif':
            assert (loaded[name] - colours).abs().mean() < 6, name
    for name in SHOWS_IT_IN_GREY:
        assert (loaded[name] - greys).abs().mean() < 2, name
    capsys.readouterr()
    find_readable(source)
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith(f'warning: skipped {len(skipped)} unreadable of ')
    assert all(name in said for name in skipped)


def test_a_partition_and_its_images_are_made_from_them_without_a_traceback(odd, tmp_path, capsys):
    overrides = ['DATASET=imagefolder', f'DATA_PATH={odd}', 'NUM_CLASSES=2', 'NUM_DOMAINS=1', 'WEIGHT_PATH_SERVER=',
                 f'PARTITION_FILE={tmp_path}/partition_info.json']
    create_noniid_partition.main(['--set', *overrides])
    said = capsys.readouterr().err
    assert said.count('unreadable') == 1 and said.count('left out') == 1  # copies of one scene in several names
    settings = config.load(tuple(overrides), {})
    source = open_source(settings)
    for subset in ('train', 'val', 'calibration', 'test'):
        assert load_clean(settings, subset).images.dtype == torch.uint8
    for index in range(len(source)):
        if source.decodes(index):
            assert source.original(index).mode == 'RGB'
