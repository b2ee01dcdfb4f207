"""Trials: k episodes of one task joined into one ordinary episode, so that any recurrent RL library trains RL² on any family.

RL² (Duan et al. 2016; Wang et al. 2016): the agent sees its previous action, reward and whether an episode has just ended beside the
observation, keeps its memory for a whole trial, and is trained on the return of the trial.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from envs.base import only_mask
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
        if len(tasks) == 0 or episodes < 1:
            raise UserError(f"a trial got {len(tasks)} tasks and {episodes} episodes: expected at least one of each")
        self.family, self.tasks, self.episodes = family, tasks, episodes
        self.encoding = TrialEncoding(family.spec)
        self.observation_space, self.action_space = self.encoding.space, family.spec.action_space
        self._env: TaskVectorEnv | None = None
        self._over = True
        self._returns: list[float] = []

    @property
    def max_steps(self) -> int:
        """Longest possible trial, in steps."""
        return self.episodes * self.family.spec.horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a trial of a new task; ``info["task"]`` is its index in ``tasks``."""
        super().reset(seed=seed)
        self.close()
        index = int(self.np_random.integers(len(self.tasks)))
        self._env = self.family.make_vec(self.tasks[index : index + 1])
        observation, info = self._env.reset(seed=int(self.np_random.integers(2**62)))
        self._refuse_failure()
        self._returns, self._over = [0.0], False
        return self.encoding.start(observation)[0], {"task": index} | only_mask(info)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._env is None or self._over:
            raise gym.error.ResetNeeded("call reset before the first step, and after a trial is over")
        actions = np.asarray(action)[None]
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self._refuse_failure()
        self._returns[-1] += float(reward[0])
        ended = terminated | truncated
        self._over = over = bool(ended[0]) and len(self._returns) == self.episodes
        told = {"episode_returns": np.array(self._returns)} if over else only_mask(info)
        seen = self.encoding.after(info["final_obs"] if over else observation, actions, reward, ended)[0]
        if ended[0] and not over:
            self._returns.append(0.0)
        return seen, float(reward[0]), over, False, told

    def _refuse_failure(self) -> None:
        for reason in getattr(self._env, "failed", {}).values():
            assert self._env is not None
            raise UserError(f"the environment of task {self._env.tasks[0]} of {self.family.spec.name} {reason}")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


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
