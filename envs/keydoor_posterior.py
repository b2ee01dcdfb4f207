"""Exact belief over Key-Door tasks: which cells may still hold the key, and which the door.

Key and door are independent given any history (a step without the key tests a cell for the key alone, one with it for the door alone), so the
10,000 pairs of a 10x10 room are never written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from envs.hypotheses import Hypotheses
from envs.room import NUM_MOVES
from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv
from icrl.seeding import LaneStreams

if TYPE_CHECKING:
    from envs.keydoor import KeyDoor, KeyDoorVectorEnv


class KeyDoorPosterior:
    """Belief of every lane over the cell of the key and the cell of the door, both uniform over all cells before the first step.

    Cells are listed column by column, the one where episodes begin last; explorers break ties in this order.
    """

    def __init__(self, family: KeyDoor, env: KeyDoorVectorEnv):
        self._family, self._tables = family, family.tables
        self._cells = family.cells_in_sweep_order()  # (N,) cell of each hypothesis
        self._index = np.argsort(self._cells)  # (N,) hypothesis of each cell
        self._keys, self._doors = Hypotheses(len(self._cells)), Hypotheses(len(self._cells))
        self._support = family.make_tasks(self._cells, self._cells)
        self.reset(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, at the start of an episode, in that many lanes or in those listed."""
        self._keys.reset(lanes)
        self._doors.reset(lanes)
        if isinstance(lanes, int | np.integer):
            self._has_key = np.zeros(int(lanes), bool)  # (B,)
            self._lanes = np.arange(int(lanes))
        else:
            self._has_key[lanes] = False

    def update(self, step: Step) -> None:
        """Take in one step of every lane. The key is found where a step without it pays."""
        reached, paid = self._index[self._family.cell_of(step.next_observation)], step.reward > 0
        had_key = self._has_key
        self._keys.visit(reached, paid & ~had_key, ~had_key)
        decisive = had_key & (self._doors.count > 1) if self._family.reward == "once" else had_key
        self._doors.visit(reached, paid & had_key, decisive)
        self._has_key = (had_key | paid) & ~step.ended

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,)."""
        keys, doors = (self._cells[part.sample(streams, lanes)] for part in (self._keys, self._doors))
        return self._family.make_tasks(keys, doors)

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) bool: lane i's steps exclude the key or the door of tasks[i]."""
        parts = ((self._keys, "key"), (self._doors, "door"))
        open_parts = [part.mask[self._lanes, self._index[self._family.cell_of(tasks[name])]] for part, name in parts]
        return ~(open_parts[0] & open_parts[1])

    def plausible(self) -> tuple[Tasks, Array]:
        """One task (N,) per cell, with key and door both there, and a mask (B, N) of the cells that may hold what the lane looks for.

        Of a task only that part matters to an explorer: without the key its key, with it its door.
        """
        return self._support, np.where(self._has_key[:, None], self._doors.mask, self._keys.mask)

    def candidates(self) -> tuple[Tasks, Array]:
        """The same tasks, and weights (B, N) of their part that matters; rows sum to 1."""
        tasks, mask = self.plausible()
        return tasks, mask / mask.sum(axis=1, keepdims=True)

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A) posterior probability that each action is optimal where the lanes of ``env`` are."""
        towards = self._tables.towards[env.cell][:, self._cells]  # type: ignore[attr-defined]  # (B, N)
        _, weights = self.candidates()
        return np.stack([np.where(towards == move, weights, 0).sum(axis=1) for move in range(NUM_MOVES)], axis=1)
