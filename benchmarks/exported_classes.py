"""Do exported heads and tails give the project's classes? All test images, over a socket.

    python -m benchmarks.exported_classes --domains 0,3,7                          # results of step 3 in RESULTS_DIR
    python -m benchmarks.exported_classes --domains 0,3,7 --python OTHER_PYTHON    # the example run by another one

Claim: see docs/deployment.md.

Bar: every test image of every domain gets the class that this project computes in PyTorch with the same α, γ, λ and
wire format; exit status 1 where one does not.

How: each domain's result is exported as ONNX (`export_split.py`), examples/run_exported.py runs the tail in one process
and the head in another, frames and answers cross a loopback socket, and the device's lines are compared. Beside that
stands the accuracy of these classes with its 95 % interval, and the accuracy that the manifest promises.
"""
from __future__ import annotations

import sys

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domains', metavar='0,3,7', help='default: all')
PARSER.add_argument('--python', default=sys.executable, help='runs the example; needs NumPy and onnxruntime')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import json
import os
import subprocess
import tempfile
from typing import List, Optional, Sequence

import numpy as np
import torch

import lut_manager
from config import ROOT, Settings
from domain_dataset import load_domain
from domains.image_sets import wilson_interval
from export import run
from hyper_repvgg import deploy
from network import batchnorm
from network.inputs import normalise, predict
from pipeline import kinds
from search import result_file, wire_loss


def by_example(python: str, folder: str, images: np.ndarray) -> List[int]:
    """The classes that the example prints."""
    path = os.path.join(folder, 'images.npy')
    np.save(path, images)
    command = [python, os.path.join(ROOT, 'examples', 'run_exported.py'), os.path.join(folder, 'out')]
    with subprocess.Popen([*command, '--serve', '0'], stdout=subprocess.PIPE, text=True, cwd=folder) as server:
        port = server.stdout.readline().split()[-1]
        said = subprocess.run([*command, '--connect', f'127.0.0.1:{port}', '--images', path], cwd=folder,
                              stdout=subprocess.PIPE, text=True, check=True).stdout
        server.kill()
    return [int(line.split()[1]) for line in said.splitlines()]


def by_project(domain: int, images: torch.Tensor, settings: Settings) -> List[int]:
    """The classes that this project computes."""
    table = lut_manager.load(kinds.path_of('lut', settings), settings)
    result = result_file.load(domain, table, settings)
    choice, model = result.configuration, run.base_model(settings)
    model.set_alpha_array(choice.alpha)
    with batchnorm.using(model, result.batchnorm):
        network = wire_loss.through_wire(deploy(model, choice.gamma), choice.split, choice.wire)
    inputs = normalise(images, settings.NORM_MEAN, settings.NORM_STD)
    return predict(network, inputs, settings.BATCH_SIZE).tolist()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Status 0 when all classes are equal."""
    args, settings = cli.parse(PARSER, argv)
    all_equal = True
    for domain in cli.domains(args.domains, settings):
        test = load_domain(settings, domain, 'test')
        with tempfile.TemporaryDirectory() as folder:
            run.export(run.Wanted(domain), os.path.join(folder, 'out'), settings)
            with open(os.path.join(folder, 'out', 'manifest.json'), encoding='utf-8') as stream:
                promised = json.load(stream)['expected_accuracy']
            found = by_example(args.python, folder, test.images.numpy())
        wanted = by_project(domain, test.images, settings)
        equal, right = (int((np.array(found) == np.array(other)).sum()) for other in (wanted, test.labels.tolist()))
        low, high = wilson_interval(right, len(test))
        print(f'domain {domain}: {equal} of {len(wanted)} classes equal; accuracy {100 * right / len(test):.1f} % '
              f'({100 * low:.1f} to {100 * high:.1f}), promised {100 * promised["value"]:.1f} %', flush=True)
        all_equal = all_equal and found == wanted
    print('bar: all classes equal:', 'met' if all_equal else 'NOT met')
    return int(not all_equal)


if __name__ == '__main__':
    sys.exit(main())
