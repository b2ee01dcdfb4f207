"""Bayes explorers: agents that plan on an exact belief over tasks, and differ in how they commit to what they believe.

They know a family by its ``Posterior`` and by what its vector environment answers about *given* tasks (``optimal_action(tasks)``,
``steps_to_reward(tasks)``), never the true task, so they work unchanged on every family that has both. Posterior sampling is
Thompson's rule (1933), with a sample per step what a converged Decision-Pretrained Transformer does (Lee et al. 2023, theorem 1); held
samples are the posterior sampling of Osband et al. (2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.base import action_noise, check_probability, lanes_of_reset
from icrl.interfaces import (
    Agent,
    Array,
    Decision,
    Family,
    Observation,
    Posterior,
    Step,
    Tasks,
    TaskVectorEnv,
    UserError,
)
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class PosteriorSampling:
    """A new sample of the task at every step: act as is optimal in it. On bandits this is Thompson sampling."""

    greedy: bool = False
    """Take the action that is most probably optimal instead."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _PosteriorSampler(env, family.posterior(env), streams, self.greedy)


@dataclass(frozen=True)
class SampleAndHold:
    """A sample of the task, acted on until evidence refutes it."""

    hold: int = 0
    """Most steps to hold a sample; 0 is no limit. Needed where nothing ever refutes a task (bandits: 1)."""
    epsilon: float = 0.0
    """Probability that the executed action is a uniform one."""

    def __post_init__(self):
        check_probability("sample_and_hold", epsilon=self.epsilon)
        _check_hold("sample_and_hold", self.hold)

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _SampleHolder(env, family.posterior(env), streams, self)


@dataclass(frozen=True)
class NearestPlausible:
    """Towards the plausible task soonest to pay; ties by the order in which the belief lists tasks."""

    hold: int = 1
    """Most steps to hold a target that is not refuted; 0 is no limit."""
    epsilon: float = 0.0
    """Probability that the executed action is a uniform one."""

    def __post_init__(self):
        check_probability(type(self).__name__, epsilon=self.epsilon)
        _check_hold(type(self).__name__, self.hold)

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _NearestPlausible(env, family.posterior(env), streams, self)


@dataclass(frozen=True)
class BlindSweep(NearestPlausible):
    """Baseline: the nearest-plausible path with rewards hidden, the same in every episode."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _BlindSweep(env, family.posterior(env), streams, self)


@dataclass(frozen=True)
class SweepThenReturn(NearestPlausible):
    """Baseline: sweep blindly until an episode has paid; from the next episode on go straight to what paid."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _SweepThenReturn(env, family.posterior(env), streams, self, memory=family.posterior(env))


def _check_hold(who: str, hold: int) -> None:
    if hold < 0:
        raise UserError(f"{who}'s hold is {hold}: expected a number of steps, or 0 for no limit")


class _Explorer:
    """A belief, kept up to date."""

    def __init__(self, env: TaskVectorEnv, posterior: Posterior, streams: LaneStreams):
        self._env, self._posterior, self._streams = env, posterior, streams
        self._lanes = np.arange(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        lanes_of_reset(lanes, len(self._lanes))
        self._posterior.reset(lanes)

    def observe(self, step: Step) -> None:
        self._posterior.update(step)


class _PosteriorSampler(_Explorer):
    def __init__(self, env: TaskVectorEnv, posterior: Posterior, streams: LaneStreams, greedy: bool):
        super().__init__(env, posterior, streams)
        self._greedy = greedy

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        if self._greedy:
            action = self._posterior.optimal_action_probs(self._env).argmax(axis=1)
            return Decision(action, action, np.zeros(len(action), np.float32))
        action = self._env.optimal_action(self._posterior.sample(self._streams, self._lanes))
        return Decision(action, action)


class _Committed(_Explorer):
    """An explorer that holds one task per lane and acts as is optimal in it, with noise on what is executed.

    A held task is given up when it is refuted, when it was held for ``hold`` steps, or, in a new life, at a reset.
    """

    noise_is_known = False
    """Whether the intention is a function of the history, so that the noise alone gives the probability of the executed action."""

    def __init__(
        self, env: TaskVectorEnv, posterior: Posterior, streams: LaneStreams, options: SampleAndHold | NearestPlausible
    ):
        super().__init__(env, posterior, streams)
        self._epsilon, self._hold = options.epsilon, options.hold
        self._noise = None if options.epsilon == 0 else action_noise(env, "an explorer's noise")
        self._held: Tasks | None = None  # (B,)
        self._age = np.zeros(env.num_envs, np.int64)  # (B,) steps that the task was held
        self._free = np.ones(env.num_envs, bool)  # (B,) holds nothing

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        super().reset(lanes)
        self._free[lanes_of_reset(lanes, len(self._lanes))] = True

    def _choose(self, lanes: Array) -> Tasks:
        """A task to commit to for each of the lanes (n,)."""
        raise NotImplementedError

    def _commit(self) -> Tasks:
        """(B,) the held tasks, with new ones where there was none."""
        lanes = np.flatnonzero(self._free)
        if self._held is None:
            self._held = self._choose(self._lanes).copy()
        elif lanes.size:
            self._held[lanes] = self._choose(lanes)
        self._age[lanes], self._free[lanes] = 0, False
        return self._held

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        intended = self._env.optimal_action(self._commit())
        if self._noise is None:
            log_prob = np.zeros(len(intended), np.float32)
            return Decision(intended, intended, log_prob if self.noise_is_known else None)
        decision = self._noise(intended, self._epsilon, self._streams, action_mask)
        return decision if self.noise_is_known else decision._replace(behaviour_log_prob=None)

    def observe(self, step: Step) -> None:
        super().observe(step)
        self._release()

    def _release(self) -> None:
        assert self._held is not None
        self._age += 1
        self._free |= self._posterior.refuted(self._held)
        if self._hold:
            self._free |= self._age >= self._hold


class _SampleHolder(_Committed):
    def _choose(self, lanes: Array) -> Tasks:
        return self._posterior.sample(self._streams, lanes)


class _NearestPlausible(_Committed):
    noise_is_known = True

    def _choose(self, lanes: Array) -> Tasks:
        return self._soonest(lanes, *self._posterior.plausible())

    def _soonest(self, lanes: Array, tasks: Tasks, mask: Array) -> Tasks:
        """The plausible task soonest to pay, the first of equals; tasks (N,) or (B, N), mask (B, N) -> (n,)."""
        steps = self._env.steps_to_reward(tasks)  # (B, N)
        never = np.iinfo(steps.dtype).max if steps.dtype.kind in "iu" else np.inf
        if len(lanes) < len(self._lanes):
            steps, mask = steps[lanes], mask[lanes]
        chosen = np.where(mask, steps, never).argmin(axis=1)  # (n,)
        return tasks[chosen] if tasks.ndim == 1 else tasks[lanes, chosen]


class _BlindSweep(_NearestPlausible):
    def observe(self, step: Step) -> None:
        super().observe(_without_reward(step))
        ended = np.flatnonzero(step.ended)
        if ended.size:
            self._posterior.reset(ended)
            self._free[ended] = True


class _SweepThenReturn(_BlindSweep):
    """``memory`` is an honest belief; a lane plans on it once one of its episodes has paid and ended."""

    def __init__(self, *args: Any, memory: Posterior):
        super().__init__(*args)
        self._memory = memory
        self._paid = np.zeros(len(self._lanes), bool)  # (B,) some step has paid
        self._knows = np.zeros(len(self._lanes), bool)  # (B,) and its episode is over

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        super().reset(lanes)
        self._memory.reset(lanes)
        index = lanes_of_reset(lanes, len(self._lanes))
        self._paid[index], self._knows[index] = False, False

    def _choose(self, lanes: Array) -> Tasks:
        tasks, swept = self._posterior.plausible()
        remembered_tasks, remembered = self._memory.plausible()
        if tasks.ndim == 2:
            tasks = np.where(self._knows[:, None], remembered_tasks, tasks)
        return self._soonest(lanes, tasks, np.where(self._knows[:, None], remembered, swept))

    def observe(self, step: Step) -> None:
        self._memory.update(step)
        super().observe(step)
        self._paid |= step.reward > 0
        self._knows |= self._paid & step.ended


def _without_reward(step: Step) -> Step:
    return step._replace(reward=np.zeros_like(step.reward))
