"""Fonts, colour-blind-safe colours, heatmaps and saving: what all pictures share."""
from __future__ import annotations

import functools
import io
import os
import textwrap
import warnings
from typing import Callable, List, Optional, Sequence, Tuple, Union

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from pipeline import writing

# Okabe and Ito's palette: distinguishable with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#F0E442', '#000000')
TIER_COLOURS = {'client': ORANGE, 'server': BLUE}
LINK_COLOUR = GREEN
BRANCH_WORDS = ('3x3', '1x1', 'identity')  # in the order of network.shapes.BRANCHES
DPI = 150
STYLE = {'font.size': 12, 'axes.titlesize': 13, 'axes.spines.top': False, 'axes.spines.right': False,
         'legend.frameon': False, 'figure.constrained_layout.use': True, 'pdf.fonttype': 42,
         'image.cmap': 'viridis', 'axes.grid': False}
ABSENT = {'facecolor': '0.97', 'edgecolor': '0.75', 'hatch': '////', 'linewidth': 0}  # cells without a value
CROSSED_GREY = '0.45'


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A drawing function that uses the project's style throughout."""
    @functools.wraps(draw)
    def in_style(*args, **options):
        with rc_context(STYLE):
            return draw(*args, **options)
    return in_style


def subplots(rows: int = 1, columns: int = 1, size: Tuple[float, float] = (8, 5), **options):
    """(figure, its axes) as `pyplot.subplots` makes them, in the project's style; size in inches. Without pyplot, as no
    screen is needed and nothing has to be closed."""
    with rc_context(STYLE):
        figure = Figure(figsize=size)
        return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, *paths: str) -> None:
    """Write a figure to each path (the suffix says how), each replaced in one step."""
    with rc_context(STYLE):
        for path in paths:
            kind, drawn = os.path.splitext(path)[1][1:], io.BytesIO()  # a full disk then fails at one place
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', message='Glyph .* missing')  # a name in a script that the font lacks
                figure.savefig(drawn, format=kind, dpi=DPI, metadata={'CreationDate': None} if kind == 'pdf' else None)
            with writing.replacing(path) as temporary, open(temporary, 'wb') as stream:
                stream.write(drawn.getvalue())
            if hasattr(figure, 'set_layout_engine'):
                figure.set_layout_engine('none')  # laid out once; half of the time goes there


def headline(figure: Figure, text: str) -> None:
    """The figure's title: its message, wrapped to the figure's width in lines of about the same length."""
    widest = int(8.8 * figure.get_figwidth())  # characters
    n_lines = len(textwrap.wrap(text, widest))
    width = next(width for width in range(len(text) // n_lines, widest + 1)
                 if len(textwrap.wrap(text, width)) <= n_lines)
    with rc_context(STYLE):
        figure.suptitle(textwrap.fill(text, width), fontsize=15)


def plain(text: str, longest: int = 48) -> str:
    """Text from a file, safe to draw: one line, not too long, no formulas, nothing that has no code in UTF-8."""
    text = ' '.join(str(text).encode('utf-8', 'replace').decode('utf-8').split())
    return (text if len(text) <= longest else text[:longest - 1] + '…').replace('$', r'\$')


def draw_heatmap(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], colour_label: str = '',
                 colormap: str = 'viridis', limits: Tuple[Optional[float], Optional[float]] = (None, None),
                 texts: Optional[Sequence[Sequence[str]]] = None, log: bool = False,
                 colour_bar: bool = True) -> AxesImage:
    """values [rows, columns]; NaN is hatched. `texts` are written into the cells; returns the image.
    `colour_bar=False` leaves it to the caller, who may want one for several heatmaps."""
    with rc_context(STYLE):
        axes.patch.set(**ABSENT)
        norm = (LogNorm if log else Normalize)(*limits)
        image = axes.imshow(np.ma.masked_invalid(values), aspect='auto', cmap=colormap, norm=norm,
                            interpolation='nearest')
        axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if colour_bar:
            add_colour_bar(image, axes, colour_label)
        for i, line in enumerate(texts if texts is not None else ()):
            for j, text in enumerate(line):
                dark = not np.isnan(values[i, j]) and luminance(image.to_rgba(values[i, j])) < 0.5
                axes.text(j, i, text, ha='center', va='center', fontsize=10, color='white' if dark else 'black')
        return image


def cross_out(axes: Axes, row: float, column: float) -> None:
    """Turn one cell of a heatmap dark grey with a white cross."""
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=CROSSED_GREY, edgecolor='white', linewidth=1))
    axes.plot([column - 0.42, column + 0.42], [row - 0.36, row + 0.36], color='white', linewidth=1.6)
    axes.plot([column - 0.42, column + 0.42], [row + 0.36, row - 0.36], color='white', linewidth=1.6)


def absent_key(label: str) -> Patch:
    """The legend's entry of a hatched cell."""
    return Patch(facecolor=ABSENT['facecolor'], edgecolor='0.6', hatch=ABSENT['hatch'], linewidth=0, label=label)


def numbers(values: np.ndarray, digits: int) -> List[List[str]]:
    """The texts of a heatmap's cells, '' for NaN."""
    return [['' if np.isnan(value) else f'{value:.{digits}f}' for value in row]
            for row in np.round(values, digits) + 0.0]  # no '-0.0'


def short(value: float) -> str:
    """Three digits or so: '0.026', '4.31', '27.5', '312', '45k'; '' for NaN."""
    if np.isnan(value):
        return ''
    if abs(value) >= 9999.5:
        return f'{value / 1000:.3g}k' if abs(value) < 999500 else f'{value / 1e6:.3g}M'
    digits = 3 if value == 0 else int(np.clip(2 - np.floor(np.log10(abs(value))), 0, 3))
    return f'{value:.{digits}f}'


def add_colour_bar(image: AxesImage, axes: Union[Axes, np.ndarray], label: str, **options) -> None:
    """A colour bar for one axes or several, with plain numbers (0.2, not 2 x 10^-1) on a logarithmic one."""
    log = isinstance(image.norm, LogNorm)
    one = axes if isinstance(axes, Axes) else np.ravel(axes)[0]
    with rc_context(STYLE):
        bar = one.figure.colorbar(image, ax=axes, label=label, ticks=LogLocator(subs=(1, 2, 5)) if log else None,
                                  format='%g' if log else None, **options)
        if log:
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.outline.set_visible(False)


def luminance(colour: Sequence[float]) -> float:
    """How bright an RGB(A) colour looks, 0..1 (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
