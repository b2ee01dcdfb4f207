"""What a policy with a memory remembered: which chunks it retrieved at which step, and how much attention they got."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from icrl.report.grid import lane_goal, typical_lane
from icrl.report.page import Block, Picture, Table
from icrl.report.rows import Row
from icrl.report.style import BLACK, VERMILION, WIDTH, new_figure, to_png

SHOWN = 8
"""Retrievals of the lane that are shown."""


def memory_blocks(row: Row, name: str) -> list[Block]:
    """Table and pictures of the retrievals of one lane, nothing where there were none; ``name`` is a piece of file names."""
    arrays = row.arrays
    if "retrieval_step" not in arrays:
        return []
    lane = _lane_of(row)
    mine = np.flatnonzero(arrays["retrieval_lane"] == lane)
    chosen = mine[np.unique(np.linspace(0, len(mine) - 1, SHOWN).astype(int))]
    blocks: list[Block] = [
        Table(
            (
                "step of its life",
                "episode",
                "chunks around step",
                "utility: their episodes' return and their own",
                "attention on them",
            ),
            tuple(_line(arrays, n) for n in chosen),
            f"Retrievals of lane {lane + 1}. The attention is that of the first token that a retrieval serves, mean over layers and heads; the rest goes "
            "to a token that holds nothing.",
        )
    ]
    observation = arrays.get("retrieval_observation")
    if observation is not None and observation.ndim == 3 and observation.shape[2] == 2 and "visit_mean" in arrays:
        goal = None if row.evaluation.artefacts is None else lane_goal(row.evaluation.artefacts, lane)
        figure = _maps(arrays, chosen, arrays["visit_mean"].shape[1:], goal)
        blocks.append(
            Picture(
                f"memory-{name}.png",
                to_png(figure),
                f"Maps of the cells of what lane {lane + 1} retrieved at {len(chosen)} steps, coloured by attention.",
                f"{row.label}, lane {lane + 1}: the cells of the retrieved chunks, darker the more attention they got. A ring marks where "
                "the agent was rewarded in them.",
            )
        )
    return blocks


def _lane_of(row: Row) -> int:
    """The lane that the page animates, or the first one that retrieved something."""
    arrays = row.arrays
    known = arrays["retrieval_lane"]
    if "life_reward" in arrays:
        lane = typical_lane(arrays["life_reward"], arrays["life_episode"], row.evaluation.record["episodes"])
        if (known == lane).any():
            return lane
    return int(known[0])


def _line(arrays: Mapping[str, np.ndarray], n: int) -> tuple[str, ...]:
    there = arrays["retrieval_cut"][n] >= 0
    cuts, utility = arrays["retrieval_cut"][n][there], arrays["retrieval_utility"][n][there]
    return (
        f"{arrays['retrieval_step'][n]:,}",
        str(arrays["retrieval_episode"][n]),
        ", ".join(f"{cut:,}" for cut in cuts),
        ", ".join(f"{value:.4g}" for value in utility),
        f"{100 * (1 - arrays['retrieval_attention'][n, 0]):.0f} %",
    )


def _maps(
    arrays: Mapping[str, np.ndarray], chosen: np.ndarray, shape: tuple[int, ...], goal: tuple[int, int] | None
) -> Figure:
    """One map for each retrieval: attention summed by cell."""
    columns = 4
    lines = -(-len(chosen) // columns)
    figure = new_figure(lines * (WIDTH * 0.8 / columns * shape[0] / shape[1] + 0.4) + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(chosen) :]:
        axes.set_visible(False)
    for axes, n in zip(grid, chosen, strict=False):
        cells, valid = arrays["retrieval_observation"][n].astype(int), arrays["retrieval_valid"][n]
        attention = np.zeros(shape)
        np.add.at(attention, (cells[valid, 0], cells[valid, 1]), arrays["retrieval_attention"][n, 1:][valid])
        axes.imshow(np.sqrt(attention), cmap="Blues", vmin=0.0, vmax=max(float(attention.max()) ** 0.5, 1e-6))
        paid = valid & (arrays["retrieval_reward"][n] > 0)
        axes.scatter(cells[paid, 1], cells[paid, 0], s=30, facecolors="none", edgecolors=BLACK, linewidths=0.8)
        axes.set_title(
            f"episode {arrays['retrieval_episode'][n]}, step {arrays['retrieval_step'][n]:,}", fontsize=8, color=BLACK
        )
        axes.set_xticks([])
        axes.set_yticks([])
        if goal is not None:
            corner = (goal[1] - 0.5, goal[0] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.0, clip_on=False))
    return figure
