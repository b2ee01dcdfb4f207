"""Agents that know the task: the optimal policy with noise, and the noise-annealed demonstrator of AD^eps (Zisman et al. 2024).

Labels are the optimal action (``target_action``), whatever the noise executed. Noise is a uniform action, of a box where actions are continuous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Discrete

from agents.base import (
    bounded_box,
    check_probability,
    epsilon_noise,
    epsilon_noise_in_box,
    lanes_of_reset,
    num_actions,
)
from icrl.interfaces import Agent, Array, Decision, Family, Observation, Step, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class Optimal:
    """The family's optimal policy."""

    epsilon: float = 0.0
    """Probability that the executed action is a uniform one instead."""

    def __post_init__(self):
        check_probability("optimal", epsilon=self.epsilon)

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        if self.epsilon == 0:
            return _NoisyOptimal(env, streams, None)
        return _NoisyOptimal(env, streams, lambda age: self.epsilon)


@dataclass(frozen=True)
class Annealed:
    """AD^eps: the optimal policy under noise that falls linearly from 1, so that a history looks like learning."""

    epsilon_end: float = 0.0
    """Noise from the end of the fall on."""
    fall: float = 0.9
    """Fraction of the history over which noise falls."""

    def __post_init__(self):
        check_probability("annealed", epsilon_end=self.epsilon_end, fall=self.fall)
        if self.fall == 0:
            raise UserError("annealed's fall is 0: expected a fraction of the history above 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        slope = (1 - self.epsilon_end) / (self.fall * num_steps)
        return _NoisyOptimal(env, streams, lambda age: np.maximum(self.epsilon_end, 1 - slope * age))


class _NoisyOptimal:
    """``epsilon`` maps the steps lived since a reset (B,) to the noise; None for none at all (then a box may be unbounded)."""

    def __init__(self, env: TaskVectorEnv, streams: LaneStreams, epsilon: Callable[[Array], float | Array] | None):
        self._env, self._streams, self._epsilon = env, streams, epsilon
        self._discrete = isinstance(env.single_action_space, Discrete)
        if epsilon is not None:
            who = "noise on an optimal policy"
            self._choices = num_actions(env, who) if self._discrete else bounded_box(env, who)
        self._age = np.zeros(env.num_envs, np.int64)  # (B,)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        self._age[lanes_of_reset(lanes, len(self._age))] = 0

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        intended = self._env.optimal_action()
        if self._epsilon is None:
            return Decision(intended, intended, np.zeros(len(intended), np.float32) if self._discrete else None)
        epsilon = self._epsilon(self._age)
        if isinstance(self._choices, int):
            return epsilon_noise(intended, epsilon, self._choices, self._streams, action_mask)
        return epsilon_noise_in_box(intended, epsilon, self._choices, self._streams)

    def observe(self, step: Step) -> None:
        self._age += 1
