"""Memories on disk: one .npz per memory with the chunks of all lanes, what they were made for, and the task of each lane.

A memory belongs to the spaces, the chunk length and the encoder that it was made with: keys of another encoder mean nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icrl.data.schema import flatten, space_to_json, unflatten
from icrl.files import DAMAGED_NPZ, read_arrays, write_arrays
from icrl.interfaces import Array, FamilySpec, Observation, Tasks, UserError, map_observation
from icrl.memory.encoders import Encoder
from icrl.memory.lanes import LaneMemory, chunk_rewards, onward, within_episode

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedMemory:
    """The chunks of all lanes of a memory, one after the other."""

    chunks: dict[str, Observation]  # (n, 2 C, ...) by column, as LaneMemory keeps them
    keys: Array  # (n, E)
    futures: Array  # (n, E)
    lane: Array  # (n,) whose chunk each is
    end: Array  # (n,) step of that lane's life at which it was complete
    totals: Array  # (L, episodes) what each episode of each lane earned
    tasks: Tasks  # (L,) the task of each lane; () where it is not known
    about: dict[str, Any]  # made for what, by whom

    @property
    def num_lanes(self) -> int:
        return len(self.totals)

    def utility(self, worth: str = "own") -> Array:
        """(n,) what the episode of each chunk's cut earned, and the chunk's worth, as in ``LaneMemory.utility``."""
        if len(self.lane) == 0:
            return np.zeros(0)
        total = self.totals[self.lane, np.asarray(self.chunks["episode"])[:, self.about["chunk"]]]
        return total + (chunk_rewards(self.chunks) if worth == "own" else onward(total, *within_episode(self.chunks)))


def save_memory(path: str | Path, memory: LaneMemory, spec: FamilySpec, tasks: Tasks | None = None) -> None:
    """Write all chunks of a memory to the file ``path``, whole or not at all; ``tasks`` (B,) says what each lane played."""
    lanes, slots = np.nonzero(np.arange(memory.keys.shape[1]) < memory.count[:, None])
    arrays: dict[str, Array] = {
        "keys": memory.keys[lanes, slots],
        "futures": memory.futures[lanes, slots],
        "lane": lanes,
        "end": memory.end[lanes, slots],
        "totals": memory.totals,
        "tasks": np.zeros(0) if tasks is None else tasks,
        "about": np.array(json.dumps(describe(memory.config.chunk, memory.encoder, spec))),
    }
    for name, column in memory.chunks.items():
        arrays |= {f"chunks/{key}": part[lanes, slots] for key, part in flatten(name, column).items()}
    write_arrays(Path(path), arrays)


def merge_memories(paths: Sequence[str | Path], out: str | Path) -> SavedMemory:
    """One memory of the lanes of several, in their order, as the new file ``out``; lanes that played the same task are one when it is used.

    Raises UserError where two were not made for the same, only some know their tasks, or ``out`` exists.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists: choose another name, nothing is overwritten")
    saved = [read_memory(path) for path in paths]
    for path, one in zip(paths, saved, strict=True):
        for name, value in saved[0].about.items():
            if one.about.get(name) != value:
                raise UserError(
                    f"{path} was made with {name} {_short(one.about.get(name))}, {paths[0]} with {_short(value)}: merge memories of one encoder and family"
                )
        if one.tasks.dtype != saved[0].tasks.dtype:
            raise UserError(
                f"{path} remembers tasks {one.tasks.dtype}, {paths[0]} {saved[0].tasks.dtype}: merge those of one family that know their tasks"
            )
    parts = [read_arrays(Path(path)) for path in paths]
    episodes = max(one.totals.shape[1] for one in saved)
    for part, lanes in zip(parts, np.cumsum([0] + [one.num_lanes for one in saved]), strict=False):
        part["lane"] = part["lane"] + lanes
        part["totals"] = np.pad(part["totals"], ((0, 0), (0, episodes - part["totals"].shape[1])))
    names = {name for part in parts for name in part if name != "about"}  # one without chunks has no columns of them
    joined = {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
    write_arrays(Path(out), joined | {"about": parts[0]["about"]})
    return read_memory(out)


def describe(chunk: int, encoder: Encoder, spec: FamilySpec) -> dict[str, Any]:
    """What a memory is made for."""
    return {
        "format": "icrl memory",
        "version": FORMAT_VERSION,
        "family": spec.name,
        "observation space": space_to_json(spec.observation_space),
        "action space": space_to_json(spec.action_space),
        "chunk": chunk,
        "key width": encoder.width,
        "encoder": encoder.identity(),
    }


def read_memory(path: str | Path, spec: FamilySpec | None = None) -> SavedMemory:
    """A saved memory. Raises UserError for a file that is none, is damaged, or is from another version.

    ``spec`` gives observations that are dictionaries their structure.
    """
    try:
        arrays = read_arrays(Path(path))
        about = json.loads(str(arrays["about"]))
        if about["format"] != "icrl memory":
            raise ValueError(f"format {about['format']}")
        if about["version"] != FORMAT_VERSION:
            raise UserError(
                f"{path} is a memory of version {about['version']}, expected {FORMAT_VERSION}: use the icrl that wrote it, or make it again"
            )
        chunks: dict[str, Any] = {
            name: arrays[f"chunks/{name}"]
            for name in ("action", "reward", "ended", "episode", "earned")
            if len(arrays["keys"])
        }
        parts = {
            key.removeprefix("chunks/"): part for key, part in arrays.items() if key.startswith("chunks/observation")
        }
        if parts:
            chunks["observation"] = (
                unflatten(spec.observation_space, "observation", parts.__getitem__) if spec else parts
            )
        rest = {name: arrays[name] for name in ("keys", "futures", "lane", "end", "totals", "tasks")}
        saved = SavedMemory(chunks=chunks, about=about, **rest)
        _check(saved)
        return saved
    except DAMAGED_NPZ as error:
        raise UserError(
            f"{path} is not a saved memory ({error!r}): give a file that icrl evaluate --save-memory wrote"
        ) from None


def _check(saved: SavedMemory) -> None:
    """ValueError where the parts of a memory do not fit each other."""
    num, width, span = len(saved.lane), saved.about["key width"], 2 * saved.about["chunk"]
    if saved.keys.shape != (num, width) or saved.futures.shape != (num, width) or saved.end.shape != (num,):
        raise ValueError("keys of another shape")
    if num and (saved.lane.min() < 0 or saved.lane.max() >= saved.num_lanes):
        raise ValueError("chunks of lanes that are not there")
    for name, column in saved.chunks.items():
        for part in flatten(name, column).values():
            if part.shape[:2] != (num, span):
                raise ValueError(f"{name} of another shape")
    episode = np.asarray(saved.chunks.get("episode", 0))
    if episode.min() < 0 or episode.max() >= saved.totals.shape[1] or not np.isfinite(saved.totals).all():
        raise ValueError("episodes that are not there")


def check_fits(path: str | Path, saved: SavedMemory, memory: LaneMemory, spec: FamilySpec) -> None:
    """Raise UserError where a saved memory was made for something else than this one."""
    expected = describe(memory.config.chunk, memory.encoder, spec)
    for name, value in expected.items():
        there = saved.about.get(name)
        if there != value:
            raise UserError(
                f"{path} was made with {name} {_short(there)}, this policy needs {_short(value)}: give a memory of this run's encoder and family"
            )


def fill(memory: LaneMemory, lane: int, saved: SavedMemory, lanes: Sequence[int]) -> None:
    """Put the chunks of some saved lanes, merged, into one empty lane; where they are too many, those with the lowest utility stay out.

    They count as the lane's past: they may be retrieved at once.
    """
    if memory.count[lane] or memory.life[lane]:
        raise UserError(f"lane {lane} already remembers something: fill its memory before it acts")
    chosen = np.flatnonzero(np.isin(saved.lane, lanes))
    if len(chosen) == 0:
        return
    best = np.lexsort((saved.end[chosen], saved.utility(memory.config.worth)[chosen]))[::-1][: memory.config.capacity]
    chosen = np.sort(chosen[best])
    pairs = np.stack(
        [np.repeat(saved.lane[chosen, None], 2 * memory.config.chunk, 1), saved.chunks["episode"][chosen]], -1
    )  # type: ignore[index]
    episodes, number = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    chunks: dict[str, Any] = {
        name: map_observation(lambda a: a[chosen], column) for name, column in saved.chunks.items()
    }
    chunks["episode"] = number.reshape(len(chosen), -1)
    memory.adopt(lane, chunks, saved.keys[chosen], saved.futures[chosen], saved.totals[episodes[:, 0], episodes[:, 1]])


def lanes_by_task(saved: SavedMemory, tasks: Tasks, path: str | Path) -> list[list[int]]:
    """For each of ``tasks`` (B,) the saved lanes that played it; where no task is known, lane i for lane i.

    Raises UserError where the memory is of other tasks, or of another number of lanes.
    """
    if len(saved.tasks) == 0:
        if saved.num_lanes not in (1, len(tasks)):
            raise UserError(
                f"{path} holds {saved.num_lanes} lanes and not their tasks, this roll-out has {len(tasks)}: use as many lanes"
            )
        return [[0 if saved.num_lanes == 1 else lane] for lane in range(len(tasks))]
    if saved.tasks.dtype != tasks.dtype:
        raise UserError(f"{path} remembers tasks {saved.tasks.dtype}, expected {tasks.dtype}: it is of another family")
    found = [np.flatnonzero(saved.tasks == task).tolist() for task in tasks]
    if not any(found):
        raise UserError(
            f"{path} remembers none of the {len(tasks)} tasks that are played: evaluate on the split that it was made on"
        )
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
