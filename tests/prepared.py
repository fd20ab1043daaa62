"""Tasks 1 and 2 for a test's own settings: α and rankings of the repository, which holds them for the default ones."""
from __future__ import annotations

import os
import shutil

from config import Settings
from pipeline import documents, fingerprints, kinds, writing

PREPARED = ('alpha', 'alpha_training', 'branch_flops', 'importance_scores', 'importance_rankings')


def prepare(settings: Settings) -> None:
    """Write them into RESULTS_DIR as if they had been made under these settings."""
    for kind in PREPARED:
        shipped = documents.read(kinds.path_of(kind, Settings(MODEL_NAME=settings.MODEL_NAME)), '').content
        content = {name: value for name, value in shipped.items() if name not in ('schema_version', 'metadata')}
        writing.write(kinds.path_of(kind, settings), content,
                      writing.make_metadata(settings, kind, fingerprints.inputs_of(kind, settings)))


def copy_prepared(source: str, results: str) -> None:
    """Take them over into another RESULTS_DIR that has none."""
    for name in os.listdir(source):
        if name.startswith('task') and not os.path.exists(os.path.join(results, name)):
            shutil.copytree(os.path.join(source, name), os.path.join(results, name))
