"""Real mode against a client process on this machine."""
from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import config
from gamma_configurator import fused_gamma, unfused_gamma
from hyper_repvgg import create_hyper_repvgg, deploy, surviving_branches
from evaluation import normalise
from split_server import RETURN_S, RemoteClient, wait_for_client  # noqa: F401
from split_trainer import SplitNetwork, predict

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTINGS = config.load(('WEIGHT_PATH_SERVER=', 'BATCH_SIZE=8', 'DEVICE_PROFILE='), {})
N = 11


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Client:
    """A client process."""

    def __init__(self, port: int, folder, *arguments: str) -> None:
        python = os.environ.get('CLIENT_PYTHON', sys.executable)  # to test a client of another Python and PyTorch
        self.port, self.control_port = port, free_port()
        self.command = [python, os.path.join(REPOSITORY, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                        str(port), '--control_port', str(self.control_port), '--cache_dir', str(folder), *arguments]
        self.log = open(os.path.join(folder, 'log'), 'ab+')
        self.process = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=self.log, stdout=self.log, cwd=REPOSITORY,
                                        env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        with open(self.log.name, encoding='utf-8') as stream:
            return stream.read()


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """(RemoteClient, Client process, what the server said)."""
    torch.set_num_threads(1)
    port, said = free_port(), []
    process = Client(port, tmp_path_factory.mktemp('client'))
    client = wait_for_client(SETTINGS, '127.0.0.1', port, say=said.append, return_s=60)
    yield client, process, said
    client.close('done')
    process.kill()


def random_model(seed: int, dtype=torch.float32):
    """Random weights, random α, some branches pruned; every block keeps one."""
    torch.manual_seed(seed)
    model = create_hyper_repvgg(None, SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.1)
    rng = np.random.default_rng(seed)
    alpha = model.alpha_array() * rng.uniform(0.5, 1.5, (N, 3))
    for row in alpha:
        present = np.flatnonzero(~np.isnan(row))
        row[rng.permutation(present)[:rng.integers(0, len(present))]] = 0
    model.set_alpha_array(alpha)
    return model.to(dtype)


def batch(seed: int, count: int = 4):
    """uint8 images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.randint(0, 10, (count,), generator=generator))


def settings_of(head_tier: str):
    return dataclasses.replace(SETTINGS, HEAD_TIER=head_tier)


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('split', range(N + 1))
def test_gradients_through_every_split_are_those_of_the_whole_network(served, split, head_tier):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = random_model(split, dtype)
        images, labels = batch(split)
        x = normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD).to(dtype)
        whole = torch.autograd.grad(F.cross_entropy(model(x), labels), model.alphas())
        network = SplitNetwork(model, served[0], split, settings_of(head_tier))
        parted = torch.autograd.grad(F.cross_entropy(network(x), labels), model.alphas(), allow_unused=True)
        scale = max(float(g.abs().max()) for g in whole)
        for expected, got in zip(whole, parted):
            assert float((expected - got).abs().max()) <= tolerance * scale


@pytest.mark.parametrize('head_tier', ['client', 'server'])
def test_training_through_the_split_gives_the_same_alpha(served, head_tier):
    from alpha_training import train_alpha
    from evaluation import ImageSet
    data = ImageSet(*batch(5, 24))
    for dtype, tolerance in ((torch.float32, 1e-5),):
        alphas = []
        for split in (None, 4):
            model = random_model(3, dtype)
            network = model if split is None else SplitNetwork(model, served[0], split, settings_of(head_tier))
            train_alpha(network, data, SETTINGS, 5, 0.02, seed=1)
            alphas.append(model.alpha_array())
        assert np.nanmax(np.abs(alphas[0] - alphas[1])) <= tolerance
        assert (np.nan_to_num(alphas[0]) == 0).tolist() == (np.nan_to_num(alphas[1]) == 0).tolist()


@pytest.mark.parametrize('head_tier', ['client', 'server'])
@pytest.mark.parametrize('split', [0, 1, 6, 10, 11])
def test_predictions_through_the_split_are_identical(served, split, head_tier):
    model = random_model(20 + split)
    images, _ = batch(split, 20)
    choose = fused_gamma if split % 2 else unfused_gamma
    gamma = [choose(tuple(row)) for row in surviving_branches(model.alpha_array())]
    network = deploy(model, gamma)
    with torch.inference_mode():
        whole = network(normalise(images, SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax(dim=1)
    for wire in ('float32', 'float32+zlib'):
        assert torch.equal(predict(model, gamma, split, served[0], images, settings_of(head_tier), wire), whole)
    for wire in ('float16', 'uint8', 'uint8+zlib'):
        assert len(predict(model, gamma, split, served[0], images, settings_of(head_tier), wire)) == 20
