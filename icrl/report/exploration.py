"""How agents explored: what they had seen by which step, how sure they were of their actions, how long they kept to a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl.report.curves import Curve, curves_figure
from icrl.report.page import Block, Picture, Table
from icrl.report.results import EPISODES_SHOWN, NONE, number
from icrl.report.rows import Group, Row
from icrl.report.style import to_png


def exploration_blocks(group: Group) -> list[Block]:
    """A picture of coverage and a table; nothing where nothing was watched. Regrets against exact agents are in the table of returns."""
    rows = [row for row in group.rows if row.record.get("exploration")]
    return [*_coverage(group, rows), *_table(group, rows)]


def _coverage(group: Group, rows: Sequence[Row]) -> list[Block]:
    curves = []
    for row in rows:
        explored = row.record["exploration"]
        if explored["coverage"] and not row.repeated:
            mean = np.array(explored["coverage"])
            curves.append(Curve(row.label, np.array(explored["coverage_steps"]), mean, mean, mean, row.style))
    if not curves:
        return []
    figure = curves_figure(curves, [], "Coverage", "step of a lane's life", "different observations seen")
    words = "; ".join(f"{curve.label} {curve.mean[-1]:.4g}" for curve in curves)
    caption = "How many different observations a lane had seen by a step of its life, mean over lanes."
    return [Picture(f"coverage-{group.name}.png", to_png(figure), f"Coverage by step; at the end {words}.", caption)]


def _table(group: Group, rows: Sequence[Row]) -> list[Block]:
    num = group.record["episodes"]
    shown = [episode for episode in EPISODES_SHOWN if episode <= num]
    kinds = (("surprise of actions", "surprise_by_episode"), ("actions per plan", "plan_length_by_episode"))
    body = []
    for title, key in kinds:
        for row in rows:
            values = row.record["exploration"][key]
            if any(value is not None for value in values):
                body.append(
                    (row.label, title, *(NONE if values[e - 1] is None else number(values[e - 1]) for e in shown))
                )
    header = ("row", "what", *(f"episode {episode}" for episode in shown))
    caption = (
        "Surprise: mean of -log p of the actions taken, in nats, an estimate of their entropy (0: certain). Actions per plan: how long an agent that "
        "follows plans kept to one."
    )
    return [Table(header, tuple(body), caption)] if body else []
