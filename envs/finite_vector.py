"""All lanes of a family of finite worlds, stepped by looking their tables up: one numpy operation whatever a step means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from envs.base import NativeVectorEnv
from envs.finite_worlds import FiniteWorlds
from icrl.interfaces import Array, FamilySpec, Tasks


class Located(NamedTuple):
    """Where the tables of some tasks (...) are."""

    worlds: FiniteWorlds
    row: Array  # (...) world of each task
    meaning: Array | None  # (..., A) the world's action that each of the agent's actions does; None: the same


Locate = Callable[[Tasks], Located]


class FiniteVectorEnv(NativeVectorEnv):
    """``state`` (B,) is where the lanes are in their worlds. A round that ends makes room for the next one, the episode goes on.

    With ``random_start`` episodes begin in a state drawn uniformly from those that play can reach; later rounds begin as ever.
    """

    def __init__(
        self, spec: FamilySpec, tasks: Tasks, lane_ids: Array | None, locate: Locate, *, random_start: bool = False
    ):
        super().__init__(spec, tasks, lane_ids)
        self._locate, self._random_start = locate, random_start
        self._worlds, row, self._meaning = self._own = locate(tasks)
        self._first = row * self._worlds.num_states  # (B,) index of state 0 of the lane's world in the flat tables
        self._next, self._pays, self._ends = (
            table.ravel() for table in (self._worlds.next_state, self._worlds.pays, self._worlds.ends)
        )
        self._shown = self._worlds.observation.reshape(-1, self._worlds.observation.shape[2])
        self._reached = np.nonzero(self._worlds.reached)[1]  # of all worlds, one after the other
        self._num_reached = self._worlds.reached.sum(axis=1)[row]  # (B,)
        self._first_reached = np.searchsorted(np.nonzero(self._worlds.reached)[0], row)  # (B,)
        self.state = self._last_state = np.zeros(self.num_envs, np.intp)
        self._asked: Tasks | None = None
        self._asked_steps = np.empty(0)

    def _begin(self) -> None:
        self._last_state = self.state
        self.state = self._first_states(self._lanes)

    def _first_states(self, lanes: Array) -> Array:
        """(n,) states in which the lanes (n,) begin an episode."""
        if not self._random_start:
            return self._start_states(lanes)
        return self._reached[self._first_reached[lanes] + self.streams.integers(self._num_reached[lanes], lanes)]

    def _start_states(self, lanes: Array) -> Array:
        starts = self._worlds.starts
        if len(starts) == 1:
            return np.full(len(lanes), starts[0])
        return starts[self.streams.integers(len(starts), lanes)]

    def _observe(self) -> Array:
        return self._shown.take(self._first + self.state, axis=0)

    def _move(self, actions: Array) -> Array:
        moves = actions if self._meaning is None else self._meaning[self._lanes, actions]
        taken = (self._first + self.state) * self._worlds.num_actions + moves
        self.state = self._next.take(taken).astype(np.intp)
        over = np.flatnonzero(self._ends.take(taken))
        if over.size:
            self._round_over(over)
        return self._pays.take(taken).astype(np.float32)

    def _round_over(self, lanes: Array) -> None:
        """What follows when a round has ended in the lanes (n,)."""
        self.state[lanes] = self._start_states(lanes)

    def render(self) -> tuple[Array, ...]:
        """A frame of every lane, (rows, columns, 3) uint8."""
        return self._frames(self.state)

    def render_last(self) -> tuple[Array, ...]:
        """A frame of where every lane's last episode ended, which is no longer where it is: lanes are reset in the same step."""
        return self._frames(self._last_state)

    def _frames(self, states: Array) -> tuple[Array, ...]:
        """Frames of the lanes in these states (B,)."""
        raise NotImplementedError

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the first step of a shortest way to the next reward."""
        worlds, row, meaning = self._own if tasks is None else self._locate(tasks)
        move = worlds.best[row, self.state].astype(np.int64)
        return move if meaning is None else (meaning == move[:, None]).argmax(axis=1)

    def steps_to_reward(self, tasks: Tasks) -> Array:
        """(B, N) int16 length of a shortest way to the next reward, at least 1; ``finite_worlds.NEVER`` where there is none."""
        if tasks.ndim == 2:
            worlds, row, _ = self._locate(tasks)
            return worlds.distance[row, self.state[:, None]]
        if tasks is not self._asked:  # an explorer asks about the same hypotheses at every step
            worlds, row, _ = self._locate(tasks)
            self._asked, self._asked_steps = tasks, np.ascontiguousarray(worlds.distance[row].T)  # (S, N)
        return self._asked_steps.take(self.state, axis=0)
