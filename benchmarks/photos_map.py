"""What to do at which link rate and with how many clients: JPEG or PNG to the server, a split, or the client alone?

    export PROFILE=photos DATA_PATH=...
    python -m benchmarks.photos_map --lut_files edge.json tx2.json [--picture map.png] [--set OBJECTIVE=throughput]

For each table (step 1; one a device) every way to run the unpruned network is held against the others on links of 2 to
1000 Mbit/s (each of K equal clients has its own): everything on the client; everything on the server with the image
sent as it is, as PNG, and as the smallest JPEG that keeps validation accuracy within EPSILON; the best split with the
feature map as float32, float16, uint8, uint4 and, where zstandard is installed, uint8+zstd. What encoding and decoding
take is counted for feature maps as for images (processor time here, times the client's slowdown). The best has the
least T_eff, or by OBJECTIVE the most frames a second or the least latency. Accuracies, which depend on what is sent and
not on the link, are measured on clean test images. Prints Markdown; the picture shows the best way over rate and
clients, of those that lose at most EPSILON of validation accuracy.
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--lut_files', nargs='+', required=True, metavar='FILE')
PARSER.add_argument('--picture', default='', metavar='FILE')
PARSER.add_argument('--images', type=cli.count, default=800, help='of validation, which choose the JPEG, and of '
                    'test, at most each (default: 800)')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import lut_manager
from benchmarks.links import on_link
from benchmarks.wire_formats import measured
from config import Settings
from costs.cost_model import TIERS, Configuration, HardwareTable, ImageFormat, Solution
from domain_dataset import load_clean
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import DeployedNetwork, HyperRepVGG, deploy
from network.alpha import surviving_branches, unpruned_alpha
from report import style
from search import domain_inputs, wire_loss
from search.one_tier import SentImages, solve_end
from throughput_optimizer import solve_exact
from wire.compression import available
from wire.formats import without_compression

WIRES = ('float32', 'float16', 'uint8', 'uint4', *(('uint8+zstd',) if 'zstd' in available() else ()))
CODEC_IMAGES = 8  # of which feature maps are encoded and decoded, to know sizes and times
TABLE_MBPS, TABLE_CLIENTS = (2, 10, 50, 100, 1000), (1, 8)
MAP_MBPS = tuple(float(f'{rate:.2g}') for rate in np.geomspace(1, 1000, 13))
MAP_CLIENTS = (1, 2, 4, 8, 16, 32)
COLOURS = {'client': style.ORANGE, 'image': style.YELLOW, 'PNG': style.SKY, 'JPEG': style.PURPLE,
           'float32': style.RED, 'float16': style.BLUE, 'uint8': style.GREEN, 'uint4': '0.7', 'uint8+zstd': '0.5'}
OBJECTIVES = {'T_eff': 'the least T_eff', 'throughput': 'the most frames a second', 'latency': 'the least latency'}


class Device(NamedTuple):
    """One client's table and what images are as JPEG and PNG between it and the server."""
    name: str
    table: HardwareTable
    formats: Dict[str, Optional[ImageFormat]]  # 'image', 'PNG', 'JPEG'; without the last where none is good enough


def ways(device: Device, alpha: np.ndarray, mbps: float, clients: int, settings: Settings) -> Dict[str, Solution]:
    """Every way to run the network, by what is sent ('client': nothing)."""
    chosen = replace(settings, BANDWIDTH_MBPS=float(mbps), CLIENTS=clients, HEAD_TIER='client')
    table, surviving = on_link(device.table, chosen), surviving_branches(alpha)
    found = {'client': solve_end(table, surviving, table.n_blocks, None, chosen)}
    found.update({name: solve_end(table, surviving, 0, image, chosen) for name, image in device.formats.items()})
    found.update({wire: solve_exact(table, surviving, replace(chosen, WIRE_FORMATS=(wire,))) for wire in WIRES})
    return found


def with_codecs(table: HardwareTable, network: DeployedNetwork, images: torch.Tensor, settings: Settings,
                ) -> HardwareTable:
    """The table with what each of WIRES makes of these images' feature maps: bytes, ms of encoding and decoding."""
    n_bytes = {wire: table.block_bytes['float32'].astype(float).copy() for wire in WIRES}
    codec_ms = {wire: np.zeros((table.n_blocks, 2)) for wire in WIRES}
    for split in range(1, table.n_blocks):
        for wire, (size, encode_ms, decode_ms) in measured(network, images, split, WIRES, settings).items():
            n_bytes[wire][split - 1] = size
            codec_ms[wire][split - 1] = encode_ms, decode_ms
    slower = {tier: float(table.tier_info[tier].get('slowdown', 1.0)) for tier in TIERS}
    return replace(table, block_bytes=n_bytes, codec_ms={
        wire: {tier: slower[tier] * ms for tier in TIERS} for wire, ms in codec_ms.items()})


class Accuracies:
    """Accuracy of the unpruned network on what arrives, on clean images."""

    def __init__(self, model: HyperRepVGG, alpha: np.ndarray, settings: Settings, n_images: int) -> None:
        self.model, self.alpha, self.settings = model, alpha, settings
        self.val, self.test = (load_clean(settings, subset, n_images) for subset in ('val', 'test'))
        self.whole = float(self.right(self.val).double().mean())  # of validation images, with nothing lost
        self._lost: Dict[Tuple[str, int], float] = {}  # by wire format and split

    def right(self, data: ImageSet, split: int = 0, wire: str = 'float32') -> torch.Tensor:
        """Which images are classified correctly, bool [n]."""
        chosen = Configuration(self.alpha, (), split, wire)
        return torch.as_tensor(wire_loss.classified_right(self.model, chosen, data, self.settings))

    def is_within(self, wire: str, split: int) -> bool:
        """Does a feature map sent so lose at most EPSILON of validation accuracy?"""
        if wire == 'float32':
            return True
        if (wire, split) not in self._lost:
            self._lost[wire, split] = self.whole - float(self.right(self.val, split, wire).double().mean())
        return self._lost[wire, split] <= self.settings.EPSILON

    def best_of(self, found: Dict[str, Solution]) -> str:
        """The way with the least T_eff of those that keep the accuracy; of equal ones the first."""
        for name in sorted(found, key=lambda name: found[name].times.rank()):
            if name not in WIRES or self.is_within(without_compression(name), found[name].split):
                return name
        raise AssertionError('the client alone keeps the accuracy')

    def text(self, right: torch.Tensor) -> str:
        """'91.2 % [89.0, 93.1]'."""
        low, high = wilson_interval(int(right.sum()), len(right))
        return f'{100 * float(right.double().mean()):.1f} % [{100 * low:.1f}, {100 * high:.1f}]'


def smallest_jpeg(sent: SentImages, accuracies: Accuracies, settings: Settings) -> Optional[int]:
    """The lowest quality that keeps validation accuracy within EPSILON, with a line about it."""
    def accuracy(data: ImageSet) -> float:
        return float(accuracies.right(data).double().mean())

    quality = sent.jpeg_within(accuracy, accuracies.whole - settings.EPSILON)
    if quality is not None:
        right = accuracies.right(sent.received(quality, 'test'))
        print(f'JPEG of quality {quality}: {sent.format(quality).n_bytes:,.0f} bytes, accuracy '
              f'{accuracies.text(right)}; PNG {sent.format(None).n_bytes:,.0f} bytes')
    return quality


def print_table(device: Device, alpha: np.ndarray, accuracies: Accuracies, settings: Settings) -> None:
    """Frames a second of each client, latency without waiting, λ; the best in bold."""
    names = list(ways(device, alpha, 100, 1, settings))
    print(f'\n### {device.name}\n\n| clients | Mbit/s | ' + ' | '.join(words(name, device) for name in names) + ' |')
    print('|' + '---|' * (2 + len(names)))
    splits = set()
    for clients in TABLE_CLIENTS:
        for mbps in TABLE_MBPS:
            found = ways(device, alpha, mbps, clients, settings)
            winner, cells = accuracies.best_of(found), []
            for name, solution in found.items():
                text = f'{solution.times.throughput_fps:.1f}, {solution.times.T_lat_ms:.0f} ms' + (
                    f', λ {solution.split}' if name in WIRES else '')
                cells.append(f'**{text}**' if name == winner else text)
                splits |= {(name, solution.split)} if name in WIRES else set()
            print(f'| {clients} | {mbps} | ' + ' | '.join(cells) + ' |')
    print()
    for wire, split in sorted(splits):
        if wire == without_compression(wire) != 'float32':
            print(f'{wire} at λ = {split}: {device.table.block_bytes[wire][split - 1]:,.0f} bytes, accuracy '
                  f'{accuracies.text(accuracies.right(accuracies.test, split, wire))}'
                  f"{'' if accuracies.is_within(wire, split) else ', more lost than allowed on validation images'}")


def words(name: str, device: Device) -> str:
    """A way's name for a table or a legend."""
    image = device.formats.get(name)
    return {'client': 'client alone', 'image': 'image as it is', 'PNG': 'PNG to the server'}.get(name) or (
        f'split, {name}' if image is None else f'JPEG {image.quality} to the server')


@style.styled
def picture(devices: Sequence[Device], alpha: np.ndarray, accuracies: Accuracies, settings: Settings) -> Figure:
    """The best way over rate and clients, a panel a device; frames a second of each client in the cells."""
    figure, panels = style.subplots(1, len(devices), (7.5 * len(devices), 4.6), squeeze=False)
    names = list(COLOURS)
    seen: List[str] = []
    for axes, device in zip(panels[0], devices):
        cells = np.zeros((len(MAP_CLIENTS), len(MAP_MBPS)), dtype=int)
        for row, clients in enumerate(MAP_CLIENTS):
            for column, mbps in enumerate(MAP_MBPS):
                found = ways(device, alpha, mbps, clients, settings)
                winner = accuracies.best_of(found)
                cells[row, column] = names.index(winner)
                seen += [winner] * (winner not in seen)
                axes.text(column, row, f'{found[winner].times.throughput_fps:.0f}', ha='center', va='center',
                          fontsize=9)
        axes.imshow(cells, aspect='auto', origin='lower', vmin=0, vmax=len(names) - 1,
                    cmap=ListedColormap([COLOURS[name] for name in names]), alpha=0.75)
        axes.set_xticks(range(len(MAP_MBPS)), [f'{mbps:g}' for mbps in MAP_MBPS], fontsize=9)
        axes.set_yticks(range(len(MAP_CLIENTS)), MAP_CLIENTS)
        axes.set_xlabel('link of each client (Mbit/s)')
        axes.set_ylabel('clients of one server')
        axes.set_title(style.plain(device.name))
    figure.legend(handles=[Patch(color=COLOURS[name], alpha=0.75, label=words(name, devices[0]))
                           for name in names if name in seen], loc='outside lower center', ncol=4)
    least = OBJECTIVES.get(settings.OBJECTIVE, f'the least {settings.OBJECTIVE}')
    style.headline(figure, f'What has {least} (numbers: frames a second of each client)')
    return figure


def main(argv: Optional[Sequence[str]]) -> None:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    model = domain_inputs.base_model(settings)
    alpha = unpruned_alpha([block.n_branches for block in model.blocks])
    accuracies = Accuracies(model, alpha, settings, args.images)
    print(f'{settings.MODEL_NAME}, {settings.INPUT_SIZE} pixels, unpruned; accuracy on {len(accuracies.test)} clean '
          f'test images: {accuracies.text(accuracies.right(accuracies.test))}')
    tables = [lut_manager.read(path, settings) for path in args.lut_files]
    network = deploy(model)
    tables = [with_codecs(table, network, accuracies.val.images[:CODEC_IMAGES], settings) for table in tables]
    sent = [SentImages(accuracies.val, accuracies.test, table, settings) for table in tables]
    quality = smallest_jpeg(sent[0], accuracies, settings)
    devices: List[Device] = []
    for table, images in zip(tables, sent):
        formats = {'image': None, 'PNG': images.format(None), **({'JPEG': images.format(quality)} if quality else {})}
        info = table.tier_info['client']
        devices.append(Device(info.get('profile') or info['name'], table, formats))
    for device in devices:
        print_table(device, alpha, accuracies, settings)
    if args.picture:
        style.save(picture(devices, alpha, accuracies, settings), args.picture)
        print(f'-> {args.picture}')


if __name__ == '__main__':
    sys.exit(cli.run(main))
