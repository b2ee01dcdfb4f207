"""What native families share: a vector environment whose lanes keep one clock; and every family's single-lane view for ``gymnasium.make``."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from icrl.interfaces import (
    Array,
    Family,
    FamilySpec,
    Observation,
    Tasks,
    TaskVectorEnv,
    UserError,
    map_observation,
)
from icrl.registry import build
from icrl.seeding import LaneStreams


def check_actions(actions: Array, space: gym.Space, num_envs: int) -> None:
    """Raises UserError unless ``actions`` are one integer of a Discrete ``space``, or one finite vector of a Box's shape, per lane.

    Whether a vector lies within the box is not asked: what happens beyond its bounds is the environment's business, as in Gymnasium.
    """
    box = isinstance(space, Box)
    shape, kinds, wanted = (num_envs, *(space.shape or ())), "fiu" if box else "iu", "numbers" if box else "integers"
    if actions.shape != shape or actions.dtype.kind not in kinds:
        raise UserError(f"got actions of shape {actions.shape} and type {actions.dtype}: expected {shape} {wanted}")
    if box:
        if not np.isfinite(actions).all():
            raise UserError("got actions that are not finite numbers: expected finite ones, correct the agent")
        return
    assert isinstance(space, Discrete), "action spaces are Discrete or Box"
    least, most = int(space.start), int(space.start + space.n) - 1
    if actions.min() < least or actions.max() > most:
        raise UserError(
            f"got actions from {actions.min()} to {actions.max()}: expected {least} to {most}, correct the agent"
        )


class LanesEnv(TaskVectorEnv):
    """What every vector environment of tasks begins with: one lane per task, the lanes' numbers, their spaces.

    Raises UserError without tasks, or with another number of ``lane_ids`` (0 to B - 1 if not given).
    """

    def __init__(self, spec: FamilySpec, tasks: Tasks, lane_ids: Array | None = None):
        self.tasks, self.num_envs = tasks, len(tasks)
        self.lane_ids = np.arange(self.num_envs) if lane_ids is None else np.asarray(lane_ids)
        if self.num_envs == 0 or self.lane_ids.shape != (self.num_envs,):
            raise UserError(
                f"got {self.num_envs} tasks and lane_ids of shape {self.lane_ids.shape}: expected at least one task and one id each"
            )
        self.single_observation_space, self.single_action_space = spec.observation_space, spec.action_space
        self.observation_space = batch_space(spec.observation_space, self.num_envs)
        self.action_space = batch_space(spec.action_space, self.num_envs)
        self._family_name, self._horizon = spec.name, spec.horizon


def check_seed(seed: Any) -> None:
    """Raises UserError for a ``reset`` seed that is neither None nor one integer."""
    if not (seed is None or isinstance(seed, int | np.integer)):
        raise UserError(f"reset got the seed {seed!r}: expected one integer, from which every lane's stream derives")


class NativeVectorEnv(LanesEnv):
    """A vector environment whose episodes all last exactly ``spec.horizon`` steps, so that one clock serves all lanes.

    A family implements ``_begin`` (put all lanes at the start of an episode), ``_observe`` (a fresh observation of all lanes) and
    ``_move`` (apply actions, return rewards). Reset in the same step is then scalar work. Actions outside a Box are clipped to it, as
    Gymnasium's own continuous environments do.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    streams: LaneStreams  # (B,) lane streams, fresh at each seeded reset

    def __init__(self, spec: FamilySpec, tasks: Tasks, lane_ids: Array | None):
        super().__init__(spec, tasks, lane_ids)
        self._clock: int | None = None
        self._lanes = np.arange(self.num_envs)
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        self._none.flags.writeable = self._all.flags.writeable = False  # handed out at every step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every lane; ``seed`` renews the lanes' random streams (by chance if never seeded)."""
        check_seed(seed)
        if seed is not None or self._clock is None:
            root = np.random.SeedSequence().entropy if seed is None else int(seed)
            assert isinstance(root, int)
            self.streams = LaneStreams(root, self._family_name, lane_ids=self.lane_ids)
        self._clock = 0
        self._begin()
        return self._observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every lane. Raises UserError for actions that ``check_actions`` refuses."""
        actions = np.asarray(actions)
        if self._clock is None:
            raise gym.error.ResetNeeded("call reset before the first step")
        space = self.single_action_space
        check_actions(actions, space, self.num_envs)
        if isinstance(space, Box):
            actions = np.clip(actions, space.low, space.high)
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
        """(B,) int, or (B, action_dim) within the box -> rewards (B,) float32."""
        raise NotImplementedError


class SingleEnv(gym.Env):
    """One task of a family as an ordinary Gymnasium environment: a vector environment with one lane.

    Keyword arguments are the family's options and the task's fields. Fields that are not given are drawn at the first reset, and
    again at each seeded one. Families with a ``render_fps`` can be drawn: ``render_mode="rgb_array"``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, name: str, family_class: type, /, render_mode: str | None = None, **kwargs: Any):
        if hasattr(family_class, "render_fps"):
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": family_class.render_fps}
        if render_mode not in (None, *self.metadata["render_modes"]):
            modes = " or ".join(self.metadata["render_modes"]) or "none"
            raise UserError(f"family '{name}' got render_mode {render_mode!r}: expected {modes}")
        self.render_mode = render_mode
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
        self._over = False  # the episode is: the vector environment is already in the next one
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
        self._over = False
        self._refuse_failure()
        return _only_lane(observation), only_mask(info)

    def render(self) -> Any:
        """The frame that shows the state, (rows, columns, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._vec is None:
            raise gym.error.ResetNeeded("call reset before the first frame")
        draw = getattr(self._vec, "render_last", self._vec.render) if self._over else self._vec.render
        frames = draw()
        assert frames is not None
        return frames[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._vec is None:
            raise gym.error.ResetNeeded("call reset before the first step")
        observation, reward, terminated, truncated, info = self._vec.step(np.asarray([action]))
        self._refuse_failure()
        self._over = ended = bool(terminated[0] or truncated[0])
        true_observation = _only_lane(info["final_obs"] if ended else observation)
        return (
            true_observation,
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {} if ended else only_mask(info),
        )

    def _refuse_failure(self) -> None:
        """Raise UserError where the lane's own environment failed (``GymVectorEnv.failed``)."""
        for reason in getattr(self._vec, "failed", {}).values():
            raise UserError(f"the environment of {self.family.spec.name} {reason}")

    def close(self) -> None:
        if self._vec is not None:
            self._vec.close()


def only_mask(info: dict[str, Any]) -> dict[str, Any]:
    """What a vector environment of one lane says of the allowed actions, (A,)."""
    return {"action_mask": info["action_mask"][0]} if "action_mask" in info else {}


def _only_lane(observation: Observation) -> Observation:
    """(1, ...) -> (...)."""
    return map_observation(lambda array: array[0], observation)
