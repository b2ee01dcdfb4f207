"""Where the agent goes: heat maps of visits by episode, one line of maps for all lanes and one for a single lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from icrl.report.style import BLACK, VERMILION, WIDTH, new_figure


class MapRow(NamedTuple):
    """Maps that share a colour scale."""

    label: str
    visits: np.ndarray  # (K, H, W) visits of each cell in K episodes
    goal: tuple[int, int] | None  # row, column; None where the maps mix several goals


def visit_figure(rows: Sequence[MapRow], episodes: Sequence[int], title: str) -> Figure:
    """Share of the steps of episodes (K,), numbered from 1, that is spent in each cell.

    The start cell holds far more than the rest, so colours follow the square root and end at the 99th percentile.
    """
    aspect = rows[0].visits.shape[1] / rows[0].visits.shape[2]
    columns = max(len(episodes), 4)
    figure = new_figure(len(rows) * (WIDTH * 0.8 / columns * aspect + 0.4) + 0.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        share = row.visits / np.maximum(row.visits.sum(axis=(1, 2), keepdims=True), 1e-12)  # (K, H, W)
        ceiling = max(float(np.quantile(share, 0.99)), 1e-9)
        image = None
        for axes in line[len(episodes) :]:
            axes.set_visible(False)
        for index, axes in enumerate(line[: len(episodes)]):
            image = axes.imshow(np.sqrt(share[index]), cmap="cividis", vmin=0.0, vmax=ceiling**0.5)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"episode {episodes[index]}", fontsize=9, color=BLACK)
            if row.goal is not None:
                corner = (row.goal[1] - 0.5, row.goal[0] - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.2, clip_on=False))
        line[0].set_ylabel(row.label, fontsize=9)
        assert image is not None, "a visit map needs at least one episode"
        bar = figure.colorbar(image, ax=list(line), fraction=0.03, pad=0.02, aspect=12)
        ticks = np.linspace(0.0, ceiling**0.5, 4)
        bar.set_ticks(list(ticks), labels=[f"{100 * tick**2:.2g} %" for tick in ticks])
        bar.ax.tick_params(labelsize=8)
        bar.set_label("share of steps", fontsize=8)
    return figure
