"""Retrieval during a roll-out: who asks when, and what is in force at which token of a lane's window.

A window's tokens are served ``every`` at a time, from its first one on; each retrieval asks with the steps lived before the first token that it serves. The
queries of a window are kept, so that a window that moves on and is read again gets its retrievals again, as a training window would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from icrl.data.chunks import Retrieved
from icrl.interfaces import Array, Step
from icrl.memory.encoders import Encoder
from icrl.memory.lanes import LaneMemory
from icrl.memory.trace import Trace
from icrl.models.observations import to_tensors
from icrl.models.retrieval import RetrievalCache, RetrievedWindow


class Recall:
    """The memory of B lanes beside their windows.

    Parameters
    ----------
    policy : Policy
        With a memory in its configuration.
    encoder : Encoder
        Makes the keys.
    lanes : int
        How many.
    """

    def __init__(self, policy: Any, encoder: Encoder, lanes: int):
        config = policy.config.memory
        self.policy, self.config = policy, config
        self.memory = LaneMemory(lanes, config, encoder)
        self.cache: RetrievalCache = policy.empty_retrievals(lanes)
        groups = policy.config.window // config.every + 1
        self.asked = np.zeros(
            (lanes, groups, config.chunk, encoder.width), np.float32
        )  # (B, R, P, E) keys of what was asked with
        self.asked_at = np.zeros((lanes, groups), np.int64)  # (B, R) step of the life at which that was
        self.due = np.ones(lanes, bool)  # a retrieval waits for the next look
        self.in_force = np.full(
            (lanes, 2 * config.k), np.nan
        )  # (B, 2 k) of which chunks the keys and values of each lane are
        self.trace = Trace(lanes)
        self._came: tuple[Array, Array] | None = (
            None  # lanes and ids of the retrievals that the next token sees first, where they are traced
        )

    def forget(self, lanes: Array) -> None:
        """A new task in some lanes."""
        self.memory.forget(lanes)
        self.in_force[:] = np.nan  # of all, since a lane may look into another's memory
        self.begin(lanes, np.zeros(len(lanes), np.int64))

    def begin(self, lanes: Array, lengths: Array, sure: Array | None = None) -> None:
        """Ask in those of some lanes whose windows hold ``lengths`` (n,) steps and whose next token begins a new group.

        In lanes that are ``sure`` (B,) of their last action, what is in force stays in force.
        """
        new = lengths % self.config.every == 0
        lanes, group = lanes[new], lengths[new] // self.config.every
        if len(lanes) == 0:
            return
        self.asked[lanes, group], self.asked_at[lanes, group] = self.memory.query(lanes), self.memory.life[lanes]
        self.due[lanes] = True
        if sure is not None:
            kept = sure[lanes] & (group > 0)
            for column in (self.asked, self.asked_at):
                column[lanes[kept], group[kept]] = column[lanes[kept], group[kept] - 1]

    def add(self, step: Step) -> None:
        """What every lane lived through."""
        self.memory.add(step)

    def shift(self, lane: int, groups: int) -> None:
        """A lane's window lost its first groups of tokens."""
        for column in (self.asked, self.asked_at):
            column[lane, : column.shape[1] - groups] = column[lane, groups:].copy()

    def look(self, lengths: Array, limits: Array) -> RetrievalCache | None:
        """What the next token of every lane sees; ``lengths`` and ``limits`` (B,): steps in the window, step of the life by which a chunk had ended."""
        lanes = np.flatnonzero(self.due)
        self.due[:] = False
        self.cache.shares = None
        if len(lanes):
            ids = self._put_in_force(lanes, lengths[lanes] // self.config.every, limits[lanes])
            if self.trace.wants(lanes):
                self._came, self.cache.shares = (lanes, ids), []
        return self.cache if bool(self.cache.seen[:, 1:].any()) else None

    def looked(self) -> None:
        """The tokens that were to see what ``look`` gave have been read."""
        if self._came is not None and self.cache.shares:
            self.trace.note(self.memory, *self._came, torch.stack(self.cache.shares).mean(0))
        self._came, self.cache.shares = None, None

    def window(self, lanes: Array, lengths: Array, limits: Array) -> RetrievedWindow | None:
        """What the tokens of some lanes' windows of ``lengths`` (n,) steps see; the next token's retrieval is in force afterwards."""
        last = (lengths - 1) // self.config.every
        self.due[lanes] = lengths % self.config.every == 0
        within = ~self.due[lanes] & (lengths > 0)
        self._put_in_force(lanes[within], last[within], limits[within])
        groups = int(last.max()) + 1
        parts = self.asked[lanes, :groups] * (np.arange(groups) <= last[:, None])[:, :, None, None]
        ids = self.memory.search(lanes, parts, limits, self.asked_at[lanes, :groups])
        if (ids < 0).all():
            return None
        distinct, chunks = _distinct(ids)
        return self.policy.shared_window_memory(
            self._tensors(lanes, distinct[:, None]), torch.as_tensor(chunks, device=self.policy.device)
        )

    def state(self) -> dict[str, Array]:
        """Everything but the caches, as arrays by name."""
        return {**self.memory.state(), "asked": self.asked, "asked_at": self.asked_at}

    def restore(self, arrays: Mapping[str, Array], space: gym.Space) -> None:
        """Take over a state; what is in force follows when the windows are read again, and is asked for where they are empty."""
        self.memory.restore(arrays, space)
        self.asked[:], self.asked_at[:] = arrays["asked"], arrays["asked_at"]
        self.due[:] = True
        self.in_force[:] = np.nan

    def _put_in_force(self, lanes: Array, groups: Array, limits: Array) -> Array:
        """Retrieve for some lanes with the questions of their groups; the chunks (n, k) that came.

        Keys and values are made anew only in lanes in which something else came than is in force: a chunk that may be retrieved never changes.
        """
        if len(lanes) == 0:
            return np.zeros((0, self.config.k), np.int64)
        parts, as_of = self.asked[lanes, groups][:, None], self.asked_at[lanes, groups][:, None]
        ids = self.memory.search(lanes, parts, limits, as_of)
        if (ids < 0).all():
            self.cache.seen[torch.as_tensor(lanes, device=self.policy.device), 1:] = False
            self.in_force[lanes] = np.nan
            return ids[:, 0]
        identity = self.memory.identity(lanes, ids[:, 0])
        new = (identity != self.in_force[lanes]).any(1)
        self.in_force[lanes] = identity
        if new.any():
            index = torch.as_tensor(lanes[new], device=self.policy.device)
            self.policy.remember(self._tensors(lanes[new], ids[new]), self.cache, index)
        return ids[:, 0]

    def _tensors(self, lanes: Array, ids: Array) -> Retrieved:
        """(n, R, M, ...) what the chunks ``ids`` (n, R, k) of some lanes hold."""
        return Retrieved(*(to_tensors(part, self.policy.device) for part in self.memory.read(lanes, ids)))


def _distinct(ids: Array) -> tuple[Array, Array]:
    """Numbers (n, R, k), -1 for none -> the distinct ones of each row (n, N), filled up with -1, and where in it each stands (n, R, k), -1 for none."""
    rows = [np.unique(row[row >= 0]) for row in ids]
    distinct = np.full((len(ids), max(map(len, rows))), -1)
    chunks = np.full(ids.shape, -1)
    for n, (row, found) in enumerate(zip(ids, rows, strict=True)):
        distinct[n, : len(found)] = found
        chunks[n] = np.where(row >= 0, np.searchsorted(found, row), -1)
    return distinct, chunks
