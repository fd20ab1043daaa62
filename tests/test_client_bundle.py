"""The bundle for a device holds what client_worker.py imports, what it needs installed, and nothing else; it runs."""
from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import device_files
import pytest
import test_layers
import torch
from client_process import SETTINGS, batch, random_model

from config import ROOT
from hyper_repvgg import deploy
from network.alpha import surviving_branches
from network.gammas import fused_gamma
from network.inputs import normalise
from split_trainer import predict


def members(path) -> set:
    with tarfile.open(path) as archive:
        return {entry.name.partition('/')[2] for entry in archive if entry.isfile()}


def test_the_bundle_holds_exactly_what_the_device_needs(tmp_path):
    assert device_files.make_bundle('client.tar.gz', folder=tmp_path).returncode == 0
    extras = {'LICENSE', *(f'requirements-{name}.txt' for name in ('client', 'safetensors', 'video', 'wire'))}
    assert members(tmp_path / 'client.tar.gz') == test_layers.closure_of('client_worker.py') | extras
    assert os.listdir(tmp_path) == ['client.tar.gz']


def test_what_the_bundle_asks_to_install_is_what_its_files_import():
    with open(os.path.join(ROOT, 'requirements-client.txt'), encoding='utf-8') as stream:
        names = {line.partition('>=')[0] for line in stream.read().split('\n') if line and line[0] != '#'}
    imported = {found.module.partition('.')[0] for file in test_layers.closure_of('client_worker.py')
                for found in test_layers.imports_of(file) if not found.file and not found.in_function}
    assert names == {name for name in imported if test_layers.installed(name)}


@pytest.mark.parametrize('arguments, said', [
    (('a', 'b'), 'takes one argument, the file to write; see --help'),
    (('nowhere/client.tar.gz',), 'nowhere/client.tar.gz: there is no folder nowhere'),
    (('.',), '.: is a folder; name the file to write')])
def test_a_wrong_command_line_is_one_line_and_nothing_is_written(arguments, said, tmp_path):
    done = device_files.make_bundle(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', f'make_client_bundle.sh: error: {said}\n')
    assert os.listdir(tmp_path) == []


def test_help_comes_from_the_bundle_alone(tmp_path):
    top = device_files.unpacked_in(tmp_path)
    said = subprocess.run([sys.executable, 'client_worker.py', '--help'], cwd=top, capture_output=True, text=True)
    assert said.returncode == 0 and '--server_ip' in said.stdout


def test_a_client_from_the_bundle_computes_a_head(served):
    client, process, _ = served
    assert os.path.basename(process.top) == 'split_client' and not os.path.exists(os.path.join(process.top, 'costs'))
    model = random_model(1)
    gamma = [fused_gamma(tuple(row)) for row in surviving_branches(model.alpha_array())]
    images, _ = batch(1, 8)
    with torch.inference_mode():
        whole = deploy(model, gamma)(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax(dim=1)
    assert torch.equal(predict(model, gamma, 4, client, images, SETTINGS, 'float32'), whole)
