"""Pictures of what is made before the search: who holds which images, the trained α, the importance of branches."""
from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from report.style import BRANCH_WORDS, add_colour_bar, draw_heatmap, headline, numbers, plain, short, styled, subplots

MOST_NAMED = 40  # classes: with more there is no room for their names
MOST_NUMBERED = 25  # classes: with more there is no room for a number in each cell


# --- the partition --------------------------------------------------------------------------------------

@styled
def partition(counts: Mapping[str, np.ndarray], class_names: Sequence[str], domains: Sequence[str], dataset: str,
              ) -> Figure:
    """Which classes each domain holds, and how many images of each subset; returns the figure.
    `counts`: images [domains, classes] by subset."""
    total = sum(counts.values())  # (domains, classes)
    share = 100 * total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    sizes = np.stack([table.sum(axis=1) for table in counts.values()], axis=1)  # (domains, subsets)
    n_domains, n_classes = share.shape
    wide = 5.0 + 0.6 * min(max(n_classes, 6), MOST_NUMBERED)
    rows = [f'{index}  {plain(name)}' for index, name in enumerate(domains)]
    figure, (left, right) = subplots(1, 2, size=(wide + 2.7 + 0.95 * len(counts), 3.8 + 0.42 * n_domains), sharey=True,
                                     gridspec_kw={'width_ratios': [wide, 0.95 * len(counts)]})
    columns = [plain(name, 20) for name in class_names]
    numbered = n_classes <= MOST_NUMBERED
    draw_heatmap(left, share, rows, columns, '% of images', 'cividis', (0, None),
                 numbers(share, 0) if numbered else None, colour_bar=not numbered)
    if n_classes > MOST_NAMED:
        every = int(np.ceil(n_classes / 20))
        left.set_xticks(range(0, n_classes, every), range(0, n_classes, every), rotation=0)
    left.set_xlabel('class' if n_classes <= MOST_NAMED else 'class, by its number')
    left.set_ylabel('domain')
    left.set_title('which classes a domain holds (%)')
    draw_heatmap(right, np.full(sizes.shape, np.nan), rows, list(counts), colour_bar=False)
    right.patch.set(facecolor='white', hatch='')
    right.set_xticks(range(len(counts)), counts, rotation=0)
    for (row, column), size in np.ndenumerate(sizes):
        right.text(column, row, str(size), ha='center', va='center')
    right.set_title('images per subset')
    commonest = share.max(axis=1)
    found = (f'every domain holds another mix of classes; the commonest class makes up {commonest.min():.2g} to '
             f'{commonest.max():.2g} % of a domain' if n_domains > 1 else
             f'the commonest class makes up {commonest[0]:.2g} % of the domain')
    headline(figure, f'{plain(dataset)}: {found} ({100 / n_classes:.2g} % if all were equally common)')
    return figure


# --- the trained α ----------------------------------------------------------------------------------------

@styled
def trained_alpha(alpha: np.ndarray, domains: Sequence[str], blocks: Sequence[str]) -> Figure:
    """α [domains, N, 3] after task 1 (NaN: no such branch), a panel per branch; returns the figure."""
    spread = max(0.05, float(np.nanmax(np.abs(alpha - 1))))
    figure, panels = subplots(3, 1, size=(6.0 + 0.56 * len(blocks), 3.4 + 3 * (0.5 + 0.3 * len(domains))), sharex=True)
    for axes, branch, name in zip(panels, np.moveaxis(alpha, 2, 0), BRANCH_WORDS):
        image = draw_heatmap(axes, branch, domains, blocks, colormap='PuOr', limits=(1 - spread, 1 + spread),
                             texts=numbers(branch, 2), colour_bar=False)
        axes.set_title(f'{name} branch')
        axes.set_ylabel('domain')
    panels[-1].set_xlabel('block (hatched: it has no identity branch)' if np.isnan(alpha).any() else 'block')
    add_colour_bar(image, panels, 'α: above 1 the branch counts for more than in the original network')
    low, high = np.nanpercentile(alpha, (5, 95))
    headline(figure, f'How training α for each domain rescales the branches: nine in ten α lie between {low:.2f} and '
                     f'{high:.2f} (original network: 1)')
    return figure


# --- importance ---------------------------------------------------------------------------------------------

@styled
def importance(scores: np.ndarray, blocks: Sequence[str]) -> Figure:
    """Importance [domains, N, 3] (NaN: no such branch): its mean over the domains, and how far these are apart;
    returns the figure."""
    n_domains = len(scores)
    logs = np.log(np.maximum(scores, 1e-12))
    mean, ratio = np.exp(logs.mean(axis=0)).T, np.exp(logs.max(axis=0) - logs.min(axis=0)).T  # (3, N) each
    figure, panels = subplots(1 if n_domains == 1 else 2, 1, squeeze=False, sharex=True,
                              size=(6.0 + 0.62 * len(blocks), 4.6 if n_domains == 1 else 7.0))
    top, bottom = panels[0, 0], panels[-1, 0]
    draw_heatmap(top, mean, BRANCH_WORDS, blocks, '|α| per GFLOP\n(logarithmic)',
                 texts=[[short(value) for value in row] for row in mean], log=True)
    top.set_title('importance |α| / GFLOP' + ('' if n_domains == 1 else f', geometric mean of {n_domains} domains')
                  + ': dark branches are ranked first for pruning')
    if n_domains > 1:
        draw_heatmap(bottom, ratio, BRANCH_WORDS, blocks, 'highest domain\nover lowest', 'Greys',
                     (1, max(2.0, float(np.nanmax(ratio)))), [[short(value) for value in row] for row in ratio])
        bottom.set_title('how far the domains are apart: highest importance over lowest (1: all alike)')
    bottom.set_xlabel('block (hatched: it has no identity branch)' if np.isnan(mean).any() else 'block')
    for axes in panels[:, 0]:
        axes.set_ylabel('branch')
    typical = [float(np.nanmedian(row)) if not np.isnan(row).all() else np.nan for row in mean]
    others = ', '.join(f'{name} branches {short(value / typical[0])} times'
                       for name, value in zip(BRANCH_WORDS[1:], typical[1:]) if not np.isnan(value))
    apart = '' if n_domains == 1 else f'; domains differ by a factor of at most {short(float(np.nanmax(ratio)))}'
    headline(figure, f'Importance of every branch for its FLOPs: {others} that of 3x3 branches (medians over blocks)'
                     f'{apart}')
    return figure
