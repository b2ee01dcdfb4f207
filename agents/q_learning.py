"""Tabular Q-learning (Watkins 1989) in all lanes at once: the learner whose histories Algorithm Distillation distils.

Every lane owns a table. A time limit is not a terminal state: the value after a truncated step is bootstrapped from its true last
observation. Optimistic initial values make a sparse room explored; small fixed differences between them break ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete

from agents.base import check_probability, epsilon_noise, lanes_of_reset, num_actions
from icrl.interfaces import Agent, Array, Decision, Family, Observation, Step, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

_TIE_BREAK = 1e-3
"""Initial values differ by up to this fraction of 1."""


@dataclass(frozen=True)
class QLearning:
    """Epsilon-greedy tabular Q-learning."""

    learning_rate: float = 0.3
    """Step size of a value update."""
    discount: float = 0.9
    """Discount per step."""
    epsilon: float = 0.1
    """Probability of a uniform action at the start of a history."""
    epsilon_end: float = 0.0
    """The same from 90 % of the history on; between, it moves linearly."""
    initial_value: float = 1.0
    """Initial value of every action; above what an unexplored room pays, it makes the agent try everything."""

    def __post_init__(self):
        check_probability(
            "q_learning",
            learning_rate=self.learning_rate,
            discount=self.discount,
            epsilon=self.epsilon,
            epsilon_end=self.epsilon_end,
        )

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Raises UserError unless observations are index vectors and actions discrete."""
        return _QLearner(self, env, streams, num_steps)


class _QLearner:
    def __init__(self, options: QLearning, env: TaskVectorEnv, streams: LaneStreams, num_steps: int):
        space = env.single_observation_space
        if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
            sizes = [int(size) for size in space.nvec]
        elif isinstance(space, Discrete):
            sizes = [int(space.n)]
        else:
            raise UserError(f"q_learning needs a table of states, this family observes {space}: choose another source")
        self._options, self._streams = options, streams
        self._first = np.asarray(space.start, np.intp)  # index of the first state, by coordinate
        self._strides = np.cumprod([1, *sizes[:0:-1]])[::-1]  # (n,) of the flat state number
        self._num_states, self._num_actions = int(np.prod(sizes)), num_actions(env, "q_learning")
        self._values = np.empty((env.num_envs, self._num_states, self._num_actions), np.float32)  # (B, S, A)
        self._age = np.zeros(env.num_envs, np.int64)  # (B,)
        self._fall = 0.9 * num_steps
        self._lanes = np.arange(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        lanes = self._lanes[lanes_of_reset(lanes, len(self._lanes))]
        self._age[lanes] = 0
        noise = self._streams.uniform(self._num_states * self._num_actions, lanes)
        self._values[lanes] = self._options.initial_value + _TIE_BREAK * noise.reshape(
            len(lanes), *self._values.shape[1:]
        )

    def _state(self, observation: Array) -> Array:
        return (observation.reshape(len(self._lanes), -1).astype(np.intp) - self._first) @ self._strides

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        values = self._values[self._lanes, self._state(observation)]  # (B, A)
        if action_mask is not None:
            values = np.where(action_mask, values, -np.inf)
        o, progress = self._options, np.minimum(self._age / self._fall, 1)
        epsilon = o.epsilon + (o.epsilon_end - o.epsilon) * progress
        return epsilon_noise(values.argmax(axis=1), epsilon, self._streams, action_mask, num_actions=self._num_actions)

    def observe(self, step: Step) -> None:
        state, next_state = self._state(step.observation), self._state(step.next_observation)
        future = self._values[self._lanes, next_state].max(axis=1) * ~step.terminated
        index = (self._lanes, state, step.action)
        error = step.reward + self._options.discount * future - self._values[index]
        self._values[index] += self._options.learning_rate * error
        self._age += 1
