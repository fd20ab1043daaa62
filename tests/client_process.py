"""A client process on this machine, and random cases for it."""
from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
import torch

import config
from costs.cost_model import Configuration
from hyper_repvgg import create_hyper_repvgg, deploy
from network.alpha import surviving_branches
from network.channels import CutChannels
from network.gammas import fused_gamma
from network.inputs import normalise
from search.wire_loss import through_wire
from tier.part import cut_shape
from wire.formats import channels_sent, format_at, share_of, without_compression

SETTINGS = config.load(('WEIGHT_PATH_SERVER=', 'BATCH_SIZE=8', 'DEVICE_PROFILE='), {})
N = 11


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


class Client:
    """A client process of the code in `top`, which keeps its cache and its log in `folder`."""

    def __init__(self, port: int, folder, *arguments: str, top: str = config.ROOT) -> None:
        python = os.environ.get('CLIENT_PYTHON', sys.executable)  # to test a client of another Python and PyTorch
        self.port, self.control_port, self.top = port, free_port(), top
        self.command = [python, os.path.join(top, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                        str(port), '--control_port', str(self.control_port), '--cache_dir', str(folder), *arguments]
        self.log = open(os.path.join(folder, 'log'), 'ab+')
        self.process = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=self.log, stdout=self.log, cwd=self.top,
                                        env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        with open(self.log.name, encoding='utf-8') as stream:
            return stream.read()


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


def stream_case(seed: int, split: int, wire: str = 'float32'):
    """(model, configuration, images, the classes that a stream must give)."""
    model = random_model(seed)
    alpha = model.alpha_array()
    gamma = tuple(fused_gamma(tuple(row)) for row in surviving_branches(alpha))
    images, _ = batch(seed, 16)
    channels = random_channels(seed, split, wire)
    network = through_wire(deploy(model, gamma), split, without_compression(wire), channels)
    with torch.inference_mode():
        classes = [int(network(normalise(image[None], SETTINGS.NORM_MEAN, SETTINGS.NORM_STD)).argmax())
                   for image in images]
    return model, Configuration(alpha, gamma, split, wire, channels), images, classes


def random_channels(seed: int, split: int, wire: str):
    """Channels to send where this wire format has a share at this split; None: all."""
    if share_of(format_at(split, N, wire)) == 1:
        return None
    count = cut_shape(SETTINGS.MODEL_NAME, SETTINGS.NUM_CLASSES, SETTINGS.INPUT_SIZE, split + 1)[0]
    rng = np.random.default_rng(seed)
    return CutChannels(tuple(sorted(int(c) for c in rng.permutation(count)[:channels_sent(wire, count)])),
                       tuple(rng.uniform(0, 1, count).astype(np.float32).tolist()))
