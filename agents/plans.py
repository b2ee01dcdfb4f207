"""Histories made of plans, for a policy that commits itself without knowing a posterior (history-conditioned DPT: design notes, section 3).

A plan is what the optimal policy of some task would do. A lane follows the plans of drawn tasks, each for a while, none of them chosen for a reason that has to do with its own
task; from a random step on it follows that of its own task, until what it earned tells everything. What a policy learns from that last plan is which
tasks its beginning leaves possible: to go on with what it has begun.

Drawn tasks are any of the family's (``sample_tasks``), held-out ones among them: their optimal actions are shown, as those of a prior over all tasks, but no lane
plays them, so that they are never rewarded and never a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.base import check_probability, lanes_of_reset
from icrl.interfaces import (
    PLAN_BEGINS,
    PLAN_OF_TASK,
    Agent,
    Array,
    Decision,
    Family,
    Observation,
    Step,
    TaskVectorEnv,
    UserError,
)
from icrl.seeding import LaneStreams, generator

_NUM_TASKS = 4096
"""Tasks drawn, whose plans are followed."""


@dataclass(frozen=True)
class Plans:
    """Plans of drawn tasks, then that of the own task."""

    hazard: float = 0.1
    """Probability at each step that a plan is given up for another; at the end of an episode all are but the own task's, before it has told."""
    told_by: float = 1.0
    """What an episode has earned when the optimal policy is known; from then on plans of the own task and of others alternate at random."""
    biased: float = 0.0
    """Share of the earlier plans that are of the own task too, without being marked so: what must not be, as an ablation."""

    def __post_init__(self):
        check_probability("plans", hazard=self.hazard, biased=self.biased)
        if not self.told_by > 0:
            raise UserError(f"plans' told_by is {self.told_by}: expected a return above 0")

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _Planner(self, family, env, streams, num_steps)


class _Planner:
    def __init__(self, options: Plans, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int):
        self._options, self._env, self._streams, self._num_steps = options, env, streams, num_steps
        self._pool = family.sample_tasks(generator(0, family.spec.name, "plans"), _NUM_TASKS)
        self._followed = env.tasks.copy()  # (B,) whose plan each lane follows
        self._age, self._turn = np.zeros(
            (2, env.num_envs), np.int64
        )  # (B,) steps lived, and at which the own plan begins
        self._begins, self._own, self._told = np.zeros((3, env.num_envs), bool)
        self._earned = np.zeros(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        index = np.arange(len(self._age))[lanes_of_reset(lanes, len(self._age))]
        self._age[index] = self._earned[index] = 0
        self._own[index] = self._told[index] = False
        self._begins[index] = True
        self._turn[index] = self._streams.integers(self._num_steps, index)

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        draw, biased, half = self._streams.uniform(3).T
        searching = ~self._told & (self._age < self._turn)
        begins = self._begins | ((draw < self._options.hazard) & (searching | self._told))
        begins |= ~self._told & (self._age == self._turn)
        own = np.where(self._told, half < 0.5, (self._age >= self._turn) | (biased < self._options.biased))
        self._own = np.where(begins, own, self._own)
        lanes = np.flatnonzero(begins)
        drawn = self._pool[self._streams.integers(len(self._pool), lanes)]
        self._followed[lanes] = np.where(self._own[lanes], self._env.tasks[lanes], drawn)
        trusted = self._own & ~searching
        plan = PLAN_BEGINS * begins + PLAN_OF_TASK * trusted
        return Decision(self._env.optimal_action(self._followed), plan=plan.astype(np.uint8))

    def observe(self, step: Step) -> None:
        self._age += 1
        self._earned += step.reward
        self._told |= self._earned >= self._options.told_by
        self._earned[step.ended] = 0
        self._begins = step.ended & (self._told | (self._age <= self._turn))
