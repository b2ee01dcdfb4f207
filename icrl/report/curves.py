"""Curves with 95 % intervals: return by episode, cumulative regret by step, and training.

The drawing knows nothing of evaluations: it takes ``Curve`` and ``PublishedCurve`` records and gives back figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl.report.style import BLACK, BLUE, GREY, PUBLISHED_MARKERS, LineStyle, dress, new_figure, outside_legend


class Curve(NamedTuple):
    """A mean with its interval along x."""

    label: str
    x: np.ndarray  # (E,)
    mean: np.ndarray  # (E,)
    low: np.ndarray  # (E,) lower end of the 95 % interval
    high: np.ndarray  # (E,) upper end
    style: LineStyle


class PublishedCurve(NamedTuple):
    """Published points, which have no interval of ours."""

    label: str
    x: np.ndarray  # (n,)
    y: np.ndarray  # (n,)


def curves_figure(
    curves: Sequence[Curve], published: Sequence[PublishedCurve], title: str, xlabel: str, ylabel: str
) -> Figure:
    """All curves over one pair of axes; the x range is that of our own curves (published points beyond it are left out)."""
    rows = -(-(len(curves) + len(published)) // 3)
    figure = new_figure(4.3 + 0.2 * rows)
    axes = figure.subplots()
    for curve in curves:
        draw_curve(axes, curve)
    last = max((curve.x[-1] for curve in curves), default=np.inf)
    for index, points in enumerate(published):
        _draw_published(axes, points, PUBLISHED_MARKERS[index % len(PUBLISHED_MARKERS)], index, last)
    dress(axes, title, xlabel, ylabel)
    _limit_x(axes, curves)
    outside_legend(figure, axes)
    return figure


def draw_curve(axes: Axes, curve: Curve) -> None:
    """The mean as a line and the interval as a band (as an error bar where there is one point only)."""
    style = curve.style
    line = {"color": style.color, "linestyle": style.linestyle, "linewidth": style.linewidth, "zorder": style.zorder}
    if len(curve.x) == 1:
        spread = np.abs(np.stack([curve.mean - curve.low, curve.high - curve.mean]))
        axes.errorbar(curve.x, curve.mean, yerr=spread, marker="o", capsize=4, label=curve.label, **line)
        return
    axes.plot(curve.x, curve.mean, label=curve.label, **line)
    alpha = 0.22 if style.linewidth > 2 else 0.10
    axes.fill_between(curve.x, curve.low, curve.high, color=style.color, alpha=alpha, linewidth=0, zorder=1)


def _draw_published(axes: Axes, points: PublishedCurve, marker: str, index: int, last: float) -> None:
    """Black to grey markers joined by a thin line: never mistaken for a curve of ours."""
    inside = points.x <= last
    if inside.any():
        color = (BLACK, "#555555", GREY)[index % 3]
        axes.plot(
            points.x[inside], points.y[inside], marker=marker, markersize=5, color=color, linewidth=0.9,
            linestyle=(0, (1, 2)), label=points.label, zorder=4,
        )  # fmt: skip


def _limit_x(axes: Axes, curves: Sequence[Curve]) -> None:
    """From the first point to the last, with whole-number ticks."""
    longest = max(curves, key=lambda curve: curve.x[-1], default=None)
    if longest is not None and len(longest.x) > 1:
        span = longest.x[-1] - longest.x[0]
        axes.set_xlim(longest.x[0] - 0.015 * span, longest.x[-1] + 0.015 * span)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]


def training_figure(panels: Sequence[tuple[str, str, Sequence[tuple[str, np.ndarray, np.ndarray, str]]]]) -> Figure:
    """Panels side by side; each is (title, y label, lines), a line (label, steps (n,), values (n,), colour)."""
    figure = new_figure(3.4)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (title, ylabel, lines) in zip(all_axes, panels, strict=True):
        for label, steps, values, color in lines:
            marker = "o" if len(steps) < 30 else None
            axes.plot(steps, values, color=color or BLUE, linewidth=1.8, marker=marker, markersize=3.5, label=label)
        dress(axes, title, "training step", ylabel)
        if len(lines) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=8, frameon=False, ncols=2)
    return figure
