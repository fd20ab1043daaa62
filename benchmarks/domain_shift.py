"""A camera whose images change from one domain to another: how soon its network follows, and what that is worth.

    bash run_pipeline.sh --domains 0,3,6 && python -m benchmarks.domain_shift        # about two minutes

For every order of the domains a client process streams 300 test images of each to a service that runs with
`--adapt_domain`. It begins with the first one's network and is told of no change.
delay      frames of a new domain that were still computed by another one's network
accuracy   of all 900 frames, beside that of the networks that know the domain (bar: at most 1 point below it) and that
           of the first one's network all along, on the same frames
alarms     10,000 frames of each domain alone, its test images under noise that is drawn anew for every frame: changes
           to another of these domains (bar: none), and to another of all ten

Test images that are fewer than 300 come again under other noise. The rule and its constants (service/shift.py,
SHIFT_AFTER_FRAMES) were fixed on validation images.

Claim (2-core Intel Xeon VM, PyTorch 2.14, other programs on both cores): delays of 10 or 11 frames in all three orders;
accuracy 96.7 % (95.3 to 97.7), that of the networks that know the domain 96.7 % (95.3 to 97.7), that of the first one's
network all along 96.8, 96.7 and 97.3 %: these networks, each confirmed to lose little in its domain, lose little in the
others, too, so following the domain changes their speed, not their accuracy. No alarm in 3 times 10,000 frames, neither
among the three domains nor among all ten.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domains', default='0,3,6', metavar='0,3,6', help='two or more whose results are in RESULTS_DIR')
PARSER.add_argument('--frames', type=cli.count, default=300, help='of each domain')
PARSER.add_argument('--alone', type=cli.count, default=10_000, help='frames of one domain for false alarms')
if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import json
import os
import subprocess
import sys
import tempfile
import threading
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

import config
from domain_dataset import DomainDataset, domain_name
from domains.image_sets import ImageSet, wilson_interval
from domains.image_sources import open_source
from domains.partition import load_partition
from hyper_repvgg import HyperRepVGG, deploy
from network.inputs import normalise
from network_utils import Address, Listener
from service.entries import Entry, entries_of_results
from service.looks import references_for, statistics_of
from service.server import Service
from service.shift import References, watch
from service.tails import base_model, model_of

MOST_LOST = 0.01  # of accuracy, below the networks that know the domain
PIECE = 250  # frames that are made at a time
SOURCE = '''
import numpy as np

def frames(size):
    yield from np.load({path!r})
'''


class Cameras:
    """Test images of every domain, as often as wanted under new noise."""

    def __init__(self, settings: config.Settings) -> None:
        self.settings, self._source = settings, open_source(settings)
        self._partition = load_partition(self._source, settings)

    def frames(self, domain: int, first: int, count: int) -> ImageSet:
        """Frames [first, first + count) of a domain's camera: its test images in order, again and again, each time
        under other noise (at first that of the project's accuracies)."""
        indices = self._partition.domains[domain]['test']
        images, labels = [], []
        for k in range(first, first + count):
            turn, position = divmod(k, len(indices))
            dataset = DomainDataset(self._source, indices, domain, self.settings.SEED + turn)
            image, label = dataset[position]
            images.append(image)
            labels.append(label)
        return ImageSet(torch.stack(images), torch.tensor(labels))


def streamed(images: torch.Tensor, entries: Dict[str, Entry], first: str, references: References,
             settings: config.Settings) -> List[Dict[str, Any]]:
    """The lines of a client process that streams these images to a service of its own."""
    listener = Listener(Address('127.0.0.1', 0), b'', 'service', ('camera',), cli.say)
    service = Service(settings, entries, 1, say=lambda line: None, references=references)
    with tempfile.TemporaryDirectory() as folder:
        np.save(os.path.join(folder, 'frames.npy'), images.permute(0, 2, 3, 1).numpy())
        source = os.path.join(folder, 'source.py')
        with open(source, 'w', encoding='utf-8') as stream:
            stream.write(SOURCE.format(path=os.path.join(folder, 'frames.npy')))
        command = [sys.executable, os.path.join(config.ROOT, 'client_worker.py'), '--server_ip', '127.0.0.1', '--port',
                   str(listener.address.port), '--source', source, '--entry', first, '--cache_dir',
                   os.path.join(folder, 'cache')]
        try:
            service.start()
            threading.Thread(target=service.serve, args=(listener,), daemon=True).start()
            found = subprocess.run(command, check=True, capture_output=True, text=True,
                                   env={**os.environ, 'OMP_NUM_THREADS': '1'})
        finally:
            listener.close()
            service.close()
    return [json.loads(line) for line in found.stdout.splitlines()]


def right_of(images: ImageSet, entry: Entry, model: HyperRepVGG, settings: config.Settings) -> np.ndarray:
    """bool [n]: which images an entry's network classifies correctly."""
    copy = model_of(model, entry.network)
    copy.set_alpha_array(entry.network.alpha)
    network = deploy(copy)
    with torch.inference_mode():
        found = [network(normalise(image[None], settings.NORM_MEAN, settings.NORM_STD)).argmax() for image in
                 images.images]
    return (torch.stack(found) == images.labels).numpy()


def alarms(cameras: Cameras, domain: int, count: int, model: HyperRepVGG, several: Sequence[References]) -> List[int]:
    """Changes to another domain in so many frames of one, for each of several references."""
    found, states = [0] * len(several), [{} for _ in several]  # type: List[int], List[Sums]
    for first in range(0, count, PIECE):
        images = cameras.frames(domain, first, min(PIECE, count - first)).images
        for statistics in statistics_of(images, model, cameras.settings):
            for k, references in enumerate(several):
                states[k], other = watch(states[k], statistics, name_of(domain), references,
                                         cameras.settings.SHIFT_AFTER_FRAMES)
                found[k] += other is not None
    return found


def name_of(domain: int) -> str:
    """Of a domain's entry."""
    return f'domain_{domain}'


def percent(right: np.ndarray) -> str:
    """Accuracy with its 95 % interval."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return f'{100 * right.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f})'


def one_order(order: Sequence[int], sets: Dict[int, ImageSet], entries: Dict[str, Entry], references: References,
              model: HyperRepVGG, settings: config.Settings) -> Tuple[List[int], float]:
    """Stream the domains in this order, and print what came of it: delays, and accuracy below those that know."""
    images = ImageSet(torch.cat([sets[domain].images for domain in order]),
                      torch.cat([sets[domain].labels for domain in order]))
    lines = streamed(images.images, entries, name_of(order[0]), references, settings)
    assert [line['frame'] for line in lines] == list(range(len(images)))
    ran = [line['entry'] for line in lines]
    right = np.array([line['class'] for line in lines]) == images.labels.numpy()
    knows = np.concatenate([right_of(sets[domain], entries[name_of(domain)], model, settings) for domain in order])
    stays = right_of(images, entries[name_of(order[0])], model, settings)
    delays, start = [], 0
    for domain in order:
        part = ran[start:start + len(sets[domain])]
        delays.append(sum(name != name_of(domain) for name in part))
        start += len(part)
    print(f"domains {', '.join(map(str, order))}: delay {', '.join(map(str, delays[1:]))} frames (in the first domain "
          f"{delays[0]}); accuracy {percent(right)}, of those that know {percent(knows)}, of the first one's all along "
          f'{percent(stays)}; {sum(line["local"] for line in lines)} frames without the server')
    return delays, float(knows.mean() - right.mean())


def main() -> None:
    """Run it and print the figures."""
    args, settings = cli.parse(PARSER, None)
    torch.set_num_threads(1)
    domains = cli.domains(args.domains, settings)
    entries, model = entries_of_results(domains, settings), base_model(settings)
    cameras = Cameras(settings)
    references = references_for({name_of(domain): domain for domain in domains}, model, settings)
    every = references_for({name_of(domain): domain for domain in range(settings.NUM_DOMAINS)}, model, settings)
    sets = {domain: cameras.frames(domain, 0, args.frames) for domain in domains}
    kept = True
    for k in range(len(domains)):
        delays, lost = one_order([*domains[k:], *domains[:k]], sets, entries, references, model, settings)
        kept = kept and lost <= MOST_LOST and delays[0] == 0
    for domain in domains:
        own, among_all = alarms(cameras, domain, args.alone, model, (references, every))
        print(f'{args.alone} frames of domain {domain} ({domain_name(domain)}) alone: {own} changes to another of '
              f'these domains, {among_all} to another of all {settings.NUM_DOMAINS}')
        kept = kept and own == 0
    if not kept:
        sys.exit(cli.EXIT_FAILED)


if __name__ == '__main__':
    main()
