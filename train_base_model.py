"""Train the base model of the built-in example: RepVGG-Micro on the training pool of the 5,000 digits.

    python train_base_model.py                 # the weights in data/weights; a few minutes
    python train_base_model.py --report_only   # measure the weights at WEIGHT_PATH_SERVER again

Claim: after 171 s of training on one thread of a two-core AMD EPYC machine (408 s with both cores busy with
other work; Python 3.11, torch 2.15, CPU), 98.3 % of the clean test images are right (n = 1,250, 95 % interval
97.4 to 98.9), between 95.6 and 98.9 % in the ten domains, and 7 of 11 blocks can do without their 3x3 branch
for at most two points (validation, no α trained). Two runs with seed 0 gave the same weights, bit for bit; no
other seed was tried. How it is done: base_training.py.

Writes WEIGHT_PATH_SERVER and, beside it, a report (.json). The validation pool decided everything that was
chosen (recipe, branch order); the test pool is only reported. The same machine, versions and TORCH_THREADS
(0: one here, because two threads wait for each other on a busy machine) give the same file.
"""
from __future__ import annotations

import os
import time
from typing import Any, Dict, List, Optional, Sequence

import cli

PROBED_DOMAINS = (0, 3, 6)  # on whose validation images pruning is probed: one of each kind, and the hardest
ALLOWED_LOSS = 0.02  # of accuracy, fraction of 1


def main(argv: Optional[Sequence[str]]) -> None:
    """Train, save, measure, report."""
    parser = cli.parser(__doc__)
    parser.add_argument('--report_only', action='store_true', help='do not train')
    args, settings = cli.parse(parser, argv)

    import dataclasses

    import torch

    import base_training
    from config import UserError
    from domain_dataset import load_clean
    from pipeline import documents, fingerprints, kinds, writing
    from repvgg import RepVGG

    weights = settings.WEIGHT_PATH_SERVER
    if not weights:
        raise UserError('WEIGHT_PATH_SERVER is empty: set it to the file to write')
    report_path = kinds.path_of('base_model', settings)
    writing.check_writable(weights)
    torch.set_num_threads(settings.TORCH_THREADS or 1)  # the same weights whatever the number of cores
    recipe, seconds = base_training.Recipe(seed=settings.SEED), None
    if not args.report_only:
        torch.manual_seed(recipe.seed)  # the initial weights
        network = RepVGG(settings.MODEL_NAME, settings.NUM_CLASSES)
        start = time.perf_counter()
        base_training.train(network, load_clean(settings, 'train'), settings.NORM_MEAN, settings.NORM_STD, recipe)
        seconds = time.perf_counter() - start
        with writing.replacing(weights) as temporary, open(temporary, 'wb') as stream:
            torch.save(network.state_dict(), stream)  # given a path, torch writes its (random) name into the file
        cli.say(f'{weights}: trained in {seconds:.0f} s')
    elif os.path.exists(report_path):
        seconds = documents.read(report_path, '').content.get('wall_s')
    report = measure(settings)
    report['wall_s'] = seconds
    report['recipe'] = dataclasses.asdict(recipe)
    report['weights_sha256'] = fingerprints.content_hash(weights)
    writing.write(report_path, report, writing.make_metadata(
        settings, 'base_model', fingerprints.inputs_of('base_model', settings)))
    show(report)
    print(f'wrote {"" if args.report_only else weights + " and "}{report_path}')


def measure(settings: Any) -> Dict[str, Any]:
    """Everything that the report says about the weights at WEIGHT_PATH_SERVER."""
    from domain_dataset import load_clean, load_domain
    from domain_transforms import domain_name
    from hyper_repvgg import create_hyper_repvgg
    from network.inputs import normalise

    model = create_hyper_repvgg(settings.WEIGHT_PATH_SERVER, settings.MODEL_NAME, settings.NUM_CLASSES)

    def ready(images: Any) -> Any:
        return normalise(images.images, settings.NORM_MEAN, settings.NORM_STD), images.labels

    clean = {split: accuracy_of(model, ready(load_clean(settings, split))) for split in ('val', 'test')}
    domains = [{'domain_id': domain, 'domain_name': domain_name(domain),
                **accuracy_of(model, ready(load_domain(settings, domain, 'test')))}
               for domain in range(settings.NUM_DOMAINS)]
    probed = [domain for domain in PROBED_DOMAINS if domain < settings.NUM_DOMAINS]
    single, greedy = probe_pruning(model, [ready(load_domain(settings, domain, 'val')) for domain in probed])
    within = [number for number, point in enumerate(greedy, start=1) if point['loss'] <= ALLOWED_LOSS]
    return {'n_parameters': sum(p.numel() for name, p in model.named_parameters() if not name.endswith('alpha')),
            'clean': clean, 'domains': domains, 'probed_domains': probed, 'loss_without_dense': single,
            'greedy_without_dense': greedy, 'n_dense_within_allowed_loss': max(within, default=0)}


def accuracy_of(model: Any, data: Any) -> Dict[str, Any]:
    """Accuracy of the deployed model on (inputs, labels), with its interval."""
    from domains.image_sets import wilson_interval
    from hyper_repvgg import deploy
    from network.inputs import predict

    inputs, labels = data
    correct = int((predict(deploy(model), inputs, 256) == labels).sum())
    return {'accuracy': correct / len(labels), 'n': len(labels), 'ci95': list(wilson_interval(correct, len(labels)))}


def probe_pruning(model: Any, domains: List[Any]) -> Any:
    """What blocks lose without their 3x3 and with no other change (mean over `domains` of (inputs, labels)): each block
    alone {block: loss}, and greedily [{block, loss}, ...], the block that costs least next. α is restored."""
    from network.shapes import DENSE

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
    for split in ('val', 'test'):
        print(line(f'clean, {split}', report['clean'][split]))
    for entry in report['domains']:
        print(line(f'{entry["domain_id"]}  {entry["domain_name"]}, test', entry))
    print('\naccuracy lost without 3x3 branches, no α trained (validation, mean of domains '
          f'{report["probed_domains"]})')
    print(f'{"block":<14}{"this one alone":>16}    {"greedily, with those above":<24}')
    for (block, loss), point in zip(report['loss_without_dense'].items(), report['greedy_without_dense']):
        print(f'{block:<14}{loss:>16.2%}    {point["block"]:<12}{point["loss"]:>12.2%}')
    print(f'\n{report["n_dense_within_allowed_loss"]} of {len(report["greedy_without_dense"])} blocks can do without '
          f'their 3x3 for at most {ALLOWED_LOSS:.0%}')


if __name__ == '__main__':
    cli.run(main)
