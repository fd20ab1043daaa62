"""The files that the device needs, as docs/real_mode.md lists them."""
from __future__ import annotations

import os
import re
import shutil
from typing import List

from config import ROOT


def listed() -> List[str]:
    """The entries of the block under 'What the device needs': files, and folders that end in /."""
    with open(os.path.join(ROOT, 'docs', 'real_mode.md'), encoding='utf-8') as stream:
        block = re.search(r'^## What the device needs\n.*?^```\n(.*?)^```', stream.read(), re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1].split()


def copied_to(folder) -> str:
    """The folder, with these files in it and nothing else."""
    for entry in listed():
        if entry.endswith('/'):
            shutil.copytree(os.path.join(ROOT, entry), os.path.join(folder, entry),
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(os.path.join(ROOT, entry), folder)
    return str(folder)
