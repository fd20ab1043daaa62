"""Task 1: train α for every domain and record it.

    python code1_train_and_record_weights.py                 # all domains
    python code1_train_and_record_weights.py --domains 0,3

Writes trained_hyper_weights.json, training_results.json (losses, accuracy before and after, what losing each 3x3
costs) and hyper_weights_heatmap.png to task1_trained_weights_{MODEL_NAME}/. The α kept is that of the epoch with the
best validation accuracy. A domain is written when it is done; a killed run goes on with the next one.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence

import cli
from config import Settings
from pipeline import documents, fingerprints, kinds, writing


def train_domain(model: Any, settings: Settings, domain: int) -> Dict[str, Any]:
    """α of one domain and how it was found."""
    from domains.image_sets import wilson_interval
    from hyper_repvgg import deploy
    from network.alpha import unpruned_alpha
    from search import alpha_training as training
    from search.domain_search import images_of
    train, val, test = (images_of(settings, domain, split) for split in ('train', 'val', 'test'))
    ones = unpruned_alpha([block.n_branches == 3 for block in model.blocks])
    model.set_alpha_array(ones)
    alphas, val_accuracies, losses = [ones], [training.accuracy(model, val, settings)], []
    test_before = training.accuracy(model, test, settings)
    steps = max(1, len(train) // settings.BATCH_SIZE)
    for epoch in range(settings.ALPHA_EPOCHS):
        seed = training.seed_of(settings.SEED, domain, epoch)
        losses += training.train_alpha(model, train, settings, steps, settings.ALPHA_LR, seed)
        alphas.append(model.alpha_array())
        val_accuracies.append(training.accuracy(model, val, settings))
    best = max(range(1, len(alphas)), key=val_accuracies.__getitem__, default=0)
    model.set_alpha_array(alphas[best])
    test_after = training.count_correct(deploy(model), test, settings)
    return {'alpha': alphas[best], 'result': {
        'n_train': len(train), 'n_val': len(val), 'n_test': len(test), 'epoch': best,
        'loss': losses, 'val_accuracy': val_accuracies,
        'accuracy': {'val_before': val_accuracies[0], 'val_after': val_accuracies[best],
                     'test_before': test_before, 'test_after': test_after / len(test),
                     'test_after_ci95': list(wilson_interval(test_after, len(test)))},
        'cost_of_losing_dense': dense_costs(model, val, settings)}}


def dense_costs(model: Any, val: Any, settings: Settings) -> Dict[str, float]:
    """Validation accuracy that losing each block's 3x3 costs, one at a time, without recovery."""
    from search import alpha_training as training
    alpha, full = model.alpha_array(), training.accuracy(model, val, settings)
    costs = {}
    for k, name in enumerate(model.block_names):
        without = alpha.copy()
        without[k, 0] = 0
        model.set_alpha_array(without)
        costs[name] = full - training.accuracy(model, val, settings)
    model.set_alpha_array(alpha)
    return costs


def recorded(settings: Settings, inputs: str) -> Dict[str, Dict[str, Any]]:
    """Domains already trained from the same inputs: {kind: {domain: entry}}; empty when there are none."""
    paths = [kinds.path_of(kind, settings) for kind in ('alpha', 'alpha_training')]
    if not fingerprints.is_current(paths, inputs):
        return {'alpha': {}, 'alpha_training': {}}
    return {kind: dict(documents.read_kind(kind, settings).get('domains')) for kind in ('alpha', 'alpha_training')}


def draw(path: str, domains: Dict[str, Dict[str, Any]], names: Sequence[str]) -> None:
    """α of every branch, a row a domain and a column a block."""
    import numpy as np

    from network.alpha import alpha_from_blocks
    from report import style
    order = sorted(domains, key=int)
    values = np.stack([alpha_from_blocks(domains[d]['alpha'], names) for d in order])  # (domains, N, 3)
    spread = max(0.05, float(np.nanmax(np.abs(values - 1))))
    style.save(style.branch_heatmaps(
        values, [f"{d}  {style.plain(domains[d]['domain_name'])}" for d in order], names,
        'Trained α by domain: above 1 a branch counts for more than in the original network (hatched: no such branch)',
        'α', 'PuOr', (1 - spread, 1 + spread), digits=2), path)


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    parser = cli.parser(__doc__)
    cli.add_if_changed(parser)
    parser.add_argument('--domains', metavar='0,3,7', help='domain ids (default: all)')
    args, settings = cli.parse(parser, argv)
    wanted = cli.domains(args.domains, settings)
    inputs = fingerprints.inputs_of('alpha', settings)
    paths = {kind: kinds.path_of(kind, settings) for kind in ('alpha', 'alpha_training')}
    picture = os.path.join(os.path.dirname(paths['alpha']), 'hyper_weights_heatmap.png')
    done = recorded(settings, inputs)
    missing = [d for d in wanted if not all(str(d) in done[kind] for kind in done)]
    if args.if_changed and not missing and os.path.exists(picture):
        cli.say(f"{os.path.dirname(paths['alpha'])} is up to date")
        return
    writing.check_writable(paths['alpha'])
    train_all(missing if missing or args.if_changed else wanted, done, settings, inputs, paths)
    from network.shapes import architecture, block_names
    draw(picture, done['alpha'], block_names(architecture(settings.MODEL_NAME)))
    print_table(done['alpha_training'])
    print(f"-> {os.path.dirname(paths['alpha'])}")


def train_all(domains: List[int], done: Dict[str, Dict[str, Any]], settings: Settings, inputs: str,
              paths: Dict[str, str]) -> None:
    """Train these domains, adding each to `done` and to the files as soon as it is ready."""
    import torch

    from domain_transforms import domain_name
    from network.alpha import alpha_by_block
    from search.domain_search import base_model
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    torch.manual_seed(settings.SEED)
    model = base_model(settings)
    for domain in domains:
        with cli.step(f'domain {domain} ({domain_name(domain)})'):
            found = train_domain(model, settings, domain)
        name = domain_name(domain)
        done['alpha'][str(domain)] = {'domain_name': name,
                                      'alpha': alpha_by_block(found['alpha'], model.block_names)}
        done['alpha_training'][str(domain)] = {'domain_name': name, **found['result']}
        metadata = writing.make_metadata(settings, 'alpha', inputs)
        for kind, path in paths.items():
            writing.write(path, {'domains': done[kind]}, metadata)


def print_table(domains: Dict[str, Dict[str, Any]]) -> None:
    """Accuracy before and after, a line a domain."""
    print(f"{'domain':28} {'val before':>10} {'after':>7} {'test before':>12} {'after':>7}  95 % interval")
    for domain in sorted(domains, key=int):
        entry = domains[domain]
        a = entry['accuracy']
        print(f"{domain + ' ' + entry['domain_name']:28} {a['val_before']:10.3f} {a['val_after']:7.3f} "
              f"{a['test_before']:12.3f} {a['test_after']:7.3f}  "
              f"[{a['test_after_ci95'][0]:.3f}, {a['test_after_ci95'][1]:.3f}]")


if __name__ == '__main__':
    cli.run(main)
