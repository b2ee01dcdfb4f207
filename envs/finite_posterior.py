"""Exact belief over a finite list of deterministic worlds: each hypothesis is played along, and given up at its first wrong prediction.

The prior is uniform. A hypothesis predicts the reward and the next observation of every step, and the first observation of every
episode, which is taken in with the episode's first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.finite_vector import FiniteVectorEnv, Locate
from envs.hypotheses import Hypotheses
from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv
from icrl.seeding import LaneStreams


class FinitePosterior:
    """Belief of every lane of ``env`` over ``tasks`` (N,), whose tables ``locate`` finds and whose places in the list ``index`` tells.

    Explorers break ties in the order of the list.
    """

    def __init__(self, env: TaskVectorEnv, tasks: Tasks, locate: Locate, index: dict[bytes, int]):
        self._tasks, self._index = tasks, index
        self._worlds, self._row, self._meaning = locate(tasks)
        self._first = self._row * self._worlds.num_states  # (N,) index of state 0 of the hypothesis in the flat tables
        self._start_codes = self._worlds.codes[:, self._worlds.starts][self._row]  # (N, C)
        self._open = Hypotheses(len(tasks))
        self.reset(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, in that many lanes or in those listed."""
        self._open.reset(lanes)
        if isinstance(lanes, int | np.integer):
            self._state = np.zeros((int(lanes), len(self._tasks)), np.intp)  # where the lane is by each hypothesis
            self._fresh = np.ones(int(lanes), bool)  # (B,) an episode is about to begin
        else:
            self._fresh[lanes] = True

    def update(self, step: Step) -> None:
        """Take in one step of every lane. Lanes that know their task have nothing to learn."""
        lanes = np.flatnonzero(self._open.count > 1)  # (n,)
        worlds, num_actions = self._worlds, self._worlds.num_actions
        before, after = worlds.code(step.observation[lanes]), worlds.code(step.next_observation[lanes])
        fresh = self._fresh[lanes][:, None]
        state = np.where(fresh, self._starts_that_show(before), self._state[lanes])  # (n, N)
        action = step.action[lanes]
        move = action[:, None] if self._meaning is None else self._meaning.T[action]  # (n, N) or (n, 1)
        here = self._first + state
        taken = here * num_actions + move
        state = np.where(worlds.ends.take(taken), self._starts_that_show(after), worlds.next_state.take(taken))
        fits = worlds.pays.take(taken) == (step.reward[lanes] > 0)[:, None]
        fits &= worlds.codes.take(here) == before[:, None]
        fits &= worlds.codes.take(self._first + state) == after[:, None]
        self._state[lanes], self._fresh[lanes] = state, step.ended[lanes]
        self._open.mask[lanes] &= fits
        self._open.count[lanes] = self._open.mask[lanes].sum(axis=1)
        self._open.restore_empty()

    def _starts_that_show(self, code: Array) -> Array:
        """(n, N) or (n, 1) the start state that shows ``code`` (n,) by each hypothesis, the first one where none does."""
        starts = self._worlds.starts
        if len(starts) == 1:
            return np.full((len(code), 1), starts[0])
        return starts[(self._start_codes == code[:, None, None]).argmax(axis=2)]

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,)."""
        return self._tasks[self._open.sample(streams, lanes)]

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) bool: lane i's steps exclude tasks[i]."""
        index = [self._index[task.tobytes()] for task in tasks]
        return ~self._open.mask[np.arange(len(tasks)), index]

    def plausible(self) -> tuple[Tasks, Array]:
        """All tasks (N,), and a mask (B, N) of those not refuted."""
        return self._tasks, self._open.mask

    def candidates(self) -> tuple[Tasks, Array]:
        """All tasks (N,), and weights (B, N) whose rows sum to 1."""
        return self._tasks, self._open.mask / self._open.count[:, None]

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A) posterior probability that each action is the optimal one where the lanes of ``env`` are."""
        assert isinstance(env, FiniteVectorEnv)
        move = self._worlds.best[self._row[:, None], env.state].T  # (B, N) of the world
        if self._meaning is not None:
            move = (self._meaning == move[..., None]).argmax(axis=2)  # of the agent
        counts = [((move == action) & self._open.mask).sum(axis=1) for action in range(self._worlds.num_actions)]
        return np.stack(counts, axis=1) / self._open.count[:, None]
