"""Bars with 95 % intervals: one panel per evaluation, one bar per row, published numbers hatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from icrl.report.style import dress, new_figure

LABEL_SIZE = 9


class Bar(NamedTuple):
    """One bar; ``interval`` is None where there is none."""

    label: str
    value: float
    interval: tuple[float, float] | None
    color: str
    published: bool = False


def bars_figure(panels: Sequence[tuple[str, Sequence[Bar]]], xlabel: str) -> Figure:
    """Horizontal bars, panels (title, bars) one above the other on one x axis."""
    sizes = [len(bars) + 1.2 for _, bars in panels]
    figure = new_figure(0.3 * sum(sizes) + 0.9)
    all_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=sizes)[:, 0]
    for axes, (title, bars) in zip(all_axes, panels, strict=True):
        for place, bar in enumerate(bars):
            face, hatch = ("white", "////") if bar.published else (bar.color, None)
            axes.barh(place, bar.value, height=0.68, color=face, edgecolor=bar.color, hatch=hatch)
            end = bar.value
            if bar.interval is not None:
                low, high = bar.interval
                axes.plot([low, high], [place, place], color="#222222", linewidth=1.4, marker="|", markersize=7)
                end = max(end, high)
            axes.annotate(f"{bar.value:.1f}", (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.invert_yaxis()
        dress(axes, title, xlabel if axes is all_axes[-1] else "", "")
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        axes.margins(x=0.08)
    return figure
