"""How many bytes a frame may have for which accuracy: feature maps at several cuts against the image as JPEG.

    PROFILE=photos DATA_PATH=... python -m benchmarks.bytes_accuracy --picture docs/images/bytes_accuracy.png

The unpruned network on clean images. At every cut: uint8 and uint4 with shares of the channels (WIRE_CHANNELS), each as
it is and with the best compression that is here. Training images choose the channels, validation images which formats
are worth showing (no other at the same cut has fewer bytes and is as accurate) and which meets the bar; test images
report, with 95 % intervals. Bytes are means over validation images. JPEG: what Pillow makes of the image at several
qualities, the whole network behind it. Prints Markdown, draws the curve.

RepVGG-A0 at 128 pixels, 300 validation and 785 test photographs (2-core Intel Xeon virtual machine, Python 3.11,
PyTorch 2.14): 0.28 of the bytes of uint8 at λ = 13 with -0.6 ± 0.8 points lost (uint4@0.75+zstd), 0.09 at λ = 20 with
-0.1 ± 0.9 (uint4@0.25+zstd: 1,312 bytes; a JPEG takes 1,049 at 1.1 ± 1.2); at λ = 6 the format that validation images
choose loses 1.1 ± 1.3.

Bar: at some cut, at most half of the bytes of uint8 at a loss of at most 1 point (exit status 1 where no format does
so on validation images, or where the one that they choose loses more on test images).
"""
from __future__ import annotations

import cli

PARSER = cli.parser(__doc__)
PARSER.add_argument('--splits', default='', metavar='L,...', help='default: the end of stage 2, the middle and the end '
                    'of stage 3')
PARSER.add_argument('--shares', default='1,0.75,0.5,0.25,0.125', metavar='S,...',
                    help='of the channels (default: %(default)s)')
PARSER.add_argument('--val_images', type=cli.count, default=300, help='that choose, at most (default: %(default)s)')
PARSER.add_argument('--test_images', type=cli.count, default=1000, help='that report, at most (default: %(default)s)')
PARSER.add_argument('--picture', default='', metavar='FILE')

if __name__ == '__main__':
    cli.answer_help(PARSER)  # before the imports below, which load PyTorch

import sys
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.wire_formats import splits_of
from config import Settings, with_shares
from domain_dataset import load_clean
from domains import image_formats
from domains.image_sets import ImageSet, wilson_interval
from hyper_repvgg import DeployedNetwork, deploy
from network.alpha import unpruned_alpha
from network.inputs import batches, normalise
from network.shapes import architecture
from report import style
from search.cut_channels import ChannelChoice
from search.domain_inputs import base_model
from search.frontier import non_dominated
from wire import codec
from wire.compression import available
from wire.formats import encoding_of, without_compression

QUALITIES = (10, 20, 30, 50, 75)
LOSS_BAR, BYTES_BAR = 0.01, 0.5
COLOURS = (style.BLUE, style.GREEN, style.RED, style.PURPLE, style.SKY)


class Sent(NamedTuple):
    """One way to send a frame."""
    name: str
    split: int  # 0: the image
    n_bytes: float
    val: np.ndarray  # which images are classified correctly, bool [n]
    test: Optional[np.ndarray]  # None: not worth a look


class Cut:
    """Feature maps of all images at one cut."""

    def __init__(self, network: DeployedNetwork, split: int, val: ImageSet, test: ImageSet, settings: Settings) -> None:
        self.network, self.split, self.batch_size = network, split, settings.BATCH_SIZE
        self.labels = {'val': val.labels, 'test': test.labels}
        with torch.inference_mode():
            self.maps = {name: torch.cat([network.head(normalise(data.images[part], settings.NORM_MEAN,
                                                                 settings.NORM_STD), split)
                                          for part in batches(len(data), settings.BATCH_SIZE)])
                         for name, data in (('val', val), ('test', test))}

    def right(self, subset: str, change: Callable[[torch.Tensor], torch.Tensor] = lambda z: z) -> np.ndarray:
        """Which images of a subset are classified correctly after this change of their maps [B, C, h, w], bool [n]."""
        maps, labels = self.maps[subset], self.labels[subset]
        with torch.inference_mode():
            return np.concatenate([(self.network.tail(change(maps[part]), self.split).argmax(dim=1) == labels[part]
                                    ).numpy() for part in batches(len(maps), self.batch_size)])


def sent_at(cut: Cut, wires: Sequence[str], choice: ChannelChoice, alpha: np.ndarray) -> List[Sent]:
    """All formats at a cut; test images only where validation images say that it is worth it."""
    found: List[Sent] = []
    changes: List[Callable[[torch.Tensor], torch.Tensor]] = []
    known: Dict[str, np.ndarray] = {}
    for wire in wires:
        channels, encoding = choice.at(alpha, cut.split, wire), encoding_of(wire)

        def encoded(z: torch.Tensor, encoding: str = encoding, channels=channels) -> Dict[str, torch.Tensor]:
            return codec.encode(z if channels is None else channels.take(z), encoding)

        def change(z: torch.Tensor, wire: str = wire, channels=channels) -> torch.Tensor:
            numbers = encoding_of(without_compression(wire))
            shape = z.shape if channels is None else (len(z), *channels.shape(z.shape[1:]))
            arrived = codec.decode(codec.encode(z if channels is None else channels.take(z), numbers), numbers, shape)
            return arrived if channels is None else channels.restore(arrived)

        n_bytes = np.mean([codec.encoded_bytes(encoded(z[None])) for z in cut.maps['val'][:64]])
        loss_of = without_compression(wire)
        if loss_of not in known:
            known[loss_of] = cut.right('val', change)
        found.append(Sent(wire, cut.split, float(n_bytes), known[loss_of], None))
        changes.append(change)
    shown = non_dominated([float(one.val.mean()) for one in found], [one.n_bytes for one in found])
    shown += [index for index, one in enumerate(found) if one.name == 'uint8' and index not in shown]
    return [one._replace(test=cut.right('test', changes[index])) if index in shown else one
            for index, one in enumerate(found)]


def sent_as_jpeg(network: DeployedNetwork, val: ImageSet, test: ImageSet, settings: Settings) -> List[Sent]:
    """The image as JPEG of each quality."""
    def right(data: ImageSet, quality: int) -> np.ndarray:
        received = ImageSet(image_formats.received(data.images, quality), data.labels)
        with torch.inference_mode():
            return np.concatenate([(network(normalise(received.images[part], settings.NORM_MEAN, settings.NORM_STD)
                                            ).argmax(dim=1) == received.labels[part]).numpy()
                                   for part in batches(len(received), settings.BATCH_SIZE)])

    return [Sent(f'JPEG {quality}', 0, image_formats.mean_bytes(val.images, quality), right(val, quality),
                 right(test, quality)) for quality in QUALITIES]


def text(right: np.ndarray) -> str:
    """'86.4 [84.1, 88.4]', in per cent."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return f'{100 * right.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]'


def lost(reference: np.ndarray, right: np.ndarray) -> Tuple[float, float]:
    """(loss in points, half of its 95 % interval) on the same images: normal approximation of the paired difference."""
    change = reference.astype(float) - right
    return 100 * float(change.mean()), 196 * float(change.std() / np.sqrt(len(change)))


def smallest(found: Sequence[Sent], reference: np.ndarray) -> Sent:
    """The way with the fewest bytes that loses at most LOSS_BAR on validation images; the most accurate where none."""
    enough = [one for one in found if reference.mean() - one.val.mean() <= LOSS_BAR]
    return min(enough, key=lambda one: one.n_bytes) if enough else max(found, key=lambda one: one.val.mean())


def print_cut(found: Sequence[Sent], val: np.ndarray, test: np.ndarray) -> bool:
    """A table of one cut; does it meet the bar?"""
    plain = next(one for one in found if one.name == 'uint8')
    print(f'\n**λ = {plain.split}** ({plain.n_bytes:,.0f} bytes as uint8)\n\n'
          '| format | bytes | of uint8 | validation % | test % | points lost (test) |\n|---|---|---|---|---|---|')
    for one in sorted((one for one in found if one.test is not None), key=lambda one: one.n_bytes):
        points, half = lost(test, one.test)
        print(f'| {one.name} | {one.n_bytes:,.0f} | {one.n_bytes / plain.n_bytes:.2f} | {100 * one.val.mean():.1f} | '
              f'{text(one.test)} | {points:+.1f} ± {half:.1f} |')
    best = smallest(found, val)
    share, (points, half) = best.n_bytes / plain.n_bytes, lost(test, best.test)
    met = share <= BYTES_BAR and val.mean() - best.val.mean() <= LOSS_BAR and points <= 100 * LOSS_BAR
    print(f'\nfewest bytes at a loss of at most 1 point on validation images: {best.name}, {share:.2f} of the bytes of '
          f'uint8, {points:+.1f} ± {half:.1f} points lost on test images: the bar is {"met" if met else "missed"}')
    return met


@style.styled
def picture(cuts: Sequence[Sequence[Sent]], jpeg: Sequence[Sent], val: np.ndarray, test: np.ndarray, n_blocks: int,
            ) -> Figure:
    """Test accuracy over bytes a frame: a line a cut, and JPEG."""
    figure, axes = style.subplots(1, 1, (8.5, 5.2))
    lines = [(f'feature map after block {cut[0].split} of {n_blocks}', colour, cut)
             for colour, cut in zip(COLOURS, cuts)]
    for label, colour, found in [*lines, ('the image as JPEG', style.BLACK, jpeg)]:
        shown = sorted((one for one in found if one.test is not None), key=lambda one: one.n_bytes)
        values = np.array([100 * one.test.mean() for one in shown])
        ends = np.array([wilson_interval(int(one.test.sum()), len(one.test)) for one in shown]).T * 100
        axes.errorbar([one.n_bytes for one in shown], values, np.abs(ends - values), color=colour, marker='o',
                      markersize=5, linewidth=2, elinewidth=0.8, label=label)
        for one in shown:
            if one.name == 'uint8':
                axes.plot(one.n_bytes, 100 * one.test.mean(), 's', color=colour, markersize=9)
    axes.plot([], [], 's', color='0.45', markersize=9, label='that feature map as uint8')
    axes.set_xscale('log')
    sizes = [one.n_bytes for cut in (*cuts, jpeg) for one in cut if one.test is not None]
    ticks = [tick for tick in (500, 1000, 2000, 5000, 10000, 20000, 50000) if 0.7 * min(sizes) <= tick <= max(sizes)]
    axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel('bytes a frame (logarithmic)')
    axes.set_ylabel('test accuracy, % (95 % intervals)')
    axes.axhline(100 * test.mean(), color='0.45', linewidth=1, label='nothing lost')
    axes.axhspan(100 * (test.mean() - LOSS_BAR), 100 * test.mean(), color='0.9', label='at most 1 point lost')
    lowest = min(100 * one.test.mean() for cut in (*cuts, jpeg) for one in cut if one.test is not None)
    axes.set_ylim(max(lowest - 4, 100 * test.mean() - 25), 100 * test.mean() + 5)
    axes.legend(loc='lower right', fontsize=10)
    style.headline(figure, message(cuts, jpeg, val, n_blocks))
    return figure


def message(cuts: Sequence[Sequence[Sent]], jpeg: Sequence[Sent], val: np.ndarray, n_blocks: int) -> str:
    """What the picture says, by validation images."""
    bests = [smallest(cut, val) for cut in cuts]
    best = min((one for one in bests if val.mean() - one.val.mean() <= LOSS_BAR), key=lambda one: one.n_bytes,
               default=bests[-1])
    image = smallest(jpeg, val)
    return (f'At a loss of at most 1 point a frame takes {best.n_bytes:,.0f} bytes as the feature map after block '
            f'{best.split} of {n_blocks}, and {image.n_bytes:,.0f} bytes as a JPEG')


def main(argv: Optional[Sequence[str]]) -> int:
    """The command line."""
    args, settings = cli.parse(PARSER, argv)
    depths = architecture(settings.MODEL_NAME).depths
    ends = np.cumsum(depths)
    splits = splits_of(args.splits or f'{ends[1]},{ends[1] + depths[2] // 2},{ends[2]}', settings)
    best = next((name for name in ('zstd', 'zlib') if name in available()))
    wires = with_shares(('uint8', f'uint8+{best}', 'uint4', f'uint4+{best}'),
                        tuple(float(share) for share in args.shares.split(',')))
    torch.set_num_threads(settings.threads(settings.TORCH_THREADS))
    model = base_model(settings)
    alpha = unpruned_alpha([block.n_branches for block in model.blocks])
    model.set_alpha_array(alpha)
    network = deploy(model)
    train, val, test = (load_clean(settings, subset, count) for subset, count in (
        ('train', 256), ('val', args.val_images), ('test', args.test_images)))
    choice = ChannelChoice(model, train, settings)
    cuts: List[List[Sent]] = []
    whole: List[np.ndarray] = []
    for split in splits:
        cut = Cut(network, split, val, test, settings)
        whole = whole or [cut.right('val'), cut.right('test')]
        cuts.append(sent_at(cut, wires, choice, alpha))
        cli.say(f'λ = {split} is done')
    jpeg = sent_as_jpeg(network, val, test, settings)
    print(f'{settings.MODEL_NAME}, {settings.INPUT_SIZE} pixels, unpruned, clean images; nothing lost: validation '
          f'{100 * whole[0].mean():.1f} % (n = {len(val)}), test {text(whole[1])} % (n = {len(test)})')
    met = [print_cut(cut, *whole) for cut in cuts]
    print(f'\n**The image to the server** (PNG: {image_formats.mean_bytes(val.images, None):,.0f} bytes)\n\n'
          '| format | bytes | validation % | test % | points lost (test) |\n|---|---|---|---|---|')
    for one in jpeg:
        points, half = lost(whole[1], one.test)
        print(f'| {one.name} | {one.n_bytes:,.0f} | {100 * one.val.mean():.1f} | {text(one.test)} | {points:+.1f} ± '
              f'{half:.1f} |')
    print(f'\n{message(cuts, jpeg, whole[0], sum(depths))}')
    if args.picture:
        style.save(picture(cuts, jpeg, *whole, sum(depths)), args.picture)
        print(f'-> {args.picture}')
    return 0 if any(met) else 1


if __name__ == '__main__':
    sys.exit(cli.run(main))
