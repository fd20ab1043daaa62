"""Divide the dataset among the domains: who holds which image, for training, validation and test.

    python create_noniid_partition.py                          # the built-in digits
    python create_noniid_partition.py --set PROFILE=imagenet DATA_PATH=/path/to/imagenet/val
    python create_noniid_partition.py --if_changed             # only when the data or a setting has changed

Writes data/noniid_partitions/partition_info.json and a picture of it beside it (.png). Every image file of
an ImageFolder is decoded once; unreadable ones are named and left out. The built-in data takes two seconds.
"""
from __future__ import annotations

import os
from typing import Any, Optional, Sequence

import cli


def main(argv: Optional[Sequence[str]]) -> None:
    """Make the partition and its picture."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    args, settings = cli.parse(parser, argv)

    from domains.image_sources import open_source
    from domains.partition import SPLITS, inputs_fingerprint, make_partition, save_partition
    from pipeline import fingerprints, writing

    path = settings.PARTITION_FILE
    picture = os.path.splitext(path)[0] + '.png'
    writing.check_writable(path)
    source = open_source(settings)
    if args.if_changed and fingerprints.is_current([path, picture], inputs_fingerprint(source, settings)):
        cli.say(f'{path}: is current')
        return
    if len(source.class_names) < settings.NUM_CLASSES:
        cli.say(f'note: {source.name} has {len(source.class_names)} classes, the model {settings.NUM_CLASSES}: '
                'labels count from 0 in alphabetical order of the classes')
    partition = make_partition(source, settings)
    save_partition(partition, source, settings)
    draw_picture(picture, partition, source, settings.DATASET)
    print(f'{len(source)} images, {len(source.class_names)} classes: ' + ', '.join(
        f'{len(partition.pools[split])} {split}' for split in SPLITS) + f'; {len(partition.skipped)} skipped')
    print('domain    ' + ''.join(f'{split:>7}' for split in SPLITS) + '  commonest class')
    for domain, splits in enumerate(partition.domains):
        counts = sum(count_labels(source, splits[split]) for split in SPLITS)
        top = counts.argmax()
        print(f'{domain:<10}' + ''.join(f'{len(splits[split]):>7}' for split in SPLITS)
              + f'  {source.class_names[top]} ({counts[top] / counts.sum():.0%})')
    print(f'wrote {path} and {picture}')


def count_labels(source: Any, indices: Any) -> Any:
    """Images per class, int64 [classes]."""
    import numpy as np
    return np.bincount(source.labels[indices], minlength=len(source.class_names))


def draw_picture(path: str, partition: Any, source: Any, dataset: str) -> None:
    """Heatmaps of images per class and domain, one a split, in one colour scale."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np

    from domain_transforms import domain_name
    from domains.partition import SPLITS
    from pipeline import writing

    tables = [np.array([count_labels(source, splits[split]) for splits in partition.domains]) for split in SPLITS]
    few = tables[0].shape[1] <= 20  # room for every class name and number
    height = 2.2 + 0.42 * len(partition.domains)
    figure, axes = plt.subplots(1, 3, figsize=(19, height), sharey=True, constrained_layout=True)
    figure.suptitle(f'Images per class in every domain: {dataset}, skewed differently in each', fontsize=17)
    most = max(table.max() for table in tables)
    for axis, split, table in zip(axes, SPLITS, tables):
        drawn = axis.imshow(table, cmap='cividis', aspect='auto', vmin=0, vmax=most, interpolation='nearest')
        sizes = sorted(set(table.sum(axis=1).tolist()))
        axis.set_title(f"{split}: {' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} images a domain",
                       fontsize=14)
        axis.set_xlabel('class', fontsize=13)
        axis.tick_params(labelsize=12)
        if few:
            axis.set_xticks(range(table.shape[1]))
            axis.set_xticklabels(source.class_names, rotation=0 if max(map(len, source.class_names)) < 3 else 60)
            for (row, column), count in np.ndenumerate(table):
                axis.text(column, row, count, ha='center', va='center', fontsize=11,
                          color='black' if count > 0.55 * most else 'white')
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label('images', fontsize=13)
    bar.ax.tick_params(labelsize=11)
    axes[0].set_yticks(range(len(partition.domains)))
    axes[0].set_yticklabels([f'{domain}  {domain_name(domain)}' for domain in range(len(partition.domains))])
    axes[0].set_ylabel('domain', fontsize=13)
    with writing.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == '__main__':
    cli.run(main)
