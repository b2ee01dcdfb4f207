"""Belief over finitely many hypotheses where nothing is noisy: which of them no step has refuted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl.interfaces import Array
from icrl.seeding import LaneStreams


class Hypotheses:
    """Masks (B, N) over equally probable hypotheses, emptied ones restored: evidence that nothing explains is forgotten."""

    def __init__(self, num_hypotheses: int):
        self.num_hypotheses = num_hypotheses
        self.reset(0)

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """All hypotheses are open again, in that many lanes or in those listed."""
        if isinstance(lanes, int | np.integer):
            self.mask = np.ones((int(lanes), self.num_hypotheses), bool)  # (B, N)
            self.count = np.full(int(lanes), self.num_hypotheses)  # (B,) hypotheses left
            self._lanes = np.arange(int(lanes))
        else:
            self.mask[lanes] = True
            self.count[lanes] = self.num_hypotheses

    def visit(self, index: Array, paid: Array, decisive: Array | bool = True) -> None:
        """Hypothesis ``index`` (B,) was tried: it is the true one where ``paid`` (B,), and is refuted where it did not though ``decisive`` (B,)."""
        supported = self.mask[self._lanes, index]
        refuted = supported & decisive & ~paid
        self.mask[self._lanes, index] = supported & ~refuted
        self.count -= refuted
        found = np.flatnonzero(paid & ~(supported & (self.count == 1)))
        if found.size:
            self.mask[found] = False
            self.mask[found, index[found]] = True
            self.count[found] = 1
        self.restore_empty()

    def restore_empty(self) -> None:
        """Open all hypotheses again in lanes that have none left."""
        if self.count.size and self.count.min() == 0:
            self.reset(np.flatnonzero(self.count == 0))

    def sample(self, streams: LaneStreams, lanes: Array) -> Array:
        """(n,) index of a hypothesis left in each of the lanes (n,)."""
        chosen = streams.integers(self.count[lanes], lanes)
        ranks = np.cumsum(self.mask[lanes], axis=1, dtype=np.int16)  # (n, N)
        return (ranks > chosen[:, None]).argmax(axis=1)
