"""What a roll-out's first lanes retrieved, and how much attention it got: for the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from icrl.data.schema import flatten
from icrl.interfaces import Array
from icrl.memory.lanes import LaneMemory

LANES, MOST = 6, 400
"""Lanes that are traced, the first ones; retrievals that are kept: where there are more, every second, every fourth ..."""


class Trace:
    """Records of retrievals at the first token that each serves."""

    def __init__(self, lanes: int):
        self.lanes = np.arange(min(LANES, lanes))
        self._records: list[dict[str, Any]] = []
        self._every, self._waited = 1, 0  # one of so many moments is kept; moments since the last one

    def wants(self, new: Array) -> bool:
        """Whether to keep this moment, at which retrievals have come into force in the lanes ``new``."""
        if not np.isin(new, self.lanes).any():
            return False
        self._waited += 1
        if self._waited < self._every:
            return False
        self._waited = 0
        if len(self._records) >= MOST:
            self._records, self._every = self._records[::2], 2 * self._every
        return True

    def note(self, memory: LaneMemory, new: Array, ids: Array, shares: torch.Tensor) -> None:
        """Retrievals ``ids`` (n, k) that came into force in the lanes ``new`` (n,), and the attention (B, 1 + M) of the token that is read now."""
        for lane, chosen in zip(new.tolist(), ids, strict=True):
            if lane not in self.lanes or (chosen < 0).all():
                continue
            one = np.array([lane])
            read = memory.read(one, chosen[None, None])
            there = np.maximum(chosen, 0)
            self._records.append(
                {
                    "lane": lane,
                    "step": int(memory.life[lane]),
                    "episode": int(memory.episode[lane]) + 1,
                    "cut": np.where(chosen >= 0, memory.end[lane, there] - memory.config.chunk, -1),
                    "utility": np.where(
                        chosen >= 0, memory.utility(one, memory.life[one][:, None])[0, 0, there], np.nan
                    ),
                    "attention": shares[lane].cpu().numpy(),
                    "reward": read.reward[0, 0],
                    "valid": read.valid[0, 0],
                    **{name: part[0, 0] for name, part in flatten("observation", read.observation).items()},
                }
            )

    def arrays(self) -> dict[str, Array]:
        """``retrieval_*`` of n retrievals, empty where there were none.

        Lane, step of its life, episode (from 1), cut (n, k) and utility (n, k) of the chunks, attention (n, 1 + M) with that on nothing first, and reward,
        valid and observation of the retrieved steps (n, M, ...).
        """
        if not self._records:
            return {}
        return {f"retrieval_{name}": np.stack([record[name] for record in self._records]) for name in self._records[0]}
