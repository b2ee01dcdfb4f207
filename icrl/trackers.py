"""What an evaluation watches beside returns: cumulative regret of bandits, visit maps and trajectories of grids.

A tracker is made for one roll-out by a factory that answers None where it does not apply, is shown every turn, and leaves
named arrays. Ready-made ones are in ``TRACKERS``; pass your own the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import gymnasium as gym
import numpy as np

from icrl.interfaces import Array, Step, TaskVectorEnv

VISIT_LANES = 6  # lanes whose visits and trajectories are kept, the first ones


class Tracker(Protocol):
    """Watches one roll-out."""

    every_seed: bool
    """Whether the arrays of all evaluation seeds are stacked, (S, ...), or only the first seed's are kept."""

    def update(self, step: Step, episode: Array) -> None:
        """One step of every lane; ``episode`` (B,) is the number of the running episode in the lane, from 0."""
        ...

    def arrays(self) -> dict[str, Array]: ...


TrackerFactory = Callable[[TaskVectorEnv, int, int], "Tracker | None"]
"""(env, episodes, most steps) -> a tracker, or None where it does not apply."""


class RegretTracker:
    """Expected regret of each pull, best mean - mean of the pulled arm, for tasks with a field ``means`` (A,)."""

    every_seed = True

    def __init__(self, means: Array, num_steps: int):
        self._gaps = means.max(1, keepdims=True) - means  # (B, A)
        self._regret = np.zeros((len(means), num_steps), np.float32)  # (B, T)
        self._t = 0

    @classmethod
    def make(cls, env: TaskVectorEnv, episodes: int, num_steps: int) -> RegretTracker | None:
        fields = env.tasks.dtype.names or ()
        if "means" not in fields or not isinstance(env.single_action_space, gym.spaces.Discrete):
            return None
        return cls(np.asarray(env.tasks["means"], np.float64), num_steps)

    def update(self, step: Step, episode: Array) -> None:
        self._regret[:, self._t] = np.take_along_axis(self._gaps, step.action[:, None].astype(np.int64), 1)[:, 0]
        self._t += 1

    def arrays(self) -> dict[str, Array]:
        """``regret`` (B, T): expected regret at each step."""
        return {"regret": self._regret[:, : self._t]}


class VisitTracker:
    """Visit counts by cell in a few episodes, and the whole life of the first lanes, on grids (two index coordinates)."""

    every_seed = False

    def __init__(self, shape: tuple[int, int], num_lanes: int, episodes: int):
        self._episodes = np.unique([e for e in (0, 1, 2, episodes - 1) if e < episodes])  # (K,)
        self._visits = np.zeros((len(self._episodes), num_lanes, *shape), np.int32)  # (K, B, H, W)
        self._lanes = np.arange(num_lanes)
        self._life: list[tuple[Array, ...]] = []

    @classmethod
    def make(cls, env: TaskVectorEnv, episodes: int, num_steps: int) -> VisitTracker | None:
        space = env.single_observation_space
        if not isinstance(space, gym.spaces.MultiDiscrete) or space.nvec.shape != (2,) or space.start.any():
            return None
        return cls((int(space.nvec[0]), int(space.nvec[1])), env.num_envs, episodes)

    def update(self, step: Step, episode: Array) -> None:
        cells = np.asarray(step.observation)  # (B, 2)
        for k, chosen in enumerate(self._episodes):
            here = episode == chosen
            self._visits[k, self._lanes[here], cells[here, 0], cells[here, 1]] += 1
        first = slice(0, VISIT_LANES)
        self._life.append(tuple(np.array(a[first]) for a in (cells, step.action, step.reward, episode)))

    def arrays(self) -> dict[str, Array]:
        """``visit_episodes`` (K,) from 1, ``visit_lanes`` (K, n, H, W) counts, ``visit_mean`` (K, H, W) mean of all lanes.

        ``life_observation`` (T, n, 2), ``life_action``, ``life_reward`` and ``life_episode`` (T, n), from 1: all steps of the
        first n lanes in order; a lane that finished its episodes early goes on, with numbers above the last.
        """
        names = ("life_observation", "life_action", "life_reward", "life_episode")
        life = dict(zip(names, (np.stack(column) for column in zip(*self._life, strict=True)), strict=True))
        life["life_episode"] = life["life_episode"] + 1
        visits = {"visit_lanes": self._visits[:, :VISIT_LANES], "visit_mean": self._visits.mean(1, dtype=np.float32)}
        return {"visit_episodes": self._episodes + 1, **visits, **life}


TRACKERS: Mapping[str, TrackerFactory] = {"regret": RegretTracker.make, "visits": VisitTracker.make}
