"""The base network of the settings: trained by the recipe for its images, written, measured, reported."""
from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple

from cli import say
from config import Settings
from pipeline import kinds
from steps import base_model_report, base_model_training
from training import photographs

DIGITS = 'mnist5k'


def train(settings: Settings, changes: Sequence[str], start_from: str, half: bool) -> Tuple[Dict[str, Any], str]:
    """Train, write, measure; the report and its path. `changes` to the recipe for photographs (`photographs.changed`),
    `start_from` and `half` (as in `photographs.train_and_save`) are not for the digits."""
    weights = kinds.weights_to_write(settings)
    if settings.DATASET.lower() == DIGITS:
        recipe = base_model_training.Recipe(seed=settings.SEED)
        trained = photographs.Trained(base_model_training.train_and_save(weights, recipe, settings), [])
    else:
        recipe = photographs.changed(photographs.Recipe(seed=settings.SEED), changes)
        trained = photographs.train_and_save(weights, recipe, settings, start_from, half)
    say(f'{weights}: trained in {trained.seconds:.0f} s')
    found = base_model_report.write(settings, recipe, trained.seconds, trained.history, start_from)
    photographs.forget_progress(weights)
    return found
