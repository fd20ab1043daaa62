"""Task 1 for each domain: train α on its images, record what that gained, and draw the α of all domains."""
from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
import torch

import cli
from config import Settings
from domain_transforms import domain_name
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import HyperRepVGG, deploy
from network.alpha import alpha_by_block, alpha_from_blocks, unpruned_alpha
from network.outline import outline_for
from pipeline import writing
from report import preparation_figures, style
from search import alpha_training
from search.domain_inputs import base_model, images_of
from steps import shared_warnings

Entries = Dict[str, Dict[str, Any]]  # by domain id, as the JSON files hold them


class Training(NamedTuple):
    """α of one domain and how it was found."""
    alpha: np.ndarray  # [N, 3]
    record: Dict[str, Any]  # what training_results.json holds


class Epochs(NamedTuple):
    """A training of α, epoch by epoch; the first entry of `alphas` and `val_accuracies` is before it."""
    alphas: List[np.ndarray]  # [N, 3] each
    val_accuracies: List[float]
    losses: List[float]  # cross-entropy of each step

    @property
    def best(self) -> int:
        """The epoch with the best validation accuracy, of those trained; 0 where none was."""
        return max(range(1, len(self.alphas)), key=self.val_accuracies.__getitem__, default=0)


def train_epochs(model: HyperRepVGG, train: ImageSet, val: ImageSet, settings: Settings, domain: int) -> Epochs:
    """Train α on a domain's images, starting from 1."""
    ones = unpruned_alpha([block.n_branches for block in model.blocks])
    model.set_alpha_array(ones)
    alphas, val_accuracies, losses = [ones], [alpha_training.accuracy(model, val, settings)], []
    steps = max(1, len(train) // settings.BATCH_SIZE)
    for epoch in range(settings.ALPHA_EPOCHS if model.alphas() else 0):
        seed = alpha_training.seed_of(settings.SEED, domain, epoch)
        losses += alpha_training.train_alpha(model, train, settings, steps, settings.ALPHA_LR, seed)
        alphas.append(model.alpha_array())
        val_accuracies.append(alpha_training.accuracy(model, val, settings))
    return Epochs(alphas, val_accuracies, losses)


def train_domain(model: HyperRepVGG, settings: Settings, domain: int) -> Training:
    """Train α and record what it gained; the epoch with the best validation accuracy is kept."""
    train, val, test = (images_of(settings, domain, subset) for subset in ('train', 'val', 'test'))
    alphas, val_accuracies, losses = epochs = train_epochs(model, train, val, settings, domain)
    best = epochs.best
    model.set_alpha_array(alphas[0])
    test_before = alpha_training.accuracy(model, test, settings)
    model.set_alpha_array(alphas[best])
    test_after = alpha_training.count_correct(deploy(model), test, settings)
    return Training(alphas[best], {
        'n_train': len(train), 'n_val': len(val), 'n_test': len(test), 'epoch': best,
        'loss': losses, 'val_accuracy': val_accuracies,
        'accuracy': {'val_before': val_accuracies[0], 'val_after': val_accuracies[best],
                     'test_before': test_before, 'test_after': test_after / len(test),
                     'test_after_ci95': list(wilson_interval(test_after, len(test)))},
        'cost_of_losing_dense': dense_costs(model, val, settings)})


def dense_costs(model: HyperRepVGG, val: ImageSet, settings: Settings) -> Dict[str, float]:
    """Validation accuracy that losing each block's 3x3 costs, one at a time, without recovery."""
    alpha, full = model.alpha_array(), alpha_training.accuracy(model, val, settings)
    costs = {}
    for k, name in enumerate(model.block_names):
        if model.blocks[k].n_branches == 1:
            continue
        without = alpha.copy()
        without[k, 0] = 0
        model.set_alpha_array(without)
        costs[name] = full - alpha_training.accuracy(model, val, settings)
    model.set_alpha_array(alpha)
    return costs


def train_all(domains: Sequence[int], done: Dict[str, Entries], settings: Settings, inputs: str,
              paths: Dict[str, str]) -> None:
    """Train these domains, adding each to `done` and to the files (both by kind) as soon as it is ready."""
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    shared_warnings.say(settings)
    model = base_model(settings)
    for domain in domains:
        name = domain_name(domain)
        with cli.step(f'domain {domain} ({name})'):
            found = train_domain(model, settings, domain)
        done['alpha'][str(domain)] = {'domain_name': name, 'alpha': alpha_by_block(found.alpha, model.block_names)}
        done['alpha_training'][str(domain)] = {'domain_name': name, **found.record}
        metadata = writing.make_metadata(settings, 'alpha', inputs)
        for kind, path in paths.items():
            writing.write(path, {'domains': done[kind]}, metadata)


def draw(path: str, domains: Entries, settings: Settings) -> None:
    """The picture of all domains' α."""
    names = outline_for(settings).block_names
    order = sorted(domains, key=int)
    alpha = np.stack([alpha_from_blocks(domains[domain]['alpha'], names) for domain in order])  # (domains, N, 3)
    labels = [f"{domain}  {style.plain(domains[domain]['domain_name'])}" for domain in order]
    style.save(preparation_figures.trained_alpha(alpha, labels, names), path)
