"""Says once, when a command starts, what makes the results of all domains mean less than they seem to."""
from __future__ import annotations

import cli
from config import Settings
from search.result_warnings import of_settings


def say(settings: Settings) -> None:
    """A line for each warning (`search/result_warnings.py`)."""
    for line in of_settings(settings):
        cli.say(f'warning: {line}')
