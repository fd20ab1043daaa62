"""The work on one domain as data, so that any engine can run it: a job, and the outcome of one."""
from __future__ import annotations

import contextlib
import io
import os
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Dict

from config import Settings, UserError


@dataclass(frozen=True)
class Job:
    """One domain's work: work(domain, settings, inputs, lut_file, **options)."""
    work: Callable[..., None]  # a function of a module, so that it can be sent to another process
    domain: int
    settings: Settings
    inputs: str  # fingerprints.inputs_of what it writes
    lut_file: str
    options: Dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Do it, here. Raises whatever it raises."""
        self.work(self.domain, self.settings, self.inputs, self.lut_file, **self.options)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""
    domain: int
    printed: str = ''  # what it wrote to stdout
    error: str = ''  # one line; '': it is done
    bad_input: bool = False  # the error is something that the user can put right


Report = Callable[[Outcome], None]


def attempt(job: Job) -> Outcome:
    """Run a job here; its errors become one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            job.run()
    except UserError as error:
        return Outcome(job.domain, printed.getvalue(), str(error), bad_input=True)
    except Exception as error:  # a fault of the program must not cost the other domains their results
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        return Outcome(job.domain, printed.getvalue(), f'{text} ({os.path.basename(where.filename)}:{where.lineno})')
    return Outcome(job.domain, printed.getvalue())
