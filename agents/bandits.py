"""Index rules for bandits: UCB1 (Auer et al. 2002) and the empirical mean, which pull every arm once first, in order; LinUCB (Chu et al. 2011).

A rule needs no more than how often each arm was pulled and what it paid in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces.utils import flatdim

from agents.base import lanes_of_reset, num_actions
from icrl.interfaces import Agent, Array, Decision, Family, Observation, Step, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class UCB:
    """Pull the arm with the greatest mean + confidence * sqrt(2 log(t) / pulls)."""

    confidence: float = 1.0
    """Scale of the bonus: 1 is UCB1 for rewards in [0, 1]; for normal noise, its standard deviation."""

    def __post_init__(self):
        if not self.confidence >= 0:
            raise UserError(f"ucb's confidence is {self.confidence}: expected at least 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _IndexRule(env, self.confidence, "ucb")


@dataclass(frozen=True)
class EmpiricalMean:
    """Pull the arm with the greatest mean reward so far."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _IndexRule(env, 0.0, "empirical_mean")


@dataclass(frozen=True)
class LinUCB:
    """Pull the arm with the greatest estimate + confidence * its uncertainty, by ridge regression on the arms' features.

    Features are the family's (``features`` (A, d), as ``linear_bandit`` has); a family without them has one indicator for each arm.
    """

    confidence: float = 1.0
    """Scale of the bonus sqrt(phi' V^-1 phi)."""
    ridge: float = 1.0
    """V starts as ridge times the identity."""

    def __post_init__(self):
        if not self.confidence >= 0:
            raise UserError(f"linucb's confidence is {self.confidence}: expected at least 0")
        if not self.ridge > 0:
            raise UserError(f"linucb's ridge is {self.ridge}: expected more than 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _LinearIndexRule(env, self, getattr(family, "features", None))


class _IndexRule:
    def __init__(self, env: TaskVectorEnv, confidence: float, who: str):
        arms = num_actions(env, who)
        if flatdim(env.single_observation_space) != 1:
            raise UserError(
                f"{who} is for bandits, this family observes {env.single_observation_space}: choose another source"
            )
        self._confidence = confidence
        self._pulls = np.zeros((env.num_envs, arms))  # (B, A)
        self._reward_sum = np.zeros((env.num_envs, arms))  # (B, A)
        self._lanes = np.arange(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        index = lanes_of_reset(lanes, len(self._lanes))
        self._pulls[index], self._reward_sum[index] = 0, 0

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        index = self._index()
        if action_mask is not None:
            index = np.where(action_mask, index, -np.inf)
        action = index.argmax(axis=1)
        return Decision(action, action, np.zeros(len(action), np.float32))

    def _index(self) -> Array:
        """(B, A) what each arm promises."""
        pulls = np.maximum(self._pulls, 1)
        time = np.maximum(self._pulls.sum(axis=1, keepdims=True), 1)
        index = self._reward_sum / pulls + self._confidence * np.sqrt(2 * np.log(time) / pulls)
        return np.where(self._pulls == 0, np.inf, index)

    def observe(self, step: Step) -> None:
        self._pulls[self._lanes, step.action] += 1
        self._reward_sum[self._lanes, step.action] += step.reward


class _LinearIndexRule(_IndexRule):
    def __init__(self, env: TaskVectorEnv, options: LinUCB, features: Array | None):
        super().__init__(env, options.confidence, "linucb")
        self._features = np.eye(self._pulls.shape[1]) if features is None else features  # (A, d)
        self._prior = options.ridge * np.eye(self._features.shape[1])

    def _index(self) -> Array:
        features = self._features
        precision = self._prior + np.einsum("ba,ai,aj->bij", self._pulls, features, features, optimize=True)  # V
        covariance = np.linalg.inv(precision)  # (B, d, d)
        estimate = covariance @ (self._reward_sum @ features)[:, :, None]  # (B, d, 1)
        spread = np.einsum("ai,bij,aj->ba", features, covariance, features, optimize=True)
        return (features @ estimate)[:, :, 0] + self._confidence * np.sqrt(spread)
