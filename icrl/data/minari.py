"""Histories as a Minari dataset and back, without loss: a Minari episode for each episode, in order (https://minari.farama.org).

An episode's metadata say which history it belongs to (``history``) and its place there (``episode``); what was played: ``split`` (always
"train": histories are of training tasks), ``task_index`` into it, and the fields of ``task``; and by whom: ``source_index`` and
``source``. Optional columns are under ``infos``, one entry for each step. What belongs to all episodes, the manifest and the tasks of
all splits, lies beside Minari's own files in ``data/icrl``, so that what comes back has the hash of what left.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from icrl.data import schema, writer
from icrl.data.schema import History
from icrl.data.store import HistoryStore
from icrl.files import read_json
from icrl.interfaces import FamilySpec, Observation, Split, UserError, map_observation

_KEYS = ("history", "episode", "split", "task_index", "source_index")
"""What the metadata of every episode must say."""
_MOST_BYTES = 60_000
"""Larger fields of a task are left out of the metadata of episodes: HDF5 takes 64 kB at most. ``task_index`` tells them."""


class Imported(NamedTuple):
    """What came back from a Minari dataset."""

    store: HistoryStore
    identical: bool
    """Every byte is as it was exported."""


def export_minari(data: str | Path, name: str, root: str | Path | None = None, *, progress: bool = True) -> Path:
    """Write the histories in the folder ``data`` as the Minari dataset ``name`` ("group/name-v0"), and return its folder.

    ``root`` is where Minari datasets lie, by default Minari's own place, ``$MINARI_DATASETS_PATH`` or ``~/.minari/datasets``. The dataset
    appears complete or not at all. Raises UserError where Minari is not installed, the name is no Minari name, something lies there
    already, or it cannot be written.
    """
    target = _dataset_folder(name, root)
    if target.exists():
        raise UserError(f"{target} already exists and is not overwritten: choose another name or version")
    store = HistoryStore.open(data)
    aside = target.with_name(f".tmp-{target.name}-{os.getpid()}")  # hidden from Minari
    try:
        aside.mkdir(parents=True)
        _write(store, name, aside / "data", progress)
        os.rename(aside, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}): make room there or choose another place") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def import_minari(name: str, out: str | Path, root: str | Path | None = None, *, progress: bool = True) -> Imported:
    """Write the Minari dataset ``name`` as histories into the folder ``out``; run again, it goes on where it was stopped.

    ``root`` as in ``export_minari``. Raises UserError where Minari is not installed, there is no such dataset, histories cannot have
    its spaces, its episodes do not say which task they play or are out of order, values do not fit, or ``out`` holds something else.
    """
    folder, out = _dataset_folder(name, root), Path(out)
    exported = _Exported(folder, name, progress)
    manifest, split = exported.manifest, exported.split
    plan_keys = ("family", "collect", "seed", "columns")
    plan = writer.make_plan(exported.spec, split, **{key: manifest[key] for key in plan_keys})
    with writer.writing(out, plan, split):
        if not (out / "manifest.json").exists():
            _read(exported, out, progress)
            about = {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "icrl": version("icrl")}
            about |= {"minari": name, **{key: value for key, value in manifest["about"].items() if key == "failed"}}
            writer.finish(out, len(manifest["shards"]), about)
    store = HistoryStore.open(out, verify=False)
    return Imported(store, store.dataset_hash == manifest["dataset_hash"])


def _dataset_folder(name: str, root: str | Path | None) -> Path:
    """Where a Minari dataset lies. Raises UserError where Minari is not installed or the name is no name."""
    try:
        import h5py  # noqa: F401
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(f"Minari datasets need minari and h5py ({error}): pip install icrl[minari]") from None
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):  # the latter where there is no version
        raise UserError(
            f"the Minari name is {name!r}: expected one with a version, like darkroom/ppo-v0, of letters, digits, - and _"
        ) from None
    folder = get_dataset_path(name) if root is None else Path(root) / name
    return folder.absolute()  # Minari loses its way in a relative one


# --- out ---------------------------------------------------------------------------------------------------------


def _write(store: HistoryStore, name: str, folder: Path, progress: bool) -> None:
    """A new Minari dataset in ``folder``."""
    import minari
    from minari.dataset.minari_storage import MinariStorage

    spec, sources = store.spec, _source_names(store.manifest)
    spaces: dict[str, Any] = {"observation_space": spec.observation_space, "action_space": spec.action_space}
    storage = MinariStorage.new(folder, **spaces, data_format="hdf5", jpeg_encoding=False)
    described = {"dataset_id": name, "minari_version": minari.__version__, "algorithm_name": ", ".join(sources)}
    described["description"] = f"Learning histories of the family {spec.name}, in order; see the metadata of episodes."
    storage.update_metadata(described)
    beside = folder / "icrl"
    beside.mkdir()
    for file in ("manifest.json", *(f"tasks-{part}.npy" for part in Split._fields)):
        shutil.copyfile(store.path / file, beside / file)
    first = 0
    with tqdm(total=store.num_episodes, desc="export", unit=" episodes", disable=not progress) as bar:
        for number in range(store.num_histories):
            history = store.history(number)
            ids = range(first, first := first + history.num_episodes)
            storage.update_episodes(_episodes(spec, history))
            storage.update_episode_metadata(_metadata(store, number, history, sources), ids)
            bar.update(history.num_episodes)


def _source_names(manifest: dict[str, Any]) -> list[str]:
    return [source.get("name", "unnamed") for source in manifest["collect"].get("sources", [{}])]


def _episodes(spec: FamilySpec, history: History) -> Iterator[Any]:
    """The episodes of a history in the dtypes of its spaces; observations have one entry more than actions."""
    from minari.data_collector import EpisodeBuffer

    observations = _in_dtype(spec.observation_space, history.observation)
    finals = _in_dtype(spec.observation_space, history.final_observation)
    actions = _in_dtype(spec.action_space, history.action)
    known = {name: getattr(history, name) for name in schema.OPTIONAL_COLUMNS if getattr(history, name) is not None}
    for number, (start, end) in enumerate(pairwise(history.episode_offset.tolist())):
        rows, last = slice(start, end), slice(number, number + 1)

        def joined(observation, final, rows=rows, last=last):
            return np.concatenate([observation[rows], final[last]])

        yield EpisodeBuffer(
            observations=map_observation(joined, observations, finals),
            actions=actions[rows],
            rewards=history.reward[rows],  # type: ignore[arg-type]
            terminations=history.terminated[rows],  # type: ignore[arg-type]
            truncations=history.truncated[rows],  # type: ignore[arg-type]
            infos={name: column[rows] for name, column in known.items()},
        )


def _in_dtype(space: gym.Space, values: Observation) -> Observation:
    """Values of a space as the space declares them, out of the store's smallest dtypes."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _in_dtype(part, values[key]) for key, part in space.spaces.items()}
    return np.asarray(values, space.dtype)


def _metadata(store: HistoryStore, number: int, history: History, sources: list[str]) -> Iterator[dict[str, Any]]:
    """What Minari keeps of each episode beside its steps."""
    task = store.split.train[history.task]
    common = {"history": number, "split": "train", "task_index": history.task, "source_index": history.source}
    common["source"] = sources[history.source]
    fields = {field: task[field] for field in task.dtype.names or () if task[field].nbytes <= _MOST_BYTES}
    common |= {f"task/{field}": _attribute(value) for field, value in fields.items()}
    for episode in range(history.num_episodes):
        yield common | {"episode": episode}


def _attribute(value: Any) -> Any:
    """A value that HDF5 can keep: fixed-length texts as variable ones."""
    import h5py

    return np.asarray(value).astype(h5py.string_dtype()) if value.dtype.kind in "US" else value


# --- back --------------------------------------------------------------------------------------------------------


def _read(exported: _Exported, out: Path, progress: bool) -> None:
    """Write the shards that are not there yet, the same histories in each as there were."""
    sizes = [shard["histories"] for shard in exported.manifest["shards"]]
    firsts, done = np.cumsum([0, *sizes]).tolist(), writer.finished_shards(out)
    initial = sum(sizes[index] for index in done)
    with tqdm(total=sum(sizes), initial=initial, desc="import", unit=" histories", disable=not progress) as bar:
        for index in sorted({*range(len(sizes))} - {*done}):
            first = firsts[index]
            histories = [exported.history(number) for number in range(first, first + sizes[index])]
            columns = schema.pack_histories(exported.spec, histories, first) if histories else None
            writer.write_shard(out, index, columns)
            bar.update(sizes[index])


class _Exported:
    """A Minari dataset that ``export_minari`` wrote: its episodes are in order and say what they play; steps are looked at when they are read.

    Attributes: ``manifest`` and ``split`` of what was exported, and its ``spec``.
    """

    def __init__(self, folder: Path, name: str, progress: bool):
        from minari import MinariDataset

        if not (folder / "data").is_dir():
            raise UserError(f"there is no Minari dataset in {folder}: check the name, and where Minari datasets lie")
        self._name = name
        try:
            dataset = MinariDataset(folder / "data")
        except (ValueError, KeyError, OSError, AssertionError, NotImplementedError) as error:
            raise UserError(f"Minari cannot read {name} ({error}): fetch or export it again") from None
        given = FamilySpec(name, dataset.observation_space, dataset.action_space, 1)
        schema.transition_columns(given)  # raises where histories cannot have such spaces
        self.manifest, self.split = _beside(folder / "data" / "icrl", name)
        self.spec = schema.spec_from_json(self.manifest["spec"])
        for kind, space in (("observation", dataset.observation_space), ("action", dataset.action_space)):
            if schema.space_to_json(space) != self.manifest["spec"][f"{kind}_space"]:
                raise UserError(f"{name} has the {kind} space {space}, another was exported: export it again")
        self._storage = dataset.storage
        self._first: list[int] = []  # (H + 1,) each history's first episode
        self._task: list[int] = []  # (H,)
        self._source: list[int] = []  # (H,)
        metadata = self._storage.get_episode_metadata(range(dataset.total_episodes))
        bar = tqdm(metadata, total=dataset.total_episodes, desc="check", unit=" episodes", disable=not progress)
        for number, found in enumerate(bar):
            self._place(number, found)
        self._first.append(dataset.total_episodes)
        num_histories = self.manifest["counts"]["histories"]
        if len(self._task) != num_histories:
            raise UserError(f"{name} has {len(self._task)} histories, {num_histories} were exported: export it again")

    def _place(self, number: int, found: dict[str, Any]) -> None:
        """Take in what the metadata say of episode ``number``."""
        who = f"episode {number} of {self._name}"
        missing = [key for key in _KEYS if key not in found]
        if missing:
            raise UserError(
                f"{who} has no {', '.join(missing)} in its metadata, so it is part of no history: export it again"
            )
        history, episode, task, source = (
            int(found[key]) for key in ("history", "episode", "task_index", "source_index")
        )
        if (history, episode) == (len(self._task), 0):
            self._first.append(number)
            self._task.append(task)
            self._source.append(source)
        elif not self._task or (history, episode) != (len(self._task) - 1, number - self._first[-1]):
            raise UserError(
                f"{who} is number {episode} of history {history}: episodes of a history must follow each other from number 0 on, "
                "histories in order; export it again"
            )
        if found["split"] != "train" or not 0 <= task < len(self.split.train):
            raise UserError(
                f"{who} plays task {task} of the split {found['split']}: expected one of {len(self.split.train)} training tasks"
            )
        if task != self._task[-1] or not _same_task(self.split.train[task], found.get("task", {})):
            raise UserError(f"{who} plays another task than its history, number {self._task[-1]}: export it again")

    def history(self, number: int) -> History:
        """One whole history. Raises UserError where its columns do not fit together."""
        ids = range(self._first[number], self._first[number + 1])
        parts = [self._columns(episode) for episode in self._storage.get_episodes(ids)]

        def joined(key: str) -> Any:
            return np.concatenate([part[key] for part in parts])

        observations = [part["observation"] for part in parts]
        return History(
            observation=map_observation(lambda *arrays: np.concatenate([a[:-1] for a in arrays]), *observations),
            final_observation=map_observation(lambda *arrays: np.stack([a[-1] for a in arrays]), *observations),
            episode_offset=np.cumsum([0, *(len(part["reward"]) for part in parts)]),
            task=self._task[number],
            source=self._source[number],
            **{key: joined(key) for key in parts[0] if key != "observation"},
        )

    def _columns(self, episode: dict[str, Any]) -> dict[str, Any]:
        """The columns of one episode by the names that they have in a history."""
        who, infos = f"episode {episode['id']} of {self._name}", episode["infos"] or {}
        names = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
        columns = {ours: episode[theirs] for ours, theirs in names.items()}
        for name in self.manifest["columns"]:
            if name not in infos:
                raise UserError(f"{who} has no {name} in its infos: export it again")
            columns[name] = infos[name]
        observations = schema.flatten("observation", episode["observations"])
        num_steps = len(episode["rewards"])
        for name, values in (columns | observations).items():
            expected = num_steps + (name in observations)
            if len(values) != expected or not num_steps:
                raise UserError(
                    f"{who} has {len(values)} entries of {name}, expected {max(expected, 1)}: export it again"
                )
        return columns | {"observation": episode["observations"]}


def _beside(folder: Path, name: str) -> tuple[dict[str, Any], Split]:
    """The manifest and the tasks that were exported with the episodes, unchanged."""
    if not (folder / "manifest.json").exists():
        raise UserError(
            f"{name} was not written by `icrl data export`: its episodes do not say which task they play and which follow each other, "
            "so they are no histories; record some with agents.recorder.HistoryRecorder"
        )
    manifest = read_json(folder / "manifest.json")
    try:
        intact = manifest["dataset_hash"] == writer.dataset_hash(manifest)
        files = {folder / f"tasks-{part}.npy": manifest["split"][part]["sha256"] for part in Split._fields}
        intact = intact and all(writer.sha256(file) == expected for file, expected in files.items())
        tasks = [np.load(file, allow_pickle=False) for file in files]
    except (KeyError, TypeError, ValueError, OSError):
        intact, tasks = False, []
    if not intact:
        raise UserError(f"{folder} is damaged or was changed: fetch or export {name} again")
    return manifest, Split(*tasks)


def _same_task(task: np.void, told: dict[str, Any]) -> bool:
    """Whether what an episode's metadata tell of its task agrees with the record."""
    return all(field in (task.dtype.names or ()) and _equal(task[field], value) for field, value in told.items())


def _equal(value: Any, told: Any) -> bool:
    if value.dtype.kind in "US":
        return np.asarray(value).astype(str).tolist() == np.asarray(told).astype(str).tolist()
    return np.array_equal(value, told, equal_nan=value.dtype.kind == "f")
