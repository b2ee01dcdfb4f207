"""What a history is and how its columns are typed: spaces to JSON, smallest fitting dtypes, checks before a cast.

A *column* is one array over transitions (or episodes, or histories). An observation that is a dictionary has one column
per key path (``observation.position``). Index-valued spaces take the smallest unsigned or signed integer that fits.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from icrl.interfaces import PLAN_BEGINS, PLAN_OF_TASK, Array, FamilySpec, Observation, UserError, map_observation

FORMAT = "icrl-histories"
FORMAT_VERSION = 1
OPTIONAL_COLUMNS = ("target_action", "optimal_action", "behaviour_log_prob", "plan")
INDEX_COLUMNS = ("episode_offset", "history_offset", "task", "source")


@dataclass(frozen=True)
class Column:
    """Name, dtype and shape of one entry of a column, and the closed range that its values must lie in."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...] = ()
    low: Array | float | None = None
    high: Array | float | None = None

    def cast(self, values: Any, where: Callable[[int], str]) -> Array:
        """Values (n, ...) in the column's dtype; UserError names the first bad row in the words of ``where(row)``."""
        values = np.asarray(values)
        if values.shape[1:] != self.shape:
            raise UserError(
                f"{self.name} has shape {values.shape[1:]}, expected {self.shape}: check the family's spaces"
            )
        if self.low is not None:
            inside = (values >= self.low) & (values <= self.high)
            if not inside.all():
                row = int(np.argwhere(~inside)[0, 0])
                raise UserError(
                    f"{self.name} is {values[row].tolist()} at {where(row)}, expected {self._range()}: "
                    "the family or the source is at fault, nothing was written"
                )
        return values.astype(self.dtype, copy=False)

    def _range(self) -> str:
        if self.dtype.kind == "f" and np.max(np.asarray(self.high)) == np.finfo(self.dtype).max:
            return "finite numbers"
        return f"values from {np.asarray(self.low).tolist()} to {np.asarray(self.high).tolist()}"


@dataclass(frozen=True)
class History:
    """The ordered transitions of one task and one source run across E episodes; episode e is rows offset[e]:offset[e + 1].

    Only the last episode may be unfinished (neither terminated nor truncated).
    """

    observation: Observation  # (T, ...)
    action: Array  # (T,) or (T, action_dim)
    reward: Array  # (T,) float32
    terminated: Array  # (T,) bool
    truncated: Array  # (T,) bool
    final_observation: Observation  # (E, ...) what the last action of each episode led to
    episode_offset: Array  # (E + 1,) int64
    task: int = 0
    """Index into the training tasks."""
    source: int = 0
    """Index into the sources of the collection."""
    target_action: Array | None = None  # (T,) or (T, action_dim)
    optimal_action: Array | None = None  # (T,) or (T, action_dim)
    behaviour_log_prob: Array | None = None  # (T,) float32
    plan: Array | None = None  # (T,) uint8, see icrl.interfaces.PLAN_BEGINS

    @property
    def num_transitions(self) -> int:
        return len(self.reward)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_offset) - 1

    @property
    def next_observation(self) -> Observation:
        """(T, ...) what every action led to; the true final observation at the end of an episode."""
        ends = self.episode_offset[1:] - 1

        def shift(observation: Array, final: Array) -> Array:
            result = np.concatenate([observation[1:], observation[:1]])
            result[ends] = final
            return result

        return map_observation(shift, self.observation, self.final_observation)

    @property
    def episode_returns(self) -> Array:
        """(E,) float64 sum of rewards of each episode (the last one may be unfinished)."""
        return np.add.reduceat(self.reward.astype(np.float64), self.episode_offset[:-1])


# --- columns -----------------------------------------------------------------------------------------------------


def smallest_integer(low: int, high: int) -> np.dtype:
    """Smallest integer dtype that holds low .. high, unsigned where it can be."""
    kinds = (np.uint8, np.uint16, np.uint32, np.uint64) if low >= 0 else (np.int8, np.int16, np.int32, np.int64)
    return next(np.dtype(k) for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)


def _leaf(name: str, space: gym.Space, bounded: bool) -> Column:
    """Column of a space without keys. ``bounded``: real values must lie in the box, else they must be finite."""
    if isinstance(space, gym.spaces.Discrete):
        low, high = int(space.start), int(space.start) + int(space.n) - 1
        return Column(name, smallest_integer(low, high), (), low, high)
    if isinstance(space, gym.spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
        return Column(name, smallest_integer(int(low.min()), int(high.max())), tuple(space.nvec.shape), low, high)
    if isinstance(space, gym.spaces.MultiBinary):
        return Column(name, np.dtype(np.uint8), tuple(space.shape), 0, 1)
    if isinstance(space, gym.spaces.Box):
        dtype = np.dtype(space.dtype)
        if dtype.kind == "f":
            limit = float(np.finfo(dtype).max)
            low = np.maximum(space.low, -limit) if bounded else -limit
            high = np.minimum(space.high, limit) if bounded else limit
            return Column(name, dtype, tuple(space.shape), low, high)
        return Column(name, dtype, tuple(space.shape), space.low, space.high)
    raise UserError(
        f"{name} has the space {space}, expected Discrete, MultiDiscrete, MultiBinary, Box or a Dict of them: "
        "flatten it in the family"
    )


def observation_columns(space: gym.Space, name: str = "observation") -> dict[str, Column]:
    """Columns of an observation by name, one per key path of a dictionary."""
    if not isinstance(space, gym.spaces.Dict):
        return {name: _leaf(name, space, bounded=False)}
    columns = {}
    for key, part in space.spaces.items():
        if not re.fullmatch(r"[\w-]+", str(key)):
            raise UserError(f"observation key {key!r} was given, expected letters, digits, - and _: rename it")
        columns |= observation_columns(part, f"{name}.{key}")
    return columns


def transition_columns(spec: FamilySpec, optional: Iterable[str] = OPTIONAL_COLUMNS) -> dict[str, Column]:
    """Every column with one entry per transition."""
    finite = float(np.finfo(np.float32).max)
    columns = observation_columns(spec.observation_space)
    columns["action"] = _leaf("action", spec.action_space, bounded=True)
    columns["reward"] = Column("reward", np.dtype(np.float32), (), -finite, finite)
    columns["terminated"] = Column("terminated", np.dtype(bool))
    columns["truncated"] = Column("truncated", np.dtype(bool))
    kinds = {
        "target_action": _leaf("target_action", spec.action_space, bounded=True),
        "optimal_action": _leaf("optimal_action", spec.action_space, bounded=True),
        "behaviour_log_prob": Column("behaviour_log_prob", np.dtype(np.float32)),
        "plan": Column("plan", np.dtype(np.uint8), (), 0, PLAN_BEGINS + PLAN_OF_TASK),
    }
    return columns | {name: kinds[name] for name in optional}


def final_columns(spec: FamilySpec) -> dict[str, Column]:
    """Columns with one entry per episode: its final observation."""
    return observation_columns(spec.observation_space, "final_observation")


def flatten(name: str, observation: Observation) -> dict[str, Array]:
    """{"observation.key": array, ...} of an observation, by key path."""
    if not isinstance(observation, Mapping):
        return {name: observation}
    parts = [flatten(f"{name}.{key}", value) for key, value in observation.items()]
    return {path: array for part in parts for path, array in part.items()}


def unflatten(space: gym.Space, name: str, get: Callable[[str], Array]) -> Observation:
    """The observation of a space out of its columns, ``get(column name)`` being each one's array."""
    if isinstance(space, gym.spaces.Dict):
        return {key: unflatten(part, f"{name}.{key}", get) for key, part in space.spaces.items()}
    return get(name)


# --- shards: the columns of several histories end to end ---------------------------------------------------------


def join_shards(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The columns of several groups of histories end to end, offsets shifted."""
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in ("episode_offset", "history_offset"):
            shifts = np.cumsum([0] + [int(array[-1]) for array in arrays[:-1]])
            arrays = [array[min(i, 1) :] + shift for i, (array, shift) in enumerate(zip(arrays, shifts, strict=True))]
        joined[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return joined


def pack_histories(spec: FamilySpec, histories: Sequence[History], first: int = 0) -> dict[str, Array]:
    """Histories as the columns of a shard; ``first`` is the number of the first one, for messages.

    Raises UserError where a value does not fit its space.
    """
    optional = [name for name in OPTIONAL_COLUMNS if getattr(histories[0], name) is not None]
    parts = []
    for number, history in enumerate(histories, start=first):
        values = flatten("observation", history.observation)
        values |= flatten("final_observation", history.final_observation)
        values |= {name: getattr(history, name) for name in ("action", "reward", "terminated", "truncated", *optional)}
        part = {}
        for name, column in (transition_columns(spec, optional) | final_columns(spec)).items():
            unit = "episode" if name.startswith("final_") else "step"
            part[name] = column.cast(values[name], lambda row, n=number, u=unit: f"history {n}, {u} {row}")
        part["episode_offset"] = np.asarray(history.episode_offset, np.int64)
        part["history_offset"] = np.array([0, history.num_episodes], np.int64)
        part["task"] = np.array([history.task], np.int64)
        part["source"] = np.array([history.source], np.int64)
        parts.append(part)
    return join_shards(parts)


# --- JSON --------------------------------------------------------------------------------------------------------


def _bounds_to_json(bounds: Array) -> Any:
    """One text where all entries agree, else a flat list; texts because JSON knows no infinity."""
    plain = bounds.reshape(-1) if bounds.dtype.kind != "b" else bounds.reshape(-1).astype(np.uint8)
    texts = [repr(value) for value in plain.tolist()]
    return texts[0] if len(set(texts)) == 1 else texts


def _bounds_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    texts: list[str] = [value] if isinstance(value, str) else value
    read = float if dtype.kind == "f" else int
    entries = np.array([read(text) for text in texts], dtype=dtype)
    return np.full(shape, entries[0]) if isinstance(value, str) else entries.reshape(shape)


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A space as plain JSON. Raises UserError for kinds that a history cannot hold."""
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, gym.spaces.Box):
        bounds = {"low": _bounds_to_json(space.low), "high": _bounds_to_json(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, gym.spaces.Dict):
        return {"type": "Dict", "spaces": [[str(key), space_to_json(part)] for key, part in space.spaces.items()]}
    raise UserError(
        f"the space {space} was given, expected Discrete, MultiDiscrete, MultiBinary, Box or a Dict of them: "
        "flatten it in the family"
    )


def space_from_json(data: Mapping[str, Any]) -> gym.Space:
    """The space that ``space_to_json`` wrote."""
    kind = data["type"]
    if kind == "Discrete":
        return gym.spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return gym.spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
    if kind == "MultiBinary":
        shape = data["shape"]
        return gym.spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Box":
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        low, high = (_bounds_from_json(data[side], shape, dtype) for side in ("low", "high"))
        return gym.spaces.Box(low, high, shape, dtype.type)
    if kind == "Dict":
        return gym.spaces.Dict(OrderedDict((key, space_from_json(part)) for key, part in data["spaces"]))
    raise UserError(f"space type {kind!r} was given, expected one that this version writes: update icrl")


def spec_to_json(spec: FamilySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "observation_space": space_to_json(spec.observation_space),
        "action_space": space_to_json(spec.action_space),
        "horizon": int(spec.horizon),
        **({} if spec.action_points is None else {"action_points": spec.action_points.tolist()}),
    }


def spec_from_json(data: Mapping[str, Any]) -> FamilySpec:
    spaces = [space_from_json(data[key]) for key in ("observation_space", "action_space")]
    points = np.array(data["action_points"]) if "action_points" in data else None
    return FamilySpec(data["name"], spaces[0], spaces[1], data["horizon"], points)
