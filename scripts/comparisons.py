"""Comparisons of methods over several training seeds: which recipes, and their table in the README.

A method's run with another seed is the recipe ``NAME@SEED``: other data, other initial weights, other windows. Methods of one comparison share
data, tasks and action rule, so what is compared is paired by task and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from icrl.interfaces import Array
from icrl.metrics import Bootstrap
from icrl.published import section
from scripts.cells import Cell, scores

SEEDS = (0, 1, 2)
EPISODES = {"all": "all trials", "late": "late trials", "last": "last trial"}


@dataclass(frozen=True)
class Method:
    """One row."""

    recipe: str
    what: str
    published: str = "–"


@dataclass(frozen=True)
class Comparison:
    """Methods on the same tasks; the first is the one that the others are compared with, in the episodes that ``compared`` names."""

    title: str
    methods: tuple[Method, ...]
    compared: str = "late"


_RADT = section("darkroom_radt_protocol")["final_return"]["10x10"]
COMPARISONS = (
    Comparison(
        "10×10 Dark Room, RA-DT's held-out goals, 40 trials, Q-learning's histories",
        (
            Method("radt", "RA-DT: context of 50 steps and a memory", f"{_RADT['RA-DT']}"),
            Method("radt-ad", "AD: context of 300 steps", f"{_RADT['AD']}"),
            Method("radt-dpt", "DPT: context of 300 steps (privileged data: optimal labels)", f"{_RADT['DPT']}"),
            Method("radt-dt", "DT: context of 50 steps", f"{_RADT['DT']}"),
        ),
    ),
)


def runs_of(recipe: str) -> dict[int, str]:
    """The names of a recipe's runs by training seed."""
    return {seed: f"{recipe}@{seed}" if seed else recipe for seed in SEEDS}


def compared_runs() -> list[str]:
    """All runs of all comparisons."""
    methods = [method for comparison in COMPARISONS for method in comparison.methods]
    return [run for method in methods for run in runs_of(method.recipe).values()]


def comparison_text(comparison: Comparison, cells: Mapping[str, Cell]) -> str:
    """The table in Markdown of those methods of which there are runs; empty while there are none of the first."""
    done = [_by_seed(method.recipe, cells) for method in comparison.methods]
    if not done[0]:
        return ""
    less = f"the first method less this, {EPISODES[comparison.compared]}, paired"
    columns = (
        "method",
        *EPISODES.values(),
        less,
        "published, last trial",
        "training seeds",
        "minutes a run",
        "command",
    )
    rows = [_row(*row, done[0], comparison.compared) for row in zip(comparison.methods, done, strict=True) if row[1]]
    lines = [" | ".join(columns), "|".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return f"{comparison.title}:\n\n" + "\n".join(f"| {line} |" for line in lines)


def _by_seed(recipe: str, cells: Mapping[str, Cell]) -> dict[int, Cell]:
    return {seed: cells[run] for seed, run in runs_of(recipe).items() if run in cells}


def _row(method: Method, done: Mapping[int, Cell], first: Mapping[int, Cell], compared: str) -> tuple[str, ...]:
    shown = [_estimated([scores(cell, which) for cell in done.values()]) for which in EPISODES]
    pairs = [scores(first[seed], compared) - scores(done[seed], compared) for seed in done if seed in first]
    less = "–" if done is first or not pairs else _estimated(pairs)
    minutes = np.mean([cell["seconds"] for cell in done.values()]) / 60
    command = f"`icrl reproduce {' '.join(runs_of(method.recipe).values())}`"
    return (method.what, *shown, less, method.published, str(len(done)), f"{minutes:.0f}", command)


def _estimated(by_seed: Sequence[Array]) -> str:
    """Scores (N,) by task, of each training seed -> their mean with its intervals over tasks, and over training seeds where there are several."""
    values = np.stack(by_seed)
    num_seeds, num_tasks = values.shape
    tasks = Bootstrap(np.arange(num_tasks), num_seeds, 0)(values).estimate()
    seeds = Bootstrap(np.zeros(1, int), num_seeds, 0)(values.mean(1, keepdims=True)).estimate()  # whole seeds are drawn
    return f"{tasks.mean.item():.1f}{_ends(tasks.over_tasks)}{_ends(seeds.fixed_tasks)}"


def _ends(interval: Array | None) -> str:
    return "" if interval is None else " [{:.1f}, {:.1f}]".format(*interval.ravel())
