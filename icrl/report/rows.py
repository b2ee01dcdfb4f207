"""Evaluations side by side: the runs' records grouped by what was played, and the rows that figures and tables show.

Two evaluations are drawn together only where tasks, horizon, split, mode, context and length agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from icrl import metrics
from icrl.report.inputs import EvaluationInput, RunInput
from icrl.report.protocols import Published, match
from icrl.report.style import LineStyle, agent_style, baseline_style, hidden_style
from icrl.report.words import evaluation_words, options_text

Interval: TypeAlias = tuple[float, float]
Member: TypeAlias = tuple[int, RunInput, EvaluationInput]
"""Number of the run in the report, the run, one of its evaluations."""


@dataclass(frozen=True)
class Row:
    """One agent of one evaluation, with its name and colour in this report."""

    label: str
    name: str
    """Its key in the record."""
    run: RunInput
    evaluation: EvaluationInput
    style: LineStyle
    repeated: bool
    """A baseline that an earlier run of the comparison has too: listed in tables, left out of figures."""

    @property
    def record(self) -> Mapping[str, Any]:
        return self.evaluation.record["agents"][self.name]

    @property
    def role(self) -> str:
        return self.record["role"]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """What trackers left, and ``returns`` (S, L, E); empty where the run keeps no arrays."""
        artefacts = self.evaluation.artefacts
        return {} if artefacts is None else artefacts.agents.get(self.name, {})


@dataclass(frozen=True)
class Group:
    """Comparable evaluations, at least one per run that has such a one."""

    name: str
    """A piece of file names, different for each group of a report."""
    rows: tuple[Row, ...]
    published: Published | None

    @property
    def record(self) -> Mapping[str, Any]:
        """The first run's record: what was played is the same in all."""
        return self.rows[0].evaluation.record

    @property
    def agents(self) -> list[Row]:
        """The runs' own agents."""
        return [row for row in self.rows if row.name == row.evaluation.record["primary"]]

    @property
    def title(self) -> str:
        """What was played, in a phrase."""
        return f"{self.tasks}, {evaluation_words(self.record)}"

    @property
    def short_title(self) -> str:
        """Tasks and length, for headings."""
        episodes = self.record["episodes"]
        return f"{self.tasks}, {episodes} episode{'s' if episodes > 1 else ''}"

    @property
    def tasks(self) -> str:
        """Family, with the options that differ from the recipe's, and split."""
        usual = self.rows[0].run.recipe.family.options
        changed = {k: v for k, v in self.record["family_options"].items() if usual.get(k) != v}
        options = f" ({options_text(changed)})" if changed else ""
        return f"{self.record['family'].replace('_', ' ')}{options}, {self.record['split']} tasks"


def group_evaluations(runs: Sequence[RunInput]) -> list[Group]:
    """All evaluations of all runs, comparable ones together, in the order of the first run."""
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for index, run in enumerate(runs):
        for evaluation in run.evaluations:
            groups.setdefault(_played(evaluation), []).append((index, run, evaluation))
    return [_group(number, members, several=len(runs) > 1) for number, members in enumerate(groups.values(), start=1)]


def interval(estimate: Mapping[str, Any] | None) -> Interval | None:
    """Over tasks if there is one, else over repeated runs of the tasks, else None."""
    for key in ("over_tasks", "fixed_tasks"):
        ends = None if estimate is None else estimate[key]
        if ends is not None and None not in ends:
            return float(ends[0]), float(ends[1])
    return None


def curve_ends(curve: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high ends, each (E,); without an interval the ends are the mean."""
    mean = np.array(curve["mean"], float)
    ends = next((curve[key] for key in ("over_tasks", "fixed_tasks") if curve[key] is not None), None)
    if ends is None:
        return mean, mean, mean
    low, high = np.array([[np.nan, np.nan] if end is None else end for end in ends], float).T
    return mean, low, high


def rest_return(row: Row, first: int = 4) -> tuple[float, Interval | None]:
    """Mean return of episodes ``first`` to the last and its interval over tasks (None without arrays or with one task)."""
    artefacts = row.evaluation.artefacts
    if artefacts is None or "returns" not in row.arrays:
        return float(np.mean(row.record["return_by_episode"]["mean"][first - 1 :])), None
    rest = row.arrays["returns"][..., first - 1 :].mean(axis=2, dtype=np.float64)  # (S, L)
    return _over_tasks(rest, artefacts.lane_task, row.evaluation.record["root_seed"])


def paired_difference(row: Row, other: Row) -> tuple[float, Interval | None] | None:
    """Mean return of ``row`` minus ``other``, paired by task; None where they did not play the same runs."""
    mine, theirs = row.evaluation.artefacts, other.evaluation.artefacts
    if mine is None or theirs is None or not np.array_equal(mine.tasks, theirs.tasks):
        return None
    if "returns" not in row.arrays or "returns" not in other.arrays:
        return None
    a, b = row.arrays["returns"].mean(axis=2), other.arrays["returns"].mean(axis=2)  # (S, L)
    if a.shape != b.shape or not np.array_equal(mine.lane_task, theirs.lane_task):
        return None
    return _over_tasks((a - b).astype(np.float64), mine.lane_task, row.evaluation.record["root_seed"])


def _over_tasks(columns: np.ndarray, lane_task: np.ndarray, root_seed: int) -> tuple[float, Interval | None]:
    """Mean over tasks of ``columns`` (S, L) and its 95 % bootstrap interval."""
    estimate = metrics.Bootstrap(lane_task, len(columns), root_seed)(columns).estimate()
    ends = estimate.over_tasks
    return float(estimate.mean[0]), None if ends is None else (float(ends[0, 0]), float(ends[0, 1]))


def _played(evaluation: EvaluationInput) -> tuple[Any, ...]:
    """What must agree for two evaluations to be drawn together."""
    record = evaluation.record
    options = str(sorted(record["family_options"].items()))
    keys = (
        "family",
        "horizon",
        "split",
        "mode",
        "context",
        "context_size",
        "episodes",
        "action_rule",
        "append",
        "lanes",
        "num_tasks",
    )
    return (*(record[key] for key in keys), tuple(record["seeds"]), round(record["optimal_return"] or 0.0, 6), options)


def _group(number: int, members: Sequence[Member], several: bool) -> Group:
    """Rows in the order agents, controls, baselines; ``several`` runs put the run's name into labels."""
    rows: list[Row] = []
    colors: dict[str, int] = {}
    for index, run, evaluation in members:
        for name, entry in evaluation.record["agents"].items():
            own = entry["role"] != "baseline"
            repeated = not own and name in colors
            label = name if not several else f"{run.label}: {name}"
            if own:
                style = (agent_style if entry["role"] == "agent" else hidden_style)(index)
            else:
                style = baseline_style(name, colors.setdefault(name, len(colors)))
                label = label if repeated else name
            rows.append(Row(label.replace("_", " "), name, run, evaluation, style, repeated))
    order = {"agent": 0, "control": 1, "baseline": 2}
    rows.sort(key=lambda row: order[row.role])
    published = next((p for _, _, evaluation in members if (p := match(evaluation))), None)
    record = members[0][2].record
    name = f"{number}-{record['family']}-{record['split']}-{record['episodes']}-episodes".replace("_", "-").lower()
    return Group(name, tuple(rows), published)
