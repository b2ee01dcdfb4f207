"""A dataset of histories on disk, opened read-only: verified once, then memory-mapped column by column on demand.

Nothing grows with the number of transitions but the page cache: what is kept in memory is a few numbers per history.
No file is ever unpickled.
"""

from __future__ import annotations

import json
import resource
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from icrl.data import schema, writer
from icrl.data.schema import FORMAT, FORMAT_VERSION, INDEX_COLUMNS, History
from icrl.interfaces import Array, FamilySpec, Split, Tasks, UserError

_BAR_BYTES = 2_000_000_000
_MOST_MAPS = 8192
"""Files kept mapped at a time, at most half the file descriptors that the process may have: each costs one."""


class HistoryStore:
    """Histories of the training tasks of a family, and the tasks of its three splits. Build with ``open``.

    Attributes: ``path``; ``manifest`` (plain JSON); ``dataset_hash``; ``spec``; ``split``; ``num_histories``,
    ``num_episodes``, ``num_transitions``; ``optional`` names of the optional columns; ``task`` (H,) index into
    ``split.train`` and ``source`` (H,) index into ``manifest["collect"]["sources"]`` of every history; ``scattered`` (H,) bool:
    single transitions from uniformly drawn states, which have no order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], split: Split):
        self.path = path
        self.manifest = manifest
        self.split = split
        self.spec: FamilySpec = schema.spec_from_json(manifest["spec"])
        self.dataset_hash: str = manifest["dataset_hash"]
        self.optional: tuple[str, ...] = tuple(manifest["columns"])
        counts = manifest["counts"]
        self.num_histories, self.num_episodes, self.num_transitions = (
            int(counts[key]) for key in ("histories", "episodes", "transitions")
        )
        self.columns = schema.transition_columns(self.spec, self.optional)
        self._columns = {**self.columns, **schema.final_columns(self.spec)}
        self._maps: OrderedDict[tuple[int, str], Array] = OrderedDict()
        self._headers: dict[tuple[int, str], tuple[np.dtype, tuple[int, ...], int]] = {}  # dtype, shape, offset
        self._most_maps = min(_MOST_MAPS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        sizes = [shard["histories"] for shard in manifest["shards"]]
        self._first = np.cumsum([0, *sizes])  # (S + 1,) number of each shard's first history
        shards = range(len(sizes))
        self.task = np.concatenate([np.array(self.column(s, "task"), np.int64) for s in shards])  # (H,)
        self.source = np.concatenate([np.array(self.column(s, "source"), np.int64) for s in shards])  # (H,)
        sources = manifest["collect"].get("sources", [])
        flags = np.array([bool(source.get("scattered")) for source in sources])
        self.scattered = flags[self.source] if len(flags) else np.zeros(len(self.source), bool)
        offsets = [np.array(self.column(s, "history_offset"), np.int64) for s in shards]
        self._episodes = np.concatenate(
            [np.stack([o[:-1], o[1:]], 1) for o in offsets]
        )  # (H, 2) first and end in shard

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> HistoryStore:
        """Open a finished dataset. ``verify`` reads every byte once and compares it with the manifest's hashes.

        Raises UserError, in one line naming the file, where the folder is no finished dataset, was written in another
        version, or a file of it is missing, truncated, changed, or holds rewards that are not finite.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            files = _data_files(path, manifest)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path / 'manifest.json'} is damaged: copy or collect the dataset again") from None
        for file, size, _ in files:
            _check_size(file, size)
        if verify:
            _check_hashes(files)
        split = Split(*(_load_npy(path / f"tasks-{name}.npy") for name in Split._fields))
        store = cls(path, manifest, split)
        if verify:
            store._check_rewards()
        return store

    def __repr__(self) -> str:
        return (
            f"HistoryStore({self.spec.name}: {self.num_histories} histories, {self.num_episodes} episodes, "
            f"{self.num_transitions} transitions, {self.dataset_hash[:12]})"
        )

    @property
    def num_shards(self) -> int:
        return len(self._first) - 1

    def column(self, shard: int, name: str) -> Array:
        """One column of one shard, read-only: mapped at first use, unmapped when many others were used since."""
        key = (shard, name)
        array = self._maps.get(key)
        if array is None:
            array = self._maps[key] = self._map(key)
            if len(self._maps) > self._most_maps:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(key)
        return array

    def _map(self, key: tuple[int, str]) -> Array:
        """Map a file, reading its header only the first time."""
        shard, name = key
        file = writer.shard_folder(self.path, shard) / f"{name}.npy"
        if key in self._headers:
            dtype, shape, offset = self._headers[key]
            return np.asarray(np.memmap(file, dtype, "r", offset, shape))
        array = _load_npy(file, mmap=True)
        column = self._columns.get(name)
        if column is not None and (array.dtype != column.dtype or array.shape[1:] != column.shape):
            raise UserError(
                f"{file} holds {array.dtype}{array.shape[1:]}, expected {column.dtype}{column.shape}: "
                "copy or collect the dataset again"
            )
        self._headers[key] = (array.dtype, array.shape, array.offset)
        return np.asarray(array)

    def locate(self, history: int) -> tuple[int, int, int]:
        """Where a history lies: its shard, and its first and past-the-end episode in that shard."""
        if not 0 <= history < self.num_histories:
            raise UserError(f"history {history} was asked for, expected 0 to {self.num_histories - 1}")
        shard = int(np.searchsorted(self._first, history, side="right")) - 1
        first, end = self._episodes[history].tolist()
        return shard, first, end

    def history(self, history: int) -> History:
        """One whole history; its arrays are read-only views of the files."""
        shard, first, end = self.locate(history)
        offset = self.column(shard, "episode_offset")[first : end + 1].astype(np.int64)
        rows = slice(int(offset[0]), int(offset[-1]))
        space = self.spec.observation_space
        return History(
            observation=schema.unflatten(space, "observation", lambda name: self.column(shard, name)[rows]),
            final_observation=schema.unflatten(
                space, "final_observation", lambda name: self.column(shard, name)[first:end]
            ),
            episode_offset=offset - offset[0],
            task=int(self.task[history]),
            source=int(self.source[history]),
            **{name: self.column(shard, name)[rows] for name in ("action", "reward", "terminated", "truncated")},
            **{name: self.column(shard, name)[rows] for name in self.optional},
        )

    def steps(self, name: str, histories: Array, steps: Array) -> Array:
        """(n, M, ...) a column's entries at some steps (n, M) of some histories (n,)."""
        column = self.columns[name]
        taken = np.empty((*steps.shape, *column.shape), column.dtype)
        shards = np.searchsorted(self._first, histories, side="right") - 1
        rows = self._begins[histories][:, None] + steps
        for shard in np.unique(shards).tolist():
            here = shards == shard
            taken[here] = self.column(shard, name)[rows[here]]
        return taken

    @cached_property
    def _begins(self) -> Array:
        """(H,) the first transition of each history in its shard."""
        places = map(self.locate, range(self.num_histories))
        return np.array([self.column(shard, "episode_offset")[first] for shard, first, _ in places], np.int64)

    def tasks_of(self, histories: int | Array) -> Tasks:
        """The task records of histories: () for an int, (n,) for an array of them."""
        return self.split.train[self.task[histories]]

    def _check_rewards(self) -> None:
        for shard in range(self.num_shards):
            reward = self.column(shard, "reward")
            for start in range(0, len(reward), 1 << 22):
                if not np.isfinite(reward[start : start + (1 << 22)]).all():
                    file = writer.shard_folder(self.path, shard) / "reward.npy"
                    raise UserError(f"{file} holds a reward that is not finite: repair the family and collect again")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.exists():
        if (path / "plan.json").exists():
            raise UserError(f"{path} is an unfinished collection: run the same collect command again to finish it")
        raise UserError(f"{file} is missing, so {path} is no dataset: give the folder that `icrl collect --out` wrote")
    try:
        manifest = json.loads(file.read_text())
        kind, version, stated = manifest["format"], manifest["version"], manifest["dataset_hash"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: copy or collect the dataset again") from None
    if kind != FORMAT or version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format {kind} version {version}, expected {FORMAT} version {FORMAT_VERSION}: "
            "open it with the icrl that wrote it or collect it again"
        )
    if stated != writer.dataset_hash(manifest):
        raise UserError(f"{file} was changed since it was written: copy or collect the dataset again")
    return manifest


def _data_files(path: Path, manifest: dict[str, Any]) -> list[tuple[Path, int | None, str]]:
    """Every data file that the manifest promises: path, size in bytes where it is stated, hash."""
    spec = schema.spec_from_json(manifest["spec"])
    columns = {**schema.transition_columns(spec, manifest["columns"]), **schema.final_columns(spec)}
    files: list[tuple[Path, int | None, str]] = [
        (path / f"tasks-{name}.npy", None, manifest["split"][name]["sha256"]) for name in Split._fields
    ]
    for index, shard in enumerate(manifest["shards"]):
        for name in (*columns, *INDEX_COLUMNS):
            described = shard["files"][f"{name}.npy"]
            file = writer.shard_folder(path, index) / f"{name}.npy"
            files.append((file, int(described["bytes"]), described["sha256"]))
    return files


def _check_size(file: Path, size: int | None) -> None:
    if not file.exists():
        raise UserError(f"{file} is missing: copy or collect the dataset again")
    there = file.stat().st_size
    if size is not None and there != size:
        raise UserError(f"{file} has {there} bytes, expected {size} (truncated?): copy or collect the dataset again")


def _check_hashes(files: list[tuple[Path, int | None, str]]) -> None:
    total = sum(size or 0 for _, size, _ in files)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=total < _BAR_BYTES) as bar:
        for file, size, expected in files:
            if writer.sha256(file) != expected:
                raise UserError(f"{file} was changed or damaged: copy or collect the dataset again")
            bar.update(size or 0)


def _load_npy(file: Path, mmap: bool = False) -> Any:
    """The array of a file, never unpickled; a read-only ``numpy.memmap`` if asked."""
    try:
        return np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy or collect the dataset again") from None
