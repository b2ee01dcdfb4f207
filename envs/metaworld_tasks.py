"""Meta-World's ML1 Reach and Push (Yu et al. 2020) with a hidden goal: an optional extra, ``pip install icrl[metaworld]``.

The arm sees its hand, its gripper and the object, never the goal (the first 18 numbers of Meta-World's observation). 100 steps, 45 training and 5 test
tasks as in T2MIR (Wu et al. 2025), and validation tasks beside them. A task is the place of the goal and of the object at the
start, drawn as Meta-World draws them. Rewards are Meta-World's, 0 to 10 a step.

Deviations: version 3 of the environments (T2MIR's is 2); tasks are not T2MIR's 50.
"""

from __future__ import annotations

import importlib
import pickle
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import gymnasium as gym
import numpy as np

from envs.gym_family import Task
from envs.robots import RobotFamily
from icrl.interfaces import Array, UserError

Corners: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
_OBJECT: Corners = ((-0.1, 0.6, 0.02), (0.1, 0.7, 0.02))
_LEAST_DISTANCE = 0.15
"""Between object and goal in the plane, as Meta-World has it."""


@dataclass(frozen=True, kw_only=True)
class MetaworldFamily(RobotFamily):
    """What Reach and Push share. ``optimal_return`` is that of the scripted policy that comes with Meta-World: good, not optimal."""

    environment: ClassVar[str]
    goals: ClassVar[Corners]
    """Least and greatest coordinates (x, y, z) of a goal, in metres."""

    horizon: int = 100
    """Steps per episode."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        """Goal and object uniform over their boxes, at least 0.15 apart in the plane."""
        while True:
            task = {"goal": rng.uniform(*self.goals), "object": rng.uniform(*_OBJECT)}
            if _distance(task) >= _LEAST_DISTANCE:
                return task

    def make_env(self, **task: Any) -> gym.Env:
        """One arm that plays a task. Raises UserError where Meta-World is not installed, and for a task that is out of range."""
        for key, (low, high) in (("goal", self.goals), ("object", _OBJECT)):
            if not ((task[key] >= np.array(low)) & (task[key] <= np.array(high))).all():
                raise UserError(f"{key} is {task[key]}, expected within {low} and {high}: correct the task")
        if _distance(task) < _LEAST_DISTANCE:  # Meta-World would look for another goal for ever
            raise UserError(f"the goal is nearer than {_LEAST_DISTANCE} to the object: correct the task")
        return MetaworldTask(self, task)


def _distance(task: Task) -> float:
    return float(np.linalg.norm((task["goal"] - task["object"])[:2]))


@dataclass(frozen=True, kw_only=True)
class MetaworldReach(MetaworldFamily):
    """Move the hand to a hidden goal."""

    environment: ClassVar[str] = "reach-v3"
    goals: ClassVar[Corners] = ((-0.1, 0.8, 0.05), (0.1, 0.9, 0.3))

    name: str = "metaworld_reach"
    """Name of the family in reports."""


@dataclass(frozen=True, kw_only=True)
class MetaworldPush(MetaworldFamily):
    """Push the object to a hidden goal on the table."""

    environment: ClassVar[str] = "push-v3"
    goals: ClassVar[Corners] = ((-0.1, 0.8, 0.01), (0.1, 0.9, 0.02))

    name: str = "metaworld_push"
    """Name of the family in reports."""


class MetaworldTask(gym.Env):
    """One task as a single environment. Ends never by itself; every episode begins in the same state, whatever the seed."""

    def __init__(self, family: MetaworldFamily, task: Task):
        metaworld = _metaworld(family.title)
        kind = metaworld.env_dict.ALL_V3_ENVIRONMENTS[family.environment]
        self._arm, self._goal = kind(), task["goal"]
        places = {"rand_vec": np.concatenate([task["object"], task["goal"]]), "env_cls": kind}
        data = pickle.dumps(places | {"partially_observable": True})
        self._arm.set_task(metaworld.types.Task(env_name=family.environment, data=data))
        self._arm.max_path_length = family.horizon
        self._script = importlib.import_module("metaworld.policies").ENV_POLICY_MAP[family.environment]()
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (18,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self._observation: Array = np.zeros(39)  # Meta-World's own: now, one step ago, and the goal as zeros

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._observation, _ = self._arm.reset()
        return self._seen(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        action = np.clip(action, -1, 1)
        self._observation, reward, _, _, info = self._arm.step(action)
        return self._seen(), float(reward), False, False, {"success": bool(info["success"])}

    def _seen(self) -> Array:
        return self._observation[:18].astype(np.float32)

    def optimal_action(self, task: Task | None = None) -> Array:
        """(4,) of Meta-World's scripted policy, told the goal of this or another task."""
        goal = self._goal if task is None else task["goal"]
        told = np.concatenate([self._observation[:-3], goal])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it asks for more than 1, as all of these policies do
            action = self._script.get_action(told)
        return np.clip(action, -1, 1).astype(np.float32)

    def close(self) -> None:
        self._arm.close()


def _metaworld(who: str) -> Any:
    """Meta-World itself, which is optional. Raises UserError where it, or something that it needs, is not installed."""
    try:
        return importlib.import_module("metaworld")
    except ImportError as error:
        raise UserError(f"{who} needs Meta-World ({error}): pip install icrl[metaworld]") from None
