"""Actions that look at nothing: uniform ones (the floor of every comparison), or with fixed odds of their own in each history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Box, Discrete
from scipy import special

from agents.base import Stateless, num_actions, uniform_in_box
from icrl.interfaces import Agent, Array, Decision, Family, Observation, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class Uniform:
    """Every allowed action equally often (uniform density over a box)."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Raises UserError for actions that are neither discrete nor in a bounded box."""
        space = env.single_action_space
        if isinstance(space, Discrete):
            return _UniformDiscrete(space, streams)
        if isinstance(space, Box) and space.is_bounded() and len(space.shape) == 1:
            return _UniformBox(space, streams)
        raise UserError(f"uniform actions need a discrete space or a bounded box of vectors, this family has {space}")


@dataclass(frozen=True)
class FixedOdds:
    """Each history draws its own odds over the actions once, from a symmetric Dirichlet distribution, and keeps to them.

    The wide data of Decision-Pretrained Transformer's bandits (Lee et al. 2023, section 4): tells nothing of the task but by its rewards.
    """

    concentration: float = 1.0
    """Of the Dirichlet distribution: 1 is uniform over all odds, less prefers lopsided ones."""

    def __post_init__(self):
        if not self.concentration > 0:
            raise UserError(f"fixed_odds' concentration is {self.concentration}: expected more than 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Raises UserError for actions that are not discrete."""
        return _FixedOdds(num_actions(env, "the source fixed_odds"), streams, self.concentration)


class _FixedOdds(Stateless):
    def __init__(self, num_actions: int, streams: LaneStreams, concentration: float):
        levels = streams.uniform(num_actions)  # (B, A)
        weights = np.maximum(special.gammaincinv(concentration, levels), 1e-30)
        self._odds, self._streams = weights / weights.sum(axis=1, keepdims=True), streams

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        odds = self._odds if action_mask is None else self._odds * action_mask
        action = self._streams.choice(odds)
        prob = np.take_along_axis(odds, action[:, None], 1)[:, 0] / odds.sum(axis=1)
        return Decision(action, None, np.log(prob).astype(np.float32))


class _UniformDiscrete(Stateless):
    def __init__(self, space: Discrete, streams: LaneStreams):
        self._start, self._num_actions, self._streams = int(space.start), int(space.n), streams

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        if action_mask is None:
            action = self._start + self._streams.integers(self._num_actions)
            return Decision(action, None, np.full(len(action), -np.log(self._num_actions), np.float32))
        action = self._start + self._streams.choice(action_mask)
        return Decision(action, None, -np.log(action_mask.sum(axis=1)).astype(np.float32))


class _UniformBox(Stateless):
    def __init__(self, space: Box, streams: LaneStreams):
        self._space, self._streams = space, streams
        self._log_density = -np.log(space.high - space.low).sum()

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        action = uniform_in_box(self._space, self._streams)
        return Decision(action, None, np.full(len(action), self._log_density, np.float32))
