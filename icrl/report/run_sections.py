"""What was run, how the training went and what it cost: the parts of the page that are about runs, not about results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl.report.curves import training_figure
from icrl.report.inputs import RunInput
from icrl.report.page import Block, Details, Picture, Table, Text
from icrl.report.results import NONE, number
from icrl.report.style import AGENT_COLORS, BASELINE_COLORS, to_png
from icrl.report.words import differing, flatten, recipe_rows, recipe_words

ABOUT_SHOWN = ("command", "seed", "dataset_hash", "started", "finished", "device", "threads", "versions", "machine")


def run_blocks(runs: Sequence[RunInput]) -> list[Block]:
    """Recipe in words and as a table, command, versions, machine."""
    blocks: list[Block] = []
    for run in runs:
        name = f"{run.label} (recipe {run.recipe.name}): " if len(runs) > 1 else f"Recipe {run.recipe.name}. "
        blocks.append(Text(name + recipe_words(run.recipe)))
    labels = tuple(run.label for run in runs)
    options = recipe_rows([run.recipe for run in runs])
    if len(runs) > 1:
        blocks.append(Table(("option", *labels), differing(options), "Where the recipes differ"))
    about = [flatten({key: run.about[key] for key in ABOUT_SHOWN if key in run.about}) for run in runs]
    names = dict.fromkeys(name for record in about for name in record)
    body = tuple((name.replace("_", " ").replace(".", ": "), *(r.get(name, NONE) for r in about)) for name in names)
    blocks.append(Table(("record", *labels), body, "Command, data, software and machine"))
    blocks.append(Details("All options of the recipe", [Table(("option", *labels), options)]))
    return blocks


def training_blocks(runs: Sequence[RunInput]) -> list[Block]:
    """Loss and validation return by training step."""
    loss = _lines(runs, "train/loss")
    validation = _lines(runs, "validation/return")
    if len(runs) == 1:
        validation = [("mean", *line[1:]) for line in validation] + _episode_lines(runs[0])
    panels = []
    if loss:
        panels.append(("Training loss", "loss in nats", loss))
    if validation:
        panels.append(("Return on validation tasks", "return", validation))
    if not panels:
        return [Text("metrics.csv holds neither losses nor validation returns.")]
    words = [
        f"{title} {label}: from {number(v[0])} to {number(v[-1])}"
        for title, _, lines in panels
        for label, _, v, _ in lines
    ]
    caption = "The checkpoint with the highest mean validation return is the one evaluated."
    return [Picture("training.png", to_png(training_figure(panels)), f"Training curves. {'; '.join(words)}.", caption)]


def cost_blocks(runs: Sequence[RunInput]) -> list[Block]:
    """Times and speeds, one column per run."""
    columns = [_costs(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    body = tuple((name, *(column.get(name, NONE) for column in columns)) for name in names)
    blocks: list[Block] = [Table(("cost", *(run.label for run in runs)), body, "What the runs cost")]
    speeds = tuple(
        (f"{run.label}: {name}" if len(runs) > 1 else name, r["mode"], str(r["episodes"]), seconds(a["seconds"]), per_second(a["steps_per_second"]))
        for run in runs
        for evaluation in run.evaluations
        for r in [evaluation.record]
        for name, a in r["agents"].items()
    )  # fmt: skip
    header = ("row", "mode", "episodes", "time", "environment steps/s")
    return [*blocks, Details("Time of each evaluation", [Table(header, speeds)])]


def seconds(value: float) -> str:
    """``4 min 12 s``; below ten seconds with a decimal."""
    if value < 10:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if n)


def per_second(value: float) -> str:
    """A speed with three significant digits and thousands apart."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _costs(run: RunInput) -> dict[str, str]:
    costs = {}
    collected = run.dataset.get("about", {}).get("seconds_of_last_run")
    if collected is not None:
        costs["collection"] = seconds(float(collected))
        transitions = run.dataset.get("counts", {}).get("transitions")
        if transitions:
            costs["transitions collected"] = f"{transitions:,}"
    if "seconds_trained" in run.about:
        costs["training"] = seconds(float(run.about["seconds_trained"]))
    costs["training steps"] = f"{run.about.get('steps_trained', run.recipe.train.steps):,}"
    for tag, name, show in (
        ("speed/steps_per_second", "training steps/s (median)", per_second),
        ("speed/tokens_per_second", "training tokens/s (median)", per_second),
        ("speed/flop_utilisation", "share of the matrix rate (median)", lambda x: f"{100 * x:.1f} %"),
        ("memory/peak", "peak memory", lambda x: f"{x:.2f} GB"),
    ):
        if tag in run.metrics:
            values = run.metrics[tag][1]
            costs[name] = show(float(np.max(values) if tag == "memory/peak" else np.median(values)))
    if "validation/seconds" in run.metrics:
        costs["validation, all roll-outs"] = seconds(float(run.metrics["validation/seconds"][1].sum()))
    costs["evaluation, all rows"] = seconds(
        sum(a["seconds"] for e in run.evaluations for a in e.record["agents"].values())
    )
    return costs


def _lines(runs: Sequence[RunInput], tag: str) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
    """One line per run that logged the tag."""
    return [
        (run.label, *run.metrics[tag], AGENT_COLORS[index % len(AGENT_COLORS)])
        for index, run in enumerate(runs)
        if tag in run.metrics
    ]


def _episode_lines(run: RunInput) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
    """Validation return of single episodes, at most five of them."""
    tags = [tag for tag in run.metrics if tag.startswith("validation/episode_")][:5]
    return [
        (f"episode {int(tag.rpartition('_')[2])}", *run.metrics[tag], BASELINE_COLORS[i]) for i, tag in enumerate(tags)
    ]
