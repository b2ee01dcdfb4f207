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
from icrl.data.sampling import Window
from icrl.data.schema import unflatten
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, UserError
from icrl.memory.encoders import Encoder, keys_of
from icrl.memory.index import highest, make_index
from icrl.memory.lives import Lives, RunHashes
from icrl.memory.selection import Candidates, select
from icrl.seeding import generator

SPARE = 16
"""Candidates beyond those asked for, of which some may turn out to be the window's own."""


def make_history_memory(store: HistoryStore, model: ModelConfig, encoder: Encoder, seed: int) -> LifeMemory:
    """The memory that a policy of ``model`` is trained with."""
    if model.conditioned:
        return TrajectoryMemory(store, model.memory, encoder, seed)
    return LifeMemory(store, model.memory, encoder, model.episodic)


class LifeMemory:
    """Chunks of the same history that ended before the window began, or with ``episodic`` windows before their episode did.

    Every history is cut into segments of ``chunk`` steps, and each has a key; chunk j of a history is its segments j and j + 1. Raises UserError where a
    history is too short for one chunk.
    """

    def __init__(self, store: HistoryStore, config: MemoryConfig, encoder: Encoder, episodic: bool = False):
        self.store, self.config, self.encoder, self.episodic = store, config, encoder, episodic
        self.lives = Lives(store)
        shortest = int(self.lives.lengths.min())
        if shortest < 2 * config.chunk:
            raise UserError(
                f"the shortest history has {shortest} steps, a chunk {2 * config.chunk} (twice model.memory.chunk): collect longer "
                "histories or choose shorter chunks"
            )
        segments = self.lives.lengths // config.chunk
        self.first = np.cumsum([0, *segments])  # (H + 1,) of each history's segments
        self.to_go, self.earned = self.lives.to_go(), self.lives.earned()  # float32, of every step of all histories
        self.keys = np.zeros((int(self.first[-1]), encoder.width), np.float32)  # (S, E)
        bar = tqdm(segments.tolist(), desc="memory", unit="history", disable=len(self.keys) < 50_000)
        for number, count in enumerate(bar):
            steps = config.chunk * np.arange(count)[:, None] + np.arange(config.chunk)
            parts = encoder.parts(self.lives.past(np.array([number]), steps[None]))[0]
            self.keys[self.first[number] : self.first[number + 1]] = keys_of(parts)

    def retrieve(self, window: Window, rng: np.random.Generator) -> Window:
        """The windows with what is retrieved for them; nothing where too little came before."""
        started = time.perf_counter()
        asks, held = self._asks(window), self._held(window)
        cuts, utility = self._past_cuts(window, asks, self._parts(window, asks, rng), held)
        went = _went(cuts, utility, float(held.mean()), started)
        if not (cuts >= 0).any():
            return replace(window, retrieval=went)
        owner = np.broadcast_to(window.history[:, None, None], cuts.shape)
        return replace(window, retrieved=self._read(owner, cuts), retrieval=went)

    def _asks(self, window: Window) -> Array:
        """(B, R) steps of the history at which a retrieval comes into force."""
        return window.start[:, None] + np.arange(0, window.reward.shape[1], self.config.every)

    def _held(self, window: Window) -> Array:
        """(B,) chunks of each window's history that may be retrieved, the first ones."""
        limits = window.start - (window.episode_step[:, 0] if self.episodic else 0)
        return np.maximum(limits // self.config.chunk - 1, 0)

    def _parts(self, window: Window, asks: Array, rng: np.random.Generator) -> Array:
        """(B, R, C, E) keys of the steps before each of ``asks`` (B, R), some of them dropped, 0 where there are none."""
        before = asks[:, :, None] - self.config.chunk + np.arange(self.config.chunk)  # (B, R, C)
        past = self.lives.past(window.history, before)
        dropped = rng.random(before.shape) < self.config.query_dropout
        kept = past.valid & ~dropped
        kept = np.where(kept.any(-1, keepdims=True), kept, past.valid)  # a query of something stays one
        return self.encoder.parts(past._replace(valid=kept))

    def _past_cuts(self, window: Window, asks: Array, parts: Array, held: Array) -> tuple[Array, Array]:
        """(B, R, k) cuts of the chunks that are chosen among the first ``held`` (B,) of each window's history, -1 where there are fewer; their utility."""
        shape = *asks.shape, self.config.k
        cuts, utilities = np.full(shape, -1), np.zeros(shape)
        some = held > 0
        if not some.any():
            return cuts, utilities
        history, asks, parts, held = window.history[some], asks[some], parts[some], held[some]
        first, queries = self.first[history], keys_of(parts)
        cosine = np.full((*asks.shape, held.max()), -np.inf, np.float32)
        for row, (begin, count) in enumerate(zip(first.tolist(), held.tolist(), strict=True)):
            cosine[row, :, :count] = queries[row] @ self.keys[begin : begin + count].T
        relevance, ids = highest(cosine, min(self.config.candidates, cosine.shape[-1]))
        relevance[~(parts != 0).any((-1, -2))] = -np.inf  # nothing was lived before
        segment = first[:, None, None] + np.maximum(ids, 0)
        utility = self.lives.utility(
            history[:, None, None], ids, self.config.chunk, asks[:, :, None], worth=self.config.worth
        )
        columns = (relevance, utility, self.keys[segment], self.keys[segment + 1], (ids + 2) * self.config.chunk)
        chosen, utility = _select(Candidates(*(_flat(column) for column in columns)), _flat(parts), self.config)
        found = np.where(chosen >= 0, np.take_along_axis(_flat(ids), np.maximum(chosen, 0), 1), -1)
        cuts[some] = np.where(found >= 0, (found + 1) * self.config.chunk, -1).reshape(cuts[some].shape)
        utilities[some] = utility.reshape(cuts[some].shape)
        return cuts, utilities

    def _read(self, owner: Array, cuts: Array) -> Retrieved:
        """Chunks around ``cuts`` (B, R, k) of the histories ``owner`` (B, R, k), -1 where there is none: (B, R, k 2 C, ...)."""
        chunk, span, (batch, retrievals, k) = self.config.chunk, 2 * self.config.chunk, cuts.shape
        histories = owner.ravel()
        steps = np.where(cuts < 0, chunk, cuts).reshape(-1, 1) - chunk + np.arange(span)  # any, where there is none

        rows = self.lives.first[histories][:, None] + steps

        def joined(array: Array) -> Array:
            return array.reshape(batch, retrievals, k * span, *array.shape[2:])

        def column(name: str) -> Array:
            return joined(self.store.steps(name, histories, steps))

        return Retrieved(
            observation=unflatten(self.store.spec.observation_space, "observation", column),
            action=column("action"),
            reward=column("reward"),
            ended=column("terminated") | column("truncated"),
            return_to_go=joined(self.to_go[rows]),
            episode_return=joined(self.earned[rows]),
            position=np.tile(np.arange(span), (batch, retrievals, k)),
            valid=np.repeat(cuts >= 0, span, 2),
        )


class TrajectoryMemory(LifeMemory):
    """Other trajectories: for a share of the windows those of their own history from before their episode, as at deployment.

    For the others a pool of chunks of all histories, of the same task where the utility says so.
    """

    def __init__(self, store: HistoryStore, config: MemoryConfig, encoder: Encoder, seed: int):
        super().__init__(store, config, encoder, episodic=True)
        per_history = np.maximum(np.diff(self.first) - 1, 0)
        history = np.repeat(np.arange(store.num_histories), per_history)
        number = np.arange(len(history)) - np.repeat(np.cumsum(per_history) - per_history, per_history)
        utility = self.lives.utility(history, number, config.chunk, self.lives.lengths[history], worth=config.worth)
        if len(history) > config.pool:
            kept = np.sort(generator(seed, "memory pool").choice(len(history), config.pool, replace=False))
            history, number, utility = history[kept], number[kept], utility[kept]
        self.owner, self.cut, self.utility = history, (number + 1) * config.chunk, utility  # (P,) each
        segment = self.first[history] + number
        self.pool_keys, self.pool_futures = self.keys[segment], self.keys[segment + 1]
        self.runs = RunHashes(self.lives)
        self.index = make_index(self.pool_keys, config.index)

    def retrieve(self, window: Window, rng: np.random.Generator) -> Window:
        """The windows with what is retrieved for them; nothing for a share of them."""
        started = time.perf_counter()
        asks = self._asks(window)
        batch = len(asks)
        parts = self._parts(window, asks, rng)
        own = rng.random(batch) < self.config.own_past
        emptied = rng.random(batch) < self.config.empty
        held = np.where(own & ~emptied, self._held(window), 0)
        cuts, utility = self._past_cuts(window, asks, parts, held)
        found = self._pool_search(window, asks, parts, ~(own | emptied))
        there, choose = found >= 0, own[:, None, None]
        cuts = np.where(choose, cuts, np.where(there, self.cut[found], -1))
        owner = np.where(choose, window.history[:, None, None], self.owner[found])
        utility = np.where(choose, utility, self.utility[found])
        went = _went(cuts, utility, float(np.where(own, held, len(self.owner)).mean()), started)
        if there.any():
            same = self.store.task[self.owner[found]] == window.task[:, None, None]
            went["same_task"] = float(same[there].mean())
        if not (cuts >= 0).any():
            return replace(window, retrieval=went)
        return replace(window, retrieved=self._read(owner, cuts), retrieval=went)

    def _pool_search(self, window: Window, asks: Array, parts: Array, searching: Array) -> Array:
        """(B, R, k) numbers in the pool of what is chosen, -1 where there is none, as for windows that are not ``searching`` (B,)."""
        found = np.full((*asks.shape, self.config.k), -1)
        there = window.valid[:, :: self.config.every] & (parts != 0).any((-1, -2))
        rows, columns = np.nonzero(searching[:, None] & there)
        if len(rows) == 0:
            return found
        history, step, parts = window.history[rows], asks[rows, columns], parts[rows, columns]
        begin = (window.start - window.episode_step[:, 0])[rows]
        relevance, ids = self.index.search(keys_of(parts), self.config.candidates + SPARE)
        barred = (ids < 0) | self._own(history, begin, ids) | self._same_future(history, step, ids)
        order = np.argsort(np.where(barred, np.inf, -relevance), 1, kind="stable")[:, : self.config.candidates]
        relevance, ids, barred = (np.take_along_axis(a, order, 1) for a in (relevance, ids, barred))
        same_task = self.store.task[self.owner[ids]] == window.task[rows, None]
        candidates = Candidates(
            np.where(barred, -np.inf, relevance),
            same_task.astype(float),
            self.pool_keys[ids],
            self.pool_futures[ids],
            self.lives.first[self.owner[ids]] + self.cut[ids] + self.config.chunk,
        )
        chosen, _ = _select(candidates, parts, self.config)
        found[rows, columns] = np.where(chosen >= 0, np.take_along_axis(ids, np.maximum(chosen, 0), 1), -1)
        return found

    def _own(self, history: Array, begin: Array, ids: Array) -> Array:
        """(n, l) whether a candidate holds steps of the episode that begins at steps ``begin`` (n,) of a history (n,)."""
        end = self.lives.end(history, begin)
        cut = self.cut[ids]
        mine = self.owner[ids] == history[:, None]
        return mine & (cut + self.config.chunk > begin[:, None]) & (cut - self.config.chunk < end[:, None])

    def _same_future(self, history: Array, step: Array, ids: Array) -> Array:
        """(n, l) whether a candidate tells how the episode goes on at a step (n,) of a history (n,).

        It does if it holds, anywhere, the next ``chunk`` steps in their order, or ends with at least half of them. Steps that repeat one step, as those of a
        policy that has arrived and stays, are no secret and bar nothing.
        """
        chunk = self.config.chunk
        length = np.minimum(self.lives.end(history, step) - step, chunk)  # (n,)
        barred = np.zeros(ids.shape, bool)
        for shift in range(2 * chunk):
            run = np.minimum(length, 2 * chunk - shift)  # (n,) steps that the chunk's rest can hold of them
            telling = (length == 1) | ~self.runs.constant(history, step, run)
            rows = np.flatnonzero(telling & (run >= np.minimum(length, -(-chunk // 2))))
            if len(rows):
                other = self.owner[ids[rows]], self.cut[ids[rows]] - chunk + shift
                mine = history[rows, None], step[rows, None]
                barred[rows] |= self.runs.equal(mine, other, run[rows, None])
        return barred


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
