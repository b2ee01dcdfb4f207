"""Key-Door: find an unseen key in an empty grid, then an unseen door (Laskin et al. 2022; Schmied et al. 2024).

The agent sees its (row, column) alone: whether it holds the key it must remember. The first step of an episode that ends on the key pays 1; from then on
steps that end on the door pay 1, each of them or only the first. Nothing ends an episode but its horizon. Key and door are the task; they
may share a cell, whose door then pays from the step after the key's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from envs.keydoor_posterior import KeyDoorPosterior
from envs.room import Room, RoomVectorEnv, arrivals, partition
from icrl.interfaces import Array, Posterior, Split, Symmetry, Tasks, TaskVectorEnv, UserError
from icrl.seeding import generator


@dataclass(frozen=True)
class KeyDoor(Room):
    """Find the key, then the door of a dark room."""

    name: ClassVar[str] = "keydoor"

    reward: Literal["dense", "once"] = "dense"
    """What the door pays once the key is held. `dense`: 1 for each step that ends on it. `once`: 1 for the first such step (an episode pays 2 at most)."""
    task_split: Literal["radt"] | int = "radt"
    """Which pairs of key and door there are and which are held out. `radt`: RA-DT's protocol, 100 pairs, keys drawn by seed 42 and doors by seed 43, the
    last fifth for tests. A number: `num_tasks` pairs drawn by this seed, the last fifth for tests."""
    num_tasks: int = 100
    """Pairs in all, where `task_split` is a seed."""

    def __post_init__(self):
        super().__post_init__()
        if self.task_split == "radt":
            return
        if self.task_split < 0:
            raise UserError(f"keydoor's task_split is {self.task_split}: expected radt or a seed of at least 0")
        if not 5 <= self.num_tasks <= self.num_cells**2:
            raise UserError(
                f"keydoor's num_tasks is {self.num_tasks}: expected 5 to {self.num_cells**2}, the pairs of a room of {self.height}x{self.width}"
            )

    def make_tasks(self, key_cells: Array, door_cells: Array) -> Tasks:
        """Cells (N,) of the key and of the door -> tasks (N,)."""
        tasks = np.empty(np.shape(key_cells), [("key", np.int64, (2,)), ("door", np.int64, (2,))])
        tasks["key"], tasks["door"] = self.tables.coordinates[key_cells], self.tables.coordinates[door_cells]
        return tasks

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Key and door uniform over all cells, independent."""
        return self.make_tasks(*rng.integers(self.num_cells, size=(2, num_tasks)))

    def split(self) -> Split:
        """Disjoint pairs. Raises UserError where nothing is left to train on."""
        if self.task_split == "radt":
            keys, doors = (np.random.RandomState(seed).permutation(self.num_cells)[:100] for seed in (42, 43))
        else:
            rng = generator(self.task_split, "keydoor", "tasks")
            keys, doors = np.divmod(rng.choice(self.num_cells**2, self.num_tasks, replace=False), self.num_cells)
        tasks = self.make_tasks(keys, doors)
        return Split(*(tasks[part] for part in partition(np.arange(len(tasks)), self.num_validation, "tasks")))

    def symmetries(self) -> list[Symmetry]:
        """For augmentation: the room, and its mirror images that make no training task a held-out one (in `radt` of 10x10 four of seven).

        Dark Room has none: there a goal's mirror image often is a goal that is held out.
        """
        split = self.split()
        held_out = np.concatenate([split.validation, split.test])

        def seen(image: Symmetry) -> Tasks:
            tasks = split.train.copy()
            for part in ("key", "door"):
                tasks[part] = image.observation(tasks[part])
            return tasks

        return [image for image in self.images() if not np.isin(seen(image), held_out).any()]

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a key or a door outside the room."""
        self.check_positions(tasks, "key")
        self.check_positions(tasks, "door")
        return KeyDoorVectorEnv(self, tasks, lane_ids)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact belief over keys and doors, independent and uniform over all cells."""
        assert isinstance(env, KeyDoorVectorEnv)
        return KeyDoorPosterior(self, env)

    def scattered(self) -> KeyDoor:
        """The same tasks, one step per episode from a uniformly drawn cell, without the key: such steps tell nothing of the door."""
        return replace(self, start="random", horizon=1)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact: the shortest path to the key, then to the door, then, with dense reward, staying."""
        key, door = self.cell_of(tasks["key"]), self.cell_of(tasks["door"])
        to_key = np.maximum(
            self.tables.distance[self.start_cells][:, key], 1
        )  # (starts, N) the reward comes after the move
        left = (
            self.horizon - to_key - np.maximum(self.tables.distance[key, door], 1)
        )  # steps after the first on the door
        at_door = np.maximum(left + 1, 0)
        if self.reward == "once":
            at_door = np.minimum(at_door, 1)
        return ((to_key <= self.horizon) + at_door).mean(axis=0)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) exact: when a uniform walk first meets the key, and how often it meets the door in the steps that are then left."""
        pairs, index = np.unique(tasks, return_inverse=True)
        key, door = self.cell_of(pairs["key"]), self.cell_of(pairs["door"])
        keys, which = np.unique(key, return_inverse=True)
        found = arrivals(self.tables, self.start_probs, keys, self.horizon, first=True)[:, which]  # (horizon, N)
        from_key = np.eye(self.num_cells)[:, key]  # (S, N)
        met = arrivals(
            self.tables, from_key, door, self.horizon, first=self.reward == "once"
        )  # s + 1 steps after the key
        found_by = np.concatenate(
            [np.zeros((1, len(key))), np.cumsum(found, axis=0)[:-1]]
        )  # (horizon, N) within t steps
        return (found_by[-1] + found[-1] + (met * found_by[::-1]).sum(axis=0))[index]


class KeyDoorVectorEnv(RoomVectorEnv):
    """All lanes of a Key-Door in one numpy operation per step; ``has_key`` (B,) says which part of its episode a lane is in."""

    def __init__(self, family: KeyDoor, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family, tasks, lane_ids)
        self._family = family
        self._key, self._door = family.cell_of(tasks["key"]), family.cell_of(tasks["door"])
        self._once = family.reward == "once"
        self.has_key = np.zeros(self.num_envs, bool)

    def _begin(self) -> None:
        super()._begin()
        self.has_key = np.zeros(self.num_envs, bool)
        self._open = np.zeros(self.num_envs, bool)  # the door has paid

    def _move(self, actions: Array) -> Array:
        self._walk(actions)
        paid = self.cell == np.where(self.has_key, self._door, self._key)
        if self._once:
            paid &= ~self._open
            self._open = self._open | (paid & self.has_key)
        self.has_key = self.has_key | paid
        return paid.astype(np.float32)

    def _target(self, tasks: Tasks, has_key: Array) -> Array:
        """Cell (...) where each task pays next, given whether the key is held."""
        return np.where(has_key, self._family.cell_of(tasks["door"]), self._family.cell_of(tasks["key"]))

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the action towards the key, or with it towards the door: rows first, then columns, then stay."""
        target = self._target(self.tasks if tasks is None else tasks, self.has_key)
        return self._tables.towards[self.cell, target].astype(np.int64)

    def steps_to_reward(self, tasks: Tasks) -> Array:
        """(B, N) int16: the distance to the key, or with it to the door, at least 1 because the reward comes after the move."""
        if tasks.ndim == 1:
            tasks = tasks[None]
        target = self._target(tasks, self.has_key[:, None])
        return np.maximum(self._tables.distance[self.cell[:, None], target], 1)
