"""How every figure looks: one palette, one size, one way to PNG bytes. Figure objects on the Agg canvas, no pyplot.

Colours are Okabe and Ito's (2008), told apart with every common colour blindness; the eight of them are combined with
line styles, so that more than eight curves stay distinct. Legends stand outside the axes and cover nothing.
"""

from __future__ import annotations

import io
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 120
WIDTH = 8.0
"""Inches: 960 pixels, the width of the page's column."""

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8A8A"

AGENT_COLORS = (BLUE, VERMILION, PURPLE, GREEN, ORANGE, SKY)
"""Learned agents, one per run of a comparison."""
BASELINE_COLORS = (GREEN, ORANGE, PURPLE, SKY, VERMILION, "#7A6A00", "#5D3A9B", "#994F00")
PUBLISHED_MARKERS = ("D", "s", "^", "v", "P", "X")


class LineStyle(NamedTuple):
    """How one curve is drawn, the same in every figure of a report."""

    color: str
    linestyle: str
    linewidth: float
    zorder: int


FIXED_STYLES = {
    "random": LineStyle(GREY, ":", 1.6, 2),
    "uniform": LineStyle(GREY, ":", 1.6, 2),
    "optimal": LineStyle(BLACK, "--", 1.4, 2),
}
"""The floor and the ceiling look the same in every report."""


def agent_style(index: int) -> LineStyle:
    """The style of the index-th learned agent: thick, solid, in front."""
    return LineStyle(AGENT_COLORS[index % len(AGENT_COLORS)], "-", 2.6, 6)


def hidden_style(index: int) -> LineStyle:
    """The same agent with its rewards hidden: its colour, dashed."""
    return LineStyle(AGENT_COLORS[index % len(AGENT_COLORS)], "--", 1.6, 5)


def baseline_style(name: str, index: int) -> LineStyle:
    """The style of the index-th baseline; ``random`` and ``optimal`` have their own."""
    dashes = ("-", "-.", (0, (5, 1)))[index // len(BASELINE_COLORS) % 3]
    return FIXED_STYLES.get(name, LineStyle(BASELINE_COLORS[index % len(BASELINE_COLORS)], dashes, 1.5, 3))  # type: ignore[arg-type]


def new_figure(height: float = 4.2, width: float = WIDTH) -> Figure:
    """An empty figure with a layout that keeps labels and outside legends apart."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title at the left, light horizontal grid, no box."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def outside_legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The legend below the axes, where it covers no line."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=9, frameon=False)


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, without the time of drawing (equal inputs give equal bytes)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
