"""What all pictures share: fonts, colour-blind-safe colours, saving, and the heatmap."""
from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import matplotlib

matplotlib.use('Agg')  # pictures go to files; no screen is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import json_files  # noqa: E402

# Okabe and Ito's palette: distinguishable with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#F0E442', '#000000')
DPI = 150
STYLE = {'font.size': 11, 'axes.titlesize': 12, 'axes.spines.top': False, 'axes.spines.right': False,
         'legend.frameon': False, 'figure.constrained_layout.use': True, 'pdf.fonttype': 42,
         'image.cmap': 'viridis', 'axes.grid': False}


def subplots(rows: int = 1, columns: int = 1, size: Tuple[float, float] = (8, 5), **options):
    """plt.subplots in the project's style; size in inches."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=size, **options)


def save(figure, *paths: str) -> None:
    """Write a figure to each path (the suffix says how), each replaced in one step, and close it."""
    with plt.rc_context(STYLE):
        for path in paths:
            with json_files.replacing(path) as temporary:
                figure.savefig(temporary, dpi=DPI, metadata={'CreationDate': None} if path.endswith('.pdf') else None)
    plt.close(figure)


def draw_heatmap(axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], colour_label: str,
                 colormap: str = 'viridis', limits: Tuple[Optional[float], Optional[float]] = (None, None),
                 texts: Optional[List[List[str]]] = None) -> None:
    """values [rows, columns]; NaN is left blank (light grey). `texts` are written into the cells."""
    with plt.rc_context(STYLE):
        axes.set_facecolor('0.92')
        image = axes.imshow(np.ma.masked_invalid(values), aspect='auto', cmap=colormap, vmin=limits[0], vmax=limits[1])
        axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.figure.colorbar(image, ax=axes, label=colour_label)
        if texts is not None:
            low, high = image.get_clim()
            for i, line in enumerate(texts):
                for j, text in enumerate(line):
                    bright = np.isnan(values[i, j]) or (values[i, j] - low) > 0.6 * (high - low)
                    axes.text(j, i, text, ha='center', va='center', fontsize=8, color='black' if bright else 'white')
