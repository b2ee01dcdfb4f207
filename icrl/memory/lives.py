"""Histories as a training memory reads them: steps, chunks, what chunks are worth, and whether two runs of steps are the same."""

from __future__ import annotations

import numpy as np

from icrl.data.schema import History, flatten, unflatten
from icrl.data.store import HistoryStore
from icrl.interfaces import Array
from icrl.memory.encoders import Past
from icrl.memory.lanes import onward

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the hashes of runs; odd, so that none of its powers vanishes."""


class Lives:
    """All histories of a store, steps of which are named by a history and a number in it; 16 bytes per step are kept, the rest is read from files."""

    def __init__(self, store: HistoryStore):
        self._store = store
        offsets = [store.history(number).episode_offset for number in range(store.num_histories)]
        self.first = np.cumsum([0] + [int(offset[-1]) for offset in offsets])  # (H + 1,) of all steps
        self.lengths = np.diff(self.first)  # (H,)
        self._begin, self._end = np.empty((2, self.first[-1]), np.int32)  # (S,) each, of every step's episode
        self._lived = np.zeros(self.first[-1] + 1)  # earned before each step, by all histories before its own, too
        for number, (row, offset) in enumerate(zip(self.first.tolist(), offsets, strict=False)):
            rows, lengths = slice(row, row + int(offset[-1])), np.diff(offset)
            self._begin[rows], self._end[rows] = np.repeat(offset[:-1], lengths), np.repeat(offset[1:], lengths)
            self._lived[row + 1 : rows.stop + 1] = store.history(number).reward
        np.cumsum(self._lived, out=self._lived)

    def history(self, number: int) -> History:
        """One of them, read from its files."""
        return self._store.history(number)

    def begin(self, history: Array, step: Array) -> Array:
        """(...) where the episodes of some steps begin; behind a history its last one."""
        return self._begin[self._row(history, step)]

    def end(self, history: Array, step: Array) -> Array:
        """(...) the step behind the episodes of some steps; behind a history its last one."""
        return self._end[self._row(history, step)]

    def _row(self, history: Array, step: Array) -> Array:
        return self.first[history] + np.minimum(step, self.lengths[history] - 1)

    def utility(self, history: Array, number: Array, chunk: int, as_of: Array, worth: str = "own") -> Array:
        """(...) utility of chunks ``number`` of histories by step ``as_of`` of these, as in ``LaneMemory.utility``; anything for chunks that there are not."""
        row, length = self.first[history], self.lengths[history]
        start = np.clip(chunk * number, 0, length - 2 * chunk)
        begin, end = self.begin(history, start + chunk), self.end(history, start + chunk)
        earned = self._lived[row + begin]
        total = self._lived[row + np.clip(np.minimum(end, as_of), begin, length)] - earned
        if worth == "own":
            return total + self._lived[row + start + 2 * chunk] - self._lived[row + start]
        first = self._lived[row + np.maximum(start, begin)]
        return total + onward(total, first - earned, self._lived[row + np.minimum(start + 2 * chunk, end)] - first)

    def past(self, history: Array, step: Array) -> Past:
        """Some steps (n, ..., P) of histories (n,); those outside them are not valid."""
        last = self.lengths[history].reshape(-1, *(1,) * (step.ndim - 1)) - 1
        there = (step >= 0) & (step <= last)
        flat = np.clip(step, 0, last).reshape(len(step), -1)

        def column(name: str) -> Array:
            taken = self._store.steps(name, history, flat)
            return taken.reshape(*step.shape, *taken.shape[2:])

        observation = unflatten(self._store.spec.observation_space, "observation", column)
        return Past(observation, column("action"), column("reward"), column("terminated") | column("truncated"), there)

    def earned(self) -> Array:
        """(S,) float32 what the episode of each step had earned before it."""
        return (self._lived[:-1] - self._lived[self._starts() + self._begin]).astype(np.float32)

    def to_go(self) -> Array:
        """(S,) float32 what the episode of each step earns from it on."""
        return (self._lived[self._starts() + self._end] - self._lived[:-1]).astype(np.float32)

    def _starts(self) -> Array:
        """(S,) the first step of each step's history."""
        return np.repeat(self.first[:-1], self.lengths)


class RunHashes:
    """Whether two runs of steps hold the same observations and actions, by polynomial hashes modulo 2^64 (Karp & Rabin 1987).

    With the prefix sums S[i] = sum over j < i of x[j] BASE^j, the run of n steps from s hashes to (S[s + n] - S[s]) BASE^-s.
    """

    def __init__(self, lives: Lives):
        self._first = lives.first
        self._powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(lives.lengths.max(), BASE)]), dtype=np.uint64)
        self._sums = np.zeros(self._first[-1] + 1, np.uint64)
        for number, (begin, length) in enumerate(zip(self._first.tolist(), lives.lengths.tolist(), strict=False)):
            rows = slice(begin + 1, begin + 1 + length)
            self._sums[rows] = _fingerprints(lives.history(number)) * self._powers[:length]
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
