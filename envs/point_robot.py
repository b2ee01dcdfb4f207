"""Point-Robot: walk to an unseen goal on a plane (Wu et al. 2025, T2MIR; the goals of a family of tasks after Finn et al. 2017).

The robot sees its position and moves by at most 0.1 along each axis; a step pays minus the distance to the goal that it *ends* at.
Two rewards tell two circles on which the goal lies, so a good agent is near the optimum from the second episode on.

Deviations: actions are the movement itself, a box [-0.1, 0.1]², as in the paper (its code scales [-1, 1]² by 0.1), and the robot starts at
the origin, so that the optimal return is exact; ``start`` = "near" is the start of T2MIR's code. Goals are drawn as its code draws them,
but they are not the same 50.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from gymnasium.spaces import Box

from envs.base import NativeVectorEnv
from envs.point_robot_posterior import PointRobotPosterior
from envs.tasks import LISTS, check_least, independent_split
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import generator

MAX_MOVE = 0.1
"""Farthest movement along each axis in one step."""
_START_RANGE = {"origin": 0.0, "near": 0.1, "anywhere": 1.0}
_NUM_WALKS = 10_000
"""Random walks behind ``random_return``."""
_GRID = 32
"""Starts per axis over which ``optimal_return`` is averaged where the start is random."""


@dataclass(frozen=True)
class PointRobot:
    """Walk to the hidden goal on a plane."""

    name: ClassVar[str] = "point_robot"

    horizon: int = 20
    """Steps per episode."""
    start: Literal["origin", "near", "anywhere"] = "origin"
    """Where episodes begin: at the origin, uniformly within 0.1 of it along each axis (T2MIR's code), or uniformly over the goals' square."""

    num_train_tasks: int = 45
    """Training goals."""
    num_validation_tasks: int = 10
    """Goals to choose checkpoints on."""
    num_test_tasks: int = 5
    """Goals to report on."""
    task_seed: int = 0
    """Seed of the three lists of goals."""

    def __post_init__(self):
        check_least(self.name, self, horizon=1, **LISTS)

    @property
    def spec(self) -> FamilySpec:
        """Observation: position (x, y); action: movement along each axis."""
        farthest = 1 + MAX_MOVE * (self.horizon + 1)
        position = Box(-farthest, farthest, (2,), np.float32)
        return FamilySpec(self.name, position, Box(-MAX_MOVE, MAX_MOVE, (2,), np.float32), self.horizon)

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Goals uniform over the square [-1, 1]²."""
        tasks = np.empty(num_tasks, [("goal", np.float64, (2,))])
        tasks["goal"] = rng.uniform(-1, 1, (num_tasks, 2))
        return tasks

    def split(self) -> Split:
        """Three independent lists: goals are continuous, so they share none."""
        return independent_split(self)

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a goal outside the square."""
        if not (np.abs(tasks["goal"]) <= 1).all():
            raise UserError("a task's goal is outside the square [-1, 1]²: correct the task")
        return PointRobotVectorEnv(self, tasks, lane_ids)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact belief over goals, uniform over the square before the first step."""
        return PointRobotPosterior(self, env)

    def scattered(self) -> PointRobot:
        """The same tasks, one step per episode from a position uniform over the goals' square."""
        return replace(self, start="anywhere", horizon=1)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact from the origin: each axis nears the goal by 0.1 a step on its own, so that all distances are least at all times.

        Where the start is random, the mean over the midpoints of a grid of 32 x 32 starts.
        """
        middles = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
        starts = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2) * _START_RANGE[self.start]
        starts = starts if self.start != "origin" else starts[:1]
        left = np.abs(tasks["goal"][:, None] - starts)[:, :, None]  # (N, starts, 1, 2)
        moved = MAX_MOVE * np.arange(1, self.horizon + 1)[:, None]  # (T, 1)
        return -np.linalg.norm(np.maximum(left - moved, 0), axis=-1).sum(-1).mean(-1)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) mean over 10,000 fixed random walks, the same for every task (standard error about 0.02 at 20 steps)."""
        return np.array([-np.linalg.norm(self._walks - goal, axis=-1).sum(-1).mean() for goal in tasks["goal"]])

    @cached_property
    def _walks(self) -> Array:
        """(walks, T, 2) positions after each step of uniform actions."""
        rng, reach = generator(0, self.name, "random_return"), _START_RANGE[self.start]
        starts = rng.uniform(-reach, reach, (_NUM_WALKS, 1, 2))
        return starts + rng.uniform(-MAX_MOVE, MAX_MOVE, (_NUM_WALKS, self.horizon, 2)).cumsum(axis=1)


class PointRobotVectorEnv(NativeVectorEnv):
    """All lanes in one numpy operation per step."""

    position: Array  # (B, 2) float64

    def __init__(self, family: PointRobot, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self._reach, self._goal = _START_RANGE[family.start], tasks["goal"]

    def _begin(self) -> None:
        self.position = np.zeros((self.num_envs, 2))
        if self._reach:
            self.position = self._reach * (2 * self.streams.uniform(2) - 1)

    def _observe(self) -> Array:
        return self.position.astype(np.float32)

    def _move(self, actions: Array) -> Array:
        self.position = self.position + actions
        return -np.linalg.norm(self.position - self._goal, axis=1).astype(np.float32)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B, 2) straight to the goal along each axis."""
        goal = self._goal if tasks is None else tasks["goal"]
        return np.clip(goal - self.position, -MAX_MOVE, MAX_MOVE).astype(np.float32)
