"""Where a device's frames come from: a folder of images, a video or camera, raw frames on stdin, or any Python
iterator.

    for picture in open_source('photos/', size=224): ...

`Reader` reads ahead in a thread of its own. A source of files waits for whoever takes its frames; a live one does not:
a frame that nobody took is dropped for a newer one, and counted.
"""
from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from typing import Any, BinaryIO, Iterable, Iterator, List, NamedTuple, Optional

import numpy as np
import torch

import cli
from config import UserError
from network.inputs import crop_box

IMAGES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
CAMERA = 'camera:'  # and the number of a camera of this device
RESIZE = 256 / 224  # of the input size: the shorter side before the centre is cropped, as images are evaluated


class Picture(NamedTuple):
    """A frame as the network takes it."""
    image: torch.Tensor  # uint8 [3, S, S]
    name: str = ''  # of its file


class Numbered(NamedTuple):
    """A frame of a `Reader`."""
    number: int  # from 0
    picture: Optional[Picture]  # None: dropped
    taken_s: float  # when the source delivered it, on time.perf_counter's clock


def is_live(source: str) -> bool:
    """Does this source deliver frames whether somebody takes them or not?"""
    return source.startswith(CAMERA) or '://' in source


def check_source(source: str) -> None:
    """Raise `UserError` unless there is something of this name, and what reads it. (The size of its frames is known
    later.)"""
    if source != '-' and not is_live(source) and not os.path.exists(source):
        raise UserError(f'--source {source}: no such file or folder; a camera is {CAMERA}0, raw frames on stdin are -')
    if os.path.isdir(source) or source.lower().endswith(IMAGES):
        cli.optional('PIL.Image', 'Pillow', 'images')
    elif source != '-' and not source.endswith('.py'):
        cli.optional('cv2', 'opencv-python-headless', 'videos and cameras')


def open_source(source: str, size: int) -> Iterator[Picture]:
    """The frames of a source, squares of `size` pixels. Raises `UserError`."""
    if source == '-':
        return raw_frames(sys.stdin.buffer, size)
    if os.path.isdir(source):
        return folder(source, size)
    if source.endswith('.py'):
        return python_frames(source, size)
    if source.lower().endswith(IMAGES):
        return image_files([source], size)
    return video(source, size)


def raw_frames(stream: BinaryIO, size: int) -> Iterator[Picture]:
    """Frames one after the other, each size·size·3 bytes: rows from the top, RGB, 8 bits a channel."""
    while True:
        data = stream.read(3 * size * size)
        if len(data) < 3 * size * size:
            if data:
                raise UserError(f'stdin ended within a frame: a frame has {size}x{size}x3 bytes')
            return
        yield Picture(_as_tensor(np.frombuffer(bytearray(data), dtype=np.uint8).reshape(size, size, 3)))


def folder(path: str, size: int) -> Iterator[Picture]:
    """All images below a folder, in the order of their paths."""
    files = sorted(os.path.join(where, name) for where, _, names in os.walk(path, followlinks=True) for name in names
                   if name.lower().endswith(IMAGES) and not name.startswith('.'))
    if not files:
        raise UserError(f'--source {path}: there are no images below it')
    return image_files(files, size)


def image_files(files: List[str], size: int) -> Iterator[Picture]:
    """These images; one that cannot be read is named and left out."""
    pillow, ops = cli.optional('PIL.Image', 'Pillow', 'images'), cli.optional('PIL.ImageOps', 'Pillow', 'images')
    for path in files:
        try:
            if not os.path.isfile(path):  # opening a pipe would wait for ever
                raise OSError('is no file')
            with pillow.open(path) as image:
                picture = _fitted((ops.exif_transpose(image) or image).convert('RGB'), size)
        except Exception as error:  # decoders raise many things
            cli.say(f'{path}: left out, it cannot be read ({" ".join(str(error).split())[:200]})')
            continue
        yield Picture(picture, path)


def video(source: str, size: int) -> Iterator[Picture]:
    """A video file, an address that OpenCV can open, or a camera of this device."""
    cv2 = cli.optional('cv2', 'opencv-python-headless', 'videos and cameras')
    number = source[len(CAMERA):]
    if source.startswith(CAMERA) and not number.isdigit():
        raise UserError(f'--source {source}: write the number of the camera behind {CAMERA}')
    capture = cv2.VideoCapture(int(number) if source.startswith(CAMERA) else source)
    if not capture.isOpened():
        raise UserError(f'--source {source}: OpenCV cannot open it')
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield Picture(fit(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), size))
    finally:
        capture.release()


def python_frames(path: str, size: int) -> Iterator[Picture]:
    """What `frames(size)` of a Python file yields: uint8 arrays [height, width, 3], RGB."""
    spec = importlib.util.spec_from_file_location('source_of_frames', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, 'frames', None)
    if not callable(found):
        raise UserError(f'--source {path}: has no function frames(size) that yields uint8 arrays [height, width, 3]')
    return from_arrays(found(size), size)


def from_arrays(arrays: Iterable[np.ndarray], size: int) -> Iterator[Picture]:
    """Any iterator of uint8 arrays [height, width, 3]."""
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UserError('a frame must be a uint8 array [height, width, 3]')
        yield Picture(fit(array, size))


def fit(array: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [height, width, 3] -> uint8 [3, size, size]; only other sizes need Pillow."""
    if array.shape[:2] == (size, size):
        return _as_tensor(array)
    pillow = cli.optional('PIL.Image', 'Pillow', f'frames of another size than {size}x{size}')
    return _fitted(pillow.fromarray(array), size)


def _fitted(image: Any, size: int) -> torch.Tensor:
    """A Pillow image -> uint8 [3, size, size]: as it is where it has that size; otherwise the shorter side is resized
    to RESIZE times the size and the centre is cropped, as for the images that accuracy is measured on."""
    if image.size == (size, size):
        return _as_tensor(np.array(image))
    box = crop_box(*image.size, size, round(size * RESIZE))
    resized = image.resize((size, size), 2, box=box)  # 2: bilinear
    return _as_tensor(np.array(resized))


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


class Reader:
    """Reads a source in a thread, one frame ahead."""

    def __init__(self, pictures: Iterator[Picture], live: bool) -> None:
        self.live, self.dropped = live, 0
        self._pictures = pictures
        self._waiting: List[Numbered] = []  # dropped ones, then at most one that is there
        self._ended = False
        self._error: Optional[BaseException] = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name='source', daemon=True).start()

    def _read(self) -> None:
        try:
            for number, picture in enumerate(self._pictures):
                self._add(Numbered(number, picture, time.perf_counter()))
        except BaseException as error:  # raised where frames are taken
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, frame: Numbered) -> None:
        with self._changed:
            while self._waiting and self._waiting[-1].picture is not None:
                if self.live:
                    self._waiting[-1] = self._waiting[-1]._replace(picture=None)
                    self.dropped += 1
                else:
                    self._changed.wait()
            self._waiting.append(frame)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Optional[List[Numbered]]:
        """The next frame behind those that were dropped before it; [] when none came within the time, None at the end.
        Raises what the source raised."""
        with self._changed:
            if not self._waiting and not self._ended:
                self._changed.wait(timeout_s)
            if self._waiting:
                found, self._waiting = self._waiting, []
                self._changed.notify_all()
                return found
            if self._error is not None:
                raise self._error
            return None if self._ended else []
