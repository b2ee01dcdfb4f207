"""What native families share: a vector environment whose lanes keep one clock, and its single-lane view for ``gymnasium.make``."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from icrl.interfaces import Array, Family, FamilySpec, Tasks, TaskVectorEnv, UserError
from icrl.registry import build
from icrl.seeding import LaneStreams


class NativeVectorEnv(TaskVectorEnv):
    """A vector environment whose episodes all last exactly ``spec.horizon`` steps, so that one clock serves all lanes.

    A family implements ``_begin`` (put all lanes at the start of an episode), ``_observe`` (a fresh observation of all lanes) and
    ``_move`` (apply actions, return rewards). Reset in the same step is then scalar work.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    streams: LaneStreams  # (B,) lane streams, fresh at each seeded reset

    def __init__(self, spec: FamilySpec, tasks: Tasks, lane_ids: Array | None):
        self.tasks = tasks
        self.num_envs = len(tasks)
        self.lane_ids = np.arange(self.num_envs) if lane_ids is None else np.asarray(lane_ids)
        if self.num_envs == 0 or self.lane_ids.shape != (self.num_envs,):
            raise UserError(
                f"got {self.num_envs} tasks and lane_ids of shape {self.lane_ids.shape}: expected at least one task and one id each"
            )
        self.single_observation_space, self.single_action_space = spec.observation_space, spec.action_space
        self.observation_space = batch_space(spec.observation_space, self.num_envs)
        self.action_space = batch_space(spec.action_space, self.num_envs)
        assert isinstance(spec.action_space, gym.spaces.Discrete)
        self._num_actions = int(spec.action_space.n)
        self._family_name, self._horizon = spec.name, spec.horizon
        self._clock: int | None = None
        self._lanes = np.arange(self.num_envs)
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        self._none.flags.writeable = self._all.flags.writeable = False  # handed out at every step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every lane; ``seed`` renews the lanes' random streams (by chance if never seeded)."""
        if not (seed is None or isinstance(seed, int | np.integer)):
            raise UserError(
                f"reset got the seed {seed!r}: expected one integer, from which every lane's stream derives"
            )
        if seed is not None or self._clock is None:
            root = np.random.SeedSequence().entropy if seed is None else int(seed)
            assert isinstance(root, int)
            self.streams = LaneStreams(root, self._family_name, lane_ids=self.lane_ids)
        self._clock = 0
        self._begin()
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every lane. Raises UserError for actions of a wrong shape or outside the action space."""
        actions = np.asarray(actions)
        if self._clock is None:
            raise gym.error.ResetNeeded("call reset before the first step")
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise UserError(
                f"got actions of shape {actions.shape} and type {actions.dtype}: expected ({self.num_envs},) integers"
            )
        if actions.min() < 0 or actions.max() >= self._num_actions:
            raise UserError(
                f"got actions from {actions.min()} to {actions.max()}: expected 0 to {self._num_actions - 1}, correct the agent"
            )
        reward = self._move(actions)
        observation = self._observe()
        self._clock += 1
        if self._clock < self._horizon:
            return observation, reward, self._none, self._none, {}
        self._clock = 0
        self._begin()
        return self._observe(), reward, self._none, self._all, {"final_obs": observation, "_final_obs": self._all}

    def _begin(self) -> None:
        raise NotImplementedError

    def _observe(self) -> Array:
        raise NotImplementedError

    def _move(self, actions: Array) -> Array:
        """(B,) int -> rewards (B,) float32."""
        raise NotImplementedError


class SingleEnv(gym.Env):
    """One task of a family as an ordinary Gymnasium environment: a vector environment with one lane.

    Keyword arguments are the family's options and the task's fields. Fields that are not given are drawn at the first reset, and
    again at each seeded one.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, name: str, family_class: type, **kwargs: Any):
        option_names = {field.name for field in dataclasses.fields(family_class)}
        options = {key: value for key, value in kwargs.items() if key in option_names}
        self.family: Family = build("family", name, family_class, options)
        self._given = {key: value for key, value in kwargs.items() if key not in option_names}
        task_fields = self.family.sample_tasks(np.random.default_rng(0), 1).dtype.names or ()
        for key in self._given:
            if key not in task_fields:
                raise UserError(
                    f"unknown argument '{key}' of family '{name}': its options are {', '.join(sorted(option_names))}, "
                    f"its task's fields {', '.join(task_fields)}"
                )
        self.observation_space, self.action_space = self.family.spec.observation_space, self.family.spec.action_space
        self._vec: TaskVectorEnv | None = None
        if all(key in self._given for key in task_fields):
            self._vec = self._make_vec()  # wrong values are refused now, not at the first reset

    def _make_vec(self) -> TaskVectorEnv:
        task = self.family.sample_tasks(self.np_random, 1)
        for key, value in self._given.items():
            try:
                task[key][0] = value
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"task field {key} is {value!r} ({error}): expected shape {task[key].shape[1:]} of type {task[key].dtype}"
                ) from None
        return self.family.make_vec(task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._vec is None or seed is not None:
            self._vec = self._make_vec()
            seed = int(self.np_random.integers(2**62))
        observation, info = self._vec.reset(seed=seed)
        return observation[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._vec is None:
            raise gym.error.ResetNeeded("call reset before the first step")
        observation, reward, terminated, truncated, info = self._vec.step(np.asarray([action]))
        ended = bool(terminated[0] or truncated[0])
        true_observation = info["final_obs"][0] if ended else observation[0]
        return true_observation, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}
