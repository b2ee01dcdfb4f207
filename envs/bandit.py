"""Stochastic bandits: one state, arms with unknown means; an episode is ``horizon`` pulls (Lee et al. 2023, section 4).

The noise of a pull is a function of (seed, lane, number of the pull) and shared by all arms, so that two agents on the same tasks and
seed face the same draws (common random numbers) and differ by their choices alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete

from envs.bandit_posterior import BernoulliPosterior, GaussianPosterior
from envs.base import NativeVectorEnv
from envs.tasks import LISTS, check_least, independent_split
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError

_MOST_STATES = 2_000_000
"""Count states that are listed."""


@dataclass(frozen=True)
class _Bandit:
    """What bandits share: arms, horizon, tasks drawn without end."""

    name: ClassVar[str]

    num_arms: int = 5
    """Arms."""
    horizon: int = 500
    """Pulls per episode."""
    num_train_tasks: int = 10_000
    """Training tasks."""
    num_validation_tasks: int = 100
    """Tasks to choose checkpoints on."""
    num_test_tasks: int = 2000
    """Tasks to report on."""
    task_seed: int = 0
    """Seed of the three lists of tasks."""

    def __post_init__(self):
        check_least("the bandit", self, num_arms=2, horizon=1, **LISTS)

    @property
    def spec(self) -> FamilySpec:
        """One state, always observed as [0]; an action is an arm."""
        return FamilySpec(self.name, MultiDiscrete([1], dtype=np.int16), Discrete(self.num_arms), self.horizon)

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Means of all arms uniform on [0, 1], independent (Beta(1, 1))."""
        tasks = np.empty(num_tasks, [("means", np.float64, (self.num_arms,))])
        tasks["means"] = rng.random((num_tasks, self.num_arms))
        return tasks

    def split(self) -> Split:
        """Three independent lists: means are continuous, so they share no task."""
        return independent_split(self)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) expected return of an episode of pulls of the best arm."""
        return self.horizon * tasks["means"].max(axis=1)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) expected return of an episode of uniform pulls."""
        return self.horizon * tasks["means"].mean(axis=1)

    def _check(self, tasks: Tasks) -> None:
        means = tasks["means"]
        if not ((means >= 0) & (means <= 1)).all():
            raise UserError(
                f"an arm's mean is outside [0, 1] (least {means.min()}, greatest {means.max()}): correct the task"
            )


@dataclass(frozen=True)
class GaussianBandit(_Bandit):
    """Arms with means uniform on [0, 1] and normal noise of known standard deviation."""

    name: ClassVar[str] = "gaussian_bandit"

    noise: float = 0.3
    """Standard deviation of a reward."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.noise < np.inf:
            raise UserError(f"the bandit's noise is {self.noise}: expected a standard deviation of at least 0")

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for means outside [0, 1]."""
        self._check(tasks)
        return GaussianBanditVectorEnv(self, tasks, lane_ids)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact: a normal truncated to [0, 1] for each arm."""
        return GaussianPosterior(env.num_envs, self.num_arms, self.noise)

    def scattered(self) -> GaussianBandit:
        """The same tasks, one pull per episode (there is one state)."""
        return replace(self, horizon=1)


@dataclass(frozen=True)
class BernoulliBandit(_Bandit):
    """Arms that pay 1 with a probability uniform on [0, 1], else 0."""

    name: ClassVar[str] = "bernoulli_bandit"

    num_arms: int = 2
    """Arms."""

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for means outside [0, 1]."""
        self._check(tasks)
        return BernoulliBanditVectorEnv(self.spec, tasks, lane_ids)

    def count_states(self, max_pulls: int) -> tuple[Array, Array]:
        """Pulls (N, A) and successes (N, A) of every state with at most ``max_pulls`` pulls in all. Raises UserError where they are too many."""
        num_states = math.comb(max_pulls + 2 * self.num_arms, 2 * self.num_arms)
        if num_states > _MOST_STATES:
            raise UserError(
                f"{self.num_arms} arms have {num_states:,} count states of up to {max_pulls} pulls: expected at most {_MOST_STATES:,}, "
                "choose fewer pulls"
            )
        counts = np.zeros((1, 0), np.int64)
        for _ in range(2 * self.num_arms):  # one count after the other, each up to what the ones before it leave
            left = max_pulls - counts.sum(1)
            following = np.concatenate([np.arange(n + 1) for n in left])
            counts = np.column_stack([np.repeat(counts, left + 1, axis=0), following])
        counts = counts.reshape(-1, self.num_arms, 2)  # successes, failures
        return counts.sum(2), counts[..., 0]

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact: a Beta distribution for each arm."""
        return BernoulliPosterior(env.num_envs, self.num_arms)

    def scattered(self) -> BernoulliBandit:
        """The same tasks, one pull per episode (there is one state)."""
        return replace(self, horizon=1)


class _BanditVectorEnv(NativeVectorEnv):
    """One state: observations are zeros (B, 1). Streams go on from episode to episode."""

    def _begin(self) -> None:
        pass

    def _observe(self) -> Array:
        return np.zeros((self.num_envs, 1), np.int16)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the arm with the greatest mean."""
        return (self.tasks if tasks is None else tasks)["means"].argmax(axis=1)


class GaussianBanditVectorEnv(_BanditVectorEnv):
    """Reward = mean of the arm + noise of the pull."""

    def __init__(self, family: GaussianBandit, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self._noise = family.noise

    def _move(self, actions: Array) -> Array:
        means = self.tasks["means"][self._lanes, actions]
        return (means + self._noise * self.streams.normal()).astype(np.float32)


class BernoulliBanditVectorEnv(_BanditVectorEnv):
    """Reward = whether the pull's uniform draw lies below the arm's mean."""

    def _move(self, actions: Array) -> Array:
        means = self.tasks["means"][self._lanes, actions]
        return (self.streams.uniform() < means).astype(np.float32)
