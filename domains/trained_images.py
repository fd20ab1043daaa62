"""Which images the base weights were trained on, as far as the report beside them says it.

`train_base_model.py` writes the training pool into the report (a .json file beside the weights): the data set and the
images. They must not be validated or tested on, under any partition. Of a user's own weights nothing is known.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from config import Settings, UserError
from domains.source_base import ImageSource
from pipeline import documents, fingerprints, kinds


@dataclass(frozen=True)
class TrainingPool:
    """Training images of some weights."""
    identity: str  # of the data set
    indices: np.ndarray  # int64 [n]
    digests: np.ndarray  # text [n], what the images' files hold; [0] where they are not files of their own

    def among(self, source: ImageSource) -> Optional[np.ndarray]:
        """bool [images of the source]: trained on? None where the two data sets cannot be compared."""
        if self.identity == source.identity:
            seen = np.zeros(len(source), dtype=bool)
            seen[self.indices[self.indices < len(source)]] = True
            return seen
        return np.isin(source.digests, self.digests) if len(self.digests) and source.digests is not None else None


def to_json(source: ImageSource, indices: np.ndarray, settings: Settings) -> Dict[str, Any]:
    """The training pool as the report holds it."""
    return {'dataset': settings.DATASET, 'identity': source.identity, 'n': len(indices), 'indices': indices.tolist(),
            'digests': [] if source.digests is None else source.digests[indices].tolist()}


def read(settings: Settings) -> Tuple[Optional[TrainingPool], str]:
    """The training pool of the base weights, and why it is not known. Neither where there are no weights."""
    return of_weights(kinds.weights_file(settings))


def of_weights(weights: str) -> Tuple[Optional[TrainingPool], str]:
    """The training pool of the weights in this file, and why it is not known."""
    path = kinds.report_beside(weights)
    if not os.path.isfile(weights):
        return None, ''
    if not os.path.isfile(path):
        return None, f'there is no {os.path.basename(path)} beside it that says so'
    try:
        document = documents.read(path, '')
        indices, digests = (document.get(f'training_pool.{name}', list) for name in ('indices', 'digests'))
        if not all(type(index) is int and 0 <= index < 2 ** 63 for index in indices):
            raise document.refuse("field 'training_pool.indices' holds something that is not an image index")
        pool = TrainingPool(document.get('training_pool.identity', str), np.array(indices, dtype=np.int64),
                            np.array([str(digest) for digest in digests]))
        of_these = document.get('weights_sha256', str) == fingerprints.content_hash(weights)
    except UserError as error:
        return None, str(error).replace(path, os.path.basename(path))
    return (pool, '') if of_these else (None, f'{os.path.basename(path)} beside it belongs to other weights')


def seen_images(source: ImageSource, settings: Settings) -> np.ndarray:
    """bool [images of the source]: those that the weights are known to have been trained on."""
    pool, _ = read(settings)
    seen = None if pool is None else pool.among(source)
    return np.zeros(len(source), dtype=bool) if seen is None else seen


def why_unknown(settings: Settings, identity: str) -> str:
    """Why it cannot be checked whether the weights have seen images of this data set; '' where it can."""
    pool, why = read(settings)
    if pool is not None and pool.identity != identity and not (
            len(pool.digests) and settings.DATASET.lower() == 'imagefolder'):
        return 'it was trained on images of another data set, which cannot be compared with these'
    return why
