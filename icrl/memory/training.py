"""What a memory would bring to a training window, from the histories of a dataset.

What may be retrieved follows from deployment. A policy that imitates learners (AD, the explorers, DPT) finds chunks of its own past: ``LifeMemory`` gives a
window chunks of the same history that ended before it began, or before its episode where windows are episodic. A return-conditioned one (RA-DT)
may learn from any other trajectory: ``TrajectoryMemory`` searches a pool of chunks of all histories, never of the window's own trajectory, never one that
holds what the window goes on with, since that would hand it its labels; and for a share of the windows the own past alone.

A query is made of the steps before the first token that it serves, as at deployment.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from icrl.config import MemoryConfig, ModelConfig
from icrl.data.chunks import Retrieved
from icrl.data.sampling import Window, returns_around
from icrl.data.schema import History, flatten
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, UserError, map_observation
from icrl.memory.encoders import Encoder, Past, keys_of
from icrl.memory.index import make_index, nearest
from icrl.memory.selection import Candidates, select
from icrl.seeding import generator

SPARE = 16
"""Candidates beyond those asked for, of which some may turn out to be the window's own."""
NOTHING = np.iinfo(np.int64).min
SAME_FUTURE = 0.98
"""Share of a window's next steps that a chunk may not hold in their order."""


def make_history_memory(store: HistoryStore, model: ModelConfig, encoder: Encoder, seed: int) -> LifeMemory:
    """The memory that a policy of ``model`` is trained with."""
    if model.return_to_go and model.memory.own_past < 1:
        return TrajectoryMemory(store, model.memory, encoder, seed)
    return LifeMemory(store, model.memory, encoder, model.episodic)


def segment_keys(store: HistoryStore, chunk: int, encoder: Encoder) -> tuple[Array, Array]:
    """Keys (S, E) of all segments of ``chunk`` steps of every history, one history after the other, and where each begins (H + 1,).

    Raises UserError where a history is too short for one chunk.
    """
    lengths = np.array([len(store.history(h).reward) for h in range(store.num_histories)])
    if lengths.min() < 2 * chunk:
        raise UserError(
            f"the shortest history has {lengths.min()} steps, a chunk {2 * chunk} (twice model.memory.chunk): collect longer histories "
            "or choose shorter chunks"
        )
    counts = lengths // chunk
    first = np.concatenate([[0], np.cumsum(counts)])
    keys = np.zeros((int(first[-1]), encoder.width), np.float32)
    for history in tqdm(range(store.num_histories), desc="memory", unit="history", disable=len(keys) < 50_000):
        steps = chunk * np.arange(counts[history])[:, None] + np.arange(chunk)
        keys[first[history] : first[history + 1]] = keys_of(encoder.parts(_past(store.history(history), steps)))
    return keys, first


class LifeMemory:
    """Chunks of the same history that ended before the window began, or with ``episodic`` windows before their episode did.

    Every history is cut into segments of ``chunk`` steps, and each has a key; chunk j of a history is its segments j and j + 1.
    """

    def __init__(self, store: HistoryStore, config: MemoryConfig, encoder: Encoder, episodic: bool = False):
        self.store, self.config, self.encoder, self.episodic = store, config, encoder, episodic
        self.keys, self.first = segment_keys(store, config.chunk, encoder)

    def retrieve(self, window: Window, rng: np.random.Generator) -> Window:
        """The windows with what is retrieved for them; nothing where too little came before."""
        started = time.perf_counter()
        asks = self._asks(window)
        lives = [self.store.history(h) for h in window.history.tolist()]
        held = self._held(window)
        cuts, utility = self._past_cuts(window, lives, asks, self._parts(lives, asks, rng), held)
        went = _went(cuts, utility, float(held.mean()), started)
        if not (cuts >= 0).any():
            return replace(window, retrieval=went)
        retrieved = self._read([[life] * cuts[0].size for life in lives], cuts)
        return replace(window, retrieved=retrieved, retrieval=went)

    def _held(self, window: Window) -> Array:
        """(B,) chunks of each window's history that may be retrieved, the first ones."""
        limits = window.start - (window.episode_step[:, 0] if self.episodic else 0)
        return np.maximum(limits // self.config.chunk - 1, 0)

    def _past_cuts(
        self, window: Window, lives: list[History], asks: Array, parts: Array, held: Array
    ) -> tuple[Array, Array]:
        """(B, R, k) cuts of the chunks that are chosen among the first ``held`` (B,) of each window's history, -1 where there are fewer; their utility."""
        chunk, most = self.config.chunk, int(held.max())
        if most == 0:
            return np.full((*asks.shape, self.config.k), -1), np.zeros((*asks.shape, self.config.k))
        where = np.minimum(self.first[window.history][:, None] + np.arange(most + 1), len(self.keys) - 1)
        segments = self.keys[where]  # (B, N + 1, E)
        allowed = np.arange(most) < held[:, None]
        relevance, ids = nearest(segments[:, :-1], keys_of(parts), min(self.config.candidates, most), allowed)
        relevance[~(parts != 0).any((-1, -2))] = -np.inf  # nothing was lived before
        earned = np.stack(
            [_utility(life, chunk, most, asked) for life, asked in zip(lives, asks, strict=True)]
        )  # (B, R, N)
        rows = np.arange(len(ids))[:, None, None]
        columns = (relevance, np.take_along_axis(earned, ids, 2), segments[rows, ids], segments[rows, ids + 1])
        chosen, utility = _select(Candidates(*(_flat(column) for column in columns)), _flat(parts), self.config)
        found = np.where(chosen >= 0, np.take_along_axis(_flat(ids), np.maximum(chosen, 0), 1), -1)
        cuts = np.where(found >= 0, (found + 1) * chunk, -1)
        return cuts.reshape(*asks.shape, -1), utility.reshape(*asks.shape, -1)

    def _asks(self, window: Window) -> Array:
        """(B, R) steps of the history at which a retrieval comes into force."""
        return window.start[:, None] + np.arange(0, window.reward.shape[1], self.config.every)

    def _parts(self, lives: list[History], asks: Array, rng: np.random.Generator) -> Array:
        """(B, R, C, E) keys of the steps before each of ``asks`` (B, R), some of them dropped, 0 where there are none."""
        before = asks[:, :, None] - self.config.chunk + np.arange(self.config.chunk)  # (B, R, C)
        pasts = [_past(life, steps) for life, steps in zip(lives, before, strict=True)]
        past = Past(*(_stack([getattr(p, name) for p in pasts]) for name in Past._fields))
        dropped = rng.random(before.shape) < self.config.query_dropout
        dropped &= ~dropped.all(-1, keepdims=True)  # a query of something stays one
        kept = past.valid & ~dropped
        kept = np.where(kept.any(-1, keepdims=True), kept, past.valid)
        return self.encoder.parts(past._replace(valid=kept))

    def _read(self, lives: list[list[History]], cuts: Array) -> Retrieved:
        """Chunks around ``cuts`` (B, R, k) of histories, -1 where there is none: (B, R, k 2 C, ...); ``lives`` by B and R k."""
        span = 2 * self.config.chunk
        batch, retrievals, k = cuts.shape
        rows = cuts.reshape(batch, -1)
        read = [
            _chunk(life, int(cut), self.config.chunk)
            for some, ones in zip(lives, rows, strict=True)
            for life, cut in zip(some, ones, strict=True)
        ]

        def joined(*columns: Array) -> Array:
            stacked = np.stack(columns)
            return stacked.reshape(batch, retrievals, k * span, *stacked.shape[2:])

        columns = [map_observation(joined, *(c[i] for c in read)) for i in range(len(read[0]))]
        valid = np.repeat(cuts >= 0, span, 2)
        position = np.tile(np.arange(span), (batch, retrievals, k))
        return Retrieved(*columns, position=position, valid=valid)


class TrajectoryMemory(LifeMemory):
    """Other trajectories: for a share of the windows those of their own history from before their episode, as at deployment.

    For the others a pool of chunks of all histories, of the same task where the utility says so.
    """

    def __init__(self, store: HistoryStore, config: MemoryConfig, encoder: Encoder, seed: int):
        super().__init__(store, config, encoder, episodic=True)
        per_history = np.maximum(np.diff(self.first) - 1, 0)
        history = np.repeat(np.arange(store.num_histories), per_history)
        number = np.arange(len(history)) - np.repeat(np.cumsum(per_history) - per_history, per_history)
        if len(history) > config.pool:
            kept = np.sort(generator(seed, "memory pool").choice(len(history), config.pool, replace=False))
            history, number = history[kept], number[kept]
        self.history, self.cut = history, (number + 1) * config.chunk  # (P,) each
        segment = self.first[history] + number
        self.pool_keys, self.pool_futures = self.keys[segment], self.keys[segment + 1]
        lives = [store.history(h) for h in range(store.num_histories)]
        owners = [lives[h] for h in history.tolist()]
        around = np.arange(-config.chunk, config.chunk)
        self.steps = np.stack(
            [_fingerprint(life, cut + around) for life, cut in zip(owners, self.cut.tolist(), strict=True)]
        )  # (P, 2 C) what tells the steps of a chunk from others
        self.utility = np.array(
            [_episode_return(life, cut) for life, cut in zip(owners, self.cut.tolist(), strict=True)]
        )  # (P,) what the episode of the cut earned
        self.index = make_index(self.pool_keys, config.index)

    def retrieve(self, window: Window, rng: np.random.Generator) -> Window:
        """The windows with what is retrieved for them; nothing for a share of them."""
        started = time.perf_counter()
        asks = self._asks(window)
        batch, retrievals = asks.shape
        lives = [self.store.history(h) for h in window.history.tolist()]
        parts = self._parts(lives, asks, rng)
        own = rng.random(batch) < self.config.own_past
        emptied = rng.random(batch) < self.config.empty
        held = np.where(own & ~emptied, self._held(window), 0)
        past, past_utility = self._past_cuts(window, lives, asks, parts, held)
        found = self._pool_search(window, lives, asks, parts, own | emptied).reshape(batch, retrievals, -1)
        there, choose = found >= 0, own[:, None, None]
        cuts = np.where(choose, past, np.where(there, self.cut[found], -1))
        owner = np.where(choose, window.history[:, None, None], self.history[np.maximum(found, 0)]).reshape(batch, -1)
        utility = np.where(choose, past_utility, self.utility[np.maximum(found, 0)])
        went = _went(cuts, utility, float(np.where(own, held, len(self.history)).mean()), started)
        if there.any():
            same = self.store.task[self.history[found]] == window.task[:, None, None]
            went["same_task"] = float(same[there].mean())
        if not (cuts >= 0).any():
            return replace(window, retrieval=went)
        retrieved = self._read([[self.store.history(h) for h in row] for row in owner.tolist()], cuts)
        return replace(window, retrieved=retrieved, retrieval=went)

    def _pool_search(
        self, window: Window, lives: list[History], asks: Array, parts: Array, barred_windows: Array
    ) -> Array:
        """(B R, k) numbers in the pool of what is chosen, -1 where there is none, as for all ``barred_windows`` (B,)."""
        retrievals = asks.shape[1]
        asked = (parts != 0).any((-1, -2)).reshape(-1, 1) & ~np.repeat(barred_windows, retrievals)[:, None]
        if not asked.any():
            return np.full((len(asked), self.config.k), -1)
        relevance, ids = self.index.search(_flat(keys_of(parts)), self.config.candidates + SPARE)
        barred = ~asked | (ids < 0) | self._own(window, ids) | self._same_future(lives, asks, ids)
        order = np.argsort(np.where(barred, np.inf, -relevance), 1, kind="stable")[:, : self.config.candidates]
        relevance, ids, barred = (np.take_along_axis(a, order, 1) for a in (relevance, ids, barred))
        same_task = self.store.task[self.history[ids]] == np.repeat(window.task, retrievals)[:, None]
        candidates = Candidates(
            np.where(barred, -np.inf, relevance), same_task.astype(float), self.pool_keys[ids], self.pool_futures[ids]
        )
        chosen, _ = _select(candidates, _flat(parts), self.config)
        return np.where(chosen >= 0, np.take_along_axis(ids, np.maximum(chosen, 0), 1), -1)

    def _own(self, window: Window, ids: Array) -> Array:
        """(B R, l) whether a candidate holds steps of the window's own trajectory."""
        begin = window.start - window.episode_step[:, 0]
        lives = [self.store.history(h).episode_offset for h in window.history.tolist()]
        end = np.array(
            [
                offsets[np.searchsorted(offsets, first, side="right")]
                for offsets, first in zip(lives, begin, strict=True)
            ]
        )
        retrievals = len(ids) // len(begin)
        history, begin, end = (np.repeat(a, retrievals)[:, None] for a in (window.history, begin, end))
        cut = self.cut[ids]
        return (self.history[ids] == history) & (cut + self.config.chunk > begin) & (cut - self.config.chunk < end)

    def _same_future(self, lives: list[History], asks: Array, ids: Array) -> Array:
        """(B R, l) whether a candidate holds, anywhere, nearly all of the next ``chunk`` steps of the window's episode, in their order.

        Steps that repeat one step, as those of a policy that has arrived and stays, are no secret and bar nothing.
        """
        own = _flat(np.stack([_future(life, ask, self.config.chunk) for life, ask in zip(lives, asks, strict=True)]))
        known = own != NOTHING  # (B R, C)
        changes = (np.where(known, own, own[:, :1]) != own[:, :1]).any(1) | (known.sum(1) == 1)
        needed = SAME_FUTURE * known.sum(1)[:, None]
        span, length = self.steps.shape[1], own.shape[1]
        held = np.pad(self.steps[ids], ((0, 0), (0, 0), (0, length - 1)), constant_values=NOTHING)  # (B R, l, 3 C - 1)
        barred = np.zeros(ids.shape, bool)
        for shift in range(span):
            alike = (held[:, :, shift : shift + length] == own[:, None]) & known[:, None]
            barred |= alike.sum(-1) >= needed
        return barred & changes[:, None]


def _future(life: History, asks: Array, chunk: int) -> Array:
    """(R, C) what tells the next steps of the episodes that run at steps ``asks`` (R,), ``NOTHING`` behind their ends."""
    offsets = life.episode_offset
    end = offsets[np.minimum(np.searchsorted(offsets, asks, side="right"), len(offsets) - 1)]
    steps = asks[:, None] + np.arange(chunk)
    return np.where(steps < end[:, None], _fingerprint(life, steps), NOTHING)


def _past(life: History, steps: Array) -> Past:
    """Some steps (..., P) of a history; those outside it are not valid."""
    there = (steps >= 0) & (steps < len(life.reward))
    rows = np.clip(steps, 0, len(life.reward) - 1)
    observation = map_observation(lambda column: column[rows], life.observation)
    return Past(observation, life.action[rows], life.reward[rows], (life.terminated | life.truncated)[rows], there)


def _chunk(life: History, cut: int, chunk: int) -> tuple:
    """(observation, action, reward, ended, return to go) of the steps around a cut, (2 C, ...) each; of any others, where ``cut`` is -1."""
    rows = slice(0, 2 * chunk) if cut < 0 else slice(cut - chunk, cut + chunk)
    observation = map_observation(lambda column: column[rows], life.observation)
    ended = life.terminated[rows] | life.truncated[rows]
    return observation, life.action[rows], life.reward[rows], ended, _to_go(life, rows)


def _to_go(life: History, rows: slice) -> Array:
    """(n,) float32 what the episode of each of these steps earns from it on."""
    offsets = life.episode_offset
    first = int(np.searchsorted(offsets, rows.start, side="right")) - 1
    past = int(np.searchsorted(offsets, rows.stop, side="left"))
    around = slice(int(offsets[first]), int(offsets[past]))
    episode = np.repeat(np.arange(past - first), np.diff(offsets[first : past + 1]))
    to_go = returns_around(life.reward[None, around], episode[None])[1][0]
    return to_go[rows.start - around.start : rows.stop - around.start]


def _utility(life: History, chunk: int, num: int, asks: Array) -> Array:
    """(R, num) what the episode of each chunk's cut had earned when it was asked for, at steps ``asks`` (R,)."""
    cuts = np.minimum(chunk * (1 + np.arange(num)), len(life.reward) - 1)
    lived = np.concatenate([[0.0], np.cumsum(life.reward, dtype=np.float64)])
    episode = np.searchsorted(life.episode_offset, cuts, side="right") - 1
    end = np.minimum(life.episode_offset[episode + 1], np.minimum(asks, len(life.reward))[:, None])
    return lived[np.maximum(end, 0)] - lived[life.episode_offset[episode]]


def _episode_return(life: History, step: int) -> float:
    """What the episode of a step earned."""
    episode = int(np.searchsorted(life.episode_offset, step, side="right")) - 1
    rows = slice(int(life.episode_offset[episode]), int(life.episode_offset[episode + 1]))
    return float(life.reward[rows].sum(dtype=np.float64))


def _flat(array: Array) -> Array:
    """(B, R, ...) -> (B R, ...)."""
    return array.reshape(-1, *array.shape[2:])


def _select(candidates: Candidates, parts: Array, config: MemoryConfig) -> tuple[Array, Array]:
    """(n, k) positions of the chosen candidates, -1 where there are fewer, and their utility."""
    chosen = select(candidates, parts, config)
    return chosen, np.take_along_axis(candidates.utility, np.maximum(chosen, 0), 1)


def _went(found: Array, utility: Array, size: float, started: float) -> dict[str, float]:
    """How retrievals went: ``found`` (B, R, k) is -1 where there is none; utility (B, R, k)."""
    there = found >= 0
    went = {"found": float(there.any(2).mean()), "size": size, "seconds": time.perf_counter() - started}
    return {**went, "utility": float(utility[there].mean())} if there.any() else went


def _fingerprint(life: History, steps: Array) -> Array:
    """(...) int64: a number for observation and action of each step, ``NOTHING`` outside the history; continuous ones count as equal within 1e-5."""
    there = (steps >= 0) & (steps < len(life.reward))
    rows = np.clip(steps, 0, len(life.reward) - 1)
    total = np.zeros(steps.shape)
    for n, column in enumerate((life.action, *flatten("observation", life.observation).values())):
        part = np.asarray(column[rows], np.float64).reshape(*steps.shape, -1)
        total += np.sqrt(3.0 + 7 * n) * (part * np.sqrt(2.0 + np.arange(part.shape[-1]))).sum(
            -1
        )  # roots: sums hardly coincide
    return np.where(there, np.round(1e5 * total).astype(np.int64), NOTHING)


def _stack(columns: list) -> Array:
    return map_observation(lambda *arrays: np.stack(arrays), *columns)
