"""Linear bandits: arms with known, fixed features, and one hidden vector that explains all their means (Lee et al. 2023, section 4).

The mean of arm a is <theta, phi(a)> with theta ~ N(0, I/d). The features are drawn once, from N(0, I/d) by a seed, and are the same in
all tasks, so that what an arm pays tells something about the others. The family knows the features; histories do not show them.
A task is kept as the means of its arms, like that of any bandit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy import special
from scipy.stats import qmc

from envs.bandit import GaussianBandit
from envs.bandit_posterior import ArmsPosterior
from envs.tasks import check_least
from icrl.interfaces import Array, Posterior, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams, generator

_LOG2_POINTS = 12
_LEAST_NOISE = 1e-4
"""Without noise as many pulls as features tell theta: as good as exactly."""


@dataclass(frozen=True)
class LinearBandit(GaussianBandit):
    """Arms whose means are linear in their features, and normal noise."""

    name: ClassVar[str] = "linear_bandit"

    num_arms: int = 10
    """Arms."""
    horizon: int = 200
    """Pulls per episode."""
    dimension: int = 2
    """Features of an arm."""
    feature_seed: int = 0
    """Seed of the features."""

    def __post_init__(self):
        super().__post_init__()
        check_least("the bandit", self, dimension=1, feature_seed=0)

    @cached_property
    def features(self) -> Array:
        """(A, d) the features of all arms."""
        rng = generator(self.feature_seed, self.name, "features")
        return rng.standard_normal((self.num_arms, self.dimension)) / np.sqrt(self.dimension)

    def make_tasks(self, theta: Array) -> Tasks:
        """Hidden vectors (N, d) -> tasks (N,)."""
        tasks = np.empty(len(theta), [("means", np.float64, (self.num_arms,))])
        tasks["means"] = theta @ self.features.T
        return tasks

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """theta ~ N(0, I/d)."""
        return self.make_tasks(rng.standard_normal((num_tasks, self.dimension)) / np.sqrt(self.dimension))

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact: a normal distribution over theta."""
        return LinearPosterior(env.num_envs, self)

    def _check(self, tasks: Tasks) -> None:
        """Raises UserError for means that no theta explains."""
        means = tasks["means"]
        off = np.abs(means - means @ self.features @ np.linalg.pinv(self.features)).max(initial=0.0)
        if not off <= 1e-6 * (1 + np.abs(means).max(initial=0.0)):
            raise UserError(
                f"a task's means are not linear in the arms' features (by {off:.2g}): make it with the family's make_tasks"
            )


class LinearPosterior(ArmsPosterior):
    """theta ~ N(m, P^-1) with P = d I + sum phi phi' / noise^2 and P m = sum reward phi / noise^2 over all pulls.

    The probability that an arm is the best one is the share of 4,096 fixed points for which it is: Sobol's, mapped to the
    belief; off by about 0.001.
    """

    lanes_at_once = 64

    def __init__(self, num_lanes: int, family: LinearBandit):
        super().__init__(num_lanes, family.num_arms)
        self._family, self._variance = family, max(family.noise, _LEAST_NOISE) ** 2
        points = qmc.Sobol(family.dimension, scramble=False).random_base2(_LOG2_POINTS)
        self._normals = special.ndtri(points + 0.5 / len(points))[None]  # (1, M, d)

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,)."""
        normals = streams.normal(self._family.dimension, lanes).reshape(len(lanes), 1, -1)
        return self._family.make_tasks(self._thetas(normals, lanes)[:, 0])

    def _thetas(self, normals: Array, lanes: Array) -> Array:
        """Standard normal vectors (n or 1, M, d) -> vectors that are distributed as the lanes (n,) believe, (n, M, d)."""
        features, dimension = self._family.features, self._family.dimension
        pulls = np.einsum("na,ai,aj->nij", self.pulls[lanes], features, features, optimize=True)
        precision = dimension * np.eye(dimension) + pulls / self._variance
        root = np.linalg.inv(np.linalg.cholesky(precision))  # (n, d, d): root' root is the covariance
        sums = self.reward_sum[lanes] @ features / self._variance  # (n, d)
        mean = root.transpose(0, 2, 1) @ (root @ sums[:, :, None])  # (n, d, 1)
        return mean.transpose(0, 2, 1) + normals @ root

    def _weights_best(self, lanes: Array) -> Array:
        best = (self._thetas(self._normals, lanes) @ self._family.features.T).argmax(axis=2)  # (n, M)
        return np.stack([(best == arm).mean(axis=1) for arm in range(self._num_arms)], axis=1)
