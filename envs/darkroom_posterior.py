"""Exact belief over Dark Room tasks: which goals, and which meanings of the actions, no step has refuted.

Nothing in a Dark Room is noisy, so a belief is a mask over goals, and where actions are permuted another over permutations. The two
are independent given any history (a goal is judged by the cell that a step ended on, a permutation by where it led), so the 100 x 120
pairs are never written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from envs.hypotheses import Hypotheses
from envs.room import NUM_MOVES
from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv
from icrl.seeding import LaneStreams

if TYPE_CHECKING:
    from envs.darkroom import DarkRoom, DarkRoomVectorEnv


class DarkRoomPosterior:
    """Belief of every lane over the goal (uniform prior over all cells) and the permutation (uniform over all 120).

    Goals are listed column by column, the cell where episodes begin last; explorers break ties in this order.
    """

    def __init__(self, family: DarkRoom, env: DarkRoomVectorEnv):
        from envs.darkroom import all_permutations

        self._family, self._tables = family, family.tables
        self._cells = cells = family.cells_in_sweep_order()  # (N,) cell of each hypothesis
        self._index = np.argsort(cells)  # (N,) hypothesis of each cell
        self._goals = Hypotheses(len(cells))
        self._permutations = all_permutations()  # (120, 5)
        self._codes = NUM_MOVES ** np.arange(NUM_MOVES)
        self._index_of_code = np.zeros(NUM_MOVES**NUM_MOVES, np.intp)
        self._index_of_code[self._permutations @ self._codes] = np.arange(len(self._permutations))
        self._meanings = Hypotheses(len(self._permutations)) if family.permuted_actions else None
        self._support = None if family.permuted_actions else family.make_tasks(cells)
        self.reset(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, in that many lanes or in those listed."""
        self._goals.reset(lanes)
        if self._meanings is not None:
            self._meanings.reset(lanes)
        self._lanes = np.arange(len(self._goals.count))

    def update(self, step: Step) -> None:
        """Take in one step of every lane."""
        goals, reached = self._goals, self._index[self._family.cell_of(step.next_observation)]
        # with reward `once` a goal that was found pays nothing when met again in the episode
        decisive = goals.count > 1 if self._family.reward == "once" else True
        goals.visit(reached, step.reward > 0, decisive)
        if self._meanings is not None:
            self._update_meanings(self._meanings, step)

    def _update_meanings(self, meanings: Hypotheses, step: Step) -> None:
        unsure = np.flatnonzero(meanings.count > 1)  # (n,)
        cell, reached = (self._family.cell_of(o[unsure]) for o in (step.observation, step.next_observation))
        fits = self._tables.next_cell[cell] == reached[:, None]  # (n, 5) moves that lead there
        moves = self._permutations.T[step.action[unsure]]  # (n, 120) what the action does by each permutation
        meanings.mask[unsure] &= np.take_along_axis(fits, moves, axis=1)
        meanings.count[unsure] = meanings.mask[unsure].sum(axis=1)
        meanings.restore_empty()

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,)."""
        goal_cells = self._cells[self._goals.sample(streams, lanes)]
        if self._meanings is None:
            return self._family.make_tasks(goal_cells)
        return self._family.make_tasks(goal_cells, self._permutations[self._meanings.sample(streams, lanes)])

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) bool: lane i's steps exclude tasks[i]."""
        refuted = ~self._goals.mask[self._lanes, self._index[self._family.goal_cells(tasks)]]
        if self._meanings is not None:
            index = self._index_of_code[tasks["permutation"] @ self._codes]
            refuted |= ~self._meanings.mask[self._lanes, index]
        return refuted

    def plausible(self) -> tuple[Tasks, Array]:
        """Supported tasks and a mask (B, N) of those not refuted: ``candidates`` without the cost of weights.

        With permuted actions every goal comes with the lane's first plausible permutation, tasks (B, N): goals and permutations
        are independent, so this loses nothing of the belief over goals.
        """
        if self._meanings is None:
            assert self._support is not None
            return self._support, self._goals.mask
        first = self._permutations[self._meanings.mask.argmax(axis=1)]  # (B, 5)
        shape = self._goals.mask.shape
        tasks = self._family.make_tasks(
            np.broadcast_to(self._cells, shape), np.broadcast_to(first[:, None], (*shape, NUM_MOVES))
        )
        return tasks, self._goals.mask

    def candidates(self) -> tuple[Tasks, Array]:
        """Supported tasks, (N,) or with permuted actions (B, N) (see ``plausible``), and weights (B, N); rows sum to 1."""
        tasks, mask = self.plausible()
        return tasks, mask / self._goals.count[:, None]

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A) posterior probability that each action is optimal where the lanes of ``env`` are."""
        towards = self._tables.towards[env.cell][:, self._cells]  # type: ignore[attr-defined]  # (B, N)
        moves = [((towards == move) & self._goals.mask).sum(axis=1) for move in range(NUM_MOVES)]
        probs = np.stack(moves, axis=1) / self._goals.count[:, None]  # (B, 5) over moves
        if self._meanings is None:
            return probs
        does = self._permutations[:, :, None] == np.arange(NUM_MOVES)  # (120, A, 5) action a does move m
        meaning = np.einsum("bp,pam->bam", self._meanings.mask.astype(float), does.astype(float), optimize=True)
        return np.einsum("bam,bm->ba", meaning / self._meanings.count[:, None, None], probs)
