"""Finitely many deterministic worlds that share states, actions and observations, as tables: what steps, plans and beliefs look up.

A *round* begins in a start state, drawn uniformly where there are several, and lasts until an action ends it. All starts of a world are
equally far from its reward, and a reward can be had again or ends the round, so that hurrying to the next one is optimal. Axes: N worlds, S states, A actions, C starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from icrl.interfaces import Array

NEVER = int(np.iinfo(np.int16).max)
"""Steps to a reward that cannot be reached."""


@dataclass(frozen=True, eq=False)
class FiniteWorlds:
    """Tables of N worlds. States that play cannot reach stay where they are and pay nothing."""

    next_state: Array  # (N, S, A) int32; the state that ended the round where one ends
    pays: Array  # (N, S, A) bool: a reward of 1, otherwise 0
    ends: Array  # (N, S, A) bool: the round is over
    reached: Array  # (N, S) bool: play can reach the state (in mazes: any free cell, whichever goal is next)
    observation: Array  # (N, S, D) int16
    starts: Array  # (C,) intp states where rounds begin
    sizes: Array  # (D,) number of values of each part of an observation

    @property
    def num_states(self) -> int:
        return self.next_state.shape[1]

    @property
    def num_actions(self) -> int:
        return self.next_state.shape[2]

    def rows(self, index: Array) -> FiniteWorlds:
        """The worlds ``index`` (M,) alone."""
        tables = (self.next_state, self.pays, self.ends, self.reached, self.observation)
        return FiniteWorlds(*(table[index] for table in tables), starts=self.starts, sizes=self.sizes)

    def code(self, observation: Array) -> Array:
        """Observations (..., D) -> (...) int64, equal where they are equal."""
        radix = np.concatenate([[1], np.cumprod(self.sizes[:-1], dtype=np.int64)])
        return observation.astype(np.int64) @ radix

    @cached_property
    def codes(self) -> Array:
        """(N, S) int64 code of what each state shows."""
        return self.code(self.observation)

    @cached_property
    def distance(self) -> Array:
        """(N, S) int16 steps until a reward can be earned, NEVER where none can."""
        steps = np.full(self.reached.shape, NEVER, np.int32)
        while True:
            shorter = self._steps_by_action(steps).min(axis=2)
            if (shorter == steps).all():
                return steps.astype(np.int16)
            steps = shorter

    @cached_property
    def best(self) -> Array:
        """(N, S) int8 the first action that is on a shortest way to a reward."""
        return self._steps_by_action(self.distance.astype(np.int32)).argmin(axis=2).astype(np.int8)

    def _steps_by_action(self, steps: Array) -> Array:
        """(N, S, A) steps to a reward by way of each action, given those from every state (N, S)."""
        after = np.take_along_axis(steps, self.next_state.reshape(len(steps), -1), axis=1).reshape(self.pays.shape)
        renewed = steps[:, self.starts].max(axis=1)[:, None, None]
        after = np.where(self.ends, renewed, after)
        return np.minimum(1 + np.where(self.pays, 0, after), NEVER)

    def expected_return(self, policy: Array, begin: Array, num_steps: int, *, renews: bool) -> Array:
        """(N,) exact expected reward of ``num_steps`` steps under ``policy`` (N, S, A), begun in states of probability ``begin`` (N, S).

        ``renews``: after a round the next one begins, otherwise nothing follows.
        """
        num_worlds, num_states, _ = policy.shape
        walk, pay = self._chain(policy, renews), (policy * self.pays).sum(axis=2)  # pay (N, S)
        mass = begin.astype(np.float64).ravel()
        total = np.zeros(num_worlds)
        for _ in range(num_steps):
            total += (mass.reshape(num_worlds, num_states) * pay).sum(axis=1)
            mass = walk @ mass
        return total

    def _chain(self, policy: Array, renews: bool) -> csr_array:
        """Transition probabilities between all states of all worlds, (N * S to, N * S from)."""
        world, state, action = np.nonzero((policy > 0) & self.reached[:, :, None])
        weight, over = policy[world, state, action], self.ends[world, state, action]
        first = world * self.num_states  # index of the world's state 0
        source, target = first + state, first + self.next_state[world, state, action]
        parts = [(weight[~over], target[~over], source[~over])]
        if renews:
            parts += [(weight[over] / len(self.starts), first[over] + start, source[over]) for start in self.starts]
        weights, targets, sources = (np.concatenate(column) for column in zip(*parts, strict=True))
        return csr_array((weights, (targets, sources)), shape=(self.reached.size, self.reached.size))
