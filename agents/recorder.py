"""Recording histories out of any loop: one ordered stream per lane, copied as it happens and checked on the spot.

    recorder = HistoryRecorder(family.spec)
    ...                                   # your own loop, one environment or a vector of them
    recorder.add(observation, action, reward, terminated, truncated, next_observation)
    ...
    histories = recorder.histories(task=3)
    write_histories("data/mine", family.spec, family.split(), histories, family={"name": "darkroom"})

``icrl.data.writer.write_histories`` makes the folder that ``HistoryStore`` opens and ``icrl train`` trains on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from icrl.data.schema import (
    OPTIONAL_COLUMNS,
    Column,
    History,
    final_columns,
    flatten,
    transition_columns,
    unflatten,
)
from icrl.interfaces import Array, FamilySpec, Observation, UserError
from icrl.rollout import Turn


class HistoryRecorder:
    """Transitions of lanes in the order in which they happened, in the store's dtypes, copied.

    Without ``num_lanes`` there is one lane and values have no lane axis, as in a loop around one environment; with it every value
    has one, (B, ...). ``lane_ids`` (B,) are the numbers that messages call the histories by. ``capacity`` is a first guess of the
    steps to come.
    """

    def __init__(
        self, spec: FamilySpec, num_lanes: int | None = None, *, lane_ids: Array | None = None, capacity: int = 1024
    ):
        self._spec, self._single = spec, num_lanes is None
        self._num_lanes = 1 if num_lanes is None else num_lanes
        if self._num_lanes < 1:
            raise UserError(f"a recorder for {num_lanes} lanes was asked for: expected at least 1")
        self._ids = np.arange(self._num_lanes) if lane_ids is None else lane_ids
        self._columns: dict[str, Column] = {}  # of a transition; which optional ones there are, the first one says
        self._finals = final_columns(spec)
        self._capacity, self._step = capacity, 0
        self._arrays: dict[str, Array] = {}  # (capacity, B, ...) by column
        self._following: dict[str, Array] = {}  # (B, ...) by final column: where the last action led to
        self._ends: list[
            tuple[int, Array, dict[str, Array]]
        ] = []  # step, lanes that ended (n,), final columns (n, ...)
        self._rows: slice | Array = slice(None)  # lanes that are still recorded
        self._ended = np.ones(self._num_lanes, bool)  # (B,) the last transition ended an episode
        self.num_transitions = np.zeros(self._num_lanes, np.int64)
        """(B,) transitions recorded of each lane."""

    def add(
        self,
        observation: Observation,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        next_observation: Observation,
        *,
        target_action: Any = None,
        optimal_action: Any = None,
        behaviour_log_prob: Any = None,
        plan: Any = None,
    ) -> None:
        """Record one step of every lane.

        ``next_observation`` is the true last observation where an episode ended, not the first one of the next episode. What is
        given beyond it must be given at every step (a log-probability that is not known is NaN). Raises UserError, and
        records nothing, for a value that is not finite, of another shape or outside its space, and for an observation that is not where
        the action before it led to.
        """
        optional = dict(zip(OPTIONAL_COLUMNS, (target_action, optimal_action, behaviour_log_prob, plan), strict=True))
        values = flatten("observation", observation) | {name: v for name, v in optional.items() if v is not None}
        values |= {"action": action, "reward": reward, "terminated": terminated, "truncated": truncated}
        finals = flatten("final_observation", next_observation)
        if not self._columns:
            self._columns = transition_columns(self._spec, [name for name, v in optional.items() if v is not None])
        now = self._cast_all(self._columns, values)
        following = self._cast_all(self._finals, finals)
        self._check_continues(now)
        self._store(now, following)

    def add_turn(self, turn: Turn) -> None:
        """The same for a turn of ``icrl.rollout.rollout``."""
        decision, known = turn.decision, {"optimal_action": turn.optimal_action}
        known |= {name: getattr(decision, name) for name in ("target_action", "behaviour_log_prob", "plan")}
        self.add(*turn.step, **known)

    def stop(self, lanes: Array) -> None:
        """Record nothing more of these lanes, whatever is added: what they did until now is their whole history."""
        rows = np.arange(self._num_lanes)[self._rows]
        self._rows = rows[~np.isin(rows, lanes)]

    @property
    def stopped(self) -> Array:
        """(B,) bool: lanes that are not recorded any more."""
        mask = np.ones(self._num_lanes, bool)
        mask[self._rows] = False
        return mask

    def columns(self) -> dict[str, Array]:
        """The histories of all lanes with a transition end to end, as ``icrl.data.writer.write_shard`` takes them, without task and source."""
        lengths = self.num_transitions
        kept = np.flatnonzero(lengths)
        if not len(kept):
            raise UserError("nothing was recorded: call add at least once")
        cut = kept[~self._ended[kept]]  # their last episode is unfinished
        last = {name: values[cut] for name, values in self._following.items()}
        ends = [(rows, np.full(len(rows), step), finals) for step, rows, finals in self._ends]
        ends.append((cut, lengths[cut] - 1, last))
        lanes = np.concatenate([rows for rows, _, _ in ends])
        steps = np.concatenate([step for _, step, _ in ends])
        order = np.lexsort((steps, lanes))
        first = np.concatenate([[0], np.cumsum(lengths)])
        flat = {
            name: np.concatenate([array[: lengths[lane], lane] for lane in kept])
            for name, array in self._arrays.items()
        }
        flat |= {name: np.concatenate([finals[name] for _, _, finals in ends])[order] for name in self._finals}
        flat["episode_offset"] = np.concatenate([[0], (first[lanes] + steps + 1)[order]])
        flat["history_offset"] = np.concatenate([[0], np.cumsum(np.bincount(lanes, minlength=self._num_lanes)[kept])])
        return flat

    def histories(self, task: int | Sequence[int], source: int = 0) -> list[History]:
        """One history per lane. ``task``: index into the training tasks, the same for all lanes or one for each (B,).

        Raises UserError where a lane has no transition or the tasks are not one per lane.
        """
        tasks = np.full(self._num_lanes, task) if np.ndim(task) == 0 else np.asarray(task)
        if tasks.shape != (self._num_lanes,):
            raise UserError(
                f"{tasks.size} tasks were given for {self._num_lanes} lanes: give one, or one for each lane"
            )
        if not self.num_transitions.all():
            raise UserError(f"lane {int(self.num_transitions.argmin())} has no transition: record at least one")
        flat, space = self.columns(), self._spec.observation_space
        episodes, found = flat["history_offset"], []
        for lane in range(self._num_lanes):
            offset = flat["episode_offset"][episodes[lane] : episodes[lane + 1] + 1]
            rows, ends = slice(offset[0], offset[-1]), slice(episodes[lane], episodes[lane + 1])
            plain = {name: flat[name][rows] for name in self._columns if not name.startswith("observation")}
            history = History(
                observation=unflatten(space, "observation", lambda name, rows=rows: flat[name][rows]),
                final_observation=unflatten(space, "final_observation", lambda name, ends=ends: flat[name][ends]),
                episode_offset=offset - offset[0],
                task=int(tasks[lane]),
                source=source,
                **plain,
            )
            found.append(history)
        return found

    def _cast_all(self, columns: dict[str, Column], values: dict[str, Any]) -> dict[str, Array]:
        """Values of the recorded lanes (n, ...), checked, in the store's dtypes."""
        if values.keys() != columns.keys():
            wrong = sorted(values.keys() ^ columns.keys())
            raise UserError(
                f"{', '.join(wrong)} is given at one step and not at another, or is not of the space: give all"
            )
        return {name: self._cast(column, values[name]) for name, column in columns.items()}

    def _cast(self, column: Column, values: Any) -> Array:
        values = np.asarray(values)[None] if self._single else np.asarray(values)
        if values.shape != (self._num_lanes, *column.shape):
            there, expected = (shape[self._single :] for shape in (values.shape, (self._num_lanes, *column.shape)))
            raise UserError(f"{column.name} has shape {there}, expected {expected}: correct what is recorded")
        ids = self._ids[self._rows]
        return column.cast(values[self._rows], lambda row: f"history {ids[row]}, step {self._step}")

    def _check_continues(self, now: dict[str, Array]) -> None:
        """In the middle of an episode an observation must be where the last action led to."""
        for name, before in self._following.items():
            column = name.removeprefix("final_")
            differs = now[column] != before[self._rows]
            if not differs.any():
                continue
            wrong = differs.reshape(len(differs), -1).any(axis=1) & ~self._ended[self._rows]  # (n,)
            if wrong.any():
                lane = self._ids[self._rows][int(wrong.argmax())]
                raise UserError(
                    f"history {lane}, step {self._step}: the {column} is not where the action before it led to: record every step of an "
                    "episode in order, and its true last observation at the end"
                )

    def _store(self, now: dict[str, Array], following: dict[str, Array]) -> None:
        """Keep one step of the recorded lanes."""
        if not self._arrays:
            lead = (self._capacity, self._num_lanes)
            self._arrays = {name: np.empty((*lead, *c.shape), c.dtype) for name, c in self._columns.items()}
            self._following = {name: np.empty((lead[1], *c.shape), c.dtype) for name, c in self._finals.items()}
        if self._step == self._capacity:
            self._capacity *= 2
            self._arrays = {name: np.concatenate([a, np.empty_like(a)]) for name, a in self._arrays.items()}
        for name, values in now.items():
            self._arrays[name][self._step, self._rows] = values
        for name, values in following.items():
            self._following[name][self._rows] = values
        ended = now["terminated"] | now["truncated"]  # (n,)
        self._ended[self._rows] = ended
        if ended.any():
            lanes = np.arange(self._num_lanes)[self._rows][ended]
            self._ends.append((self._step, lanes, {name: values[ended] for name, values in following.items()}))
        self.num_transitions[self._rows] += 1
        self._step += 1
