"""Histories as a training memory reads them: steps, chunks, what chunks are worth, and whether two runs of steps are the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl.data.schema import History, flatten
from icrl.interfaces import Array, map_observation
from icrl.memory.encoders import Past

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the hashes of runs; odd, so that none of its powers vanishes."""


class Life:
    """A history, and what sums along it."""

    def __init__(self, history: History):
        self.history = history
        self.ended = history.terminated | history.truncated  # (n,)
        self.lived = np.concatenate(
            [[0.0], np.cumsum(history.reward, dtype=np.float64)]
        )  # (n + 1,) earned before each step

    def __len__(self) -> int:
        return len(self.history.reward)

    def begin(self, steps: Array) -> Array:
        """(...) where the episodes of some steps (...) begin."""
        return self.history.episode_offset[self._episode(steps)]

    def end(self, steps: Array) -> Array:
        """(...) the step behind the episodes of some steps (...); behind the history its end."""
        return self.history.episode_offset[self._episode(steps) + 1]

    def _episode(self, steps: Array) -> Array:
        return np.searchsorted(self.history.episode_offset, np.minimum(steps, len(self) - 1), side="right") - 1

    def utility(self, chunk: int, num: int, as_of: Array) -> Array:
        """(R, num) utility of the first ``num`` chunks by steps ``as_of`` (R,) of the life, as in ``LaneMemory.utility``; anything behind the last."""
        starts = np.minimum(chunk * np.arange(num), len(self) - 2 * chunk)
        begin, end = self.begin(starts + chunk), self.end(starts + chunk)
        until = np.clip(np.minimum(end, as_of[:, None]), begin, len(self))
        return self.lived[until] - self.lived[begin] + self.lived[starts + 2 * chunk] - self.lived[starts]

    def past(self, steps: Array) -> Past:
        """Some steps (..., P); those outside the history are not valid."""
        there = (steps >= 0) & (steps < len(self))
        rows = np.clip(steps, 0, len(self) - 1)
        observation = map_observation(lambda column: column[rows], self.history.observation)
        return Past(observation, self.history.action[rows], self.history.reward[rows], self.ended[rows], there)

    def around(self, cut: int, chunk: int) -> tuple:
        """(observation, action, reward, ended, return to go) of the steps around a cut, (2 C, ...) each; of any others, where ``cut`` is -1."""
        rows = slice(0, 2 * chunk) if cut < 0 else slice(cut - chunk, cut + chunk)
        observation = map_observation(lambda column: column[rows], self.history.observation)
        to_go = self.lived[self.end(np.arange(rows.start, rows.stop))] - self.lived[rows]
        return (
            observation,
            self.history.action[rows],
            self.history.reward[rows],
            self.ended[rows],
            to_go.astype(np.float32),
        )


class RunHashes:
    """Whether two runs of steps hold the same observations and actions, by polynomial hashes modulo 2^64 (Karp & Rabin 1987).

    With the prefix sums S[i] = sum over j < i of x[j] BASE^j, the run of n steps from s hashes to (S[s + n] - S[s]) BASE^-s.
    """

    def __init__(self, lives: Sequence[Life]):
        lengths = [len(life) for life in lives]
        self._first = np.cumsum([0, *lengths])  # (H + 1,)
        self._powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(max(lengths), BASE)]), dtype=np.uint64)
        terms = [_fingerprints(life.history) * self._powers[: len(life)] for life in lives]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(np.concatenate(terms), dtype=np.uint64)])

    def _sum(self, history: Array, start: Array, length: Array) -> Array:
        row = self._first[history] + start
        return self._sums[row + length] - self._sums[row]

    def equal(self, one: tuple[Array, Array], other: tuple[Array, Array], length: Array) -> Array:
        """Whether runs of ``length`` steps are the same; each is given by its history and its first step, all arrays being broadcast."""
        return self._sum(*one, length) * self._powers[other[1]] == self._sum(*other, length) * self._powers[one[1]]

    def constant(self, history: Array, start: Array, length: Array) -> Array:
        """(n,) whether all steps of a run are one and the same."""
        shorter = np.maximum(length - 1, 0)
        return self.equal((history, start), (history, start + np.minimum(1, shorter)), shorter)


def _fingerprints(history: History) -> Array:
    """(n,) uint64: a number for observation and action of each step; continuous ones count as equal within 1e-5."""
    total = np.zeros(len(history.reward))
    for n, column in enumerate((history.action, *flatten("observation", history.observation).values())):
        part = np.asarray(column, np.float64).reshape(len(total), -1)
        total += np.sqrt(3.0 + 7 * n) * (part @ np.sqrt(2.0 + np.arange(part.shape[1])))  # roots: sums hardly coincide
    return np.round(1e5 * total).astype(np.int64).astype(np.uint64)
