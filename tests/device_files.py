"""The files that the device needs, as docs/real_mode.md lists them, and the bundle of them."""
from __future__ import annotations

import os
import re
import subprocess
import tarfile
from typing import List

from config import ROOT


def listed() -> List[str]:
    """The entries of the block under 'What the device needs': files, and folders that end in /."""
    with open(os.path.join(ROOT, 'docs', 'real_mode.md'), encoding='utf-8') as stream:
        block = re.search(r'^## What the device needs\n.*?^```\n(client_worker.py\n.*?)^```', stream.read(),
                          re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1].split()


def make_bundle(*arguments: str, folder) -> 'subprocess.CompletedProcess[str]':
    """What `bash make_client_bundle.sh` did, typed in this folder."""
    return subprocess.run(['bash', os.path.join(ROOT, 'make_client_bundle.sh'), *arguments], cwd=folder,
                          capture_output=True, text=True)


def unpacked_in(folder) -> str:
    """The folder of a device in which the bundle was unpacked, and nothing else."""
    assert make_bundle(folder=folder).returncode == 0
    with tarfile.open(os.path.join(folder, 'split_client.tar.gz')) as archive:
        archive.extractall(folder)
    return os.path.join(folder, 'split_client')
