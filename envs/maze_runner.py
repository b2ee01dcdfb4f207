"""Maze-Runner: unseen goals in a maze, to be reached in order (Grigsby et al. 2023, AMAGO; as RA-DT plays it: Schmied et al. 2024).

Maze, goals and their number are the task, fixed for all its episodes. The agent sees its row and column and, by lidar, the free cells to
the next wall in eight directions; which goal is next it must remember. A goal that is reached in its turn pays 1, once. The last one, or
the horizon, ends the episode.

Deviations from RA-DT's environment (read off its public code): mazes are spanning trees of a grid of rooms and goals lie in rooms, there walls
are grown at random, may leave loops and cells out of reach, stand around an open strip where the agent starts, and goals lie in any free cell; lidar
looks diagonally, too, there in four directions; there is no action to stay. So tasks are like the published ones, not the same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from envs.finite_vector import FiniteVectorEnv, Located
from envs.finite_worlds import FiniteWorlds
from envs.maze_layout import MOVES, RAYS, free_lengths, maze
from envs.tasks import LISTS, check_least, independent_split
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError

_LARGEST_MAZE = 31
_TILE = 16
"""Pixels of a cell in a frame."""


@dataclass(frozen=True)
class MazeRunner:
    """Reach one to three unseen goals of a maze in order."""

    name: ClassVar[str] = "maze_runner"
    render_fps: ClassVar[int] = 8

    size: int = 15
    """Rows and columns of the maze, outer walls included; an odd number."""
    horizon: int = 400
    """Steps per episode, at most."""
    max_goals: int = 3
    """A task has one to so many goals."""
    num_train_tasks: int = 100
    """Training tasks, each with a maze of its own."""
    num_validation_tasks: int = 20
    """Tasks to choose checkpoints on."""
    num_test_tasks: int = 20
    """Tasks to report on."""
    task_seed: int = 0
    """Seed of the three lists of tasks."""
    begin: Literal["start", "anywhere"] = "start"
    """Where episodes begin: in the middle of the lowest rooms, or in a cell and at a goal's turn drawn uniformly."""

    def __post_init__(self):
        check_least(self.name, self, horizon=1, max_goals=1, **LISTS)
        if self.size % 2 == 0 or not 5 <= self.size <= _LARGEST_MAZE:
            raise UserError(f"{self.name}'s size is {self.size}: expected an odd number from 5 to {_LARGEST_MAZE}")
        if self.max_goals > len(self._goal_rooms()):
            raise UserError(
                f"{self.name}'s max_goals is {self.max_goals}: expected at most {len(self._goal_rooms())}, the rooms of the maze but one"
            )

    @property
    def spec(self) -> FamilySpec:
        """Observations (row, column, eight free lengths); four moves: down, up, right, left."""
        space = MultiDiscrete([self.size, self.size] + [self.size - 2] * len(RAYS), dtype=np.int16)
        return FamilySpec(self.name, space, Discrete(len(MOVES)), self.horizon)

    @property
    def start_cell(self) -> int:
        """Number of the cell where episodes begin, counted row by row."""
        return (self.size - 2) * self.size + 2 * (self.size // 4) + 1

    def _goal_rooms(self) -> Array:
        """(M, 2) row and column of every room but the first one."""
        odd = np.arange(1, self.size, 2)
        rooms = np.stack(np.meshgrid(odd, odd, indexing="ij"), axis=-1).reshape(-1, 2)
        return rooms[rooms @ [self.size, 1] != self.start_cell]

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """A maze for each, one to ``max_goals`` goals with equal probability, in different rooms."""
        fields = [("maze", np.int64), ("num_goals", np.int64), ("goals", np.int64, (self.max_goals, 2))]
        tasks = np.zeros(num_tasks, fields)
        tasks["maze"] = rng.integers(2**62, size=num_tasks)
        tasks["num_goals"] = rng.integers(1, self.max_goals + 1, size=num_tasks)
        rooms = self._goal_rooms()
        order = rng.permuted(np.tile(np.arange(len(rooms)), (num_tasks, 1)), axis=1)[:, : self.max_goals]
        used = np.arange(self.max_goals) < tasks["num_goals"][:, None]
        tasks["goals"] = rooms[order] * used[:, :, None]
        return tasks

    def split(self) -> Split:
        """Three independent lists: they share no maze."""
        return independent_split(self)

    def locate(self, tasks: Tasks) -> Located:
        """The tables of tasks (...), whose states count turn by turn, cell by cell. Raises UserError for a goal where none can be."""
        distinct, row = np.unique(tasks, return_inverse=True)
        return Located(_tables(self.size, distinct.dtype, distinct.tobytes()), row.reshape(tasks.shape), None)

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> MazeRunnerVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a goal where none can be."""
        return MazeRunnerVectorEnv(self, tasks, lane_ids)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact: shortest ways from goal to goal."""
        worlds, row, _ = self.locate(tasks)
        policy = worlds.best[:, :, None] == np.arange(worlds.num_actions)
        return self._expected_return(worlds, policy.astype(np.float64))[row]

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) exact: the distribution over cells and turns under uniform moves, propagated for an episode."""
        worlds, row, _ = self.locate(tasks)
        return self._expected_return(worlds, np.full(worlds.pays.shape, 1 / worlds.num_actions))[row]

    def _expected_return(self, worlds: FiniteWorlds, policy: Array) -> Array:
        first = np.zeros_like(worlds.reached)
        first[:, worlds.starts] = True
        allowed = first if self.begin == "start" else worlds.reached
        return worlds.expected_return(policy, allowed / allowed.sum(axis=1, keepdims=True), self.horizon, renews=False)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Always raises UserError: mazes are too many to list."""
        raise UserError(f"{self.name} has no posterior, its mazes are too many to list: choose another source")

    def scattered(self) -> MazeRunner:
        """The same tasks, one step per episode from a cell and a goal's turn drawn uniformly."""
        return replace(self, begin="anywhere", horizon=1)


@lru_cache(maxsize=8)
def _tables(size: int, dtype: np.dtype, data: bytes) -> FiniteWorlds:
    """Tables of the tasks (N,) whose bytes are ``data``."""
    tasks = np.frombuffer(data, dtype)
    _check(tasks, size)
    num_cells, (num_tasks, num_turns) = size * size, tasks["goals"].shape[:2]
    goal = tasks["goals"] @ [size, 1]  # (N, K) cells
    walls = np.stack([maze(int(seed), size) for seed in tasks["maze"]])  # (N, size, size)
    cells, step = np.arange(num_cells), MOVES @ [size, 1]
    free = ~walls.reshape(num_tasks, num_cells)
    target: Array = np.clip(cells[:, None] + step, 0, num_cells - 1)  # (S, A) cells, walls included
    cell_after = np.where(free[:, target], target, cells[:, None])  # (N, S, A)
    pays = cell_after[:, None] == goal[:, :, None, None]  # (N, K, S, A)
    turn = np.arange(num_turns)[:, None, None]
    last = turn == (tasks["num_goals"] - 1)[:, None, None, None]
    reached = free[:, None] & (np.arange(num_turns)[:, None] < tasks["num_goals"][:, None, None])
    reached &= cells != goal[:, :, None]  # (N, K, S) a goal that is reached is no longer the next one
    pays &= reached[..., None]
    next_state = (turn + (pays & ~last)) * num_cells + cell_after[:, None]
    seen = np.concatenate([np.tile(np.stack(np.divmod(cells, size), axis=1), (num_tasks, 1, 1)), _lidar(walls)], axis=2)
    shape = (num_tasks, num_turns * num_cells, len(MOVES))
    return FiniteWorlds(
        next_state.astype(np.int32).reshape(shape),
        pays.reshape(shape),
        (pays & last).reshape(shape),
        reached.reshape(shape[:2]),
        np.tile(seen.astype(np.int16), (1, num_turns, 1)),
        np.array([MazeRunner(size=size, max_goals=1).start_cell]),
        np.array([size, size] + [size - 2] * len(RAYS)),
    )


def _lidar(walls: Array) -> Array:
    """(N, S, 8) free cells to the next wall."""
    return np.stack([free_lengths(one) for one in walls])


def _check(tasks: Tasks, size: int) -> None:
    """Raise UserError for a goal outside the maze, in a wall, or where the agent already is when its turn comes."""
    start = divmod(MazeRunner(size=size, max_goals=1).start_cell, size)
    for task in tasks:
        if task["maze"] < 0:
            raise UserError(f"a task has maze {task['maze']}: expected a seed of at least 0, correct the task")
        num_goals, goals = int(task["num_goals"]), task["goals"].tolist()
        if not 1 <= num_goals <= len(goals):
            raise UserError(f"a task has num_goals {num_goals}: expected 1 to {len(goals)}, correct the task")
        before = list(start)
        for goal in goals[:num_goals]:
            inside = all(0 <= part < size for part in goal)
            if not inside or maze(int(task["maze"]), size)[tuple(goal)] or goal == before:
                raise UserError(
                    f"a task has a goal at {tuple(goal)}: expected a free cell of the maze (rooms have odd row and column), "
                    "not the one where the agent is when its turn comes; correct the task"
                )
            before = goal


class MazeRunnerVectorEnv(FiniteVectorEnv):
    """All lanes from tables; each has its own clock, since an episode ends with its last goal."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": MazeRunner.render_fps,
    }

    def __init__(self, family: MazeRunner, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids, family.locate, random_start=family.begin == "anywhere")
        self._size = family.size
        self._limit, self._horizon = self._horizon, sys.maxsize  # the clock that all lanes would share never strikes

    def _begin(self) -> None:
        super()._begin()
        self._age = np.zeros(self.num_envs, np.int64)  # (B,) steps of the episode so far

    def _move(self, actions: Array) -> Array:
        self._finished = np.zeros(self.num_envs, bool)
        return super()._move(actions)

    def _round_over(self, lanes: Array) -> None:
        self._finished[lanes] = True

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every lane. Raises UserError for actions of a wrong shape or outside the action space."""
        observation, reward, *_ = super().step(actions)
        self._age += 1
        terminated = self._finished
        truncated = (self._age >= self._limit) & ~terminated
        ended = terminated | truncated
        lanes = np.flatnonzero(ended)
        if not lanes.size:
            return observation, reward, terminated, truncated, {}
        self._last_state = self.state.copy()
        self.state[lanes], self._age[lanes] = self._first_states(lanes), 0
        return self._observe(), reward, terminated, truncated, {"final_obs": observation, "_final_obs": ended}

    def _frames(self, states: Array) -> tuple[Array, ...]:
        """Each (size * 16, size * 16, 3) uint8: the next goal bright green, the other ones dark, the agent red."""
        frames = []
        for task, state in zip(self.tasks, states, strict=True):
            turn, cell = divmod(int(state), self._size**2)
            picture = (
                np.where(maze(int(task["maze"]), self._size)[..., None], 80, 230).repeat(3, axis=2).astype(np.uint8)
            )
            for number, goal in enumerate(task["goals"][: task["num_goals"]]):
                picture[tuple(goal)] = (0, 230, 0) if number == turn else (0, 110, 0)
            picture[divmod(cell, self._size)] = (220, 30, 30)
            frames.append(picture.repeat(_TILE, axis=0).repeat(_TILE, axis=1))
        return tuple(frames)
