"""Exact belief over tabular decision processes: counts beside the conjugate priors that tasks are drawn from.

Transitions out of a state by an action are Dirichlet(concentration + times that each state followed), the probability that a state pays is
Beta(a + times that it paid, b + times that it did not), all independent. A sample held for one episode is posterior sampling for
reinforcement learning, PSRL (Osband et al. 2013): the source ``sample_and_hold`` with ``hold`` = the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

if TYPE_CHECKING:
    from envs.tabular import TabularMDP, TabularVectorEnv

DRAWS = 64
"""Samples of the task by which the probability that an action is optimal is estimated: standard error at most 1/16."""


class TabularPosterior:
    """Belief of every lane. No step ever excludes a task."""

    def __init__(self, family: TabularMDP, env: TabularVectorEnv):
        self._family = family
        self._streams = LaneStreams(0, family.name, "optimal action", lane_ids=env.lane_ids)
        self.reset(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, in that many lanes or in those listed."""
        num_states, num_actions = self._family.num_states, self._family.num_actions
        if isinstance(lanes, int | np.integer):
            self.moves = np.zeros((int(lanes), num_states, num_actions, num_states), np.int32)  # (B, S, A, S) times
            self.pays = np.zeros(
                (int(lanes), num_states, 2), np.int32
            )  # (B, S, 2) times that it did not pay, that it did
        else:
            self.moves[lanes], self.pays[lanes] = 0, 0

    def update(self, step: Step) -> None:
        """Take in one step of every lane."""
        lanes, reached = np.arange(len(self.moves)), step.next_observation[:, 0]
        self.moves[lanes, step.observation[:, 0], step.action, reached] += 1
        self.pays[lanes, reached, (step.reward > 0).astype(np.intp)] += 1

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,): a generator per lane, seeded by its stream (a Dirichlet row is gamma draws, normalised)."""
        family = self._family
        shapes = family.transition_concentration + self.moves[lanes]  # (n, S, A, S)
        a, b = family.reward_prior
        pays_not, pays_one = (self.pays[lanes, :, paid] for paid in (0, 1))  # (n, S)
        weights, probs = np.empty(shapes.shape), np.empty(pays_one.shape)
        for lane, seed in enumerate(streams.integers(2**53, lanes).tolist()):
            rng = np.random.Generator(np.random.SFC64(seed))
            weights[lane] = rng.standard_gamma(shapes[lane])
            probs[lane] = rng.beta(a + pays_one[lane], b + pays_not[lane])
        return family.make_tasks(weights / weights.sum(axis=3, keepdims=True), probs)

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) False: a step makes tasks improbable, never impossible."""
        return np.zeros(len(self.moves), bool)

    def plausible(self) -> tuple[Tasks, Array]:
        """Raises UserError: the belief is continuous."""
        raise UserError(
            f"the belief of {self._family.name} has no list of candidate tasks: choose a source that samples, e.g. sample_and_hold"
        )

    candidates = plausible

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A) probability that each action is optimal where the lanes of ``env`` are, estimated by 64 samples of the task.

        The samples come from streams of the belief's own, which go on from call to call.
        """
        lanes = np.arange(len(self.moves))
        votes = np.zeros((len(lanes), self._family.num_actions))
        for _ in range(DRAWS):
            votes[lanes, env.optimal_action(self.sample(self._streams, lanes))] += 1
        return votes / DRAWS
