"""Dark Room: find an unseen goal cell in an empty grid (Laskin et al. 2022; Lee et al. 2023; Schmied et al. 2024).

The agent sees its (row, column) and earns 1 for each step that *ends* on the goal (or for the first one of an episode only). Nothing
ends an episode but its horizon. The goal, and where actions are permuted their meaning, is the task.

Deviations: with permuted actions DPT's paper keeps one goal and holds out permutations; here goals and permutations are both split,
so that a held-out task is new in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar, Literal

import numpy as np

from envs.darkroom_posterior import DarkRoomPosterior
from envs.room import NUM_MOVES, Room, RoomVectorEnv, arrivals, partition
from icrl.interfaces import Array, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import generator


@dataclass(frozen=True)
class DarkRoom(Room):
    """Find the goal cell of a dark room."""

    name: ClassVar[str] = "darkroom"

    reward: Literal["dense", "once"] = "dense"
    """`dense`: 1 for each step that ends on the goal. `once`: 1 for the first such step of an episode."""
    permuted_actions: bool = False
    """Each task also permutes what the five actions do."""
    goal_split: Literal["dpt", "radt"] | int = "dpt"
    """Which goals are held out: DPT's protocol (shuffled by seed 0, the last fifth), RA-DT's (100 cells drawn by seed 43, the last
    fifth), or the last fifth of an order drawn by this seed."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.goal_split, int) and self.goal_split < 0:
            raise UserError(
                f"{self.name}'s goal_split is {self.goal_split}: expected dpt, radt or a seed of at least 0"
            )

    def make_tasks(self, goal_cells: Array, permutation: Array | None = None) -> Tasks:
        """Goal cells (N,) and, with permuted actions, the move that each action does (N, 5) -> tasks (N,)."""
        fields: list = [("goal", np.int64, (2,))]
        if self.permuted_actions:
            fields.append(("permutation", np.int64, (NUM_MOVES,)))
        tasks = np.empty(np.shape(goal_cells), fields)
        tasks["goal"] = self.tables.coordinates[goal_cells]
        if self.permuted_actions:
            assert permutation is not None
            tasks["permutation"] = permutation
        return tasks

    def goal_cells(self, tasks: Tasks) -> Array:
        """Tasks (...) -> goal cells (...)."""
        return self.cell_of(tasks["goal"])

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Goals uniform over all cells, permutations uniform over all 120."""
        cells = rng.integers(self.num_cells, size=num_tasks)
        if not self.permuted_actions:
            return self.make_tasks(cells)
        return self.make_tasks(cells, rng.permuted(np.tile(np.arange(NUM_MOVES), (num_tasks, 1)), axis=1))

    def split(self) -> Split:
        """Disjoint goals. With permuted actions permutations are disjoint too: every training goal comes with every training
        permutation, every other goal with one held-out permutation.

        Raises UserError where a part that must not be empty is.
        """
        train, validation, test = partition(self._ordered_goals(), self.num_validation, "goals")
        if not self.permuted_actions:
            return Split(*(self.make_tasks(cells) for cells in (train, validation, test)))
        seed = self.goal_split if isinstance(self.goal_split, int) else 0
        order = generator(seed, "darkroom", "permutations").permutation(len(all_permutations()))
        parts = partition(order, self.num_validation, "permutations")
        train_p, validation_p, test_p = (all_permutations()[part] for part in parts)  # each (M, 5)
        return Split(
            self.make_tasks(np.repeat(train, len(train_p)), np.tile(train_p, (len(train), 1))),
            self.make_tasks(validation, np.resize(validation_p, (len(validation), NUM_MOVES))),
            self.make_tasks(test, np.resize(test_p, (len(test), NUM_MOVES))),
        )

    def _ordered_goals(self) -> Array:
        """Goal cells in the order of the protocol: the first 80 % are for training."""
        if self.goal_split == "dpt":
            order = np.arange(self.num_cells)
            np.random.RandomState(0).shuffle(order)
            return order
        if self.goal_split == "radt":
            return np.random.RandomState(43).permutation(self.num_cells)[:100]
        return generator(self.goal_split, "darkroom", "goals").permutation(self.num_cells)

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a goal outside the room or a list that is no permutation."""
        self.check_positions(tasks, "goal")
        if self.permuted_actions and (np.sort(tasks["permutation"], axis=1) != np.arange(NUM_MOVES)).any():
            raise UserError(f"a task's permutation does not hold each of 0 to {NUM_MOVES - 1} once: correct the task")
        return DarkRoomVectorEnv(self, tasks, lane_ids)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact belief over goals (uniform over all cells) and permutations (uniform over all 120)."""
        assert isinstance(env, DarkRoomVectorEnv)
        return DarkRoomPosterior(self, env)

    def scattered(self) -> DarkRoom:
        """The same tasks, one step per episode from a uniformly drawn cell."""
        return replace(self, start="random", horizon=1)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact: the shortest path, then, with dense reward, staying."""
        distance = self.tables.distance[:, self.goal_cells(tasks)][self.start_cells]  # (starts, N)
        paid_steps = np.maximum(0, self.horizon + 1 - np.maximum(distance, 1))  # the reward comes after the move
        if self.reward == "once":
            paid_steps = np.minimum(paid_steps, 1)
        return paid_steps.mean(axis=0)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) exact: the distribution over cells under uniform actions, propagated for an episode."""
        once = self.reward == "once"
        goals, index = np.unique(self.goal_cells(tasks), return_inverse=True)
        return arrivals(self.tables, self.start_probs, goals, self.horizon, first=once).sum(axis=0)[index]


def all_permutations() -> Array:
    """(120, 5) every permutation of the five actions, in lexicographic order."""
    return np.array(list(permutations(range(NUM_MOVES))))


class DarkRoomVectorEnv(RoomVectorEnv):
    """All lanes of a Dark Room in one numpy operation per step."""

    def __init__(self, family: DarkRoom, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family, tasks, lane_ids)
        self._family = family
        self._goal = family.goal_cells(tasks)
        self._once = family.reward == "once"
        self._permutation = tasks["permutation"] if family.permuted_actions else None
        self._asked: Tasks | None = None
        self._asked_steps = np.empty(0)

    def _begin(self) -> None:
        super()._begin()
        self._paid = np.zeros(self.num_envs, bool)

    def _move(self, actions: Array) -> Array:
        self._walk(actions if self._permutation is None else self._permutation[self._lanes, actions])
        hit = self.cell == self._goal
        if self._once:
            hit, self._paid = hit & ~self._paid, self._paid | hit
        return hit.astype(np.float32)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the action towards the goal: rows first, then columns, then stay."""
        tasks = self.tasks if tasks is None else tasks
        move = self._tables.towards[self.cell, self._family.goal_cells(tasks)].astype(np.int64)
        if self._permutation is None:
            return move
        return (tasks["permutation"] == move[:, None]).argmax(axis=1)

    def steps_to_reward(self, tasks: Tasks) -> Array:
        """(B, N) int16: the distance to the goal, at least 1 because the reward comes after the move."""
        if tasks.ndim == 2:
            return np.maximum(self._tables.distance[self.cell[:, None], self._family.goal_cells(tasks)], 1)
        if tasks is not self._asked:  # an explorer asks about the same hypotheses at every step
            columns = self._tables.distance[:, self._family.goal_cells(tasks)]
            self._asked, self._asked_steps = tasks, np.maximum(columns, 1)
        return self._asked_steps.take(self.cell, axis=0)
