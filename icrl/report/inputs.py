"""What a report reads: a finished run folder, every file checked before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icrl.config import Recipe
from icrl.evaluation_json import FORMAT_VERSION, SCHEMA, Artefacts, load_artefacts
from icrl.files import DAMAGED_NPZ
from icrl.interfaces import UserError
from icrl.monitor import read_metrics
from icrl.probe_json import Probe, probe_from_json
from icrl.recipe_json import recipe_from_json


@dataclass(frozen=True)
class EvaluationInput:
    """One entry of evaluation.json with the arrays beside it."""

    record: dict[str, Any]  # as icrl.evaluation_json.SCHEMA says
    artefacts: Artefacts | None  # None where the run keeps no arrays of it


@dataclass(frozen=True)
class RunInput:
    """A finished run."""

    label: str
    """Its name in legends and tables."""
    path: Path
    recipe: Recipe
    about: dict[str, Any]
    """run.json: command, versions, machine, seed, dataset hash, times."""
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    """Tag -> steps (n,), values (n,)."""
    evaluations: tuple[EvaluationInput, ...]
    dataset: dict[str, Any]
    """The dataset's manifest, empty where the dataset lies outside the run folder."""
    probe: Probe | None
    """What `icrl probe` found, None where nobody asked."""


def read_runs(paths: Sequence[Path]) -> list[RunInput]:
    """Read finished runs; labels are folder names, with the parent's name where two are equal. Raises UserError."""
    if not paths:
        raise UserError("a report needs at least one run folder: icrl report RUN --out DIR")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UserError(f"the same run is given twice among {', '.join(map(str, paths))}: name each run once")
    names = [path.name for path in resolved]
    labels = [f"{p.parent.name}/{p.name}" if names.count(p.name) > 1 else p.name for p in resolved]
    return [read_run_input(path, label) for path, label in zip(paths, labels, strict=True)]


def read_run_input(run: Path, label: str) -> RunInput:
    """Read and check one run folder. Raises UserError that names the missing file and the command that makes it."""
    if not run.is_dir():
        raise UserError(f"{run} is not a folder: expected a run, made by `icrl run RECIPE --out {run}`")
    recipe = recipe_from_json(
        _read_json(run / "recipe.json", f"icrl run RECIPE --out {run}", dict), f"{run / 'recipe.json'}: recipe"
    )
    about = _read_json(run / "run.json", f"icrl run {recipe.name} --out {run}", dict)
    resume = about.get("command", f"icrl run {recipe.name} --out {run}")
    if not about.get("finished"):
        done = about.get("steps_trained", 0)
        raise UserError(
            f"{run}: training is unfinished ({done} of {recipe.train.steps} steps): finish it with `{resume}`"
        )
    metrics_file = _existing(run / "metrics.csv", resume)
    records = _read_json(run / "evaluation.json", f"icrl evaluate {run}", list)
    if not records:
        raise UserError(f"{run / 'evaluation.json'} holds no evaluation: make one with `icrl evaluate {run}`")
    evaluations = tuple(_evaluation(run, index, record) for index, record in enumerate(records))
    manifest = run / "data" / "manifest.json"
    dataset = _read_json(manifest, resume, dict) if manifest.exists() else {}
    return RunInput(label, run, recipe, about, read_metrics(metrics_file), evaluations, dataset, _probe(run))


def _probe(run: Path) -> Probe | None:
    """RUN/probe.json, None if there is none."""
    file, command = run / "probe.json", f"icrl probe {run}"
    if not file.exists():
        return None
    return probe_from_json(_read_json(file, command, dict), str(file), f"make it again with `{command}`")


def _evaluation(run: Path, index: int, record: Any) -> EvaluationInput:
    """Check an entry of evaluation.json against the schema's keys and read its arrays."""
    where, again = f"{run / 'evaluation.json'}, entry {index}", f"make it again with `icrl evaluate {run}`"
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{where}: format version {version!r}, expected {FORMAT_VERSION}: {again}")
    missing = [key for key in SCHEMA["required"] if key not in record]
    if missing:
        raise UserError(f"{where}: lacks {missing[0]}: {again}")
    arrays = run / f"evaluation-{index}.npz"
    if not arrays.exists():
        return EvaluationInput(record, None)
    try:
        return EvaluationInput(record, load_artefacts(arrays))
    except DAMAGED_NPZ as error:
        raise UserError(f"{arrays} cannot be read ({error}): {again}") from None


def _existing(file: Path, command: str) -> Path:
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}: make it with `{command}`")
    return file


def _read_json(file: Path, command: str, kind: type) -> Any:
    """The parsed file, which must hold a ``kind``."""
    try:
        data = json.loads(_existing(file, command).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): make it again with `{command}`") from None
    if not isinstance(data, kind):
        raise UserError(
            f"{file} holds a {type(data).__name__}, expected a {kind.__name__}: make it again with `{command}`"
        )
    return data
