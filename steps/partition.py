"""The partition of the data set among the domains: made, written and drawn, with a table of what each domain got."""
from __future__ import annotations

import os

import numpy as np

import cli
from config import Settings
from domain_transforms import domain_name
from domains.division import SUBSETS
from domains.image_sources import ImageSource, open_source
from domains.partition import Partition, inputs_fingerprint, label_histogram, make_partition, save_partition
from pipeline import fingerprints, kinds, writing
from report import preparation_figures, style
from steps import shared_warnings

MOST_OF_A_NAME = 40  # characters of a class's name in the table


def make(settings: Settings, if_changed: bool = False) -> None:
    """Write the partition's file and its picture; with `if_changed` only when the data or a setting has changed."""
    source = open_source(settings)
    there = fingerprints.found_at('partition', settings)
    if if_changed and fingerprints.is_current([there, picture_of(there)], inputs_fingerprint(source, settings)):
        cli.say(f'{there}: is current')
        shared_warnings.say(settings)
        return
    path = kinds.path_of('partition', settings)
    picture = picture_of(path)
    writing.check_writable(path)
    partition = make_partition(source, settings)
    save_partition(partition, source, settings)
    shared_warnings.say(settings)
    counts = {subset: np.array([label_histogram(source, subsets[subset]) for subsets in partition.domains])
              for subset in SUBSETS}  # by subset: (domains, classes)
    names = [domain_name(domain) for domain in range(len(partition.domains))]
    style.save(preparation_figures.partition(counts, source.class_names, names, settings.DATASET), picture)
    print_table(partition, source, sum(counts.values()))
    print(f'wrote {path} and {picture}')


def picture_of(path: str) -> str:
    """Where the picture of a partition lies."""
    return os.path.splitext(path)[0] + '.png'


def print_table(partition: Partition, source: ImageSource, counts: np.ndarray) -> None:
    """How many images there are, and what each domain got. `counts`: images [domains, classes]."""
    print(f'{len(source)} images, {len(source.class_names)} classes: ' + ', '.join(
        f'{len(partition.pools[subset])} {subset}' for subset in SUBSETS) + f'; {len(partition.skipped)} skipped')
    print('domain    ' + ''.join(f'{subset:>{len(subset) + 4}}' for subset in SUBSETS) + '  commonest class')
    for domain, (subsets, row) in enumerate(zip(partition.domains, counts)):
        top = row.argmax()
        print(f'{domain:<10}' + ''.join(f'{len(subsets[subset]):>{len(subset) + 4}}' for subset in SUBSETS)
              + f'  {cli.one_line(source.class_names[top])[:MOST_OF_A_NAME]} ({row[top] / row.sum():.0%})')
