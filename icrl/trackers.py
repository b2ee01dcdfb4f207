"""What an evaluation watches beside returns: how agents explore, cumulative regret of bandits, visit maps and trajectories of grids.

A tracker is made for one roll-out by a factory that answers None where it does not apply, is shown every turn, and leaves
named arrays. Ready-made ones are in ``TRACKERS``; pass your own the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import gymnasium as gym
import numpy as np

from icrl.interfaces import PLAN_BEGINS, Array, TaskVectorEnv
from icrl.rollout import Turn

VISIT_LANES = 6  # lanes whose visits and trajectories are kept, the first ones


class Tracker(Protocol):
    """Watches one roll-out."""

    every_seed: bool
    """Whether the arrays of all evaluation seeds are stacked, (S, ...), or only the first seed's are kept."""

    def update(self, turn: Turn, episode: Array) -> None:
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

    def update(self, turn: Turn, episode: Array) -> None:
        pulled = turn.step.action[:, None].astype(np.int64)
        self._regret[:, self._t] = np.take_along_axis(self._gaps, pulled, 1)[:, 0]
        self._t += 1

    def arrays(self) -> dict[str, Array]:
        """``regret`` (B, T): expected regret at each step."""
        return {"regret": self._regret[:, : self._t]}


class SimpleRegretTracker:
    """What the best evaluation so far lacks to the optimum, where an environment can tell (``simple_regret(actions)``, (B, T) -> (B, T))."""

    every_seed = True

    def __init__(self, env: TaskVectorEnv):
        self._env, self._actions = env, list[Array]()

    @classmethod
    def make(cls, env: TaskVectorEnv, episodes: int, num_steps: int) -> SimpleRegretTracker | None:
        return cls(env) if hasattr(env, "simple_regret") else None

    def update(self, turn: Turn, episode: Array) -> None:
        self._actions.append(turn.step.action)

    def arrays(self) -> dict[str, Array]:
        """``simple_regret`` (B, T) after each evaluation, in units of the function's range."""
        regret = self._env.simple_regret(np.stack(self._actions, 1))  # type: ignore[attr-defined]
        return {"simple_regret": regret.astype(np.float32)}


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

    def update(self, turn: Turn, episode: Array) -> None:
        step = turn.step
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


class ExplorationTracker:
    """How an agent explores: how much of the world it has seen, how surprising its own actions are, and for how long it keeps to a plan."""

    every_seed = False

    def __init__(self, num_lanes: int, episodes: int, num_steps: int, space: gym.Space):
        self._steps = np.unique(np.geomspace(1, num_steps, min(num_steps, POINTS)).round().astype(int))  # (K,)
        self._cells = _Cells.of(space)
        self._seen = None if self._cells is None else np.zeros((num_lanes, self._cells.number), bool)
        self._coverage: list[float] = []
        self._sums = np.zeros(
            (4, episodes)
        )  # by episode: surprise, actions that have one, actions of plans, plans begun
        self._t = 0

    @classmethod
    def make(cls, env: TaskVectorEnv, episodes: int, num_steps: int) -> ExplorationTracker:
        return cls(env.num_envs, episodes, num_steps, env.single_observation_space)

    def update(self, turn: Turn, episode: Array) -> None:
        self._t += 1
        if self._seen is not None and self._cells is not None:
            self._seen[np.arange(len(self._seen)), self._cells.index(turn.step.observation)] = True
            if self._t in self._steps:
                self._coverage.append(float(self._seen.sum(1).mean()))
        counted = np.flatnonzero(episode < self._sums.shape[1])
        log_prob, plan = turn.decision.behaviour_log_prob, turn.decision.plan
        nothing = np.full(len(episode), np.nan)
        surprise = nothing if log_prob is None else -log_prob
        known = counted[np.isfinite(surprise[counted])]
        np.add.at(self._sums[0], episode[known], surprise[known])
        np.add.at(self._sums[1], episode[known], 1)
        if plan is not None:
            np.add.at(self._sums[2], episode[counted], 1)
            np.add.at(self._sums[3], episode[counted], (plan[counted] & PLAN_BEGINS) > 0)

    def arrays(self) -> dict[str, Array]:
        """``surprise`` (E,): mean of -log p of the actions, NaN where it is not known; ``plan_length`` (E,): actions per plan, NaN without plans.

        Where observations can be listed also ``coverage`` (K,): how many different ones a lane has seen, mean, after ``coverage_steps`` (K,).
        """
        surprise, known, planned, begun = self._sums
        arrays = {"surprise": _ratio(surprise, known), "plan_length": _ratio(planned, begun)}
        if self._cells is None:
            return arrays
        coverage = np.array(self._coverage)
        return {**arrays, "coverage": coverage, "coverage_steps": self._steps[: len(coverage)]}


POINTS = 60
"""Steps at which coverage is noted, at most."""


class _Cells:
    """Observations that can be listed, as numbers."""

    def __init__(self, sizes: Array, start: Array):
        self._sizes, self._start, self.number = sizes, start, int(np.prod(sizes))

    @classmethod
    def of(cls, space: gym.Space, most: int = 1 << 16) -> _Cells | None:
        if isinstance(space, gym.spaces.Discrete):
            sizes, start = np.array([space.n]), np.array([space.start])
        elif isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
            sizes, start = space.nvec, space.start
        else:
            return None
        return cls(sizes, start) if 1 < np.prod(sizes.astype(float)) <= most else None

    def index(self, observation: Array) -> Array:
        """Observations (B, ...) -> (B,)."""
        parts = np.asarray(observation, np.int64).reshape(len(observation), -1) - self._start
        return np.asarray(np.ravel_multi_index(tuple(parts.T), tuple(self._sizes)))


def _ratio(total: Array, number: Array) -> Array:
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


TRACKERS: Mapping[str, TrackerFactory] = {
    "regret": RegretTracker.make,
    "simple_regret": SimpleRegretTracker.make,
    "visits": VisitTracker.make,
    "exploration": ExplorationTracker.make,
}
