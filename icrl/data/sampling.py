"""Windows cut out of histories for training: whole columns of B windows of T steps, gathered from memory maps.

A window starts at an episode start of one history and never leaves that history (crossing from one task's history into
the next one's is a known trap of public Algorithm Distillation code; Laskin et al. 2022). With ``keep_every`` = k it joins
episodes e, e + k, e + 2k, ... so that progress looks k times faster. Windows of a policy with a memory start anywhere, and those of an episodic
policy stay inside one episode. Where the history, or that episode, ends first, the rest is padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from icrl.data import schema
from icrl.data.chunks import Retrieved
from icrl.data.store import HistoryStore
from icrl.data.symmetry import mirrored
from icrl.interfaces import Array, Observation, Symmetry, UserError
from icrl.seeding import generator


@dataclass(frozen=True)
class Window:
    """B windows of T steps; entries where ``valid`` is False are zero padding at the end. Dtypes are the store's."""

    observation: Observation  # (B, T, ...)
    action: Array  # (B, T) or (B, T, action_dim)
    reward: Array  # (B, T) float32
    terminated: Array  # (B, T) bool
    truncated: Array  # (B, T) bool
    next_observation: Observation  # (B, T, ...) true final observation at the end of an episode
    target_action: Array | None  # (B, T) or (B, T, action_dim)
    optimal_action: Array | None  # (B, T) or (B, T, action_dim)
    behaviour_log_prob: Array | None  # (B, T) float32
    plan: Array | None  # (B, T) uint8, see icrl.interfaces.PLAN_BEGINS
    episode: Array  # (B, T) int16 number of the episode within the window, from 0
    episode_step: Array  # (B, T) int16 step within the episode, from 0
    episode_return: Array  # (B, T) float32 what the episode's earlier steps earned, those before the window included
    return_to_go: Array  # (B, T) float32 what the episode earns from this step on, its steps behind the window included
    valid: Array  # (B, T) bool
    history: Array  # (B,) int64 number of the history in the store
    start: Array  # (B,) int64 number, in its history, of the window's first transition
    task: Array  # (B,) int64 index into the training tasks
    source: Array  # (B,) int64 index into the sources of the collection
    scattered: Array  # (B,) bool: single transitions from uniformly drawn states, in no order
    retrieved: Retrieved | None = None  # what a memory brought for every so many steps
    retrieval: Mapping[str, float] = field(default_factory=dict)  # how it went, to log


class Retriever(Protocol):
    """A memory, as training sees it."""

    def retrieve(self, window: Window, rng: np.random.Generator) -> Window:
        """The windows, with what is retrieved for them."""
        ...


class WindowSampler:
    """Random windows of ``length`` steps; batch ``step`` depends on the seed and its number alone, so resuming needs no state.

    With probability ``start_fraction`` a window starts at the beginning of its history, else at a uniformly drawn episode
    start from which the history still fills the window (at the beginning if there is none), or with ``anywhere`` at any such step.
    With ``paired`` a batch holds two windows of each of its tasks, of different histories where there are such.
    ``episodic`` windows stay inside one uniformly drawn episode of the history and start, with that probability, where it begins. With ``symmetries`` each
    window is seen under one of them, together with what ``memory`` retrieved for it. Raises UserError for options out of range.
    """

    def __init__(
        self,
        store: HistoryStore,
        length: int,
        *,
        start_fraction: float = 0.5,
        keep_every: int = 1,
        anywhere: bool = False,
        episodic: bool = False,
        symmetries: Sequence[Symmetry] = (),
        memory: Retriever | None = None,
        paired: bool = False,
        seed: int = 0,
    ):
        if not 0 <= start_fraction <= 1:
            raise UserError(f"start_fraction {start_fraction} was given, expected a share from 0 to 1")
        _check_cut(length, keep_every)
        if keep_every > 1 and (anywhere or episodic):
            raise UserError(
                f"keep_every {keep_every} joins whole episodes, but windows that start anywhere do not: set it to 1"
            )
        self.store = store
        self.length = length
        self.start_fraction = start_fraction
        self.keep_every = keep_every
        self.anywhere = anywhere
        self.episodic = episodic
        self.symmetries = symmetries
        self.memory = memory
        self.paired = paired
        self.by_task = _by_task(store.task) if paired else []
        self.seed = seed

    def batch(self, step: int, batch_size: int) -> Window:
        """Batch number ``step``: (batch_size, length) windows of uniformly drawn histories."""
        rng = generator(self.seed, "windows", step)
        histories = self._draw_histories(rng, batch_size)
        later = rng.random(batch_size) >= self.start_fraction
        draws = rng.random((batch_size, 1 + self.episodic))
        starts = np.array(
            [self._draw_start(*drawn) for drawn in zip(histories.tolist(), later.tolist(), draws.tolist(), strict=True)]
        )  # (B, 2) episode, and steps of it before the window
        window = windows(
            self.store, histories, starts[:, 0], self.length, self.keep_every, skip=starts[:, 1], episodic=self.episodic
        )
        if self.memory is not None:
            window = self.memory.retrieve(window, rng)
        return mirrored(window, self.symmetries, rng, 1 + self.paired) if self.symmetries else window

    def _draw_histories(self, rng: np.random.Generator, batch_size: int) -> Array:
        """(B,) history of each window: uniformly drawn, or two of the same task, one after the other, of as many tasks as that makes."""
        if not self.paired:
            return rng.integers(self.store.num_histories, size=batch_size)
        check_pairs(batch_size, len(self.by_task))
        tasks = rng.choice(len(self.by_task), batch_size // 2, replace=False)
        pairs = [rng.choice(self.by_task[task], 2, replace=len(self.by_task[task]) < 2) for task in tasks.tolist()]
        return np.concatenate(pairs)

    def _draw_start(self, history: int, later: bool, draws: list[float]) -> tuple[int, int]:
        """An episode of the history (counted from 0), and how many steps into it a window starts; ``draws`` in [0, 1)."""
        if not later and not self.episodic:
            return 0, 0
        shard, first, end = self.store.locate(history)
        offset = self.store.column(shard, "episode_offset")[first : end + 1].astype(np.int64)
        if self.episodic:
            episode = int(draws[1] * (end - first))
            room = int(offset[episode + 1] - offset[episode]) - self.length
            return episode, int(draws[0] * (room + 1)) if later and room > 0 else 0
        room = int(offset[-1] - offset[0]) - self.length
        if self.anywhere:
            start = int(draws[0] * (room + 1)) if room > 0 else 0
            episode = int(np.searchsorted(offset, offset[0] + start, side="right")) - 1
            return episode, start - int(offset[episode] - offset[0])
        if self.keep_every == 1:
            return int(draws[0] * int(np.searchsorted(offset, offset[0] + room, side="right"))) if room >= 0 else 0, 0
        candidates = np.flatnonzero(_kept_transitions(np.diff(offset), self.keep_every) >= self.length)
        return int(candidates[int(draws[0] * len(candidates))]) if len(candidates) else 0, 0


def check_pairs(batch_size: int, num_tasks: int) -> None:
    """Raise UserError where batches cannot hold two windows of each of their tasks."""
    if batch_size % 2 or batch_size // 2 > num_tasks:
        raise UserError(
            f"batches of {batch_size} windows, two of each task, need an even number and {batch_size // 2} tasks, and there are histories of {num_tasks}: "
            "lower train.batch_size, collect from more tasks or set train.pairs to False and model.mixture.contrast to 0"
        )


def windows(
    store: HistoryStore,
    history_ids: Array,
    start_episodes: Array,
    length: int,
    keep_every: int = 1,
    *,
    skip: Array | int = 0,
    episodic: bool = False,
) -> Window:
    """Cut windows of ``length`` steps: one per history number and start episode (B,), counted from 0 in that history.

    They start ``skip`` (B,) steps into that episode, and end with it if ``episodic``. Raises UserError where a history has no such episode.
    """
    _check_cut(length, keep_every)
    history_ids = np.asarray(history_ids, np.int64)
    start_episodes = np.asarray(start_episodes, np.int64)
    skip = np.broadcast_to(np.asarray(skip, np.int64), start_episodes.shape)
    cuts = [
        _Cut.make(store, history, episode, skipped, length, keep_every, episodic)
        for history, episode, skipped in zip(history_ids.tolist(), start_episodes.tolist(), skip.tolist(), strict=True)
    ]
    counts = np.array([cut.count for cut in cuts], np.int64)  # (B,)
    valid = np.arange(length) < counts[:, None]  # (B, T)
    columns = {name: _gather(store, cuts, name, length) for name in store.columns}
    ended = columns["terminated"] | columns["truncated"]  # (B, T)
    episode, episode_step = _count_episodes(ended, valid, skip)
    observation, following = ({}, {})
    for name in schema.observation_columns(store.spec.observation_space):
        observation[name] = columns[name]
        following[name] = _next_observation(store, cuts, columns[name], ended, counts, name)
    space = store.spec.observation_space
    before, behind = (
        np.array([store.column(cut.shard, "reward")[part(cut)].sum(dtype=np.float64) for cut in cuts])
        for part in (lambda cut: cut.before, lambda cut: cut.behind)
    )
    earned, to_come = returns_around(columns["reward"], episode, counts - 1, before, behind)
    return Window(
        observation=schema.unflatten(space, "observation", observation.__getitem__),
        next_observation=schema.unflatten(space, "observation", following.__getitem__),
        action=columns["action"],
        reward=columns["reward"],
        terminated=columns["terminated"],
        truncated=columns["truncated"],
        target_action=columns.get("target_action"),
        optimal_action=columns.get("optimal_action"),
        behaviour_log_prob=columns.get("behaviour_log_prob"),
        plan=columns.get("plan"),
        episode=episode,
        episode_step=episode_step,
        episode_return=earned * valid,
        return_to_go=to_come * valid,
        valid=valid,
        history=history_ids,
        start=np.array([cut.start for cut in cuts], np.int64),
        task=store.task[history_ids],
        source=store.source[history_ids],
        scattered=store.scattered[history_ids],
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Which rows of a shard make up one window."""

    shard: int
    count: int
    rows: slice | Array
    """(count,) transitions of the shard."""
    episodes: slice
    """Episodes of the shard that the window touches, in steps of ``keep_every``."""
    last: int
    """Last transition of the window."""
    last_ends: bool
    """The last transition is the last one of its episode."""
    before: slice
    """Transitions of the window's first episode that lie before the window."""
    behind: slice
    """Transitions of the window's last episode that lie behind it."""
    start: int
    """Number of the window's first transition in its history."""

    @classmethod
    def make(
        cls, store: HistoryStore, history: int, episode: int, skip: int, length: int, keep_every: int, episodic: bool
    ) -> _Cut:
        shard, first, end = store.locate(history)
        if not 0 <= episode < end - first:
            raise UserError(f"episode {episode} of history {history} was asked for, expected 0 to {end - first - 1}")
        offset = store.column(shard, "episode_offset")
        life = int(offset[first])
        first += episode
        begin, start = int(offset[first]), int(offset[first]) + skip
        if keep_every == 1:
            stop = min(start + length, int(offset[first + 1 if episodic else end]))
            past = first + int(np.searchsorted(offset[first : end + 1], stop, side="left"))
            rows, episodes, last, ends = slice(start, stop), slice(first, past), stop - 1, int(offset[past])
            count = stop - start
        else:
            past = min(end, first + length * keep_every)  # every episode has at least one step
            starts = offset[first:past:keep_every].astype(np.int64)
            lengths = offset[first + 1 : past + 1 : keep_every].astype(np.int64) - starts
            stops = np.cumsum(lengths)
            used = min(len(stops), int(np.searchsorted(stops, length, side="left")) + 1)
            count = min(length, int(stops[used - 1]))
            shift = starts[:used] - (stops[:used] - lengths[:used])
            rows = np.arange(count) + np.repeat(shift, lengths[:used])[:count]
            episodes = slice(first, first + (used - 1) * keep_every + 1, keep_every)
            last, ends = int(rows[-1]), int(starts[used - 1] + lengths[used - 1])
        before, behind = slice(begin, start), slice(last + 1, ends)
        return cls(shard, count, rows, episodes, last, last + 1 == ends, before, behind, start - life)


def _by_task(task: Array) -> list[Array]:
    """The histories of each task that has some."""
    order = np.argsort(task, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(task[order])) + 1)


def _gather(store: HistoryStore, cuts: list[_Cut], name: str, length: int) -> Array:
    """One column of every window: (B, T, ...)."""
    column = store.columns[name]
    out = np.zeros((len(cuts), length, *column.shape), column.dtype)
    for row, cut in zip(out, cuts, strict=True):
        row[: cut.count] = store.column(cut.shard, name)[cut.rows]
    return out


def _next_observation(
    store: HistoryStore, cuts: list[_Cut], observation: Array, ended: Array, counts: Array, name: str
) -> Array:
    """(B, T, ...): the observation one step later, or the episode's final one where it ended; zero in the padding."""
    following = np.zeros_like(observation)
    following[:, :-1] = observation[:, 1:]
    final = f"final_{name}"
    last = np.empty_like(observation[:, 0])  # (B, ...) after the last transition of the window
    complete = []  # final observations of the episodes that end in the window, in order
    for b, cut in enumerate(cuts):
        finals = store.column(cut.shard, final)[cut.episodes]
        last[b] = finals[-1] if cut.last_ends else store.column(cut.shard, name)[cut.last + 1]
        complete.append(finals[: np.count_nonzero(ended[b])])
    following[ended] = np.concatenate(complete)
    following[np.arange(len(cuts)), counts - 1] = last
    return following


def _count_episodes(ended: Array, valid: Array, skip: Array) -> tuple[Array, Array]:
    """Number of the episode and step within it, (B, T) int16 each, zero in the padding."""
    starts = np.zeros_like(ended)  # (B, T) first step of an episode other than the window's first
    starts[:, 1:] = ended[:, :-1]
    episode = np.cumsum(starts, axis=1, dtype=np.int16)
    positions = np.arange(ended.shape[1], dtype=np.int32)
    start_of = np.maximum.accumulate(np.where(starts, positions, np.int32(0)), axis=1)
    step = positions - start_of + np.where(episode == 0, skip[:, None].astype(np.int32), 0)
    return episode * valid, (step * valid).astype(np.int16)


def returns_around(
    reward: Array, episode: Array, last: Array | int = -1, before: Array | float = 0.0, behind: Array | float = 0.0
) -> tuple[Array, Array]:
    """(B, T) float32 each: what a step's episode earned before it, and what it earns from it on.

    ``reward`` and ``episode``, its number within the window, are (B, T). The first episode earned ``before`` (B,) ahead of the window, the one of step
    number ``last`` (B,) earns ``behind`` (B,) after it.
    """
    if reward.shape[1] == 0:
        return np.zeros(reward.shape, np.float32), np.zeros(reward.shape, np.float32)
    rows = np.arange(len(reward))
    episode = episode.astype(np.int64)
    by_episode = np.zeros((len(reward), int(episode.max(initial=0)) + 1))
    np.add.at(by_episode, (rows[:, None], episode), reward)
    by_episode[:, 0] += before
    by_episode[rows, episode[rows, last]] += behind
    lived = np.cumsum(reward, axis=1, dtype=np.float64) - reward + np.reshape(before, (-1, 1))
    earned = lived - np.take_along_axis(np.cumsum(by_episode, 1) - by_episode, episode, 1)
    to_come = np.take_along_axis(by_episode, episode, 1) - earned
    return earned.astype(np.float32), to_come.astype(np.float32)


def best_before(total: Array, episode_step: Array) -> Array:
    """(B, T) what the best of the window's earlier episodes earned; -inf where there is none.

    ``total`` and ``episode_step``, (B, T): what the step's whole episode earns, and the step's number in it.
    """
    begin = np.arange(total.shape[1]) - episode_step  # below 1 in the window's first episode
    best = np.maximum.accumulate(total, 1)
    return np.where(begin > 0, np.take_along_axis(best, np.maximum(begin - 1, 0).astype(np.int64), 1), -np.inf)


def can_earn_more(window: Window, most: float) -> Array:
    """(B, T) bool: steps that are no padding, of episodes that have not yet earned the ``most`` that one can."""
    return window.valid & (window.episode_return < (1 - 1e-4) * most)


def improving(total: Array, best: Array, rule: str) -> Array:
    """(...) bool: episodes of ``total`` (...) return earn more than the ``best`` (...) before them; with the rule ``equals`` also as much, if that is above 0."""
    total, best = np.round(total, 4), np.round(best, 4)
    more = total > best
    return more | ((total == best) & (best > 0)) if rule == "equals" else more


def _kept_transitions(lengths: Array, keep_every: int) -> Array:
    """(E,) transitions of episodes e, e + k, e + 2k, ... for every start e, given all lengths (E,)."""
    padded = np.zeros(-(-len(lengths) // keep_every) * keep_every, np.int64)
    padded[: len(lengths)] = lengths
    by_phase = padded.reshape(-1, keep_every)
    return np.cumsum(by_phase[::-1], axis=0)[::-1].reshape(-1)[: len(lengths)]


def _check_cut(length: int, keep_every: int) -> None:
    if not 1 <= length <= np.iinfo(np.int16).max:
        raise UserError(f"window length {length} was given, expected 1 to {np.iinfo(np.int16).max} steps")
    if keep_every < 1:
        raise UserError(f"keep_every {keep_every} was given, expected 1 or more")
