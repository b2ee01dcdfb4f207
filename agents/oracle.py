"""Agents that know tasks: the optimal policy with noise (annealed in AD^eps: Zisman et al. 2024; graded in ICEE), and one that is misled.

Labels (``target_action``) are what was meant, whatever the noise executed: the optimal action, and in an episode that wanders that of the task it aims at. Noise is a
uniform action, of a box where actions are continuous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Discrete

from agents.base import action_noise, check_probability, lanes_of_reset, noise_probs, noise_with_favourite, num_actions
from icrl.interfaces import Agent, Array, Decision, Family, Observation, Step, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams, generator

_NUM_MISLEADING = 4096
"""Tasks that may mislead."""
_GIVES_UP = 0.1
"""Probability, at each step, that a wandering episode aims at another task before the one that it aims at would have paid."""


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
    twice: int = -1
    """Number of an action that the noise takes twice as often as each other one; below 0: none."""

    def __post_init__(self):
        check_probability("annealed", epsilon_end=self.epsilon_end, fall=self.fall)
        if self.fall == 0:
            raise UserError("annealed's fall is 0: expected a fraction of the history above 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        slope = (1 - self.epsilon_end) / (self.fall * num_steps)
        return _NoisyOptimal(env, streams, lambda age: np.maximum(self.epsilon_end, 1 - slope * age), self.twice)


@dataclass(frozen=True)
class Graded:
    """The optimal policy under noise that is drawn anew for each episode, so that good and bad ones come in no order (ICEE: Dai et al. 2024), behind episodes that wander.

    The log-probability of an action is that over all levels of noise alike, since which one an episode has is not seen; what wanders counts as noise there.
    """

    low: float = 0.0
    """Least noise of an episode."""
    high: float = 1.0
    """Most noise; in between it is uniform."""
    twice: int = -1
    """Number of an action that the noise takes twice as often as each other one; below 0: none."""
    wander: float = 0.0
    """Upper bound on the share of a history, from its start, whose episodes wander: they aim at one drawn task after another, at each until it would have paid or, at random, before.
    These are any of the family's tasks, held-out ones among them (which no lane plays, so that they never pay). Each history draws its own share uniformly below the bound. Such
    episodes show how to go on where many have brought nothing, which those of an optimal policy hardly do. For families that can tell when a task would pay."""

    def __post_init__(self):
        check_probability("graded", low=self.low, high=self.high, wander=self.wander)
        if self.low > self.high:
            raise UserError(f"graded's low is {self.low} and its high {self.high}: expected the lower one first")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        if self.wander and type(env).steps_to_reward is TaskVectorEnv.steps_to_reward:
            raise UserError(
                f"graded's wander is {self.wander}, but {family.spec.name} cannot tell when a task would pay: set it to 0"
            )
        return _Graded(self, family, env, streams, num_steps)


class _Graded:
    def __init__(self, options: Graded, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int):
        self._options, self._env, self._streams = options, env, streams
        self._num_steps = num_steps  # of a history
        self._noise = noise_with_favourite(env, "noise on an optimal policy", options.twice)
        self._epsilon = np.zeros(env.num_envs)  # (B,) noise of the running episodes
        self._wander_on = np.zeros(env.num_envs)  # (B,) steps from now on in which episodes that begin wander
        self._wanders = np.zeros(env.num_envs, bool)  # (B,) whether the running episodes do
        self._aims = _misleading(family) if options.wander else env.tasks[:0]
        self._aim = env.tasks.copy()  # (B,) task that the lanes play for
        self._arrived = np.zeros(env.num_envs, bool)  # (B,) whether it would have paid for the last step

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        fresh = np.arange(len(self._epsilon))[lanes_of_reset(lanes, len(self._epsilon))]
        if self._options.wander:
            self._wander_on[fresh] = self._num_steps * self._options.wander * self._streams.uniform(lanes=fresh)
        self._draw(fresh)

    def _draw(self, lanes: Array) -> None:
        low, high = self._options.low, self._options.high
        self._epsilon[lanes] = low + (high - low) * self._streams.uniform(lanes=lanes)
        self._wanders[lanes] = self._wander_on[lanes] > 0
        self._aim[lanes] = self._env.tasks[lanes]
        self._aim_elsewhere(lanes[self._wanders[lanes]])

    def _aim_elsewhere(self, lanes: Array) -> None:
        if len(lanes):
            self._aim[lanes] = self._aims[self._streams.integers(len(self._aims), lanes)]

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        best = self._env.optimal_action()
        meant = best.copy()
        if self._wanders.any():
            meant[self._wanders] = self._env.optimal_action(self._aim)[self._wanders]
        decision = self._noise(meant, self._epsilon, self._streams, action_mask)
        if self._wanders.any():
            as_meant = (decision.action == meant).reshape(self._env.num_envs, -1).all(1)
            self._arrived = (self._env.steps_to_reward(self._aim[:, None])[:, 0] <= 1) & as_meant
        if decision.behaviour_log_prob is None:
            return decision
        lanes, options = np.arange(self._env.num_envs), self._options
        mean = options.wander / 2 + (1 - options.wander / 2) * (options.low + options.high) / 2
        actions = num_actions(self._env, "noise on an optimal policy")
        noise = noise_probs(len(lanes), actions, action_mask, options.twice)[lanes, decision.action]
        probability = mean * noise + (1 - mean) * (decision.action == best)
        return decision._replace(behaviour_log_prob=np.log(probability).astype(np.float32))

    def observe(self, step: Step) -> None:
        self._wander_on -= 1
        ended = np.flatnonzero(step.ended)
        if ended.size:
            self._draw(ended)
        wandering = np.flatnonzero(self._wanders)
        if wandering.size:
            turns = self._arrived[wandering] | (self._streams.uniform(lanes=wandering) < _GIVES_UP)
            self._aim_elsewhere(wandering[turns])


@dataclass(frozen=True)
class Misled:
    """The optimal policy of another task, drawn anew for each episode: skilful, but its actions tell nothing of the task, so that only rewards do.

    Wide data for DPT where random actions never come near what matters, and the optimal policy would give the task away. No label: what it means
    to do is of no use in the task it plays.
    """

    epsilon: float = 0.0
    """Probability that the executed action is a uniform one instead."""

    def __post_init__(self):
        check_probability("misled", epsilon=self.epsilon)

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _Misled(family, env, streams, self.epsilon)


class _Misled:
    """Tasks come from one fixed sample of the family's distribution; a lane draws from it by its own stream."""

    def __init__(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, epsilon: float):
        self._env, self._streams, self._epsilon = env, streams, epsilon
        self._noise = action_noise(env, "noise on a misled policy") if epsilon else None
        self._pool = _misleading(family)
        self._believed = self._pool[np.zeros(env.num_envs, np.int64)]  # (B,) fancy indexing copies

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        self._draw(np.arange(len(self._believed))[lanes_of_reset(lanes, len(self._believed))])

    def _draw(self, lanes: Array) -> None:
        self._believed[lanes] = self._pool[self._streams.integers(len(self._pool), lanes)]

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        action = self._env.optimal_action(self._believed)
        if self._noise is not None:
            action = self._noise(action, self._epsilon, self._streams, action_mask).action
        return Decision(action)

    def observe(self, step: Step) -> None:
        ended = np.flatnonzero(step.ended)
        if ended.size:
            self._draw(ended)


def _misleading(family: Family) -> Tasks:
    """One fixed sample of the family's distribution."""
    return family.sample_tasks(generator(0, family.spec.name, "misled"), _NUM_MISLEADING)


class _NoisyOptimal:
    """``epsilon`` maps the steps lived since a reset (B,) to the noise; None for none at all (then a box may be unbounded)."""

    def __init__(
        self,
        env: TaskVectorEnv,
        streams: LaneStreams,
        epsilon: Callable[[Array], float | Array] | None,
        twice: int = -1,
    ):
        self._env, self._streams, self._epsilon = env, streams, epsilon
        self._discrete = isinstance(env.single_action_space, Discrete)
        if epsilon is not None:
            self._noise = noise_with_favourite(env, "noise on an optimal policy", twice)
        self._age = np.zeros(env.num_envs, np.int64)  # (B,)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        self._age[lanes_of_reset(lanes, len(self._age))] = 0

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        intended = self._env.optimal_action()
        if self._epsilon is None:
            return Decision(intended, intended, np.zeros(len(intended), np.float32) if self._discrete else None)
        return self._noise(intended, self._epsilon(self._age), self._streams, action_mask)

    def observe(self, step: Step) -> None:
        self._age += 1
