"""A user's own module: a Gymnasium environment, and families made of it by a class, as the command line wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.gym_family import GymTaskFamily

LENGTH = 6


class LineWorld(gym.Env):
    """A walk on cells 0 to 5 (left, right, stay) that pays 1 for each step which ends on the goal; it starts near the middle.

    Shows the cell, the line's width (which means nothing) and the step."""

    action_space = Discrete(3)

    def __init__(self, goal: int, width: float = 1.0, fail_at: int = 0, two_axes: bool = False):
        shape = (3, 1) if two_axes else (3,)
        self.observation_space = Box(-np.inf, np.inf, shape, np.float32)
        self.goal, self.width, self.fail_at, self.steps = goal, width, fail_at, 0

    def observe(self) -> Any:
        place = np.array([self.cell, self.width, self.t], np.float32)
        return place.reshape(self.observation_space.shape or ())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.t = 2, 0
        return self.observe(), {}

    def step(self, action):
        self.steps, self.t = self.steps + 1, self.t + 1
        if self.steps == self.fail_at:
            raise RuntimeError("the line is broken")
        self.cell = int(np.clip(self.cell + (-1, 1, 0)[action], 0, LENGTH - 1))
        return self.observe(), float(self.cell == self.goal), False, False, {}

    def optimal_action(self, task=None):
        goal = self.goal if task is None else task["goal"]
        return 0 if goal < self.cell else 1 if goal > self.cell else 2


@dataclass(frozen=True)
class Lines(GymTaskFamily):
    """Lines with a hidden goal."""

    horizon: int = 5
    num_train_tasks: int = 24
    num_validation_tasks: int = 6
    num_test_tasks: int = 6
    widest: float = 3.0
    """Greatest width."""
    fail_at: int = 0
    """Step in which the environments with goal 0 break."""
    two_axes: bool = False
    """Observations that no encoder can represent."""

    def sample_task(self, rng):
        return {"goal": rng.integers(LENGTH), "width": rng.uniform(1, self.widest)}

    def make_env(self, goal, width):
        return LineWorld(goal, width, self.fail_at if goal == 0 else 0, self.two_axes)
