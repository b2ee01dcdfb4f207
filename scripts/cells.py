"""A *cell*: what a finished run scored, as one small JSON file under results/ that is committed, so that nothing is run twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icrl.interfaces import Array
from icrl.recipes import RECIPES
from scripts.records import records_of, write_json

Cell = Mapping[str, Any]


def write_cell(results: Path, name: str, run: Path) -> None:
    """Put a finished run's cell, and for the quickstart its main figure, into the folder of results."""
    write_json(results / f"{name}.json", make_cell(run), indent=None)
    figures = sorted((run / "report").glob("return-2-*.png"))
    if name == "quickstart" and figures:
        shutil.copyfile(figures[0], results / "quickstart.png")


def make_cell(run: Path) -> dict[str, Any]:
    """What is kept of a finished run: recipe, data, versions, machine, times, and of every evaluation its record and scores per task."""
    from icrl.checkpoint import read_json
    from icrl.evaluation_json import load_artefacts

    about = read_json(run / "run.json")
    evaluations = []
    for index, record in enumerate(records_of(run)):
        tasks, lane_task, agents = load_artefacts(run / f"evaluation-{index}.npz")
        scores = {name: _scores(arrays["returns"], lane_task, len(tasks)) for name, arrays in agents.items()}
        evaluations.append({"record": record, "scores": scores})
    kept = ("dataset_hash", "versions", "machine", "device", "threads", "started", "seconds_trained", "seconds")
    return {
        "recipe": read_json(run / "recipe.json"),
        **{key: about[key] for key in kept if key in about},
        "evaluations": evaluations,
    }


def _scores(returns: Array, lane_task: Array, num_tasks: int) -> dict[str, list[list[float]]]:
    """Returns (S, L, E) -> means per evaluation seed and task (S, N) over lanes, of all, the first ten, the late and the last episodes, to four digits."""
    from icrl.metrics import late

    episodes = {
        "all": returns.mean(2),
        "first": returns[..., :10].mean(2),
        "late": returns[..., late(returns.shape[2])].mean(2),
        "last": returns[..., -1],
    }
    return {
        which: [[float(f"{seed[lane_task == n].mean():.4g}") for n in range(num_tasks)] for seed in per_lane]
        for which, per_lane in episodes.items()
    }


def scores(cell: Cell, which: str, row: str = "agent") -> Array:
    """(N,) a row's score on each task of the cell's first evaluation, over its seeds; ``which`` episodes: all, first, late or last."""
    return np.mean(cell["evaluations"][0]["scores"][row][which], axis=0)


def mean(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """``43.7 [32.0, 56.3]``."""
    low, high = estimate["over_tasks"]
    return f"{estimate['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def read_ablations(results: Path) -> list[dict[str, Any]]:
    """The tables that ``icrl ablate RECIPE --json results/ablations-RECIPE.json`` left, by the name of their recipe."""
    return [json.loads(file.read_text()) for file in sorted(results.glob("ablations-*.json"))]


def read_cells(results: Path) -> dict[str, Cell]:
    """The finished cells by recipe and training seed, in the order of the recipes."""
    order = list(RECIPES)
    files = [file for file in results.glob("*.json") if file.stem.partition("@")[0] in order]
    files.sort(key=lambda file: (order.index(file.stem.partition("@")[0]), file.stem))
    return {file.stem: {"name": file.stem, **json.loads(file.read_text())} for file in files}
