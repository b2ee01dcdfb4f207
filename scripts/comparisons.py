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

EPISODES = {"all": "all trials", "late": "late trials", "last": "last trial"}


@dataclass(frozen=True)
class Method:
    """One row."""

    recipe: str
    what: str
    published: str = "–"


@dataclass(frozen=True)
class Comparison:
    """Methods on the same tasks; the first is the one that the others are compared with, in the episodes that ``compared`` names.

    ``normalised``: 0 is what uniform actions earned on a task and 1 its optimum.
    """

    title: str
    methods: tuple[Method, ...]
    compared: str = "late"
    normalised: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)  # of training

    def runs_of(self, method: Method) -> dict[int, str]:
        """The names of a method's runs by training seed."""
        return {seed: f"{method.recipe}@{seed}" if seed else method.recipe for seed in self.seeds}


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
    *(
        Comparison(
            f"{room}, 400 steps, window of half an episode, 10 trials, distilled Bayes explorer (privileged data)",
            (Method(f"{recipe}-memory", "with a memory"), Method(f"{recipe}-window", "without")),
            compared="all",
            seeds=(0,),
        )
        for room, recipe in (("20×20 Dark Room, random starts", "large-darkroom"), ("20×20 Key-Door", "large-keydoor"))
    ),
    Comparison(
        "Several families of rooms at once, 10 trials, normalised returns, distilled Bayes explorers (privileged data)",
        (
            Method("t2mir-ad", "T2MIR: experts by token and by task"),
            Method("t2mir-ad-dense", "dense, as many active weights"),
            Method("t2mir-ad-token", "experts by token alone"),
            Method("t2mir-ad-task", "experts by task alone"),
            Method("t2mir-ad-no-contrast", "both, without contrast"),
            Method("t2mir-ad-no-balance", "both, without balance"),
        ),
        compared="all",
        normalised=True,
    ),
)


def compared_runs() -> list[str]:
    """All runs of all comparisons."""
    return [run for one in COMPARISONS for method in one.methods for run in one.runs_of(method).values()]


def comparison_text(comparison: Comparison, cells: Mapping[str, Cell]) -> str:
    """The table in Markdown of those methods of which there are runs; empty while there are none of the first."""
    named = [comparison.runs_of(method) for method in comparison.methods]
    done = [{seed: cells[run] for seed, run in runs.items() if run in cells} for runs in named]
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
    rows = [_row(*row, done[0], comparison) for row in zip(comparison.methods, done, strict=True) if row[1]]
    lines = [" | ".join(columns), "|".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return f"{comparison.title}:\n\n" + "\n".join(f"| {line} |" for line in lines)


def _row(
    method: Method, done: Mapping[int, Cell], first: Mapping[int, Cell], comparison: Comparison
) -> tuple[str, ...]:
    def scored(cell: Cell, which: str) -> Array:
        return _normalised(cell, which) if comparison.normalised else scores(cell, which)

    digits = 3 if comparison.normalised else 1
    shown = [_estimated([scored(cell, which) for cell in done.values()], digits) for which in EPISODES]
    pairs = [scored(first[s], comparison.compared) - scored(done[s], comparison.compared) for s in done if s in first]
    less = "–" if done is first or not pairs else _estimated(pairs, digits)
    minutes = np.mean([cell["seconds"] for cell in done.values()]) / 60
    command = f"`icrl reproduce {' '.join(comparison.runs_of(method).values())}`"
    return (method.what, *shown, less, method.published, str(len(done)), f"{minutes:.0f}", command)


def _normalised(cell: Cell, which: str) -> Array:
    """(N,) the agent's score on each task, 0 being that of uniform actions and 1 that of the optimal policy."""
    low, high = (scores(cell, "all", row) for row in ("random", "optimal"))
    return (scores(cell, which) - low) / (high - low)


def _estimated(by_seed: Sequence[Array], digits: int) -> str:
    """Scores (N,) by task, of each training seed -> their mean with its intervals over tasks, and over training seeds where there are several."""
    values = np.stack(by_seed)
    num_seeds, num_tasks = values.shape
    tasks = Bootstrap(np.arange(num_tasks), num_seeds, 0)(values).estimate()
    seeds = Bootstrap(np.zeros(1, int), num_seeds, 0)(values.mean(1, keepdims=True)).estimate()  # whole seeds are drawn
    ends = [
        " [" + ", ".join(f"{end:.{digits}f}" for end in interval.ravel()) + "]"
        for interval in (tasks.over_tasks, seeds.fixed_tasks)
        if interval is not None
    ]
    return f"{tasks.mean.item():.{digits}f}{''.join(ends)}"
