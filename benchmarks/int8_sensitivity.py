"""What int8 loses, block by block, and what keeping the worst blocks in float wins back.

    python -m benchmarks.int8_sensitivity --domain_id 0                     # the network that step 3 chose
    python -m benchmarks.int8_sensitivity --domain_id 0 --unpruned          # all branches, α = 1
    python -m benchmarks.int8_sensitivity --domain_id 0 --picture int8.png  # and a picture

Claim: see docs/deployment.md.

How: the whole network as one ONNX graph, every block fused, quantised after training as `export_split.py --int8` does
it (export/int8.py: Conv and Gemm, weights per channel, ranges from training images). First each unit alone is int8 and
the others float: its error is the distance between the logits, as a share of the float logits' own spread, on
validation images. Then all are int8 but the k units of the largest error, k = 0, 1, 2, ...: accuracy on validation
images. The smallest k whose accuracy is within a validation image of the best is chosen. Test images then tell what
float, int8, and int8 with these k units in float reach, each with its 95 % interval, and how many images the two differ
in from float. The last line is what the engine onnxruntime-int8 (tier/rounding.py) makes of the same network.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--domain_id', type=int, default=0)
PARSER.add_argument('--unpruned', action='store_true', help='all branches with α = 1, instead of the result of step 3')
PARSER.add_argument('--most', type=cli.count, default=6, help='units kept in float, at most')
PARSER.add_argument('--images', type=cli.count, default=128, help='validation images of the errors by unit')
PARSER.add_argument('--picture', metavar='FILE.png')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import lut_manager
from config import INT8, Settings
from costs.cost_model import Configuration
from domain_dataset import load_domain
from domains.image_sets import ImageSet, wilson_interval
from export import as_onnx, int8
from export.chosen import ChosenSplit, Point, split_of
from hyper_repvgg import DeployedNetwork
from network.alpha import unpruned_alpha
from network.inputs import normalise
from network.outline import outline_for
from pipeline import kinds
from report import style
from search import result_file
from search.alpha_training import count_correct
from service.tails import base_model
from tier.rounding import grids_of, peaks_of, rounded


class Found(NamedTuple):
    """What one network loses."""
    title: str
    error: Dict[str, float]  # of each unit alone, share of the logits' spread
    by_kept: List[float]  # accuracy on validation images with 0, 1, 2, ... units in float
    float_accuracy: float  # on validation images
    n_val: int


def whole_network(domain: int, unpruned: bool, settings: Settings):
    """The network as one part, every block fused."""
    if unpruned:
        alpha, batchnorm = unpruned_alpha(outline_for(settings).n_branches), None
    else:
        table = lut_manager.load(kinds.path_of('lut', settings), settings)
        result = result_file.load(domain, table, settings)
        alpha, batchnorm = result.configuration.alpha, result.batchnorm
    point = Point('', Configuration(alpha, (), len(alpha), 'float32'), 0.0, 1, 'val', batchnorm)
    return split_of(base_model(settings), int8.fused(point), settings)


class Quantiser:
    """Versions of one network."""

    def __init__(self, graph: bytes, ranges: torch.Tensor, names: Sequence[str]) -> None:
        self.graph, self._ranges, self.names = graph, ranges, names

    def version(self, kept: Sequence[str]) -> bytes:
        """In int8, but for these units."""
        return int8.quantised(self.graph, int8.Feeds(['images'], [self._ranges]), kept)


def right(graph: bytes, data: ImageSet) -> np.ndarray:
    """Which images are classified correctly."""
    return (int8.run_in_batches(graph, [data.images])[0].argmax(dim=1) == data.labels).numpy()


def engine_right(chosen: ChosenSplit, ranges: torch.Tensor, data: ImageSet, settings: Settings) -> int:
    """How many images the network gets right as CLIENT_ENGINE or SERVER_ENGINE=onnxruntime-int8 runs it."""
    stem, *blocks, classifier = (unit for _, unit in chosen.head_units)
    network = DeployedNetwork(stem, blocks, classifier).eval()
    with torch.no_grad():
        peaks = peaks_of(network, normalise(ranges, chosen.mean, chosen.std))
    grids = grids_of(peaks, chosen.mean, chosen.std)
    return count_correct(rounded(network, (0, len(blocks) + 2), grids), data, settings)


def error_of(graph: bytes, images: torch.Tensor, wanted: torch.Tensor) -> float:
    """Distance of the logits from the float ones, as a share of their standard deviation."""
    found = int8.run_in_batches(graph, [images])[0]
    return float((found - wanted).square().mean().sqrt() / wanted.std())


@style.styled
def picture(found: Found) -> Figure:
    """Errors by unit, and accuracy by the number of units kept."""
    figure, (left, rest) = style.subplots(1, 2, (13, 5.2), width_ratios=[2, 1])
    names = list(found.error)
    left.bar(range(len(names)), [100 * found.error[name] for name in names], color=style.BLUE)
    left.set_xticks(range(len(names)), names, rotation=90)
    left.set_ylabel('error of the logits\n(% of their spread)')
    left.set_title('One unit in int8, all others in float')
    rest.plot(range(len(found.by_kept)), [100 * value for value in found.by_kept], 'o-', color=style.BLUE,
              label='the others in int8')
    rest.axhline(100 * found.float_accuracy, linestyle='--', color=style.ORANGE, label='all in float')
    low, high = wilson_interval(round(found.float_accuracy * found.n_val), found.n_val)
    rest.axhspan(100 * low, 100 * high, color=style.ORANGE, alpha=0.15, linewidth=0, label='its 95 % interval')
    rest.set_xlabel('units kept in float, the worst first')
    rest.set_ylabel('accuracy, validation images (%)')
    rest.set_title('What keeping the worst wins back')
    rest.set_ylim(100 * min(low, *found.by_kept) - 4, min(101, 100 * high + 2))
    rest.legend(loc='lower right')
    style.headline(figure, f'{found.title}: {100 * found.by_kept[0]:.1f} % in int8, {100 * found.float_accuracy:.1f} % '
                   'in float (validation images)')
    return figure


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Prints the figures."""
    args, settings = cli.parse(PARSER, argv)
    torch.set_num_threads(1)
    chosen = whole_network(args.domain_id, args.unpruned, settings)
    names = [name for name, _ in chosen.head_units]
    val, test = (load_domain(settings, args.domain_id, subset) for subset in ('val', 'test'))
    ranges = load_domain(settings, args.domain_id, 'train').images[:int8.RANGE_IMAGES]
    quantiser = Quantiser(as_onnx.head_bytes(chosen), ranges, names)
    few = val.images[:args.images]
    wanted = int8.run_in_batches(quantiser.graph, [few])[0]
    error = {name: error_of(quantiser.version([other for other in names if other != name]), few, wanted)
             for name in names}
    worst = sorted(names, key=lambda name: -error[name])[:args.most]
    by_kept = [float(right(quantiser.version(worst[:k]), val).mean()) for k in range(len(worst) + 1)]
    kept = next(k for k, value in enumerate(by_kept) if value >= max(by_kept) - 1 / len(val) - 1e-9)
    what = 'all branches' if args.unpruned else 'as step 3 chose it'
    title = f'{settings.MODEL_NAME} at {settings.INPUT_SIZE}x{settings.INPUT_SIZE}, domain {args.domain_id}, {what}'
    found = Found(title, error, by_kept, float(right(quantiser.graph, val).mean()), len(val))
    print(found.title)
    print('error of each unit alone, % of the spread of the logits: ' +
          ', '.join(f'{name} {100 * value:.1f}' for name, value in sorted(error.items(), key=lambda item: -item[1])))
    print(f'validation accuracy: float {100 * found.float_accuracy:.1f} %; int8 with 0, 1, ... units in float: ' +
          ', '.join(f'{100 * value:.1f}' for value in by_kept))
    versions = {'float': quantiser.graph, 'int8': quantiser.version([]),
                f'int8 with {kept} in float ({", ".join(worst[:kept])})': quantiser.version(worst[:kept])}
    reference = int8.run_in_batches(quantiser.graph, [test.images])[0].argmax(dim=1)
    for name, graph in versions.items():
        logits = int8.run_in_batches(graph, [test.images])[0]
        correct, other = int((logits.argmax(1) == test.labels).sum()), int((logits.argmax(1) != reference).sum())
        low, high = wilson_interval(correct, len(test))
        print(f'test, {name}: {100 * correct / len(test):.1f} % ({100 * low:.1f} to {100 * high:.1f}), {other} of '
              f'{len(test)} images of another class than in float; {len(graph) / 1e6:.2f} MB', flush=True)
    by_engine = engine_right(chosen, ranges, test, settings)
    low, high = wilson_interval(by_engine, len(test))
    print(f'test, {INT8}: {100 * by_engine / len(test):.1f} % ({100 * low:.1f} to {100 * high:.1f})')
    if args.picture:
        style.save(picture(found), args.picture)
    return 0


if __name__ == '__main__':
    sys.exit(main())
