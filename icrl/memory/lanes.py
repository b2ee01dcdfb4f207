"""The memory of a roll-out: every lane keeps chunks of its own life, found again by what it has just seen. Starts empty, ends with the lane's task.

Every ``chunk`` steps of a lane's life are a cut. A chunk is complete ``chunk`` steps after its cut: it holds the steps before the cut, whose mean is its
key, and those behind it, which say what followed. Only chunks that ended before a given step of the life may be retrieved. When a lane's memory is full,
the chunk with the lowest utility goes, of equals the oldest; those of the running episode, of which nobody knows what it will earn, only where there
are no others.
"""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from icrl.config import MemoryConfig
from icrl.data.chunks import Retrieved
from icrl.data.schema import flatten, unflatten
from icrl.interfaces import Array, Observation, Step, map_observation
from icrl.memory.encoders import Encoder, Past, keys_of
from icrl.memory.index import nearest
from icrl.memory.selection import Candidates, select

_COLUMNS = ("observation", "action", "reward", "ended")
_STATE = (
    "life",
    "lived",
    "count",
    "totals",
    "begun",
    "over",
    "episode",
    "keys",
    "futures",
    "paid",
    "end",
    "last_key",
)
_NEVER = np.iinfo(np.int64).max


class LaneMemory:
    """Chunks of B lanes, at most ``config.capacity`` each."""

    def __init__(self, lanes: int, config: MemoryConfig, encoder: Encoder):
        self.config, self.encoder = config, encoder
        self.life = np.zeros(lanes, np.int64)  # (B,) steps lived
        self.lived = np.zeros((lanes, 64))  # (B, steps) what was earned before each step of the life
        self.count = np.zeros(lanes, np.int64)  # (B,) chunks held
        self.totals = np.zeros((lanes, 8))  # (B, episodes) what each episode earned, the running one so far
        self.begun = np.zeros((lanes, 8), np.int64)  # (B, episodes) step of the life at which each began
        self.over = np.full((lanes, 8), _NEVER)  # (B, episodes) and was over
        self.episode = np.zeros(lanes, np.int64)  # (B,) number of the running episode
        self.recent: dict[str, Observation] = {}  # (B, 2 C, ...) the last transitions, at their step modulo 2 C
        self.chunks: dict[str, Observation] = {}  # (B, N, 2 C, ...)
        self.keys = np.zeros((lanes, 0, encoder.width), np.float32)  # (B, N, E) of the steps before the cut
        self.futures = np.zeros_like(self.keys)  # (B, N, E) of those behind it
        self.paid = np.zeros((lanes, 0))  # (B, N) what the chunk's own steps earned
        self.before = np.zeros((lanes, 0))  # (B, N) what the episode of its cut had earned before them
        self.own = np.zeros((lanes, 0))  # (B, N) and with those that are of this episode
        self.end = np.zeros((lanes, 0), np.int64)  # (B, N) step of the life at which the chunk was complete
        self.last_key = np.zeros((lanes, encoder.width), np.float32)  # (B, E) of the steps before the last cut

    def forget(self, lanes: Array) -> None:
        """Empty some lanes."""
        self.life[lanes] = self.count[lanes] = self.episode[lanes] = 0
        self.totals[lanes] = self.lived[lanes] = self.begun[lanes] = 0
        self.over[lanes] = _NEVER

    def add(self, step: Step) -> None:
        """One more transition of every lane."""
        values = {
            "observation": step.observation,
            "action": np.asarray(step.action),
            "reward": np.asarray(step.reward, np.float32),
        }
        ended = np.asarray(step.ended)
        lanes, span = np.arange(len(self.life)), 2 * self.config.chunk
        values |= {
            "ended": ended,
            "episode": self.episode,
            "earned": self.totals[lanes, self.episode].astype(np.float32),
        }
        if not self.recent:
            self.recent = {name: map_observation(lambda a: _room(a, span), value) for name, value in values.items()}
        where = self.life % span
        for name, value in values.items():

            def write(column: Array, new: Array) -> None:
                column[lanes, where] = new

            map_observation(write, self.recent[name], value)
        self.totals[lanes, self.episode] += values["reward"]
        if self.life.max(initial=0) + 2 > self.lived.shape[1]:
            self.lived = np.concatenate([self.lived, np.zeros_like(self.lived)], 1)
        self.lived[lanes, self.life + 1] = self.lived[lanes, self.life] + values["reward"]
        self.life += 1
        self._room_for_episodes(int(self.episode.max(initial=0)) + 2)
        self.over[lanes[ended], self.episode[ended]] = self.life[ended]
        self.episode += ended
        self.begun[lanes[ended], self.episode[ended]] = self.life[ended]
        due = np.flatnonzero(self.life % self.config.chunk == 0)
        if len(due):
            self._cut(due)

    def last(self, lanes: Array, num: int) -> Past:
        """The last ``num`` transitions of some lanes, at most two chunks of them, oldest first."""
        steps = self.life[lanes, None] - num + np.arange(num)  # (n, num)
        if not self.recent:
            raise ValueError("nothing was added yet")
        where = steps % (2 * self.config.chunk)
        columns = {n: map_observation(lambda a: a[lanes[:, None], where], self.recent[n]) for n in _COLUMNS}
        return Past(valid=steps >= 0, **columns)  # type: ignore[arg-type]

    def query(self, lanes: Array) -> Array:
        """(n, P, E) the keys of the last steps of some lanes, 0 where there are none: what a retrieval now asks with."""
        if not self.recent:
            return np.zeros((len(lanes), self.config.chunk, self.encoder.width), np.float32)
        return self.encoder.parts(self.last(lanes, self.config.chunk))

    def search(self, lanes: Array, parts: Array, limits: Array, as_of: Array) -> Array:
        """The numbers (n, Q, k) of the chunks that Q queries ``parts`` (n, Q, P, E) of some lanes bring, -1 where there are fewer.

        Only chunks that ended by step ``limits`` (n,) of the life count, with the utility that they had by steps ``as_of`` (n, Q).
        """
        lanes, config = self._owners(lanes), self.config
        most = int(self.count[lanes].max(initial=0))
        asked = (parts != 0).any(-1)  # (n, Q, P)
        allowed = (np.arange(most) < self.count[lanes, None]) & (self.end[lanes, :most] <= limits[:, None])
        num, queries = parts.shape[:2]
        if not (allowed.any() and asked.any()):
            return np.full((num, queries, config.k), -1)
        keys = keys_of(parts)
        nearest_few = most if config.selection in ("random", "foreign") else min(config.candidates, most)
        relevance, ids = nearest(self.keys[lanes, :most], keys, nearest_few, allowed)
        relevance[~asked.any(-1)] = -np.inf
        flat = ids.reshape(num * queries, -1)
        owners = np.repeat(lanes, queries)[:, None]
        utility = np.take_along_axis(self.utility(lanes, as_of), ids, 2)
        candidates = Candidates(
            relevance.reshape(flat.shape),
            utility.reshape(flat.shape),
            self.keys[owners, flat],
            self.futures[owners, flat],
            self.end[owners, flat],
        )
        chosen = select(candidates, parts.reshape(-1, *parts.shape[2:]), config)
        found = np.where(chosen >= 0, np.take_along_axis(flat, np.maximum(chosen, 0), 1), -1)
        return found.reshape(num, queries, -1)

    def _owners(self, lanes: Array) -> Array:
        """(n,) the lanes whose memories are searched: their own, or those of their neighbours for the control ``foreign``."""
        return (lanes + 1) % len(self.life) if self.config.selection == "foreign" else lanes

    def utility(self, lanes: Array, as_of: Array) -> Array:
        """(n, Q, N) what the episode of each chunk's cut had earned by steps ``as_of`` (n, Q) of the life, and what of that is the chunk's worth.

        The first finds good episodes, the second where in them the reward is.
        """
        if not self.chunks:
            return np.zeros((*as_of.shape, 0))
        episode = np.asarray(self.chunks["episode"])[lanes, :, self.config.chunk]  # (n, N)
        rows = lanes[:, None]
        since = self.lived[rows, self.begun[rows, episode]][:, None]  # (n, 1, N)
        so_far = self.lived[rows, np.minimum(as_of, self.life[rows])][:, :, None] - since
        over = self.over[rows, episode][:, None] <= as_of[:, :, None]
        total = np.where(over, self.totals[rows, episode][:, None], so_far)
        if self.config.worth == "own":
            return total + self.paid[lanes][:, None]
        return total + onward(total, self.before[lanes][:, None], self.own[lanes][:, None])

    def read(self, lanes: Array, ids: Array) -> Retrieved:
        """The chunks number ``ids`` (n, Q, k) of some lanes, one after the other: (n, Q, k 2 C, ...)."""
        if not self.chunks:
            raise ValueError("nothing can be read from an empty memory")
        lanes = self._owners(lanes)
        span = 2 * self.config.chunk
        num, queries, k = ids.shape

        def gather(column: Array) -> Array:
            taken = column[lanes[:, None, None], np.maximum(ids, 0)]  # (n, Q, k, 2 C, ...)
            return taken.reshape(num, queries, -1, *taken.shape[4:])

        columns = {name: map_observation(gather, column) for name, column in self.chunks.items()}
        episode = np.asarray(columns["episode"])
        totals = self.totals[lanes[:, None, None], episode]
        valid = np.repeat(ids >= 0, span, 2)
        return Retrieved(
            *(columns[name] for name in _COLUMNS),
            return_to_go=(totals - columns["earned"]).astype(np.float32),
            episode_return=np.asarray(columns["earned"]),
            position=np.tile(np.arange(span), (num, queries, k)),
            valid=valid,
        )

    def identity(self, lanes: Array, ids: Array) -> Array:
        """(n, 2 k) numbers that are equal where the chunks ``ids`` (n, k) of some lanes are the same: a slot whose chunk made room for another tells by its end."""
        return np.concatenate([ids, self.end[self._owners(lanes)[:, None], np.maximum(ids, 0)]], 1)

    def adopt(self, lane: int, chunks: dict[str, Observation], keys: Array, futures: Array, totals: Array) -> None:
        """Give an empty lane the n chunks (n, 2 C, ...) of another life, whose episodes, numbered from 0, earned ``totals``."""
        num = len(keys)
        if not self.chunks:
            self.chunks = {
                name: map_observation(lambda a: np.zeros((len(self.life), 0, *a.shape[1:]), a.dtype), column)
                for name, column in chunks.items()
            }
        self._make_room(num)
        for name, column in chunks.items():

            def copy(mine: Array, given: Array) -> None:
                mine[lane, :num] = given

            map_observation(copy, self.chunks[name], column)
        self.keys[lane, :num], self.futures[lane, :num] = keys, futures
        self.paid[lane, :num] = chunk_rewards(chunks)
        self.before[lane, :num], self.own[lane, :num] = within_episode(chunks)
        self.end[lane, :num] = 0
        self._room_for_episodes(len(totals) + 2)
        self.totals[lane, : len(totals)] = totals
        self.over[lane, : len(totals)] = 0
        self.count[lane], self.episode[lane] = num, len(totals)

    # the whole state

    def state(self) -> dict[str, Array]:
        """Everything, as arrays by name."""
        arrays = {name: getattr(self, name) for name in _STATE}
        for group in ("recent", "chunks"):
            for name, column in getattr(self, group).items():
                arrays |= {f"{group}/{key}": part for key, part in flatten(name, column).items()}
        return arrays

    def restore(self, arrays: Mapping[str, Array], space: gym.Space) -> None:
        """Take over a state; ``space`` is that of observations. KeyError or ValueError where something is missing or of another shape."""
        lanes, width = len(self.life), self.encoder.width
        if arrays["keys"].shape[::2] != (lanes, width):
            raise ValueError(f"keys of shape {arrays['keys'].shape}, expected ({lanes}, ..., {width})")
        for name in _STATE:
            setattr(self, name, np.array(arrays[name]))
        for group in ("recent", "chunks"):
            columns: dict[str, Observation] = {}
            if f"{group}/reward" in arrays:
                columns = {
                    name: np.array(arrays[f"{group}/{name}"])
                    for name in ("action", "reward", "ended", "episode", "earned")
                }
                columns["observation"] = unflatten(
                    space, "observation", lambda key, group=group: np.array(arrays[f"{group}/{key}"])
                )
            setattr(self, group, columns)
        self.before = self.own = np.zeros_like(self.paid)
        if self.chunks:
            self.before, self.own = within_episode(self.chunks)

    # storing

    def _cut(self, lanes: Array) -> None:
        """A cut in some lanes: the steps since the last one get a key, and the chunk around the last one is complete."""
        past = self.last(lanes, self.config.chunk)
        keys = keys_of(self.encoder.parts(past))
        complete = self.life[lanes] >= 2 * self.config.chunk
        if complete.any():
            self._store(lanes[complete], keys[complete])
        self.last_key[lanes] = keys

    def _store(self, lanes: Array, futures: Array) -> None:
        """Put the chunk around the last cut of some lanes where there is room."""
        slots = np.array([self._free_slot(lane) for lane in lanes.tolist()])
        self._make_room(int(slots.max()) + 1)
        span = 2 * self.config.chunk
        where = (self.life[lanes, None] - span + np.arange(span)) % span  # (n, 2 C)
        for name, column in self.recent.items():

            def copy(chunks: Array, recent: Array) -> None:
                chunks[lanes, slots] = recent[lanes[:, None], where]

            map_observation(copy, self.chunks[name], column)
        self.keys[lanes, slots], self.futures[lanes, slots] = self.last_key[lanes], futures
        stored = {name: np.asarray(self.chunks[name])[lanes, slots] for name in ("reward", "episode", "earned")}
        self.paid[lanes, slots] = chunk_rewards(stored)
        self.before[lanes, slots], self.own[lanes, slots] = within_episode(stored)
        self.end[lanes, slots] = self.life[lanes]
        self.count[lanes] = np.maximum(self.count[lanes], slots + 1)

    def _free_slot(self, lane: int) -> int:
        """The next slot, or that of the chunk that goes."""
        held = int(self.count[lane])
        if held < self.config.capacity:
            return held
        utility = self.utility(np.array([lane]), self.life[[lane]][:, None])[0, 0, :held]
        running = np.asarray(self.chunks["episode"])[lane, :held, self.config.chunk] == self.episode[lane]
        return int(np.lexsort((self.end[lane, :held], utility, running))[0])

    def _room_for_episodes(self, needed: int) -> None:
        """Arrays for at least that many episodes per lane."""
        while self.totals.shape[1] < needed:
            self.totals = np.concatenate([self.totals, np.zeros_like(self.totals)], 1)
            self.begun = np.concatenate([self.begun, np.zeros_like(self.begun)], 1)
            self.over = np.concatenate([self.over, np.full_like(self.over, _NEVER)], 1)

    def _make_room(self, needed: int) -> None:
        """Arrays with at least that many slots per lane."""
        held = self.keys.shape[1]
        if needed <= held:
            return
        more = max(needed, min(2 * held, self.config.capacity), 8) - held

        def grow(column: Array) -> Array:
            return np.concatenate([column, np.zeros((len(column), more, *column.shape[2:]), column.dtype)], 1)

        if not self.chunks:
            self.chunks = {
                name: map_observation(lambda a: np.zeros((len(a), 0, *a.shape[1:]), a.dtype), column)
                for name, column in self.recent.items()
            }
        self.chunks = {name: map_observation(grow, column) for name, column in self.chunks.items()}
        for name in ("keys", "futures", "paid", "before", "own", "end"):
            setattr(self, name, grow(getattr(self, name)))


def chunk_rewards(chunks: Mapping[str, Observation]) -> Array:
    """(...) what the steps of chunks (..., 2 C) earned."""
    return np.asarray(chunks["reward"]).sum(-1, dtype=np.float64)


def within_episode(chunks: Mapping[str, Observation]) -> tuple[Array, Array]:
    """Of chunks (..., 2 C): what the episode of their cut had earned before their first step, 0 where it began later, and by those of its steps that they hold."""
    episode, earned = np.asarray(chunks["episode"]), np.asarray(chunks["earned"])
    same = episode == episode[..., episode.shape[-1] // 2, None]
    own = np.where(same, chunks["reward"], 0).sum(-1, dtype=np.float64)
    return np.where(same[..., 0], earned[..., 0], 0.0), own


def onward(total: Array, before: Array, own: Array) -> Array:
    """What episodes of ``total`` return earned after the ``before`` of a chunk; 0 where the chunk's steps in them earned no ``own``."""
    return np.where(own != 0, total - before, 0.0)


def _room(array: Array, span: int) -> Array:
    """(B, span, ...) zeros for arrays (B, ...)."""
    return np.zeros((len(array), span, *array.shape[1:]), array.dtype)
