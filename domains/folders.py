"""A tree of image folders on disk: which files are images of which class, which are held out, what identifies each.

Two layouts: one folder per class; or train/ beside val/ (and test/), each with one folder per class. What annotates
images beside them is no class. Nothing is decoded here.
"""
from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from pathlib import PurePath
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Sequence, Tuple

import cli
from config import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')  # as torchvision's ImageFolder
COMPRESSED = ('.jpg', '.jpeg', '.png', '.webp')  # another pixel changes all bytes behind it, or a checksum at the end
TRAINING = ('train', 'training')  # folders' names in lower case
TEST = ('test', 'testing')
HELD_OUT = ('val', 'valid', 'validation', *TEST)
NO_CLASSES = ('annotations', 'annotation', 'labels', '__macosx', '@eadir', 'lost+found')
ANNOTATIONS = ('.txt', '.xml', '.json', '.csv', '.tsv', '.yaml', '.yml', '.md', '.mat', '.npy', '.npz', '.pdf', '.html')
WHOLE_BYTES, BLOCK_BYTES, BLOCKS = 32 << 10, 8 << 10, 4  # larger compressed files are hashed in blocks spread over them
NAMES_SHOWN = 5
CLASSES_FILE, CLASSES_BYTES = 'classes.txt', 1 << 20


class Tree(NamedTuple):
    """The images below a folder, in a fixed order."""
    class_names: List[str]
    paths: List[str]  # relative to the root, with forward slashes
    labels: List[int]
    held_out: List[bool]  # of val/ or test/; empty where the layout has no such parts
    digests: List[str]  # of the files' content, 16 hexadecimal digits each
    warnings: List[str]


def read_tree(root: str) -> Tree:
    """Raises `UserError` for a folder that cannot be used, and for images that are in train/ and in val/ as well."""
    if not os.path.isdir(root):
        raise UserError(f'DATA_PATH {root}: no such folder; set DATA_PATH to a folder with one folder per class')
    names, left_out = class_folders(root)
    training = [name for name in names if name.lower() in TRAINING]
    held_out = [name for name in names if name.lower() in HELD_OUT]
    if training and held_out:
        left_out += [name for name in names if name not in training + held_out]
        tree = read_parts(root, training, held_out, left_out)
        refuse_overlap(root, tree)
        return tree
    if names and set(names) == {*training, *held_out}:
        raise UserError(f'DATA_PATH {root}: holds {", ".join(names)} instead of class folders; set DATA_PATH to '
                        f'{os.path.join(root, names[-1])}, or put training images into train/ and others into val/')
    if not names:
        raise UserError(f'DATA_PATH {root}: no class folders in it; it needs one folder with images per class')
    unreadable: List[str] = []
    found = images_of(root, '', names, unreadable)
    if not found:
        raise UserError(f'DATA_PATH {root}: no images in its folders {shown(names)}')
    return made_tree(root, names, found, [], left_out, unreadable)


def read_parts(root: str, training: Sequence[str], held_out: Sequence[str], left_out: List[str]) -> Tree:
    """A root that holds train/ and val/, maybe test/: the same classes in each."""
    classes: Dict[str, List[str]] = {}
    for part in (*training, *held_out):
        classes[part], no_classes = class_folders(os.path.join(root, part))
        left_out += [f'{part}/{name}' for name in no_classes]
        if not classes[part] and part.lower() in TEST and set(held_out) != {part}:
            left_out.append(classes.popitem()[0])  # images without labels
        elif not classes[part]:
            raise UserError(f'{os.path.join(root, part)}: no class folders in it; it needs one folder with images per '
                            'class' + (f', or set DATA_PATH to {os.path.join(root, training[0])}'
                                       if part not in training else ''))
    first = training[0]
    for part in classes:
        only_first, only_part = (sorted(set(classes[a]) - set(classes[b])) for a, b in ((first, part), (part, first)))
        if only_first or only_part:
            raise UserError(f'DATA_PATH {root}: {first}/ and {part}/ must hold the same classes; ' + '; '.join(
                f'only in {where}/: {shown(names)}' for where, names in ((first, only_first), (part, only_part))
                if names))
    found, flags, unreadable = [], [], []
    for part in classes:
        images = images_of(root, part, classes[first], unreadable)
        if not images:
            raise UserError(f'{os.path.join(root, part)}: no images in its class folders')
        found += images
        flags += [part not in training] * len(images)
    return made_tree(root, classes[first], found, flags, left_out, unreadable)


def class_folders(folder: str) -> Tuple[List[str], List[str]]:
    """Names of the class folders in a folder, sorted as text, and of those that only annotate images. A folder without
    any file stays a class, so that the others keep their numbers."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    except OSError as error:
        raise UserError(f'{folder}: cannot be read ({error.strerror})') from None
    no_class = [name for name in names if name.lower() in NO_CLASSES or only_annotates(os.path.join(folder, name))]
    return [name for name in names if name not in no_class], no_class


def titles(root: str, classes: Sequence[str]) -> List[str]:
    """What classes are called: by classes.txt in `root`, which holds a line 'FOLDER NAME' for each folder, or a name a
    line in the order of the folders; without one as their folders. Raises `UserError` for a file that does not fit."""
    path = os.path.join(root, CLASSES_FILE)
    if not os.path.isfile(path):
        return list(classes)
    try:
        with open(path, encoding='utf-8-sig') as stream:
            lines = [line.strip() for line in stream.read(CLASSES_BYTES).splitlines() if line.strip()]
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(f'{path}: cannot be read ({error})') from None
    pairs = {line.split(None, 1)[0]: line.split(None, 1)[-1] for line in lines}
    if all(name in pairs for name in classes):
        return [pairs[name] for name in classes]
    if len(lines) != len(classes) or any(pairs.get(name, name) != name for name in classes):
        raise UserError(f'{path}: does not name the {len(classes)} class folders; write a line for each: the name of '
                        'folder, a space, the name of the class')
    return lines


def only_annotates(folder: str) -> bool:
    """Are there files in it, or below it, and is each of them text or a table?"""
    found = False
    for _, names in walk(folder, []):
        for name in names:
            if name.startswith('.'):
                continue
            if not name.lower().endswith(ANNOTATIONS):
                return False
            found = True
    return found


def images_of(root: str, part: str, classes: Sequence[str], unreadable: List[str]) -> List[Tuple[str, int]]:
    """(path relative to root, label) of all images at any depth below root/part/class; `unreadable` folders are named
    there."""
    return [(path, label) for label, name in enumerate(classes)
            for path in images_below(os.path.join(root, part, name), root, unreadable)]


def images_below(folder: str, root: str, unreadable: List[str]) -> List[str]:
    """Image files below `folder`, relative to `root` with forward slashes, sorted."""
    found = []
    for where, names in walk(folder, unreadable):
        found += [os.path.relpath(os.path.join(where, name), root).replace(os.sep, '/') for name in names
                  if name.lower().endswith(EXTENSIONS) and not name.startswith('.')]
    return sorted(found)


def walk(folder: str, unreadable: List[str]) -> Iterator[Tuple[str, List[str]]]:
    """(folder, names of its files) of a folder and of all below it. Links are followed, but not to a folder that they
    lie in themselves; a folder that cannot be read is added to `unreadable`."""
    above = [folder, *map(str, PurePath(os.path.abspath(folder)).parents)]
    inside: Dict[str, FrozenSet[Tuple[int, int]]] = {folder: frozenset(map(number_of, above))}  # which each lies in
    for where, below, names in os.walk(folder, followlinks=True, onerror=lambda e: unreadable.append(str(e.filename))):
        chain = inside.pop(where)
        for name in list(below):
            path = os.path.join(where, name)
            number = number_of(path)
            if number in chain:
                below.remove(name)
            inside[path] = chain | {number}
        yield where, names


def number_of(folder: str) -> Tuple[int, int]:
    """What tells a folder from all others, whatever links lead to it; of one that cannot be looked at, nothing does."""
    try:
        facts = os.stat(folder)
    except OSError:
        return (-1, hash(folder))
    return facts.st_dev, facts.st_ino


def made_tree(root: str, classes: List[str], found: Sequence[Tuple[str, int]], held_out: List[bool],
              left_out: Sequence[str], unreadable: Sequence[str]) -> Tree:
    """The tree of these images, with what a user should know about it."""
    warnings = [f'{root}: no class folders, left out: {shown(left_out)}'] if left_out else []
    warnings += [f'{root}: folders that cannot be read, left out: {shown(unreadable)}'] if unreadable else []
    in_order = sorted(classes, key=natural_order)
    if in_order != classes and len({re.sub(r'\d+', '#', name) for name in classes}) == 1:
        warnings.append(f'{root}: class folders are numbered in the order of text, {", ".join(classes[:NAMES_SHOWN])}, '
                        f'...: weights trained on {", ".join(in_order[:3])}, ... in the order of numbers do not fit; '
                        'write the numbers with leading zeros')
    paths = [path for path, _ in found]
    return Tree(classes, paths, [label for _, label in found], held_out, digests_of(root, paths), warnings)


def natural_order(name: str) -> List[Tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), '') if part.isascii() and part.isdigit() else (-1, part) for part in re.split(r'(\d+)', name)]


def refuse_overlap(root: str, tree: Tree) -> None:
    """Raise `UserError` that names images which are training images and held out as well."""
    training = {digest: path for digest, path, out in zip(tree.digests, tree.paths, tree.held_out) if not out}
    twice = [f'{path} = {training[digest]}' for digest, path, out in zip(tree.digests, tree.paths, tree.held_out)
             if out and digest in training]
    if twice:
        raise UserError(f'DATA_PATH {root}: {len(twice)} held-out images are training images too, under the same or '
                        f'another name: {shown(twice)}; remove them from one of the two')


def shown(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    """The first few names, and how many there are besides."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(cli.one_line, names[:most])) + more


# --- what identifies an image -------------------------------------------------------------------------

def digests_of(root: str, paths: Sequence[str]) -> List[str]:
    """A hash of the content of each file. 13,394 files of imagenette (101 MB): 0.3 s, 1.6 s when not read before (two
    cores of an AMD EPYC)."""
    found = []
    for path in paths:
        full = os.path.join(root, path)
        try:
            facts = os.stat(full)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError('opening a pipe would wait for ever')
            found.append(digest_of(full, facts.st_size, facts.st_mtime_ns))
        except OSError:  # decoding it fails later, and says so
            found.append(hashlib.sha256(f'unreadable {path}'.encode('utf-8', 'surrogateescape')).hexdigest()[:16])
    return found


@functools.lru_cache(maxsize=1 << 18)
def digest_of(path: str, size: int, modified_ns: int) -> str:
    """A hash of a file's size and content: all of it, or blocks spread over a large compressed file. `modified_ns` is
    there for the cache, which saves a process from reading the files again for every domain."""
    digest = hashlib.sha256(f'{size}\n'.encode())
    with open(path, 'rb', buffering=0) as stream:
        if size <= WHOLE_BYTES or not path.lower().endswith(COMPRESSED):
            digest.update(stream.read())
        else:
            for block in range(BLOCKS):
                stream.seek((size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]
