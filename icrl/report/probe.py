"""What ``icrl probe`` found of a policy: what it knows of its task, whom its routers choose, whether its families conflict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl.probe_json import Conflict, Embedding, Probe, RouterChoices
from icrl.report.page import Block, Details, Picture, Table, Text
from icrl.report.results import estimate_text, number
from icrl.report.style import BASELINE_COLORS, BLACK, BLUE, GREY, ORANGE, PURPLE, VERMILION, dress, new_figure, to_png

QUADRANTS = (
    (0, "low, low", BLUE),
    (1, "low, high", ORANGE),
    (2, "high, low", VERMILION),
    (3, "high, high", PURPLE),
    (-1, "no goal", GREY),
)
"""Numbers of quadrants, with what their two coordinates are."""
MARKERS = ("o", "s", "^", "D", "v", "P")


def probe_blocks(probe: Probe, name: str) -> list[Block]:
    """All that the probe found; ``name`` begins the names of files."""
    blocks: list[Block] = [
        Text(
            f"Probed after {_counted(probe.episodes, 'episode')}, in {_counted(probe.lanes, 'lane')} of {_counted(probe.tasks, 'held-out task')}."
        ),
        Details("The families", [Table(("family", "its options"), tuple(probe.families.items()))]),
        _told_table(probe),
    ]
    if probe.routers:
        blocks += [_router_table(probe.routers), _shares_picture(probe.routers, f"{name}-shares.png")]
    if probe.mutual_information:
        rows = tuple((what, number(value)) for what, value in probe.mutual_information.items())
        note = "Mutual information in nats, less what so few lanes would show by chance"
        blocks.append(Table(("of", "nats"), rows, note))
    blocks.append(_embedding_picture(probe.embedding, f"{name}-embedding.png"))
    if probe.conflict is None:
        blocks.append(
            Text("Gradients were not compared: the histories that the policy was trained on were not in the run.")
        )
    else:
        blocks.append(_conflict_picture(probe.conflict, f"{name}-conflict.png"))
    return blocks


def _counted(count: int, what: str) -> str:
    """``1 episode``, ``2 episodes``."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _told_table(probe: Probe) -> Table:
    rows = tuple(
        (
            f"{told.label}, from the {told.features}",
            *map(estimate_text, (told.accuracy, told.chance, told.above_chance)),
        )
        for told in probe.told
    )
    return Table(
        ("what is told", "accuracy", "usual label", "above it"),
        rows,
        "A linear classifier, fitted on training tasks, told these of held-out tasks: from the summary of each block (mean of what enters it) and, "
        "where it has a task router, from what that makes of it. Beside it stands the most frequent label of the training tasks.",
    )


def _router_table(routers: Sequence[RouterChoices]) -> Table:
    rows = tuple(
        (router.name, number(router.entropy), number(math.log(len(router.shares))), str(router.idle))
        for router in routers
    )
    header = ("router", "entropy of its choices in nats", "most possible", "idle experts (under 2 % of the choices)")
    return Table(header, rows, "Whom the routers chose on held-out tasks")


def _shares_picture(routers: Sequence[RouterChoices], name: str) -> Picture:
    """A heat map: a line for each router, a cell for each of its experts."""
    most = max(len(router.shares) for router in routers)
    shares = np.full((len(routers), most), np.nan)
    for line, router in zip(shares, routers, strict=True):
        line[: len(router.shares)] = router.shares
    figure = new_figure(0.42 * len(routers) + 1.2)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=np.nanmax(shares), aspect="auto")
    _write_numbers(axes, 100 * shares, ".0f", dark=shares > 0.6 * np.nanmax(shares))
    axes.set_yticks(range(len(routers)), [router.name for router in routers])
    axes.set_xticks(range(most), [str(expert + 1) for expert in range(most)])
    dress(axes, "Shares of the choices in %", "expert", "")
    axes.grid(visible=False)
    words = [f"{r.name}: {', '.join(f'{100 * share:.0f} %' for share in r.shares)}" for r in routers]
    caption = "Each router's choices on held-out tasks, by expert; the numbers of experts mean nothing across routers."
    return Picture(name, to_png(figure), f"Heat map of the shares of the choices. {'; '.join(words)}.", caption)


def _embedding_picture(embedding: Embedding, name: str) -> Picture:
    """The same points twice: coloured by family and by quadrant."""
    figure = new_figure(4.2)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for member, family in enumerate(embedding.families):
        color, marker = BASELINE_COLORS[member % len(BASELINE_COLORS)], MARKERS[member % len(MARKERS)]
        _scatter(left, embedding.xy[embedding.family == member], family, color, marker)
    for quadrant, words, color in QUADRANTS:
        _scatter(right, embedding.xy[embedding.quadrant == quadrant], words, color, "o")
    first, second = (f"component {n} ({100 * share:.0f} %)" for n, share in enumerate(embedding.explained, start=1))
    for axes, title in ((left, "By family"), (right, "By the goal's quadrant")):
        dress(axes, title, first, second if axes is left else "")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False, ncols=3)
    of = (
        f"what the {embedding.features}, makes of its summary"
        if embedding.features.startswith("router")
        else f"the {embedding.features},"
    )
    caption = (
        f"{of[0].upper()}{of[1:]} in {len(embedding.xy)} held-out lanes, in the plane of the first two principal components (share of the variance in "
        "brackets). Clouds of one colour: the policy keeps families, or quadrants, apart."
    )
    counts = [f"{family} {(embedding.family == n).sum()}" for n, family in enumerate(embedding.families)]
    alt = f"Scatter plots of {of} in the plane, one coloured by family, one by the goal's quadrant. Lanes: {', '.join(counts)}."
    return Picture(name, to_png(figure), alt, caption)


def _scatter(axes: Axes, xy: np.ndarray, label: str, color: str, marker: str) -> None:
    """Points (n, 2) of one colour; nothing where there are none."""
    if len(xy):
        axes.scatter(xy[:, 0], xy[:, 1], s=14, color=color, marker=marker, alpha=0.7, linewidths=0, label=label)


def _conflict_picture(conflict: Conflict, name: str) -> Picture:
    caption = (
        f"Cosines between the gradients of the transformer's weights on {conflict.windows:,} training windows of the row's family and on as many others of "
        "the column's. Below 0 a small step that serves the one family harms the other. Noise of sampling alone keeps the diagonal "
        f"(mean {number(conflict.within)}) from 1; between two families no more can be expected than the geometric mean of their two cosines there."
    )
    if conflict.between is not None and conflict.negative is not None:
        caption += (
            f" Between families the mean is {number(conflict.between)}; {100 * conflict.negative:.0f} % are below 0."
        )
    pairs = [
        f"{row} and {column} {number(cosine)}"
        for row, line in zip(conflict.families, conflict.cosines, strict=True)
        for column, cosine in zip(conflict.families, line, strict=True)
    ]
    figure = _conflict_figure(conflict)
    return Picture(name, to_png(figure), f"Heat map of cosines between gradients. {', '.join(pairs)}.", caption)


def _conflict_figure(conflict: Conflict) -> Figure:
    size = len(conflict.families)
    figure = new_figure(0.45 * size + 2.0)
    axes = figure.subplots()
    image = axes.imshow(conflict.cosines, cmap="RdBu", vmin=-1.0, vmax=1.0, aspect="auto")
    _write_numbers(axes, conflict.cosines, ".2f", dark=abs(conflict.cosines) > 0.6)
    axes.set_xticks(range(size), conflict.families, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), conflict.families)
    dress(axes, "Cosines between families' gradients", "second half", "first half")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02).ax.tick_params(labelsize=8)
    return figure


def _write_numbers(axes: Axes, values: np.ndarray, style: str, dark: np.ndarray) -> None:
    """Numbers (M, N) into the cells of a heat map, white where those are ``dark``; nothing where there is none."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if dark[row, column] else BLACK
            axes.text(column, row, f"{value:{style}}", ha="center", va="center", fontsize=9, color=color)
