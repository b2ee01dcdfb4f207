"""Index rules for bandits: UCB1 (Auer et al. 2002) and the empirical mean. Both pull every arm once first, in order."""

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
        pulls = np.maximum(self._pulls, 1)
        time = np.maximum(self._pulls.sum(axis=1, keepdims=True), 1)
        index = self._reward_sum / pulls + self._confidence * np.sqrt(2 * np.log(time) / pulls)
        index = np.where(self._pulls == 0, np.inf, index)
        if action_mask is not None:
            index = np.where(action_mask, index, -np.inf)
        action = index.argmax(axis=1)
        return Decision(action, action, np.zeros(len(action), np.float32))

    def observe(self, step: Step) -> None:
        self._pulls[self._lanes, step.action] += 1
        self._reward_sum[self._lanes, step.action] += step.reward
