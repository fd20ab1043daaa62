"""What the trained base model can do: accuracy on clean images and in every domain, and what each block loses without
its 3x3 branch; as the report file holds it and as tables for people."""
from __future__ import annotations

import dataclasses
import os
from itertools import zip_longest
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch

import cli
from config import Settings
from domain_dataset import load_clean, load_domain
from domain_transforms import domain_name
from domains import trained_images
from domains.division import SUBSETS
from domains.image_sets import ImageSet, wilson_interval
from domains.image_sources import open_source
from domains.partition import load_partition
from hyper_repvgg import HyperRepVGG, create_hyper_repvgg, deploy
from network.inputs import normalise, predict
from network.shapes import DENSE
from pipeline import documents, fingerprints, kinds, writing
from steps import base_model_training
from tier.devices import device_of
from training import photographs

PROBED_DOMAINS = (0, 3, 6)  # on whose validation images pruning is probed: one of each kind, and the hardest
ALLOWED_LOSS = 0.02  # of accuracy, fraction of 1
GREEDY_UP_TO = 12  # blocks; with more of them only each block alone is probed, on PROBED_IMAGES images a domain
PROBED_IMAGES = 150
AT_ONCE = 256  # images
CLASSES_SHOWN = 20
FROM_TRAINING = ('wall_s', 'recipe', 'history', 'weights_sha256', 'training_pool', 'began_with')
Recipe = Union[base_model_training.Recipe, photographs.Recipe]
Labelled = Tuple[torch.Tensor, torch.Tensor]  # normalised images [n, 3, S, S], labels [n]


def write(settings: Settings, recipe: Optional[Recipe] = None, seconds: Optional[float] = None,
          history: Sequence[Dict[str, float]] = (), start_from: str = '') -> Tuple[Dict[str, Any], str]:
    """Measure the base weights and write the report on them; the report and its path. `seconds` of training; None: not
    trained now, so what the report that is there says about the training stays. `history`: an entry an epoch.
    `start_from`: the weights that it began with; what their report says about their training is taken over."""
    path = kinds.path_of('base_model', settings)
    writing.check_writable(path)
    metadata = writing.make_metadata(settings, 'base_model', fingerprints.inputs_of('base_model', settings))
    if seconds is None:
        training = earlier_training(kinds.report_on_weights(settings))
    else:
        source = open_source(settings)
        unseen = dataclasses.replace(settings, WEIGHT_PATH_SERVER='')  # as for the training itself
        pool = load_partition(source, unseen).pools['train']
        training = {'wall_s': seconds, 'recipe': dataclasses.asdict(recipe), 'history': list(history),
                    'weights_sha256': fingerprints.content_hash(kinds.weights_file(settings)),
                    'training_pool': trained_images.to_json(source, pool, settings)}
        if start_from:
            before = earlier_training(kinds.report_beside(start_from))
            training['began_with'] = {name: value for name, value in before.items() if name != 'training_pool'}
        writing.write(path, training, metadata)  # known from here on, also when measuring is interrupted
    report = {**measure(settings), **training}
    writing.write(path, report, metadata)
    return report, path


def earlier_training(path: str) -> Dict[str, Any]:
    """What the report at `path` says about the training; nothing where there is none."""
    if not os.path.exists(path):
        return {}
    content = documents.read(path, '').content
    return {name: content[name] for name in FROM_TRAINING if name in content}


def measure(settings: Settings) -> Dict[str, Any]:
    """Everything that the report says about the weights at WEIGHT_PATH_SERVER."""
    torch.set_num_threads(settings.TORCH_THREADS or 1)  # the same sums whatever the number of cores
    device = device_of(settings.TRAIN_DEVICE)
    model = create_hyper_repvgg(kinds.weights_file(settings), settings.MODEL_NAME, settings.NUM_CLASSES).to(device)
    greedily = len(model.blocks) <= GREEDY_UP_TO

    def ready(images: ImageSet, count: Optional[int] = None) -> Labelled:
        images = ImageSet(images.images[:count], images.labels[:count]).to(device)
        return normalise(images.images, settings.NORM_MEAN, settings.NORM_STD), images.labels

    clean, by_class = clean_accuracy(model, settings, ready)
    domains = [{'domain_id': domain, 'domain_name': domain_name(domain),
                **accuracy_of(model, ready(load_domain(settings, domain, 'test')))}
               for domain in range(settings.NUM_DOMAINS)]
    probed = [domain for domain in PROBED_DOMAINS if domain < settings.NUM_DOMAINS]
    single, greedy = probe_pruning(model, [ready(load_domain(settings, domain, 'val'),
                                                 None if greedily else PROBED_IMAGES) for domain in probed], greedily)
    within = [number for number, point in enumerate(greedy, start=1) if point['loss'] <= ALLOWED_LOSS]
    return {'n_parameters': sum(p.numel() for name, p in model.named_parameters() if not name.endswith('alpha')),
            'clean': clean, 'classes': by_class, 'domains': domains, 'probed_domains': probed,
            'loss_without_dense': single, 'greedy_without_dense': greedy,
            'n_dense_within_allowed_loss': max(within, default=0)}


def clean_accuracy(model: HyperRepVGG, settings: Settings, ready: Callable[[ImageSet], Labelled],
                   ) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Accuracy on the images that nothing was trained on, without corruption: of each subset and of all together
    ('unseen'); and on all together by class."""
    names, network = open_source(settings).class_names, deploy(model)
    right, labels = [], []
    for subset in SUBSETS[1:]:
        inputs, of_subset = ready(load_clean(settings, subset))
        right.append((predict(network, inputs, AT_ONCE) == of_subset).cpu())
        labels.append(of_subset.cpu())
    clean = {subset: share_of(found) for subset, found in zip(SUBSETS[1:], right)}
    clean['unseen'] = share_of(torch.cat(right))
    of_class = [torch.cat(right)[torch.cat(labels) == label] for label in range(len(names))]
    return clean, [{'name': name, **share_of(found)} for name, found in zip(names, of_class) if len(found)]


def share_of(right: torch.Tensor) -> Dict[str, Any]:
    """An accuracy with its interval, from bool [n]."""
    correct, n = int(right.sum()), len(right)
    return {'accuracy': correct / n, 'n': n, 'ci95': list(wilson_interval(correct, n))}


def accuracy_of(model: HyperRepVGG, data: Labelled) -> Dict[str, Any]:
    """Accuracy of the deployed model on (inputs, labels), with its interval."""
    inputs, labels = data
    return share_of(predict(deploy(model), inputs, AT_ONCE) == labels)


def probe_pruning(model: HyperRepVGG, domains: List[Labelled], greedily: bool = True,
                  ) -> Tuple[Dict[str, float], List[Dict[str, Any]]]:
    """What blocks lose without their 3x3 and with no other change (mean over `domains` of (inputs, labels)): each block
    alone {block: loss}, and `greedily` [{block, loss}, ...], the block that costs least next. α is restored."""
    unpruned = model.alpha_array()

    def mean_accuracy(without: Sequence[int]) -> float:
        alpha = unpruned.copy()
        alpha[list(without), DENSE] = 0
        model.set_alpha_array(alpha)
        return sum(accuracy_of(model, data)['accuracy'] for data in domains) / len(domains)

    whole, names = mean_accuracy([]), model.block_names
    left, gone = set(range(len(names))), []
    single: Dict[str, float] = {}
    greedy: List[Dict[str, Any]] = []
    while left:
        losses = {block: whole - mean_accuracy([*gone, block]) for block in sorted(left)}
        single = single or {names[block]: loss for block, loss in losses.items()}
        if not greedily:
            break
        best = min(losses, key=losses.__getitem__)
        gone.append(best)
        left.remove(best)
        greedy.append({'block': names[best], 'loss': losses[best]})
    model.set_alpha_array(unpruned)
    return single, greedy


def show(report: Dict[str, Any]) -> None:
    """The report as tables on stdout."""
    def line(name: str, entry: Dict[str, Any]) -> str:
        low, high = entry['ci95']
        return f'{name:<30}{entry["accuracy"]:>8.2%}   [{low:.2%}, {high:.2%}]{entry["n"]:>8}'

    print(f'{"accuracy, all branches":<30}{"":>8}   {"95 % interval":<16}{"images":>8}')
    for subset, entry in report['clean'].items():
        print(line('clean, all three' if subset == 'unseen' else f'clean, {subset}', entry))
    for entry in report['classes'][:CLASSES_SHOWN]:
        print(line('  ' + cli.one_line(entry['name'])[:28], entry))
    for entry in report['domains']:
        print(line(f'{entry["domain_id"]}  {entry["domain_name"]}, test', entry))
    print('\naccuracy lost without 3x3 branches, no α trained (validation, mean of domains '
          f'{report["probed_domains"]})')
    greedy = [f'{point["block"]:<12}{point["loss"]:>12.2%}' for point in report['greedy_without_dense']]
    print(f'{"block":<14}{"this one alone":>16}    {"greedily, with those above" if greedy else ""}'.rstrip())
    for (block, loss), then in zip_longest(report['loss_without_dense'].items(), greedy, fillvalue=''):
        print(f'{block:<14}{loss:>16.2%}    {then}'.rstrip())
    if greedy:
        print(f'\n{report["n_dense_within_allowed_loss"]} of {len(greedy)} blocks can do without '
              f'their 3x3 for at most {ALLOWED_LOSS:.0%}')
