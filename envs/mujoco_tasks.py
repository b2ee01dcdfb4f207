"""Families on Gymnasium's MuJoCo v5 robots in which what to do, or the body that does it, is hidden.

HalfCheetah-Vel and -Dir and Ant-Dir hide the goal (Finn et al. 2017; Rakelly et al. 2019, PEARL), Walker-Param the dynamics (Rothfuss et al. 2018);
ranges, 200 steps and 45 training and 5 test tasks as in T2MIR (Wu et al. 2025), and validation tasks beside them. Every episode lasts its 200 steps:
a robot that falls earns no bonus for being healthy, but goes on.

Deviations: robots and observations are those of v5 (T2MIR's cheetah also sees the place of its torso, its walker is an older model);
tasks are drawn from T2MIR's ranges, but are not its 50.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from envs.gym_family import Task
from envs.oracle_policy import kept_oracle
from envs.robots import RobotFamily
from icrl.interfaces import Array, Tasks, UserError


@dataclass(frozen=True, kw_only=True)
class MujocoFamily(RobotFamily):
    """What the families share. Each says which robot it is, how a task is drawn, what a step earns and what an oracle is told.

    Observations are joint positions and velocities, without the place in the world. Of an action beyond [-1, 1] MuJoCo executes the nearest
    torque, and Gymnasium's rewards charge for it as given. Nobody knows the optimum of these robots: ``optimal_return`` is that of the oracle
    that the project keeps for a family, NaN where it keeps none.
    """

    robot: ClassVar[str]
    robot_options: ClassVar[dict[str, Any]] = {}

    horizon: int = 200
    """Steps per episode."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        raise NotImplementedError

    def told(self, task: Task | Tasks) -> Array:
        """A task, or tasks (N,) -> (k,) or (N, k): what an oracle sees of them, scaled to about [-1, 1]."""
        raise NotImplementedError

    def check(self, task: Task) -> None:
        """Raises UserError for a task that is out of range."""

    def prepare(self, model: Any, task: Task) -> None:
        """Make the robot's MuJoCo model the one of a task."""

    def reward(self, task: Task, given: float, info: dict[str, Any]) -> float:
        """What a step earns, from what the robot's own environment gave for it."""
        return given

    def make_env(self, **task: Any) -> MujocoTask:
        """One robot that plays a task. Raises UserError where MuJoCo is not installed, and for a task that is out of range."""
        self.check(task)
        return MujocoTask(self, task)


@dataclass(frozen=True, kw_only=True)
class HalfCheetahVel(MujocoFamily):
    """Run at a hidden velocity: a step pays -|velocity - target| - 0.05 |action|²."""

    robot: ClassVar[str] = "HalfCheetah-v5"
    robot_options: ClassVar[dict[str, Any]] = {"ctrl_cost_weight": 0.05}

    name: str = "half_cheetah_vel"
    """Name of the family in reports."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        """A target velocity uniform on [0, 3] m/s."""
        return {"velocity": rng.uniform(0, 3)}

    def check(self, task: Task) -> None:
        if not 0 <= task["velocity"] <= 3:
            raise UserError(f"velocity is {task['velocity']}, expected 0 to 3: correct the task")

    def told(self, task: Task | Tasks) -> Array:
        return np.asarray(task["velocity"])[..., None] / 1.5 - 1

    def reward(self, task: Task, given: float, info: dict[str, Any]) -> float:
        return info["reward_ctrl"] - abs(info["x_velocity"] - task["velocity"])


@dataclass(frozen=True, kw_only=True)
class HalfCheetahDir(MujocoFamily):
    """Run forwards or backwards, whichever is hidden: a step pays direction * velocity - 0.05 |action|².

    There are but two directions, which both must be trained on. So that tasks can be held out at all, each also scales the motors by a
    strength of its own, uniform on [0.9, 1.1]: what is new in a test task is that strength, not the direction.
    """

    robot: ClassVar[str] = "HalfCheetah-v5"
    robot_options: ClassVar[dict[str, Any]] = {"ctrl_cost_weight": 0.05}

    name: str = "half_cheetah_dir"
    """Name of the family in reports."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        """A direction, 1 or -1, and a strength uniform on [0.9, 1.1]."""
        return {"direction": float(rng.choice([-1, 1])), "strength": rng.uniform(0.9, 1.1)}

    def check(self, task: Task) -> None:
        if task["direction"] not in (-1, 1):
            raise UserError(f"direction is {task['direction']}, expected 1 or -1: correct the task")
        _check_positive(task, "strength")

    def told(self, task: Task | Tasks) -> Array:
        return np.stack([task["direction"], 10 * (np.asarray(task["strength"]) - 1)], axis=-1)

    def prepare(self, model: Any, task: Task) -> None:
        model.actuator_gear[:] *= task["strength"]

    def reward(self, task: Task, given: float, info: dict[str, Any]) -> float:
        return info["reward_ctrl"] + task["direction"] * info["x_velocity"]


@dataclass(frozen=True, kw_only=True)
class AntDir(MujocoFamily):
    """Walk in a hidden direction: a step pays the velocity along it, 1 for being healthy, less what torques and contacts cost in v5."""

    robot: ClassVar[str] = "Ant-v5"
    robot_options: ClassVar[dict[str, Any]] = {
        "include_cfrc_ext_in_observation": False,
        "terminate_when_unhealthy": False,
    }

    name: str = "ant_dir"
    """Name of the family in reports."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        """A direction uniform on the circle, in radians from the x-axis."""
        return {"angle": rng.uniform(0, 2 * np.pi)}

    def check(self, task: Task) -> None:
        if not np.isfinite(task["angle"]):
            raise UserError(f"angle is {task['angle']}, expected a finite number: correct the task")

    def told(self, task: Task | Tasks) -> Array:
        return np.stack([np.cos(task["angle"]), np.sin(task["angle"])], axis=-1)

    def reward(self, task: Task, given: float, info: dict[str, Any]) -> float:
        along = np.cos(task["angle"]) * info["x_velocity"] + np.sin(task["angle"]) * info["y_velocity"]
        return given - info["reward_forward"] + along


@dataclass(frozen=True, kw_only=True)
class WalkerParam(MujocoFamily):
    """Walk forwards on legs whose dynamics are hidden: v5's reward, with 1 for being healthy (T2MIR's: 1 always, -1 where not).

    Every mass, inertia and friction is multiplied by 1.5^u and every damping by 1.3^u, each with its own u uniform on [-3, 3].
    """

    robot: ClassVar[str] = "Walker2d-v5"
    robot_options: ClassVar[dict[str, Any]] = {"terminate_when_unhealthy": False}

    name: str = "walker_param"
    """Name of the family in reports."""

    MULTIPLIERS: ClassVar[dict[str, tuple[tuple[int, ...], float]]] = {
        "mass": ((7,), 1.5),  # of each body
        "inertia": ((7, 3), 1.5),  # of each body along its axes
        "damping": ((6,), 1.3),  # of each joint
        "friction": ((8, 3), 1.5),  # of the floor and each limb: sliding, torsional, rolling
    }
    """Shape and base of each field of a task."""
    RANGE: ClassVar[float] = 3.0
    """Greatest exponent."""

    def sample_task(self, rng: np.random.Generator) -> dict[str, Any]:
        """Multipliers, log-uniform and independent."""
        return {
            key: base ** rng.uniform(-self.RANGE, self.RANGE, shape) for key, (shape, base) in self.MULTIPLIERS.items()
        }

    def check(self, task: Task) -> None:
        for key in self.MULTIPLIERS:
            _check_positive(task, key)

    def told(self, task: Task | Tasks) -> Array:
        """Exponents of masses, dampings and sliding frictions, as shares of the greatest. A flat robot neither twists nor rolls on its contacts.

        Inertias are not told, to keep it short: they act, so this is not all that could be known.
        """
        exponents = [
            np.log(task[key] if key != "friction" else task[key][..., 0]) / np.log(self.MULTIPLIERS[key][1])
            for key in ("mass", "damping", "friction")
        ]
        return np.concatenate(exponents, axis=-1) / self.RANGE

    def prepare(self, model: Any, task: Task) -> None:
        mujoco = _mujoco(self.title)
        model.body_mass[1:] *= task["mass"]  # body 0 is the world
        model.body_inertia[1:] *= task["inertia"]
        model.dof_damping[-6:] *= task["damping"]  # the first three place the walker in the world, undamped
        model.geom_friction[:] *= task["friction"]
        mujoco.mj_setConst(model, mujoco.MjData(model))  # what the solver derives from masses


class MujocoTask(gym.Env):
    """One task of a family as a single environment, single precision, with the oracle that is kept for it. Ends never by itself."""

    def __init__(self, family: MujocoFamily, task: Task):
        with _quiet_compiler(_mujoco(family.title)):
            self._robot = gym.make(family.robot, disable_env_checker=True, **family.robot_options).unwrapped
        family.prepare(self._robot.model, task)  # type: ignore[attr-defined]
        self._family, self._task = family, task
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self._robot.observation_space.shape, np.float32)
        self.action_space = self._robot.action_space
        self._observation = np.zeros(self.observation_space.shape, np.float32)
        self._oracle = kept_oracle(type(family).name)
        self.optimal_action = None if self._oracle is None else self._oracle_action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observation, _ = self._robot.reset(seed=seed)
        self._observation = observation.astype(np.float32)
        return self._observation, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, given, _, _, info = self._robot.step(action)
        self._observation = observation.astype(np.float32)
        reward = self._family.reward(self._task, float(given), info)
        return self._observation, float(reward), False, False, {}

    @property
    def can_fall(self) -> bool:
        """Whether the robot's own environment has a rule of when it has fallen."""
        return hasattr(self._robot, "is_healthy")

    @property
    def healthy(self) -> bool:
        """Whether the robot stands, by that rule; without one it always does."""
        return bool(getattr(self._robot, "is_healthy", True))

    def _oracle_action(self, task: Task | None = None) -> Array:
        """(action_dim,) of the kept oracle for this or another task."""
        assert self._oracle is not None
        return self._oracle(self._observation, self._family.told(self._task if task is None else task))

    def close(self) -> None:
        self._robot.close()


def _check_positive(task: Task, key: str) -> None:
    values = np.asarray(task[key])
    if not ((values > 0) & np.isfinite(values)).all():
        raise UserError(f"{key} is not positive and finite everywhere: correct the task")


def _mujoco(who: str) -> Any:
    """MuJoCo itself, which is optional. Raises UserError, naming ``who`` needs it, where it is not installed."""
    try:
        return importlib.import_module("mujoco")
    except ImportError:
        raise UserError(f"{who} needs MuJoCo, which is not installed: pip install icrl[mujoco]") from None


@contextmanager
def _quiet_compiler(mujoco: Any) -> Iterator[None]:
    """MuJoCo prints its compiler's warnings about Gymnasium's models, and writes them to a file in the working directory: neither here."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
