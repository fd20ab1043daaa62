"""Trains a base network on photographs, or any other images, so that it later does without many of its branches.

Two phases. First everything is learnt, every batch with another random set of branches. Then BatchNorm's statistics
are those of the whole network, frozen: each batch is run with all branches and with a random set, and the second is
pulled towards the first. (Without the second phase a pruned network sees statistics that are not its own.)

What counts are the averaged weights (EMA). After each epoch they are measured on held-out images, every twentieth of
the training pool, which nothing is learnt from: the best so far of each phase is kept, and the best of the second one
is the result. Validation, calibration and test images are not touched.

The parts are those of torchvision's reference training for classification: crops, flips, TrivialAugment, label
smoothing, SGD with Nesterov momentum under a cosine with warm-up, no weight decay on BatchNorm and biases.
"""
from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import sys
import time
from collections import deque
from typing import Callable, Deque, Dict, Iterator, List, NamedTuple, Sequence, Tuple, get_type_hints

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from cli import say
from config import Settings, UserError
from domain_dataset import DomainDataset, read_all
from domains import trained_images
from domains.image_sets import ImageSet
from domains.image_sources import open_source
from domains.loading import explained
from domains.partition import load_partition
from domains.source_base import ImageSource
from network import inputs
from network.checkpoints import load_for_fine_tuning
from pipeline import fingerprints, writing
from repvgg import RepVGG
from tier.devices import device_of
from training import progress
from training.augmentation import AugmentedImages, Crops, keys_of, seed_of, with_noise
from training.branches import (estimate_statistics, every_branch, forward_frozen, forward_with, random_branches)

HELD_OUT_EVERY = 20  # one image in so many of the training pool decides which epoch is the best
STATISTICS_BATCHES = 8  # the last training batches of an epoch, for BatchNorm's statistics in the first phase
EMA_STEPS = 4  # steps between two updates of the averaged weights
SAVE_EVERY_S = 5.0  # a killed training loses this much, and the epoch that it was in
MOMENTUM, LARGEST_GRADIENT = 0.9, 2.0
EVALUATED_AT_ONCE = 256  # images
SHARES = ('label_smoothing', 'smallest_area', 'flip', 'colours', 'gaussian', 'salt', 'drop_dense', 'drop_other')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the training does. After 16 epochs of RepVGG-A0 on imagenette 61.2 % of the held-out images were right, with
    lr=0.2 58.2 %, and with gaussian=0.35, salt=0.2 and drop_dense=0.5 59.3 % (one run each)."""
    seed: int = 0
    batch_size: int = 128  # images
    epochs: int = 100  # of the first phase: random branches, BatchNorm learns
    frozen_epochs: int = 25  # of the second: BatchNorm frozen, distillation into random sub-networks
    lr: float = 0.1  # SGD, peak of a cosine, first phase
    frozen_lr: float = 0.01  # second phase
    warmup_epochs: float = 3.0  # of each phase: the learning rate rises in a straight line
    weight_decay: float = 5e-4  # of kernels and the classifier's matrix
    label_smoothing: float = 0.1
    ema_epochs: float = 2.0  # over which weights are averaged
    smallest_area: float = Crops().smallest_area
    flip: float = Crops().flip
    colours: float = Crops().colours
    gaussian: float = 0.25  # share of images with Gaussian noise
    salt: float = 0.15  # and with salt and pepper; the others are clean
    drop_dense: float = 0.3  # a batch drops 3x3 branches with a probability drawn from 0 .. this
    drop_other: float = 0.1  # and every other branch with this one; both grow from 0 in the first phase's first half


def changed(recipe: Recipe, items: Sequence[str]) -> Recipe:
    """The recipe with some of its fields replaced, each given as 'name=value'; raises `UserError`."""
    kinds_of, given = get_type_hints(Recipe), {}
    for item in items:
        name, equals, text = item.partition('=')
        if not equals or name not in kinds_of:
            raise UserError(f'--recipe {item!r}: write it as NAME=VALUE, where NAME is one of {", ".join(kinds_of)}')
        lowest = 1 if name == 'batch_size' else 0
        highest = 1 if name in SHARES else math.inf
        try:
            given[name] = kinds_of[name](text)
        except ValueError:
            given[name] = math.nan
        if not lowest <= given[name] <= highest or given[name] == math.inf:
            raise UserError(f'--recipe {item!r}: must be a number from {lowest} to {highest}' if name in SHARES else
                            f'--recipe {item!r}: must be a {kinds_of[name].__name__}, at least {lowest}')
    return dataclasses.replace(recipe, **given)


class Trained(NamedTuple):
    """How a training went."""
    seconds: float  # all runs of it together
    history: List[Dict[str, float]]  # an entry an epoch


class Training:
    """A training between two epochs: networks on a device, the optimiser, the best so far."""

    def __init__(self, network: RepVGG, recipe: Recipe, settings: Settings) -> None:
        self.recipe, self.settings, self.device = recipe, settings, device_of(settings.TRAIN_DEVICE)
        # On a CPU neither is faster (A0, 128 pixels, batch 16, one core of a Xeon with AVX-512: a step takes 0.59 s, in
        # bfloat16 0.75 s; at 64 pixels 0.17 s in either layout), and PyTorch 2.14 crashed in the gradient of the stem's
        # 1x1 in channels-last layout.
        self.layout = torch.channels_last if self.device.type == 'cuda' else torch.contiguous_format
        self.network = network.to(self.device).to(memory_format=self.layout)
        self.average = copy.deepcopy(self.network).requires_grad_(False)  # EMA
        self.half = self.device.type == 'cuda' and torch.cuda.is_bf16_supported()
        self.phase, self.epoch, self.seconds = 0, 0, 0.0
        self.history: List[Dict[str, float]] = []
        self.best: Dict[str, torch.Tensor] = {}
        self.best_accuracy = -1.0
        self.optimizer = self.new_optimizer()

    def new_optimizer(self) -> torch.optim.Optimizer:
        """SGD; kernels and matrices decay, what has one dimension (BatchNorm, biases) does not."""
        parameters = list(self.network.parameters())
        return torch.optim.SGD([{'params': [p for p in parameters if p.ndim > 1]},
                                {'params': [p for p in parameters if p.ndim == 1], 'weight_decay': 0.0}],
                               lr=self.recipe.lr, momentum=MOMENTUM, nesterov=True,
                               weight_decay=self.recipe.weight_decay)

    @property
    def epochs(self) -> Tuple[int, int]:
        """Of both phases."""
        return self.recipe.epochs, self.recipe.frozen_epochs

    @property
    def number(self) -> int:
        """Of the next epoch, counted through both phases. Each draws its own random numbers, whatever came before."""
        return self.phase * self.recipe.epochs + self.epoch

    def state(self) -> progress.State:
        """What `restore` needs."""
        return {'network': self.network.state_dict(), 'average': self.average.state_dict(), 'best': self.best,
                'optimizer': self.optimizer.state_dict(), 'phase': self.phase, 'epoch': self.epoch,
                'seconds': self.seconds, 'best_accuracy': self.best_accuracy, 'history': self.history}

    def restore(self, state: progress.State) -> None:
        """Be where a training was when it gave this state."""
        self.network.load_state_dict(state['network'])
        self.average.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.best = {name: value.to(self.device) for name, value in state['best'].items()}
        self.phase, self.epoch, self.seconds = state['phase'], state['epoch'], state['seconds']
        self.best_accuracy, self.history = state['best_accuracy'], state['history']

    def freeze(self) -> None:
        """Begin the second phase with the best network of the first, and its BatchNorm statistics."""
        for network in (self.network, self.average):
            network.load_state_dict(self.best or network.state_dict())  # without a first phase: as given
        self.phase, self.epoch, self.best, self.best_accuracy = 1, 0, {}, -1.0
        self.optimizer = self.new_optimizer()

    def lr(self, epochs: float) -> float:
        """The learning rate so many epochs into a phase: a straight line up, half a cosine down."""
        peak, last = (self.recipe.lr, self.recipe.frozen_lr)[self.phase], self.epochs[self.phase]
        warmup = min(self.recipe.warmup_epochs, last / 5)
        if epochs < warmup:
            return peak * epochs / warmup
        return peak * (1 + math.cos(math.pi * (epochs - warmup) / (last - warmup))) / 2

    def inputs_of(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> noisy, normalised, on the device."""
        x = with_noise(images.to(self.device, non_blocking=True).float() / 255, generator, self.recipe.gaussian,
                       self.recipe.salt)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1)
                     for values in (self.settings.NORM_MEAN, self.settings.NORM_STD))
        return ((x - mean) / std).contiguous(memory_format=self.layout)

    def loss_of(self, x: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """What a step makes smaller, of normalised images [B, 3, S, S]."""
        cross_entropy = nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)
        grown = 1.0 if self.phase else min(1.0, 2 * self.epoch / self.recipe.epochs)
        some = random_branches(self.network, grown * self.recipe.drop_dense, grown * self.recipe.drop_other, rng)
        if self.phase == 0:
            return cross_entropy(forward_with(self.network, x, some).float(), labels)
        whole, part = (y.float() for y in forward_frozen(self.network, x, [every_branch(self.network), some]))
        towards_whole = F.kl_div(F.log_softmax(part, dim=1), F.softmax(whole.detach(), dim=1), reduction='batchmean')
        return cross_entropy(whole, labels) + 0.5 * cross_entropy(part, labels) + 0.5 * towards_whole

    def run_epoch(self, batches: Iterator[Tuple[torch.Tensor, torch.Tensor]], steps: int, bar: tqdm) -> float:
        """Train for `steps` batches, average the weights, set the average's BatchNorm statistics; the mean loss. Every
        step moves the progress bar."""
        seed = self.recipe.seed
        generator = torch.Generator(self.device).manual_seed(seed_of(seed, self.number))
        rng = np.random.default_rng([seed, self.number, 1])
        self.network.train(self.phase == 0)
        recent: Deque[torch.Tensor] = deque(maxlen=STATISTICS_BATCHES)
        total = torch.zeros((), device=self.device)
        for step in range(steps):
            images, labels = next(batches)
            x = self.inputs_of(images, generator)
            for group in self.optimizer.param_groups:
                group['lr'] = self.lr(self.epoch + (step + 1) / steps)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                loss = self.loss_of(x, labels.to(self.device, non_blocking=True), rng)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            self.update_average(self.epoch * steps + step, steps)
            total += loss.detach()
            recent.append(x)
            bar.update()
        if self.phase == 0:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                estimate_statistics(self.average, recent)
        return total.item() / steps

    def update_average(self, steps_done: int, steps: int) -> None:
        """Move the averaged weights towards the present ones, every EMA_STEPS steps; faster at the beginning."""
        if steps_done % EMA_STEPS:
            return
        updates = steps_done // EMA_STEPS
        share = max(min(1.0, EMA_STEPS / (self.recipe.ema_epochs * steps)), 9 / (10 + updates))
        with torch.no_grad():
            for mine, present in zip(self.average.parameters(), self.network.parameters()):
                mine.lerp_(present, share)

    def end_epoch(self, loss: float, held_out: ImageSet) -> None:
        """Measure the averaged network, keep it where it is the best of this phase (of equal ones the last)."""
        x = inputs.normalise(held_out.images, self.settings.NORM_MEAN, self.settings.NORM_STD)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            predicted = inputs.predict(self.average.eval(), x, EVALUATED_AT_ONCE)
        accuracy = float((predicted == held_out.labels).float().mean())
        if accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = {name: value.clone() for name, value in self.average.state_dict().items()}
        self.epoch += 1
        self.history.append({'phase': self.phase + 1, 'epoch': self.epoch, 'loss': round(loss, 4),
                             'held_out_accuracy': round(accuracy, 4)})


def train_and_save(path: str, recipe: Recipe, settings: Settings, start_from: str = '', half: bool = False) -> Trained:
    """Train the network of the settings on the training pool and write its weights. A training that was killed goes on.

    `start_from`: weights to begin with, of any number of classes. `half`: kernels are written in half precision.
    Raises `UserError` for images or weights that cannot be used, or a half-done training with another recipe.
    """
    writing.check_writable(path)
    if not recipe.epochs and not start_from:
        raise UserError('--recipe epochs=0: the second phase alone needs weights to begin with (--from)')
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(recipe.seed)  # the initial weights
    network = RepVGG(settings.MODEL_NAME, settings.NUM_CLASSES)
    if start_from and not load_for_fine_tuning(network, start_from):
        say(f'{start_from}: has other classes; the classifier is trained from the beginning')
    source = open_source(settings)
    pool = load_partition(source, dataclasses.replace(settings, WEIGHT_PATH_SERVER='')).pools['train']
    check_unseen(start_from, source, pool)
    if len(pool) < 4:
        raise UserError(f'{source.name}: {len(pool)} training images are too few to train on')
    training = Training(network, recipe, settings)
    identity = {**dataclasses.asdict(recipe), **settings.group('model'), 'images': source.identity,
                'training images': hashlib.sha256(pool.tobytes()).hexdigest()[:16],
                'start_from': fingerprints.content_hash(start_from) if start_from else ''}
    state = progress.load(progress_file(path), identity)
    if state is not None:
        training.restore(state)
        say(f'{progress_file(path)}: goes on after epoch {training.number} of {sum(training.epochs)}')
    run(training, source, pool, lambda: progress.save(progress_file(path), identity, training.state()))
    weights = {name: value.cpu().contiguous() for name, value in training.best.items()}
    if half:
        weights = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()
                   if not name.endswith('num_batches_tracked')}
    with writing.replacing(path) as temporary, open(temporary, 'wb') as stream:
        torch.save(weights, stream)  # given a path, torch writes its (random) name into the file
    return Trained(training.seconds, training.history)


def check_unseen(start_from: str, source: ImageSource, pool: np.ndarray) -> None:
    """Raise `UserError` where the weights to begin with were trained on images of the source outside the training pool:
    the network would be validated and tested on what it knows."""
    known, _ = trained_images.of_weights(start_from) if start_from else (None, '')
    seen = None if known is None else known.among(source)
    outside = [] if seen is None else np.setdiff1d(np.flatnonzero(seen), pool)
    if len(outside):
        raise UserError(f'{start_from} was trained on {len(outside)} images of {source.name} that are not training '
                        'images now; set SEED and the fractions that it was trained with')


def progress_file(path: str) -> str:
    """Where a training of the weights at `path` keeps what it goes on from."""
    return f'{os.path.splitext(path)[0]}.training.pt'


def forget_progress(path: str) -> None:
    """Remove that file, once the weights and the report on them are written."""
    progress.forget(progress_file(path))


def run(training: Training, source: ImageSource, pool: np.ndarray, save: Callable[[], None]) -> None:
    """All epochs that are left; `save` is called now and then, and when a phase ends."""
    recipe, settings = training.recipe, training.settings
    held_out = pool[::HELD_OUT_EVERY]
    learnt = np.setdiff1d(pool, held_out)
    batch_size = min(recipe.batch_size, len(learnt))
    steps = len(learnt) // batch_size
    measured = read_all(DomainDataset(source, held_out, None, settings.SEED), settings, 'held-out images')
    measured = measured.to(training.device)
    crops = Crops(recipe.smallest_area, recipe.flip, recipe.colours)
    keys = keys_of(learnt, batch_size, range(training.number, sum(training.epochs)), recipe.seed)
    loader = DataLoader(AugmentedImages(source, settings.INPUT_SIZE, crops), batch_sampler=keys,
                        num_workers=settings.NUM_WORKERS, pin_memory=training.device.type == 'cuda',
                        generator=torch.Generator())
    batches = explained(loader, settings.NUM_WORKERS, 'training images')
    saved = start = time.perf_counter()
    before = training.seconds
    bar = tqdm(total=steps * (sum(training.epochs) - training.number), desc='training', leave=False, disable=None)
    while training.number < sum(training.epochs):
        if training.phase == 0 and training.epoch == recipe.epochs:
            training.freeze()
        began = time.perf_counter()
        loss = training.run_epoch(batches, steps, bar)
        if not math.isfinite(loss):
            raise UserError(f'epoch {training.number + 1}: the loss is {loss}; train with a smaller --lr')
        rate = steps * batch_size / (time.perf_counter() - began)
        training.end_epoch(loss, measured)
        training.seconds = before + time.perf_counter() - start
        with bar.external_write_mode(file=sys.stderr):
            say(f'phase {training.phase + 1}, epoch {training.epoch} of {training.epochs[training.phase]}: '
                f'loss {loss:.3f}, held-out accuracy {training.history[-1]["held_out_accuracy"]:.1%}, best '
                f'{training.best_accuracy:.1%}; {rate:,.0f} images/s, {training.seconds:.0f} s')
        if time.perf_counter() - saved > SAVE_EVERY_S or training.number in (recipe.epochs, sum(training.epochs)):
            save()
            saved = time.perf_counter()
    bar.close()
