"""What the wire formats cost: bytes and processor time for feature maps of real images.

    PROFILE=photos DATA_PATH=... python -m benchmarks.wire_formats [--splits 6,13,20] [--set WEIGHT_PATH_SERVER=...]

Feature maps of validation images at each split, one image at a time, as a camera sends them. All formats take turns on
every map, so that what else the machine does meets all of them. Processor time of one thread, medians. Prints
Markdown; the share is of float32's bytes. Formats whose package is missing here are left out, with a line.

RepVGG-A0 at 128 pixels, 32 photographs, λ = 2, 6, 20 (2-core Intel Xeon virtual machine, Python 3.11, PyTorch 2.14):
zstd packs 3.1 times as fast as zlib, unpacks 2.0 times as fast, to 0.94 of the bytes; lz4 5.9 and 3.6 times, to 1.22.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--splits', default='', metavar='L,...', help='default: the last block of every stage but the last')
PARSER.add_argument('--images', type=cli.count, default=32, help='of validation (default: 32)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
import time
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from config import Settings, UserError
from domain_dataset import load_clean
from hyper_repvgg import DeployedNetwork, deploy
from network.inputs import normalise
from network.shapes import architecture
from search.domain_inputs import base_model
from wire import codec
from wire.compression import available
from wire.formats import WIRE_FORMATS, can_be_packed, compression_of

REPEATS = 5  # of every map in every format; the first one is not counted


def splits_of(text: str, settings: Settings) -> List[int]:
    """The splits to measure at."""
    depths = architecture(settings.MODEL_NAME).depths
    if not text:
        return [int(split) for split in np.cumsum(depths)[:-1]]
    try:
        found = [int(part) for part in text.split(',')]
    except ValueError:
        found = [0]
    if not all(0 < split < sum(depths) for split in found):
        raise UserError(f'--splits {text!r}: splits of 1 to {sum(depths) - 1}, separated by commas')
    return found


def measured(network: DeployedNetwork, images: torch.Tensor, split: int, wires: Sequence[str], settings: Settings,
             ) -> Dict[str, Tuple[float, float, float]]:
    """Of each format: mean bytes of a map, median ms of encoding, of decoding."""
    n_bytes: Dict[str, List[int]] = {wire: [] for wire in wires}
    taken: Dict[str, List[Tuple[float, float]]] = {wire: [] for wire in wires}
    for image in images:
        with torch.inference_mode():
            z = network.head(normalise(image[None], settings.NORM_MEAN, settings.NORM_STD), split)
        for repeat in range(REPEATS):
            for wire in wires:
                start = time.thread_time()
                tensors = codec.encode(z, wire)
                middle = time.thread_time()
                codec.decode(tensors, wire, z.shape)
                end = time.thread_time()
                if repeat:
                    taken[wire].append((middle - start, end - middle))
                else:
                    n_bytes[wire].append(codec.encoded_bytes(tensors))
    return {wire: (float(np.mean(n_bytes[wire])), *(1000 * np.median(np.array(taken[wire]), axis=0)))
            for wire in wires}


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    splits = splits_of(args.splits, settings)
    torch.set_num_threads(1)
    wires = [wire for wire in WIRE_FORMATS if can_be_packed(wire, available())]
    if len(wires) < len(WIRE_FORMATS):
        cli.say('note: not all compressions are here: pip install -r requirements-wire.txt')
    network = deploy(base_model(settings))
    images = load_clean(settings, 'val', args.images).images
    print(f'{settings.MODEL_NAME}, {settings.INPUT_SIZE} pixels, {len(images)} images; bytes of a frame (share of '
          'float32), ms of encoding + decoding\n')
    found = [measured(network, images, split, wires, settings) for split in splits]
    print('| format | ' + ' | '.join(f'λ = {split}' for split in splits) + ' |\n' + '|---' * (1 + len(splits)) + '|')
    for wire in wires:
        cells = [f'{by_wire[wire][0]:,.0f} ({100 * by_wire[wire][0] / by_wire["float32"][0]:.1f} %), '
                 f'{by_wire[wire][1]:.2f} + {by_wire[wire][2]:.2f} ms' for by_wire in found]
        print(f'| {wire} | ' + ' | '.join(cells) + ' |')
    for faster in ('zstd', 'lz4'):
        if faster in available():
            print(f'\n{faster} against zlib, all formats and splits: ' + against_zlib(found, faster))


def against_zlib(found: Sequence[Dict[str, Tuple[float, float, float]]], faster: str) -> str:
    """How many times as fast and large a compression is, beyond what the format takes without any: medians."""
    rows = []
    for by_wire in found:
        for wire in by_wire:
            if compression_of(wire) == faster:
                plain, zlib, other = (by_wire[name] for name in (wire.partition('+')[0],
                                                                 wire.replace(faster, 'zlib'), wire))
                rows.append(((zlib[1] - plain[1]) / max(other[1] - plain[1], 1e-6),
                             (zlib[2] - plain[2]) / max(other[2] - plain[2], 1e-6), other[0] / zlib[0]))
    encoding, decoding, size = np.median(np.array(rows), axis=0)
    return f'{encoding:.1f} times as fast packing, {decoding:.1f} times unpacking, {size:.2f} of the bytes'


if __name__ == '__main__':
    sys.exit(cli.run(main))
