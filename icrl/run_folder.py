"""The run folder: who may write into it, and its two records, recipe.json (what) and run.json (with what, when, how long).

A folder belongs to one recipe and one dataset. Going on in it needs both unchanged; everything else is refused before
anything is written. The records name no host and no path of the machine.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from icrl.config import Recipe
from icrl.files import json_bytes, read_json, replace_file
from icrl.interfaces import UserError
from icrl.recipe_json import differing_fields, recipe_from_json, recipe_to_json

OUR_NAMES = (
    "recipe.json",
    "run.json",
    "data",
    "metrics.csv",
    "tensorboard",
    "checkpoints",
    "encoder",
    "rl2",
    "evaluation.json",
    "evaluation-*.npz",
    "report",
    ".report.*",  # a report that is being replaced
    ".*.partial",  # a file that is being written
)
"""Patterns of everything that a run folder may hold at its top."""
FREE_FIELDS = ("name", "description", "evaluations", "collect.workers", "rl2")
"""Fields of a recipe that change nothing in the policy's training: they may differ when it goes on."""


def check(run: Path, recipe: Recipe) -> None:
    """UserError if the folder holds anything but a run of this recipe. Nothing is written."""
    run = Path(run)
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file, expected a folder for the run: choose another --out")
    if (run / "recipe.json").exists():
        _check_recipe(run / "recipe.json", recipe)
    elif run.exists():
        foreign = sorted(p.name for p in run.iterdir() if not any(fnmatchcase(p.name, ours) for ours in OUR_NAMES))
        if foreign:
            raise UserError(f"{run}: already holds something else ({foreign[0]}): choose another or an empty --out")


def claim(run: Path, recipe: Recipe, dataset_hash: str | None = None) -> None:
    """Make the folder this run's, or check that it already is. UserError if it holds anything else.

    recipe.json follows ``recipe`` where only ``FREE_FIELDS`` differ.
    """
    run = Path(run)
    check(run, recipe)
    known = read_run(run).get("dataset_hash")
    if dataset_hash is not None and known is not None and known != dataset_hash:
        raise UserError(
            f"{run}: was trained on dataset {str(known)[:12]}, this one is {dataset_hash[:12]}: "
            "use the same --data or another --out"
        )
    file, content = run / "recipe.json", json_bytes(recipe_to_json(recipe))
    if not file.exists() or file.read_bytes() != content:
        run.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Alone in a claimed folder. UserError where another process trains in it."""
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{run}: another process is training in it: wait for it or choose another --out") from None
    finally:
        os.close(folder)


def _check_recipe(file: Path, recipe: Recipe) -> None:
    """UserError where the stored recipe would train something else."""
    known = recipe_from_json(read_json(file), f"{file}: recipe")
    stored = recipe_to_json(known)
    changed = [d for d in differing_fields(stored, recipe_to_json(recipe)) if not d[0].startswith(FREE_FIELDS)]
    if known.validation_rule != recipe.validation_rule:
        changed.append(
            (
                "the action rule on validation tasks (of its first online evaluation)",
                known.validation_rule,
                recipe.validation_rule,
            )
        )
    if changed:
        name, old, new = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{file.parent}: holds a run with {name} = {old}, not {new}{more}: choose another --out to start afresh"
        )


def read_run(run: Path) -> dict[str, Any]:
    """run.json, empty if there is none yet."""
    file = Path(run) / "run.json"
    return read_json(file) if file.exists() else {}


def update_run(run: Path, **values: Any) -> None:
    """Set some entries of run.json, the others stay."""
    replace_file(Path(run) / "run.json", json_bytes({**read_run(run), **values}))


@contextmanager
def timed(run: Path) -> Iterator[None]:
    """Add the time spent inside to ``seconds`` of run.json, whether it ends well or is stopped; a folder that was refused is left alone."""
    started, refused = time.perf_counter(), False
    try:
        yield
    except UserError:
        refused = not (Path(run) / "run.json").exists()
        raise
    finally:
        if Path(run).is_dir() and not refused:
            known = read_run(run)
            seconds = known.get("seconds", 0.0) + time.perf_counter() - started
            trained = known.get("seconds_trained", 0.0)  # counts what was trained before a power cut, too
            update_run(run, seconds=round(max(seconds, trained), 2))


def now() -> str:
    """Time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, with absolute paths cut down to their last part."""

    def shorten(argument: str) -> str:
        option, equals, value = argument.rpartition("=")
        return option + equals + (Path(value).name if os.path.isabs(value) else value)

    return " ".join(map(shorten, sys.argv if arguments is None else arguments))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("icrl", "torch", "numpy", "gymnasium"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_model(), "cores": cores, "os": f"{platform.system()} {platform.release()}"}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
