"""Ordinary Gymnasium environments as the lanes of a family: one environment per lane, reset in the same step, failures kept apart.

A lane whose environment raises, or returns what no history can hold (a number that is not finite, another shape, an index outside
its space), is *failed*: it is named in ``GymVectorEnv.failed`` and stands still, while the other lanes go on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import shorten
from traceback import extract_tb
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from envs.base import LanesEnv, check_actions, check_seed
from icrl.interfaces import Array, FamilySpec, Observation, Tasks, UserError, map_observation
from icrl.seeding import derive_seed

MakeEnv = Callable[[np.void], gym.Env]
"""One record of the tasks -> a single environment with the family's spaces."""


class GymVectorEnv(LanesEnv):
    """Lane i plays the environment ``make_env(tasks[i])``; one that does not end by itself is truncated at the family's horizon.

    Parameters
    ----------
    spec : FamilySpec
        Spaces and horizon that every environment must have.
    tasks : Tasks
        (B,) one record per lane.
    make_env : callable
        Builds a lane's environment. It may have a method ``optimal_action(task)`` (None: its own task).
    lane_ids : array, optional
        (B,) numbers from which the lanes' seeds derive, 0 to B - 1 if not given.
    asynchronous : bool
        Each environment in a spawned process of its own: worth it where one step takes a millisecond or more. ``make_env`` is sent there (by
        cloudpickle), and a script that makes such an environment needs ``if __name__ == "__main__":``.

    Raises
    ------
    UserError
        If a task's environment cannot be made or has other spaces than ``spec``.
    """

    failed: dict[int, str]
    """Lanes that failed since the last seeded reset, and why. Such a lane earns 0, shows its last good observation, and its episodes are
    truncated at the horizon; its transitions from the failure on are not real."""

    def __init__(
        self,
        spec: FamilySpec,
        tasks: Tasks,
        make_env: MakeEnv,
        lane_ids: Array | None = None,
        *,
        asynchronous: bool = False,
    ):
        super().__init__(spec, tasks, lane_ids)
        self.failed, self._was_reset = {}, False
        lanes = [partial(_Lane, spec, make_env, task) for task in tasks]
        if asynchronous:
            make = partial(AsyncVectorEnv, lanes, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
        else:
            make = partial(SyncVectorEnv, lanes, autoreset_mode=AutoresetMode.SAME_STEP)
        self._envs: AsyncVectorEnv | SyncVectorEnv = self._try(make)
        self._check_lanes()
        self.metadata, self.render_mode = self._envs.metadata, self._envs.render_mode

    def _check_lanes(self) -> None:
        for index, problem in enumerate(self._try(self._envs.get_attr, "problem")):
            if problem is not None:
                self.close()
                task = self.tasks[index]
                values = ", ".join(f"{name} = {task[name].tolist()}" for name in self.tasks.dtype.names or ())
                raise UserError(f"task {index} of {self._family_name} {problem} (its task: {shorten(values, 300)})")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every lane; ``seed`` renews their random numbers (by chance if never seeded) and tries failed ones again."""
        check_seed(seed)
        if seed is None and not self._was_reset:
            seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        observation, info = self._try(self._envs.reset, seed=self._lane_seeds(seed))
        self._was_reset = True
        failures = self._try(self._envs.get_attr, "failure")
        self.failed = {lane: failure for lane, failure in enumerate(failures) if failure is not None}
        return observation, self._passed_on(info)

    def _lane_seeds(self, seed: int | None) -> list[int | None]:
        """A seed of 31 bits for each lane, which every environment can take."""
        if seed is None:
            return [None] * self.num_envs
        return [derive_seed(int(seed), self._family_name, "lane", int(i)) % 2**31 for i in self.lane_ids]

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """One step of every lane. Raises UserError for actions of a wrong shape or outside the action space."""
        if not self._was_reset:
            raise gym.error.ResetNeeded("call reset before the first step")
        actions = np.asarray(actions)
        check_actions(actions, self.single_action_space, self.num_envs)
        observation, reward, terminated, truncated, info = self._try(self._envs.step, actions)
        for part in (info, info.get("final_info", {})):
            for lane in np.flatnonzero(part.get("_failure", ())).tolist():
                self.failed.setdefault(lane, part["failure"][lane])
        passed = self._passed_on(info)
        if (ended := terminated | truncated).any():
            passed |= {"final_obs": _with_finals(observation, info["final_obs"], ended), "_final_obs": ended}
        return observation, reward.astype(np.float32), terminated, truncated, passed

    def _passed_on(self, info: dict[str, Any]) -> dict[str, Any]:
        """The mask of allowed actions (B, A), where any lane gives one; lanes that give none may do anything."""
        if "action_mask" not in info:
            return {}
        return {"action_mask": info["action_mask"].astype(bool) | ~info["_action_mask"][:, None]}

    @property
    def knows_optimum(self) -> bool:
        """Whether every environment has an ``optimal_action``."""
        return all(self._try(self._envs.get_attr, "knows_optimum"))

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) or (B, action_dim) what the environments' own ``optimal_action`` answers.

        Raises UserError where one has none.
        """
        if not self.knows_optimum:
            return super().optimal_action(tasks)
        self._try(self._envs.set_attr, "asked", [None] * self.num_envs if tasks is None else list(tasks))
        answers = self._try(self._envs.call, "answer")
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return np.stack(answers)

    def render(self) -> tuple[Any, ...]:
        """A frame of every lane, where environments were made to render."""
        return self._try(self._envs.call, "render")

    def close_extras(self, **kwargs: Any) -> None:
        self._envs.close(**kwargs)

    def _try(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function gives. Raises UserError where the process of a lane has died."""
        try:
            return function(*args, **kwargs)
        except (EOFError, OSError) as error:  # lanes catch what environments raise, so these come from a broken pipe
            self.closed = True
            if hasattr(self, "_envs"):
                for process in getattr(self._envs, "processes", ()):
                    process.terminate()
                self._envs.closed = True
            raise UserError(
                f"a process of an asynchronous environment of {self._family_name} died ({type(error).__name__}): out of memory, a crash "
                'in native code, or the script lacks `if __name__ == "__main__":`; make it without asynchronous to see more'
            ) from None


class _Lane(gym.Env):
    """One environment that never raises: what goes wrong before play is its ``problem``, afterwards its ``failure``."""

    problem: str | None = None
    failure: str | None = None
    asked: np.void | None = None
    """The task that ``answer`` is asked about; None for its own."""

    def __init__(self, spec: FamilySpec, make_env: MakeEnv, task: np.void):
        self.observation_space, self.action_space = spec.observation_space, spec.action_space
        self._horizon, self._clock = spec.horizon, 0
        self._observation, self._mask = _blank(spec.observation_space), {}
        self._env = None
        try:
            self._env = make_env(task)
            self.metadata, self.render_mode = self._env.metadata, self._env.render_mode
            self._optimal_action = getattr(self._env.unwrapped, "optimal_action", None)
            for what in ("observation_space", "action_space"):
                given, expected = getattr(self._env, what), getattr(spec, what)
                if given != expected:
                    self.problem = (
                        f"has the {what} {given}, the family's is {expected}: tasks of one family share their spaces"
                    )
        except UserError as error:
            self.problem = f"cannot be made: {error}"
        except Exception as error:
            self.problem = f"cannot be made: make_env {describe_error(error)}"

    @property
    def knows_optimum(self) -> bool:
        return self._optimal_action is not None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        assert self._env is not None
        self._clock = 0
        if seed is not None:
            self.failure = None
        if self.failure is None:
            try:
                self._see(*self._env.reset(seed=seed))
            except Exception as error:
                self.failure = describe_error(error)
        return self._observation, self._mask

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        assert self._env is not None
        self._clock += 1
        reward, terminated, truncated = 0.0, False, self._clock >= self._horizon
        if self.failure is None:
            try:
                given = int(action) if isinstance(self.action_space, Discrete) else np.array(action)
                observation, earned, ended, cut, info = self._env.step(given)
                if not np.isfinite(earned := float(earned)):
                    raise _NotPlayableError(f"returned the reward {earned}")
                self._see(observation, info)
                reward, terminated, truncated = earned, bool(ended), truncated or bool(cut)
            except Exception as error:
                self.failure = f"{describe_error(error)}, in step {self._clock} of an episode"
        info = self._mask if self.failure is None else {**self._mask, "failure": self.failure}
        return self._observation, reward, terminated, truncated, info

    def _see(self, observation: Observation, info: dict[str, Any]) -> None:
        """Take over what the environment shows, if a history can hold it."""
        seen = _conform("observation", self.observation_space, observation)
        self._mask = {"action_mask": np.array(info["action_mask"], bool)} if "action_mask" in info else {}
        self._observation = seen

    def answer(self) -> Any:
        """The optimal action, any action in a lane that failed, or the error that was raised (which must not end a process)."""
        if self.failure is not None:
            return _blank(self.action_space)
        try:
            assert self._optimal_action is not None
            return self._optimal_action(self.asked)
        except Exception as error:
            return error

    def render(self) -> Any:
        assert self._env is not None
        return self._env.render()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


class _NotPlayableError(Exception):
    """An environment returned what no history can hold; the message goes on from "its environment"."""


def describe_error(error: Exception) -> str:
    """What went wrong in somebody's environment, where, in one line that goes on from who it was."""
    if isinstance(error, _NotPlayableError):
        return str(error)
    frame = extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"raised {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {message}"


def _blank(space: gym.Space) -> Observation:
    """An element of a space, zero where zero is in it."""
    if isinstance(space, Dict):
        return {key: _blank(part) for key, part in space.spaces.items()}
    if isinstance(space, Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    return np.zeros(space.shape or (), space.dtype) + np.asarray(getattr(space, "start", 0), space.dtype)


def _conform(name: str, space: gym.Space, value: Any) -> Observation:
    """A copy of an observation in the space's dtypes. Raises _NotPlayableError where it is none of the space's."""
    if isinstance(space, Dict):
        return {key: _conform(f"{name}[{key!r}]", part, value[key]) for key, part in space.spaces.items()}
    array = np.asarray(value)
    if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype or array.dtype, "same_kind"):
        raise _NotPlayableError(
            f"returned an {name} of shape {array.shape} and type {array.dtype}, expected {space.shape} and {space.dtype}"
        )
    array = array.astype(space.dtype)
    if isinstance(space, Box) and array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise _NotPlayableError(f"returned an {name} that is not finite")
    elif not space.contains(array):
        raise _NotPlayableError(f"returned the {name} {array.tolist()}, which is outside {space}")
    return array


def _with_finals(observation: Observation, finals: Array, ended: Array) -> Observation:
    """A copy of ``observation`` (B, ...) that shows in lanes that ``ended`` (B,) what ``finals`` (B,) holds for them, (...) each."""
    result = map_observation(np.copy, observation)
    for lane in np.flatnonzero(ended).tolist():
        map_observation(partial(_put, lane), result, finals[lane])
    return result


def _put(lane: int, array: Array, row: Array) -> None:
    array[lane] = row
