"""What makes a result mean less than it seems to: one list of sentences, in the result's file, in what is printed, and
in step 5's summary."""
from __future__ import annotations

import os
from typing import List

from config import Settings, UserError
from domains import trained_images
from domains.image_sets import ImageSet, wilson_interval
from domains.partition import fewer_classes
from pipeline import documents, fingerprints, kinds


def of_settings(settings: Settings) -> List[str]:
    """What holds for every domain: about the weights, and what the partition's file says about the data."""
    if not settings.WEIGHT_PATH_SERVER:
        weights = ['random weights (WEIGHT_PATH_SERVER is empty): times mean something, accuracies do not']
    else:
        weights = []
    try:
        document = documents.read(fingerprints.found_at('partition', settings), '')
        data = [str(line) for line in document.get('warnings', list)]
        data += fewer_classes(document.get('dataset.n_classes', int), settings)
        why = trained_images.why_unknown(settings, document.get('dataset.identity', str))
    except UserError:  # whoever reads the images says what is wrong, or makes it
        data, why = [], trained_images.read(settings)[1]
    if why:
        weights.append(f'cannot check whether {os.path.basename(kinds.weights_file(settings))} was trained on images '
                       f'that are validated and tested on here: {why}')
    return weights + data


def of_domain(val: ImageSet, A_ref: float, epsilon: float) -> List[str]:
    """What holds for one domain: `A_ref` is the reference's accuracy on its validation images."""
    found, n_val = [], len(val)
    commonest = int(val.labels.bincount().max())
    low, high = wilson_interval(round(A_ref * n_val), n_val)
    if low <= commonest / n_val:
        found.append(f'the unpruned network is not clearly above chance: {A_ref:.3f} [{low:.3f}, {high:.3f}] of '
                     f'{n_val} validation images are right, {commonest / n_val:.3f} by always naming the commonest '
                     'class; what pruning wins means nothing')
    if epsilon * n_val < 1 - 1e-9:
        found.append(f'EPSILON={epsilon:g} is less than one of {n_val} validation images ({1 / n_val:.4f}): not one '
                     'may be lost')
    return found
