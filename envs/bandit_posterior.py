"""Exact beliefs over the means of bandit arms, independent given the pulls, by their distribution functions.

P(arm a is best) = integral of f_a(x) * prod_{b != a} F_b(x) dx. For Bernoulli arms the integrand is a polynomial and Gauss-Legendre
quadrature exact up to 2 * nodes - 1 pulls. For Gaussian arms x runs over arm a's own quantiles, so that narrow beliefs stay resolved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from icrl.interfaces import Array, Step, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # (G,) quadrature on [0, 1]


class ArmsPosterior:
    """Counts and sums of rewards per arm, and what follows from a distribution function. No pull ever excludes a task."""

    lanes_at_once = 1024
    """Lanes per piece of a quadrature, to bound its memory."""

    def __init__(self, num_lanes: int, num_arms: int):
        self._num_arms = num_arms
        self.reset(num_lanes)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Back to the prior, in that many lanes or in those listed."""
        if isinstance(lanes, int | np.integer):
            self.pulls = np.zeros((int(lanes), self._num_arms))  # (B, A)
            self.reward_sum = np.zeros((int(lanes), self._num_arms))  # (B, A)
        else:
            self.pulls[lanes], self.reward_sum[lanes] = 0, 0

    def update(self, step: Step) -> None:
        """Take in one pull of every lane."""
        lanes = np.arange(len(self.pulls))
        self.pulls[lanes, step.action] += 1
        self.reward_sum[lanes, step.action] += step.reward

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One vector of means (n,) for each of the lanes (n,), by inverse distribution functions."""
        tasks = np.empty(len(lanes), [("means", np.float64, (self._num_arms,))])
        tasks["means"] = self._quantile(streams.uniform(self._num_arms, lanes), lanes)
        return tasks

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) False: noisy pulls make tasks improbable, never impossible."""
        return np.zeros(len(self.pulls), bool)

    def plausible(self) -> tuple[Tasks, Array]:
        """Raises UserError: the belief is continuous."""
        raise UserError("a bandit's belief has no list of candidate tasks: choose a source that samples, e.g. thompson")

    candidates = plausible

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A) posterior probability that each arm is the best one."""
        num_lanes = len(self.pulls)
        pieces = np.split(np.arange(num_lanes), range(self.lanes_at_once, num_lanes, self.lanes_at_once))
        probs = np.concatenate([self._weights_best(lanes) for lanes in pieces])
        return probs / probs.sum(axis=1, keepdims=True)

    def _weights_best(self, lanes: Array) -> Array:
        """(n, A) numbers in proportion to the probability that each arm is the best one in the lanes (n,)."""
        return np.stack([self._prob_best(arm, lanes) for arm in range(self._num_arms)], axis=1)

    def _others(self, arm: int) -> list[int]:
        return [other for other in range(self._num_arms) if other != arm]

    def _quantile(self, levels: Array, lanes: Array) -> Array:
        """Levels (n, A) of each arm's distribution -> means (n, A)."""
        raise NotImplementedError

    def _prob_best(self, arm: int, lanes: Array) -> Array:
        """(n,) probability that ``arm`` has the greatest mean in the lanes (n,)."""
        raise NotImplementedError


class BernoulliPosterior(ArmsPosterior):
    """Beta(1 + successes, 1 + failures) for each arm."""

    def _parameters(self, lanes: Array) -> tuple[Array, Array]:
        successes, pulls = self.reward_sum[lanes], self.pulls[lanes]
        return 1 + successes, 1 + pulls - successes

    def _quantile(self, levels: Array, lanes: Array) -> Array:
        return special.betaincinv(*self._parameters(lanes), levels)

    def _prob_best(self, arm: int, lanes: Array) -> Array:
        a, b = (p[:, :, None] for p in self._parameters(lanes))  # (n, A, 1)
        log_density = (
            special.xlogy(a[:, arm] - 1, _NODES)
            + special.xlog1py(b[:, arm] - 1, -_NODES)
            - special.betaln(a, b)[:, arm]
        )
        integrand = np.exp(log_density)  # (n, G)
        for other in self._others(arm):
            integrand *= special.betainc(a[:, other], b[:, other], _NODES)
        return integrand @ _WEIGHTS


class GaussianPosterior(ArmsPosterior):
    """Normal(mean reward, noise / sqrt(pulls)) truncated to [0, 1] for each arm; uniform before its first pull."""

    def __init__(self, num_lanes: int, num_arms: int, noise: float):
        super().__init__(num_lanes, num_arms)
        self._noise = max(noise, 1e-6)  # without noise one pull tells the mean: as good as exactly

    def _parameters(self, lanes: Array, arms: int | slice) -> tuple[Array, Array, Array]:
        """Untruncated centre and width of the arms' beliefs, and whether they were ever pulled."""
        pulls, total = self.pulls[lanes, arms], self.reward_sum[lanes, arms]
        pulled = pulls > 0
        safe = np.maximum(pulls, 1)
        return total / safe, self._noise / np.sqrt(safe), pulled

    def _quantile(self, levels: Array, lanes: Array) -> Array:
        return _truncated_quantile(levels, *self._parameters(lanes, slice(None)))

    def _prob_best(self, arm: int, lanes: Array) -> Array:
        own = (p[:, None] for p in self._parameters(lanes, arm))
        x = _truncated_quantile(np.broadcast_to(_NODES, (len(lanes), len(_NODES))), *own)  # (n, G)
        below = np.ones_like(x)
        for other in self._others(arm):
            below *= _truncated_cdf(x, *(p[:, None] for p in self._parameters(lanes, other)))
        return below @ _WEIGHTS


def _truncated_quantile(levels: Array, centre: Array, width: Array, pulled: Array) -> Array:
    """Quantiles of a normal truncated to [0, 1], or of the uniform where not ``pulled``.

    Computed in the tail where the mass lies below 0 or above 1 so that no precision is lost: for a centre above 1/2 the problem
    is mirrored, which keeps the interval's left end within half a width of the bulk.
    """
    mirrored = centre > 0.5
    centre = np.where(mirrored, 1 - centre, centre)
    levels_left = np.where(mirrored, 1 - levels, levels)
    upper_0 = special.ndtr(centre / width)  # mass above 0
    upper_1 = special.ndtr((centre - 1) / width)  # mass above 1
    upper = upper_0 + levels_left * (upper_1 - upper_0)
    x = np.clip(centre - width * special.ndtri(np.maximum(upper, 1e-300)), 0, 1)
    x = np.where(mirrored, 1 - x, x)
    return np.where(pulled, x, levels)


def _truncated_cdf(x: Array, centre: Array, width: Array, pulled: Array) -> Array:
    """Distribution function of a normal truncated to [0, 1], or of the uniform where not ``pulled``, at x in [0, 1]."""
    mirrored = centre > 0.5
    centre = np.where(mirrored, 1 - centre, centre)
    left = np.where(mirrored, 1 - x, x)
    upper_0, upper_1 = special.ndtr(centre / width), special.ndtr((centre - 1) / width)
    upper_x = special.ndtr((centre - left) / width)
    cdf = (upper_0 - upper_x) / np.maximum(upper_0 - upper_1, 1e-300)
    return np.where(pulled, np.where(mirrored, 1 - cdf, cdf), np.where(mirrored, 1 - left, left))
