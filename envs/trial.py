"""Trials: k episodes of one task joined into one ordinary episode, so that any recurrent RL library trains RL² on any family.

RL² (Duan et al. 2016; Wang et al. 2016): the agent sees its previous action, reward and whether an episode has just ended beside the
observation, keeps its memory for a whole trial, and is trained on the return of the trial.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode

from envs.base import LanesEnv, NativeVectorEnv, check_seed, only_mask
from icrl.interfaces import Array, Family, FamilySpec, Observation, Tasks, TaskVectorEnv, UserError


class TrialEncoding:
    """What an agent in a trial sees of a family: (observation, previous action, previous reward, an episode has just ended), flat.

    Index values (Discrete, MultiDiscrete) are one-hot, coordinate by coordinate; boxes are flattened as they are; the parts of a
    dictionary follow each other. Action and reward are zeros at the start of a trial. All of it is float32.
    """

    space: Box  # (D,)

    def __init__(self, spec: FamilySpec):
        self._spec = spec
        bounds = [*_bounds(spec.observation_space), *_bounds(spec.action_space), (-np.inf, np.inf), (0.0, 1.0)]
        low, high = (np.concatenate([np.atleast_1d(np.float32(pair[side])) for pair in bounds]) for side in (0, 1))
        self.space = Box(low, high, dtype=np.float32)
        self._num_action = sum(np.size(low) for low, _ in _bounds(spec.action_space))

    def start(self, observation: Observation) -> Array:
        """(B, ...) first observations of a trial -> (B, D)."""
        seen = _flat(self._spec.observation_space, observation)
        return np.concatenate([seen, np.zeros((len(seen), self._num_action + 2), np.float32)], axis=1)

    def after(self, observation: Observation, action: Array, reward: Array, ended: Array) -> Array:
        """Observations after a step (B, ...), which may begin another episode, and the step's action, reward and end (B,) -> (B, D)."""
        seen, done = _flat(self._spec.observation_space, observation), _flat(self._spec.action_space, action)
        return np.concatenate([seen, done, np.stack([reward, ended], axis=1).astype(np.float32)], axis=1)


class _Trials:
    """Trials of B lanes side by side, each of a task of its own. Episodes must end in all lanes at once, as those of native families do."""

    def __init__(self, family: Family, tasks: Tasks, episodes: int, num_lanes: int):
        if len(tasks) == 0 or episodes < 1:
            raise UserError(f"a trial got {len(tasks)} tasks and {episodes} episodes: expected at least one of each")
        self.encoding = TrialEncoding(family.spec)
        self._family, self._tasks, self._episodes, self._num_lanes = family, tasks, episodes, num_lanes
        self._env: TaskVectorEnv | None = None
        self.over = True
        self.returns: list[Array] = []  # (B,) of each episode that has begun

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array, dict[str, Any]]:
        """Draw a task for every lane and begin its first episode: observations (B, D), the tasks' indices (B,), the environment's info."""
        self.close()
        index = rng.integers(len(self._tasks), size=self._num_lanes)
        self._env = self._family.make_vec(self._tasks[index])
        observation, info = self._env.reset(seed=int(rng.integers(2**62)))
        self._refuse_failure(self._env)
        self.returns, self.over = [np.zeros(self._num_lanes)], False
        return self.encoding.start(observation), index, info

    def step(self, actions: Array) -> tuple[Array, Array, dict[str, Any]]:
        """One step of every lane -> observations (B, D), true last ones where the trial is ``over``; rewards (B,); the environment's info."""
        if self._env is None or self.over:
            raise gym.error.ResetNeeded("call reset before the first step, and after a trial is over")
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self._refuse_failure(self._env)
        self.returns[-1] = self.returns[-1] + reward
        ended = terminated | truncated
        assert ended.all() or not ended.any(), "episodes of these lanes end together"
        self.over = bool(ended[0]) and len(self.returns) == self._episodes
        seen = self.encoding.after(info["final_obs"] if self.over else observation, actions, reward, ended)
        if ended[0] and not self.over:
            self.returns.append(np.zeros(self._num_lanes))
        return seen, np.asarray(reward, np.float32), info

    def _refuse_failure(self, env: TaskVectorEnv) -> None:
        for lane, reason in getattr(env, "failed", {}).items():
            raise UserError(f"the environment of task {env.tasks[lane]} of {self._family.spec.name} {reason}")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class TrialEnv(gym.Env):
    """One trial per Gymnasium episode: a task drawn from ``tasks``, ``episodes`` episodes of it, then ``terminated``.

    Parameters
    ----------
    family : Family
        Any family; its own vector environment with one lane is played.
    tasks : Tasks
        (N,) tasks to draw from, equally often, at each reset; usually ``family.split().train``.
    episodes : int
        Episodes in a trial.

    A trial is over for good after its last episode (``terminated``, whatever ended that episode, so that nothing is bootstrapped from
    beyond it); at its last step ``info["episode_returns"]`` (episodes,) tells what each episode earned. The observation follows
    ``TrialEncoding``. Raises UserError without tasks or episodes, and where the environment of a task fails.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, family: Family, tasks: Tasks, episodes: int):
        self._trials = _Trials(family, tasks, episodes, num_lanes=1)
        self.family, self.tasks, self.episodes, self.encoding = family, tasks, episodes, self._trials.encoding
        self.observation_space, self.action_space = self.encoding.space, family.spec.action_space

    @property
    def max_steps(self) -> int:
        """Longest possible trial, in steps."""
        return self.episodes * self.family.spec.horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a trial of a new task; ``info["task"]`` is its index in ``tasks``."""
        super().reset(seed=seed)
        seen, index, info = self._trials.begin(self.np_random)
        return seen[0], {"task": int(index[0])} | only_mask(info)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        seen, reward, info = self._trials.step(np.asarray(action)[None])
        over = self._trials.over
        told = {"episode_returns": np.concatenate(self._trials.returns)} if over else only_mask(info)
        return seen[0], float(reward[0]), over, False, told

    def close(self) -> None:
        self._trials.close()


class TrialVecEnv(LanesEnv):
    """``TrialEnv`` in ``num_envs`` lanes: a lane whose trial is over begins one of another task in the same step.

    Lanes of a native family are one vector environment, since their trials end together; of other families every lane has its own. One
    lane seeded alike plays what a ``TrialEnv`` does. ``episode_returns`` (B, episodes) are those of the lanes' last complete trials,
    NaN before. Raises what ``TrialEnv`` does.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, family: Family, tasks: Tasks, episodes: int, num_envs: int):
        encoding, actions = TrialEncoding(family.spec), family.spec.action_space
        spec = FamilySpec(f"trials of {family.spec.name}", encoding.space, actions, episodes * family.spec.horizon)
        super().__init__(spec, np.resize(tasks, num_envs if len(tasks) else 0))
        together = isinstance(family.make_vec(tasks[:1]), NativeVectorEnv)
        size = num_envs if together else 1
        self._lanes = [slice(first, first + size) for first in range(0, num_envs, size)]
        self._trials = [_Trials(family, tasks, episodes, size) for _ in self._lanes]
        self.episode_returns = np.full((num_envs, episodes), np.nan)
        self._rng: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a trial in every lane; ``seed`` renews the draws of tasks and all that is random in them."""
        check_seed(seed)
        if seed is not None or self._rng is None:
            self._rng = np.random.default_rng(seed)
        return np.concatenate([trials.begin(self._rng)[0] for trials in self._trials]), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        if self._rng is None:
            raise gym.error.ResetNeeded("call reset before the first step")
        num, width = self.num_envs, flatdim(self.single_observation_space)
        final, reward, over = np.zeros((num, width), np.float32), np.zeros(num, np.float32), np.zeros(num, bool)
        for lanes, trials in zip(self._lanes, self._trials, strict=True):
            final[lanes], reward[lanes], _ = trials.step(actions[lanes])
            over[lanes] = trials.over
        if not over.any():
            return final, reward, over, np.zeros_like(over), {}
        seen = final.copy()
        for lanes, trials in zip(self._lanes, self._trials, strict=True):
            if trials.over:
                self.episode_returns[lanes] = np.stack(trials.returns, axis=1)
                seen[lanes] = trials.begin(self._rng)[0]
        return seen, reward, over, np.zeros_like(over), {"final_obs": final, "_final_obs": over}

    def close_extras(self, **kwargs: Any) -> None:
        for trials in self._trials:
            trials.close()


def _bounds(space: gym.Space) -> list[tuple[Array | float, Array | float]]:
    """Least and greatest values of the parts of ``_flat``. Raises UserError for a space that it cannot flatten."""
    if isinstance(space, Discrete):
        return [(np.zeros(int(space.n)), np.ones(int(space.n)))]
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return [(np.zeros(int(space.nvec.sum())), np.ones(int(space.nvec.sum())))]
    if isinstance(space, Box):
        return [(space.low.ravel(), space.high.ravel())]
    if isinstance(space, Dict):
        return [pair for part in space.spaces.values() for pair in _bounds(part)]
    raise UserError(
        f"a trial cannot show the space {space}: expected Discrete, MultiDiscrete with one axis, Box or a Dict of these"
    )


def _flat(space: gym.Space, value: Any) -> Array:
    """(B, ...) elements of a space -> (B, D) float32."""
    if isinstance(space, Dict):
        return np.concatenate([_flat(part, value[key]) for key, part in space.spaces.items()], axis=1)
    value = np.asarray(value)
    if isinstance(space, Box):
        return value.reshape(len(value), -1).astype(np.float32)
    assert isinstance(space, Discrete | MultiDiscrete)
    sizes = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec)
    first = np.cumsum(sizes) - sizes - space.start  # place of each coordinate's value 0
    flat = np.zeros((len(value), sizes.sum()), np.float32)
    np.put_along_axis(flat, value.reshape(len(value), -1) + first, 1.0, axis=1)
    return flat
