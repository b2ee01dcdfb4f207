"""Writing a dataset folder so that a kill at any instant loses and repeats nothing.

``plan.json`` says what will be written. A shard is written in a temporary folder, flushed to disk and renamed, so it is
either complete or invisible. ``manifest.json`` comes last and takes the plan's place. The dataset's hash covers content
only: everything of the manifest but ``about`` (times, workers, versions).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from icrl.data.schema import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_COLUMNS,
    OPTIONAL_COLUMNS,
    History,
    final_columns,
    pack_histories,
    smallest_integer,
    spec_from_json,
    spec_to_json,
    transition_columns,
)
from icrl.interfaces import Array, FamilySpec, Split, UserError

_TEMPORARY = ".tmp-"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest's canonical part, which holds the hash of every data file."""
    canonical = {key: value for key, value in manifest.items() if key not in ("about", "dataset_hash")}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def shard_folder(path: Path, index: int) -> Path:
    return path / "shards" / f"shard-{index:05d}"


def make_plan(
    spec: FamilySpec, split: Split, *, family: Mapping[str, Any], collect: Mapping[str, Any], seed: int, columns: Any
) -> dict[str, Any]:
    """What makes a dataset this one and no other, as plain JSON.

    ``family`` is its name and options, ``collect`` how histories come about (anything but workers), ``columns`` the
    optional columns that are stored.
    """
    plan = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "family": dict(family),
        "spec": spec_to_json(spec),
        "seed": int(seed),
        "collect": dict(collect),
        "columns": sorted(columns),
        "split": {name: _describe_tasks(name, tasks) for name, tasks in split._asdict().items()},
    }
    return json.loads(json.dumps(plan))


def _describe_tasks(name: str, tasks: Array) -> dict[str, Any]:
    if tasks.dtype.names is None or tasks.dtype.hasobject:
        raise UserError(
            f"the {name} tasks have dtype {tasks.dtype}, expected a structured array without objects: "
            "give every task field a number or fixed-length text dtype"
        )
    content = hashlib.sha256(repr(tasks.dtype.descr).encode() + np.ascontiguousarray(tasks).tobytes())
    return {"tasks": len(tasks), "content": content.hexdigest()}


@contextmanager
def writing(path: Path, plan: dict[str, Any], split: Split) -> Iterator[None]:
    """Begin or go on writing the dataset ``plan`` in the folder ``path``, alone.

    Raises UserError, and touches nothing, where the folder holds another dataset or something else, or where another
    process is writing it.
    """
    _refuse_foreign(path, plan)
    (path / "shards").mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path} is being written by another process: wait for it or choose another --out"
            ) from None
        _sweep(path)
        if (path / "manifest.json").exists():
            (path / "plan.json").unlink(missing_ok=True)  # killed just before it did
        else:
            with _disk_full(path):
                write_json(path / "plan.json", plan)
                for name, tasks in split._asdict().items():
                    _replace(path / f"tasks-{name}.npy", lambda file, tasks=tasks: _write_npy(file, tasks))
        yield
    finally:
        os.close(folder)


def finished_shards(path: Path) -> list[int]:
    """Numbers of the complete shards. Raises UserError where one of their files was damaged since."""
    numbers = []
    for folder in sorted((path / "shards").glob("shard-*")):
        described = json.loads((folder / "shard.json").read_text())
        for name, file in described["files"].items():
            if not (folder / name).exists() or sha256(folder / name) != file["sha256"]:
                raise UserError(
                    f"{folder / name} is damaged: delete the folder {folder} and run the same command again"
                )
        numbers.append(int(folder.name.removeprefix("shard-")))
    return numbers


def write_shard(
    path: Path, index: int, columns: dict[str, Array] | None, failed: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write one shard of a begun dataset; it appears complete or not at all.

    ``columns``: every transition column (N, ...), every final column (E, ...), ``episode_offset`` (E + 1,) the first
    transition of each episode, ``history_offset`` (H + 1,) the first episode of each history, ``task`` and ``source``
    (H,); None for a shard without a history. ``failed`` describes histories that ended early, as plain JSON. Raises UserError for bad
    content, naming history and step, and when the disk is full.
    """
    plan = json.loads((path / "plan.json").read_text())
    columns = _empty(plan) if columns is None else _checked(plan, index, columns)
    final = shard_folder(path, index)
    temporary = final.with_name(f"{_TEMPORARY}{final.name}-{os.getpid()}")
    try:
        with _disk_full(path):
            temporary.mkdir()
            files = {}
            for name, array in columns.items():
                with open(temporary / f"{name}.npy", "xb") as file:
                    _write_npy(file, array)
                    _flush(file)
                size = (temporary / f"{name}.npy").stat().st_size
                files[f"{name}.npy"] = {"bytes": size, "sha256": sha256(temporary / f"{name}.npy")}
            counts = {"histories": len(columns["task"]), "episodes": int(columns["history_offset"][-1])}
            counts["transitions"] = int(columns["episode_offset"][-1])
            failures = {"failed": [dict(failure) for failure in failed]} if failed else {}
            write_json(temporary / "shard.json", {**counts, "files": files, **failures})
            os.rename(temporary, final)
            _flush_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish(path: Path, num_shards: int, about: Mapping[str, Any]) -> None:
    """Write the manifest over ``num_shards`` complete shards; the dataset is then complete.

    What failed goes to ``about``, because a reason may name an address or a path. Raises UserError where there is no history at all.
    """
    manifest = json.loads((path / "plan.json").read_text())
    shards = [json.loads((shard_folder(path, i) / "shard.json").read_text()) for i in range(num_shards)]
    failed = [failure for shard in shards for failure in shard.pop("failed", [])]
    manifest["shards"] = shards
    manifest["counts"] = {key: sum(s[key] for s in shards) for key in ("histories", "episodes", "transitions")}
    if manifest["counts"]["histories"] == 0:
        raise UserError(f"no history has a single step; the first one's environment {failed[0]['reason']}: repair it")
    for name, described in manifest["split"].items():
        described["sha256"] = sha256(path / f"tasks-{name}.npy")
    manifest["dataset_hash"] = dataset_hash(manifest)
    manifest["about"] = {**about, **({"failed": failed} if failed else {})}
    with _disk_full(path):
        write_json(path / "manifest.json", manifest)
    (path / "plan.json").unlink()


def write_histories(
    path: str | Path,
    spec: FamilySpec,
    split: Split,
    histories: Sequence[History],
    *,
    family: Mapping[str, Any] | None = None,
    sources: Sequence[str] = ("recorded",),
    shard_histories: int = 64,
) -> None:
    """A whole dataset out of histories in memory: recorded in a loop of one's own, or read from elsewhere.

    ``split`` holds the tasks; a history's ``task`` is an index into ``split.train``, its ``source`` one into ``sources``.
    ``family`` is {"name": ..., "options": {...}} of the family that they were left in, which training looks for (default: the spec's
    name). Raises UserError for a folder that holds something, histories that differ in their optional columns, an episode longer than
    the spec's horizon, or a value that does not fit its space.
    """
    path = Path(path)
    optional = _check_histories(path, spec, histories, len(sources))
    described = {"name": spec.name, "options": {}, **(family or {})}
    collect = {"sources": [{"name": name} for name in sources], "shard_histories": shard_histories}
    plan = make_plan(spec, split, family=described, collect=collect, seed=0, columns=optional)
    starts = range(0, len(histories), shard_histories)
    with writing(path, plan, split):
        for index, start in enumerate(starts):
            write_shard(path, index, pack_histories(spec, histories[start : start + shard_histories], start))
        finish(path, len(starts), {})


def _check_histories(path: Path, spec: FamilySpec, histories: Sequence[History], num_sources: int) -> list[str]:
    """The optional columns that all histories have."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} already holds something: choose another folder or delete it")
    if not histories:
        raise UserError("no histories were given: give at least one")
    optional = [[name for name in OPTIONAL_COLUMNS if getattr(history, name) is not None] for history in histories]
    for number, (history, names) in enumerate(zip(histories, optional, strict=True)):
        longest = int(np.diff(history.episode_offset).max())
        if longest > spec.horizon:
            raise UserError(
                f"history {number} has an episode of {longest} steps, the horizon is {spec.horizon}: correct it"
            )
        if names != optional[0]:
            raise UserError(f"history {number} has {names}, history 0 has {optional[0]}: give all the same columns")
        if not 0 <= history.source < num_sources:
            raise UserError(
                f"history {number} is of source {history.source}, there are {num_sources}: name all sources"
            )
    return optional[0]


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that the file is old or new, never half."""
    _replace(path, lambda file: file.write(json.dumps(data, indent=1).encode()))


# --- the folder --------------------------------------------------------------------------------------------------


def _refuse_foreign(path: Path, plan: dict[str, Any]) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, expected a folder for the dataset: choose another --out")
    if not path.exists() or all(
        entry.name.startswith(_TEMPORARY) or entry.name == "shards" for entry in path.iterdir()
    ):
        if any((path / "shards").glob("*")):
            raise UserError(f"{path}/shards already holds something else than a dataset: choose another --out")
        return
    known = [path / name for name in ("manifest.json", "plan.json") if (path / name).exists()]
    if not known:
        raise UserError(f"{path} already holds something else than a dataset: choose another --out or empty it")
    try:
        there = json.loads(known[0].read_text())
        difference = _difference({key: there.get(key) for key in plan if key != "split"}, plan)
        for name, described in plan["split"].items():
            difference = difference or _difference(
                there["split"][name]["content"], described["content"], f"{name} tasks"
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{known[0]} is damaged: delete {path} or choose another --out") from None
    if difference:
        raise UserError(f"{path} already holds another dataset ({difference}): choose another --out or delete it")


def _difference(there: Any, asked: Any, name: str = "") -> str:
    """The first difference of two JSON values in words, empty if there is none."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in there:
            if key in asked:
                found = _difference(there[key], asked[key], f"{name}.{key}".lstrip("."))
                if found:
                    return found
        if name and there.keys() != asked.keys():
            return f"{name}: {_short(there)} there, {_short(asked)} asked"
        return ""
    return "" if there == asked else f"{name}: {_short(there)} there, {_short(asked)} asked"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sweep(path: Path) -> None:
    """Remove what a killed run left. Renamed first: its orphaned worker can then no longer publish a half-swept shard."""
    for number, stale in enumerate([*path.glob(f"{_TEMPORARY}*"), *(path / "shards").glob(f"{_TEMPORARY}*")]):
        trash = path / f"{_TEMPORARY}trash-{os.getpid()}-{number}"
        os.rename(stale, trash)
        shutil.rmtree(trash) if trash.is_dir() else trash.unlink()


# --- bytes -------------------------------------------------------------------------------------------------------


def _checked(plan: dict[str, Any], index: int, columns: dict[str, Array]) -> dict[str, Array]:
    """The shard's columns in storage dtypes, after every check of the content."""
    spec = spec_from_json(plan["spec"])
    per_transition = transition_columns(spec, plan["columns"])
    expected = {**per_transition, **final_columns(spec)}
    if columns.keys() != {*expected, *INDEX_COLUMNS}:
        wrong = sorted(columns.keys() ^ {*expected, *INDEX_COLUMNS})
        raise UserError(f"shard {index} lacks or has too many of the columns {wrong}: give every planned one")
    offset, history = (np.asarray(columns[name], np.int64) for name in ("episode_offset", "history_offset"))
    first = index * plan["collect"].get("shard_histories", 0)

    def where(transition: int) -> str:
        number = int(np.searchsorted(offset[history], transition, side="right")) - 1
        return f"history {first + number}, step {transition - int(offset[history[number]])}"

    lengths_fit = all(
        len(columns[name]) == (offset[-1] if name in per_transition else history[-1]) for name in expected
    )
    rising = offset[0] == 0 and history[0] == 0 and (np.diff(offset) > 0).all() and (np.diff(history) > 0).all()
    if not (lengths_fit and rising and history[-1] == len(offset) - 1 and len(columns["task"]) == len(history) - 1):
        raise UserError(f"the columns of shard {index} do not fit together: check episode and history offsets")
    ended = np.asarray(columns["terminated"], bool) | np.asarray(columns["truncated"], bool)
    marks = np.zeros(len(ended), bool)
    marks[offset[1:] - 1] = True
    last = offset[history[1:]] - 1  # (H,) the only transitions that may end an episode without a flag
    wrong = ended != marks
    wrong[last] = False
    if wrong.any():
        raise UserError(f"the flags at {where(int(wrong.argmax()))} contradict the episode offsets: mark every end")
    checked = {name: column.cast(columns[name], where) for name, column in expected.items()}
    if plan["split"]["train"]["tasks"] <= np.max(columns["task"]):
        raise UserError(
            f"shard {index} names task {np.max(columns['task'])}: there are {plan['split']['train']['tasks']}"
        )
    return checked | {name: _smallest(columns[name]) for name in INDEX_COLUMNS}


def _empty(plan: dict[str, Any]) -> dict[str, Array]:
    """The columns of no history."""
    spec = spec_from_json(plan["spec"])
    expected = {**transition_columns(spec, plan["columns"]), **final_columns(spec)}
    columns = {name: np.empty((0, *column.shape), column.dtype) for name, column in expected.items()}
    offsets = {name: np.zeros(1, np.uint8) for name in ("episode_offset", "history_offset")}
    return columns | offsets | {name: np.zeros(0, np.uint8) for name in ("task", "source")}


def _smallest(values: Array) -> Array:
    return np.asarray(values).astype(smallest_integer(0, int(np.max(values))))


def _write_npy(file: BinaryIO, array: Array) -> None:
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.tobytes())


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            _flush(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _disk_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {path} is full; finished shards are kept: free some space and run the same command again"
        ) from None
