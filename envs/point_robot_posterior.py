"""Exact belief over Point-Robot's goals: a square, after one distance a circle, after two at most two points, then the goal.

A step that ends at p and pays -d says |p - g|² = d², or q = d² - |p|² = |g|² - 2 p·g, which is linear in p with slope -2 g. So the goal's component
along a direction in which positions differ is a regression's slope; with one such direction the mean distance leaves two mirror images, equally
likely because the prior is uniform, and with none a circle. Moments of (1, x, y, q) are all that need be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

if TYPE_CHECKING:
    from envs.point_robot import PointRobot

_SPREAD = 1e-4
"""Positions that differ by less in all (root of the sum of squares) tell nothing along a direction: distances are rounded to float32."""
_TOLERANCE = 1e-8
"""Mean squared error of d² up to which a goal is not refuted."""
_ANGLES = 1024
"""Points of a circle among which a sample is drawn; all are turned by the same random angle."""


class PointRobotPosterior:
    """Belief of every lane."""

    def __init__(self, family: PointRobot, env: TaskVectorEnv):
        self._family = family
        self.reset(env.num_envs)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, in that many lanes or in those listed."""
        if isinstance(lanes, int | np.integer):
            self._moments = np.zeros((int(lanes), 4, 4))  # (B, 4, 4) sums of products of (1, x, y, q)
        else:
            self._moments[lanes] = 0

    def update(self, step: Step) -> None:
        """Take in one step of every lane."""
        position = step.next_observation.astype(np.float64)  # (B, 2)
        q = np.square(step.reward, dtype=np.float64) - np.square(position).sum(1)
        row = np.concatenate([np.ones((len(q), 1)), position, q[:, None]], axis=1)
        self._moments += row[:, :, None] * row[:, None]

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,)."""
        levels = streams.uniform(3, lanes)  # (n, 3)
        tasks = np.empty(len(lanes), [("goal", np.float64, (2,))])
        tasks["goal"] = 2 * levels[:, :2] - 1
        told = np.flatnonzero(self._moments[lanes, 0, 0])
        if told.size:
            possible = self._possible(self._moments[lanes[told]], levels[told, 0])
            tasks["goal"][told] = _pick(possible, levels[told, 2])
        return tasks

    @staticmethod
    def _possible(moments: Array, turn: Array) -> Array:
        """(n, 1024, 2) goals that agree with moments of at least one step: points of a circle turned by ``turn`` (n,), or fewer, repeated."""
        means = moments[:, 0, 1:] / moments[:, :1, 0]  # (n, 3)
        middle = means[:, :2]
        scatter = moments[:, 1:, 1:] - moments[:, :1, :1] * means[:, :, None] * means[:, None]  # (n, 3, 3), centred
        spread, axes = np.linalg.eigh(scatter[:, :2, :2])  # (n, 2) ascending, (n, 2, 2) columns
        slope = np.einsum("nij,ni->nj", axes, scatter[:, :2, 2]) / np.maximum(spread, _SPREAD**2)
        along = -slope / 2 - np.einsum("nij,ni->nj", axes, middle)  # (n, 2) the goal from the middle, along each axis
        square = means[:, 2] + np.square(middle).sum(1)  # mean of d² less the spread of positions about their middle
        radius = np.sqrt(np.maximum(square, 0))
        angles = 2 * np.pi * (np.arange(_ANGLES) + turn[:, None]) / _ANGLES
        places = radius[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (n, 1024, 2)
        known = spread > _SPREAD**2  # (n, 2): the second axis if any
        mirror = np.sqrt(np.maximum(square - along[:, 1] ** 2, 0))
        side = np.where(np.arange(_ANGLES) % 2, 1.0, -1.0)
        places = np.where(
            known[:, 1, None, None], np.stack(np.broadcast_arrays(mirror[:, None] * side, along[:, 1:]), -1), places
        )
        places = np.where(known[:, :1, None], along[:, None], places)
        return middle[:, None] + np.einsum("nij,nkj->nki", axes, places)

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) bool: the distances were not those to the goal."""
        goal = tasks["goal"]
        weights = np.concatenate([-np.square(goal).sum(1)[:, None], 2 * goal, np.ones((len(goal), 1))], axis=1)
        error = np.einsum("bi,bij,bj->b", weights, self._moments, weights)  # sum of squared errors of d²
        return error > _TOLERANCE * self._moments[:, 0, 0]

    def plausible(self) -> tuple[Tasks, Array]:
        """Raises UserError: the belief is continuous."""
        raise UserError(
            f"the belief of {self._family.name} has no list of candidate tasks: choose a source that samples, e.g. sample_and_hold"
        )

    candidates = plausible

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """Raises UserError: actions are continuous, they have densities."""
        raise UserError(
            f"actions of {self._family.name} have no probabilities: choose sample_and_hold or posterior_sampling"
        )


def _pick(places: Array, level: Array) -> Array:
    """(n, 2) of places (n, K, 2) one within the square, each equally often by ``level`` (n,); the one least outside where none is."""
    outside = np.maximum(np.abs(places).max(axis=-1) - 1, 0)  # (n, K)
    inside = outside <= np.maximum(outside.min(axis=1, keepdims=True), 1e-6)
    rank = np.floor(level * inside.sum(axis=1))
    chosen = (np.cumsum(inside, axis=1) > rank[:, None]).argmax(axis=1)
    return np.clip(places[np.arange(len(places)), chosen], -1, 1)
