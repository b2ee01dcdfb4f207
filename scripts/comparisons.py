"""Comparisons of methods over several training seeds: which recipes, and their table in the README.

A method's run with another seed is the recipe ``NAME@SEED``: other data, other initial weights, other windows. Methods of one comparison share
data (where the data themselves are not what is compared), tasks and action rule, so what is compared is paired by task and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from envs import make_family
from envs.mixed import Mixed
from icrl.interfaces import Array, UserError
from icrl.metrics import LEVEL, Bootstrap, normalised_score
from icrl.published import section
from icrl.recipe_json import differing_fields
from icrl.run_folder import FREE_FIELDS
from scripts.cells import Cell, scores

BRACKETS = "95 % over tasks (bootstrap), then over training seeds (Student's t)"
EPISODES = {"all": "all trials", "late": "late trials", "last": "last trial"}
COMPARED = {**EPISODES, "first": "first ten trials"}


@dataclass(frozen=True)
class Method:
    """One row."""

    recipe: str
    what: str
    published: str = "–"


@dataclass(frozen=True)
class Comparison:
    """Methods on the same tasks; the first is the one that the others are compared with, in the episodes that ``compared`` names.

    ``normalised``: within each family 0 is what uniform actions earn and 1 the optimum, of means over its tasks. ``own_data``: methods learn from different
    histories, which their names say.
    """

    title: str
    methods: tuple[Method, ...]
    compared: str = "late"
    normalised: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    own_data: bool = False

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
    Comparison(
        "A memory and mixtures of experts together, 10×10 Dark Room, RA-DT's held-out goals, 40 trials, Q-learning's histories",
        (
            Method("t2mir-radt", "a memory and mixtures of experts, windows in pairs of one task"),
            Method("radt", "a memory"),
            Method("t2mir-radt-dt", "mixtures of experts, windows in pairs of one task"),
            Method("radt-dt", "neither"),
        ),
        seeds=(0,),
    ),
    Comparison(
        "10×10 Dark Room, 40 trials: posterior sampling by whole plans (privileged data: optimal actions as labels)",
        (
            Method("darkroom-plans", "plans given up are of drawn tasks"),
            Method("darkroom-plans-biased", "three of ten are of the own task"),
        ),
        "first",
        seeds=(0,),
        own_data=True,
    ),
    *(
        Comparison(
            f"{room}: posterior sampling by whole plans (privileged data: optimal actions as labels)",
            (
                Method(plans, "history-conditioned DPT"),
                Method(
                    dpt,
                    "DPT, as many weights, updates and histories (privileged data: exact posterior sampling among the sources, too)",
                ),
            ),
            "first",
            seeds=(0,),
            own_data=True,
        )
        for room, plans, dpt in (
            ("10×10 Key-Door, 40 trials", "keydoor-plans", "explore-keydoor-dpt"),
            ("MiniGrid, which of several doors, 10 trials", "minigrid-doors-plans", "explore-minigrid-dpt"),
        )
    ),
    *(
        Comparison(
            f"9×9 {room}, 30 trials, ICEE (privileged data: noisy optimal episodes behind others that wander)",
            methods,
            "all",
            seeds=(0,),
            own_data=True,
        )
        for room, methods in (
            (
                "Dark Room, 20 steps",
                (
                    Method("icee-darkroom", "ICEE"),
                    Method("icee-darkroom-no-bit", "without the cross-episode bit"),
                    Method("icee-darkroom-random", "random behaviour alone (no privileged data)"),
                ),
            ),
            ("Dark Room, 20 steps, the goal pays once", (Method("icee-darkroom-once", "ICEE"),)),
            (
                "Dark Room, 20 steps, behaviour that prefers one direction",
                (
                    Method("icee-darkroom-biased", "ICEE"),
                    Method("icee-darkroom-uncorrected", "without the correction"),
                    Method("icee-darkroom-sorted", "AD, the noise falling along a history"),
                ),
            ),
            (
                "Key-Door, 50 steps, random starts, 2 at most",
                (
                    Method("icee-keydoor", "ICEE"),
                    Method("icee-keydoor-no-bit", "without the cross-episode bit"),
                    Method("icee-keydoor-random", "random behaviour alone (no privileged data)"),
                ),
            ),
        )
    ),
)


def compared_runs() -> list[str]:
    """All runs of all comparisons."""
    return [run for one in COMPARISONS for method in one.methods for run in one.runs_of(method).values()]


def comparison_text(comparison: Comparison, cells: Mapping[str, Cell]) -> str:
    """The table in Markdown of those methods of which there are runs; empty while there are none of the first.

    Raises UserError where runs of one seed were trained on different data or played different tasks, or those of one method by different recipes.
    """
    named = [comparison.runs_of(method) for method in comparison.methods]
    done = [{seed: cells[run] for seed, run in runs.items() if run in cells} for runs in named]
    if not done[0]:
        return ""
    for runs in done:
        _check_one_recipe(list(runs.values()))
    less = f"the first method less this, {COMPARED[comparison.compared]}, paired"
    shown = _shown(comparison)
    columns = (
        "method",
        *(COMPARED[which] for which in shown),
        less,
        "published, last trial",
        "training seeds",
        "minutes a run",
        "command",
    )
    rows = [_row(*row, done[0], comparison) for row in zip(comparison.methods, done, strict=True) if row[1]]
    lines = [" | ".join(cells) for cells in (columns, ["---"] * len(columns), *rows)]
    return f"{comparison.title}; brackets: {BRACKETS}:\n\n" + "\n".join(f"| {line} |" for line in lines)


def _check_one_recipe(cells: Sequence[Cell]) -> None:
    """UserError where training seeds of a method differ in more than their seed; an option that was not there yet when one of them ran does not count."""
    for cell in cells[1:]:
        for name, old, new in differing_fields(cells[0]["recipe"], cell["recipe"]):
            if not name.startswith((*FREE_FIELDS, "seed")) and old is not None and new is not None:
                raise UserError(
                    f"the cells {cells[0]['name']} and {cell['name']} are of different recipes ({name} is {old} and {new}): run both again"
                )


def _shown(comparison: Comparison) -> tuple[str, ...]:
    """Of which episodes a table tells."""
    return tuple(EPISODES) if comparison.compared in EPISODES else (comparison.compared, *EPISODES)


def _row(
    method: Method, done: Mapping[int, Cell], first: Mapping[int, Cell], comparison: Comparison
) -> tuple[str, ...]:
    def scored(cell: Cell, which: str) -> Array:
        return _normalised(cell, which) if comparison.normalised else scores(cell, which)

    (evaluation, *_) = next(iter(first.values()))["evaluations"]
    digits = 3 if comparison.normalised else 2 if evaluation["record"]["optimal_return"] < 10 else 1
    shown = [_estimated([scored(cell, which) for cell in done.values()], digits) for which in _shown(comparison)]
    pairs = [_difference(scored, first[s], done[s], comparison) for s in done if s in first]
    less = "–" if done is first or not pairs else _estimated(pairs, digits)
    minutes = np.mean([cell["seconds"] for cell in done.values()]) / 60
    command = f"`icrl reproduce {' '.join(comparison.runs_of(method).values())}`"
    return (method.what, *shown, less, method.published, str(len(done)), f"{minutes:.0f}", command)


def _difference(scored: Callable[[Cell, str], Array], one: Cell, other: Cell, comparison: Comparison) -> Array:
    """(N,) by task."""
    names, hashes = ([cell[key] for cell in (one, other)] for key in ("name", "dataset_hash"))
    if hashes[0] != hashes[1] and not comparison.own_data:
        raise UserError(
            f"the cells {names[0]} and {names[1]} are of different data and cannot be compared: run both recipes again"
        )
    return scored(one, comparison.compared) - scored(other, comparison.compared)


def _normalised(cell: Cell, which: str) -> Array:
    """(N,) the agent's scores; within each family 0 is what uniform actions earn on its tasks, in the mean, and 1 their optimum."""
    config = cell["recipe"]["family"]
    family = make_family(config["name"], **config["options"])
    tasks = family.split().test
    low, high, score = family.random_return(tasks), family.optimal_return(tasks), scores(cell, which)
    for _, rows in family.parts(tasks) if isinstance(family, Mixed) else [(0, np.arange(len(tasks)))]:
        score[rows] = normalised_score(score[rows], low[rows].mean(), high[rows].mean())
    return score


def _estimated(by_seed: Sequence[Array], digits: int) -> str:
    """Scores (N,) by task, of each training seed -> their mean with ``BRACKETS``; of one seed there is but the first."""
    values = np.stack(by_seed)
    num_seeds, num_tasks = values.shape
    tasks = Bootstrap(np.arange(num_tasks), num_seeds, 0)(values).estimate()
    ends = [] if tasks.over_tasks is None else [tasks.over_tasks.ravel()]
    if num_seeds > 1:
        means = values.mean(1)  # so few that a bootstrap's interval would be much too narrow
        reach = student.ppf((1 + LEVEL) / 2, num_seeds - 1) * means.std(ddof=1) / num_seeds**0.5
        ends.append(means.mean() + np.array([-reach, reach]))
    brackets = [f" [{low:.{digits}f}, {high:.{digits}f}]" for low, high in ends]
    return f"{tasks.mean.item():.{digits}f}{''.join(brackets)}"
