"""Random numbers from one root seed: named streams, and streams per lane that do not depend on the other lanes.

Nobody in the project touches global random state. Order-free things (a batch, a split, a shard) use ``generator``;
things that happen in lanes use ``LaneStreams``, counter-based (splitmix64, Steele et al. 2014) so that lane i draws the same numbers
whatever the number of lanes, workers or shards, at numpy speed.
"""

from __future__ import annotations

import copy
import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def seed_sequence(root: int, *names: str | int) -> np.random.SeedSequence:
    """The seed of the stream called ``names`` under ``root``; texts are hashed, so names may be anything."""
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else int(name) for name in names]
    return np.random.SeedSequence([int(root), *words])


def generator(root: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called ``names`` under ``root``."""
    return np.random.default_rng(seed_sequence(root, *names))


def derive_seed(root: int, *names: str | int) -> int:
    """A 63-bit seed for libraries that want an integer (torch, gymnasium)."""
    return int(seed_sequence(root, *names).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: (n,) uint64 -> (n,) uint64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


class LaneStreams:
    """One random stream per lane, drawn for all lanes (or some) in one numpy operation.

    ``lane_ids`` (B,) are global numbers (the history's number in a collection, the lane's in an evaluation): equal root,
    names and id give equal draws. A draw for some lanes advances those lanes only.
    """

    def __init__(self, root: int, *names: str | int, lane_ids: np.ndarray | int):
        ids = np.arange(lane_ids) if isinstance(lane_ids, int) else np.asarray(lane_ids)
        base = np.uint64(seed_sequence(root, *names).generate_state(1, np.uint64)[0])
        self._keys = _mix(base + (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN)  # (B,)
        self.counters = np.zeros(len(self._keys), np.uint64)  # (B,) draws made so far; saving these saves the streams

    def of_lanes(self, lanes: np.ndarray) -> LaneStreams:
        """The streams of some lanes (n,) from where they are; from then on these and ours know nothing of each other."""
        some = copy.copy(self)
        some._keys, some.counters = self._keys[lanes], self.counters[lanes]
        return some

    @property
    def num_lanes(self) -> int:
        return len(self._keys)

    def _bits(self, lanes: np.ndarray | None, num: int) -> np.ndarray:
        """(n, num) fresh uint64 for the lanes given (all if None)."""
        index = slice(None) if lanes is None else lanes
        start = self.counters[index]
        steps = np.arange(1, num + 1, dtype=np.uint64)
        bits = _mix(self._keys[index][:, None] + (start[:, None] + steps) * _GOLDEN)
        self.counters[index] = start + np.uint64(num)
        return bits

    def uniform(self, num: int = 1, lanes: np.ndarray | None = None) -> np.ndarray:
        """(n,) float64 in [0, 1) for ``num`` = 1, else (n, num)."""
        values = (self._bits(lanes, num) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return values[:, 0] if num == 1 else values

    def integers(self, high: int | np.ndarray, lanes: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64 uniform on 0 .. high - 1; ``high`` may differ per lane."""
        return (self.uniform(lanes=lanes) * high).astype(np.int64)

    def normal(self, num: int = 1, lanes: np.ndarray | None = None) -> np.ndarray:
        """Standard normal, (n,) for ``num`` = 1, else (n, num) (Box-Muller)."""
        u = self.uniform(2 * num, lanes)
        radius = np.sqrt(-2.0 * np.log1p(-u[:, :num]))
        values = radius * np.cos(2.0 * np.pi * u[:, num:])
        return values[:, 0] if num == 1 else values

    def choice(self, probs: np.ndarray, lanes: np.ndarray | None = None) -> np.ndarray:
        """(n,) index drawn from each row of ``probs`` (n, A), which need not be normalised (inverse distribution function)."""
        cumulative = np.cumsum(probs, axis=1, dtype=np.float64)
        threshold = self.uniform(lanes=lanes) * cumulative[:, -1]
        return np.minimum((cumulative <= threshold[:, None]).sum(1), probs.shape[1] - 1)
