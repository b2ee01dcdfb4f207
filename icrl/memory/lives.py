"""Histories as a training memory reads them: steps, chunks, what chunks are worth, and whether two runs of steps are the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl.data.schema import History, flatten
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, map_observation
from icrl.memory.encoders import Past
from icrl.memory.lanes import onward

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the hashes of runs; odd, so that none of its powers vanishes."""


class Life:
    """A history, read from its files whenever it is asked for, and what sums along it: 8 bytes per step are kept."""

    def __init__(self, store: HistoryStore, number: int):
        self._store, self._number = store, number
        history = self.history
        self.episode_offset = history.episode_offset  # (E + 1,)
        self.lived = np.zeros(len(history.reward) + 1)  # earned before each step
        np.cumsum(history.reward, out=self.lived[1:])

    @property
    def history(self) -> History:
        return self._store.history(self._number)

    def __len__(self) -> int:
        return len(self.lived) - 1

    def begin(self, steps: Array) -> Array:
        """(...) where the episodes of some steps (...) begin."""
        return self.episode_offset[self._episode(steps)]

    def end(self, steps: Array) -> Array:
        """(...) the step behind the episodes of some steps (...); behind the history its end."""
        return self.episode_offset[self._episode(steps) + 1]

    def _episode(self, steps: Array) -> Array:
        return np.searchsorted(self.episode_offset, np.minimum(steps, len(self) - 1), side="right") - 1

    def utility(self, chunk: int, num: int, as_of: Array, worth: str = "own") -> Array:
        """(R, num) utility of the first ``num`` chunks by steps ``as_of`` (R,) of the life, as in ``LaneMemory.utility``; anything behind the last."""
        starts = np.minimum(chunk * np.arange(num), len(self) - 2 * chunk)
        begin, end = self.begin(starts + chunk), self.end(starts + chunk)
        until = np.clip(np.minimum(end, as_of[:, None]), begin, len(self))
        total = self.lived[until] - self.lived[begin]
        if worth == "own":
            return total + self.lived[starts + 2 * chunk] - self.lived[starts]
        first, last = np.maximum(starts, begin), np.minimum(starts + 2 * chunk, end)
        return total + onward(total, self.lived[first] - self.lived[begin], self.lived[last] - self.lived[first])

    def past(self, steps: Array) -> Past:
        """Some steps (..., P); those outside the history are not valid."""
        there = (steps >= 0) & (steps < len(self))
        rows, history = np.clip(steps, 0, len(self) - 1), self.history
        observation = map_observation(lambda column: column[rows], history.observation)
        ended = history.terminated[rows] | history.truncated[rows]
        return Past(observation, history.action[rows], history.reward[rows], ended, there)

    def earned(self) -> Array:
        """(T,) float32 what the episode of each step had earned before it."""
        return (self.lived[:-1] - self.lived[self.begin(np.arange(len(self)))]).astype(np.float32)

    def to_go(self) -> Array:
        """(T,) float32 what the episode of each step earns from it on."""
        return (self.lived[self.end(np.arange(len(self)))] - self.lived[:-1]).astype(np.float32)


class RunHashes:
    """Whether two runs of steps hold the same observations and actions, by polynomial hashes modulo 2^64 (Karp & Rabin 1987).

    With the prefix sums S[i] = sum over j < i of x[j] BASE^j, the run of n steps from s hashes to (S[s + n] - S[s]) BASE^-s.
    """

    def __init__(self, lives: Sequence[Life]):
        lengths = [len(life) for life in lives]
        self._first = np.cumsum([0, *lengths])  # (H + 1,)
        self._powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(max(lengths), BASE)]), dtype=np.uint64)
        self._sums = np.zeros(self._first[-1] + 1, np.uint64)
        for life, begin in zip(lives, self._first.tolist(), strict=False):
            rows = slice(begin + 1, begin + 1 + len(life))
            self._sums[rows] = _fingerprints(life.history) * self._powers[: len(life)]
        np.cumsum(self._sums, out=self._sums)

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
    """(n,) uint64: a number for observation and action of each step, the same for equal ones (continuous ones after rounding to 1e-5)."""
    rng = np.random.default_rng(0)
    total = np.zeros(len(history.reward))
    for column in (history.action, *flatten("observation", history.observation).values()):
        part = np.asarray(column, np.float64).reshape(len(total), -1)
        total += part @ rng.normal(size=part.shape[1])  # random weights: sums of different steps hardly coincide
    return np.round(1e5 * total).astype(np.int64).astype(np.uint64)
