"""What is in a dataset, in numbers and a picture: do its sources improve, where do they go, what do they do?

Deciles are tenths of a history's steps; an episode counts in the decile in which it starts, an unfinished one not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from icrl.data.schema import History
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECILES = 10
_MOST_STATES = 1_000_000
"""Visits are counted for index observations with at most this many values."""


def summary(store: HistoryStore, most_histories: int = 1000) -> dict[str, Any]:
    """Plain JSON about the dataset and each of its sources, from at most ``most_histories`` spread evenly over it.

    ``sources`` has one entry per source with ``name``, ``scattered``, ``histories`` read, ``return_by_decile`` and
    ``reward_by_decile`` (mean return of an episode, mean reward of a step; None where there is none), ``rewarded_share``
    of steps with a reward other than 0, ``history_length`` and ``episode_length`` (least, mean, most steps), ``action_frequencies`` (discrete
    actions) and ``coverage`` (index observations: mean number of distinct ones in a history, share of all states
    that any history visits, and ``visits``, the share of steps in each state).
    """
    if most_histories < 1:
        raise UserError(f"{most_histories} histories to read were asked for, expected 1 or more: correct it")
    chosen = np.linspace(0, store.num_histories - 1, min(most_histories, store.num_histories)).astype(np.int64)
    sources = store.manifest["collect"].get("sources", [{}])
    entries = []
    for number, source in enumerate(sources):
        tally = _Tally(store)
        for index in chosen[store.source[chosen] == number].tolist():
            tally.add(store.history(index))
        named = {"name": source.get("name", "unnamed"), "scattered": source.get("scattered", False)}
        entries.append({**named, **tally.result()})
    return {
        "family": store.spec.name,
        "dataset_hash": store.dataset_hash,
        "horizon": store.spec.horizon,
        "histories": store.num_histories,
        "episodes": store.num_episodes,
        "transitions": store.num_transitions,
        "columns": sorted(store.columns),
        "tasks": {name: len(tasks) for name, tasks in store.split._asdict().items()},
        "sources": entries,
    }


def figure(store: HistoryStore, most_histories: int = 1000) -> Figure:
    """Returns by decile per source, action frequencies, and a visit map per source where observations are grid cells."""
    from matplotlib.figure import Figure

    sources = summary(store, most_histories)["sources"]
    maps = [s for s in sources if s["coverage"] and np.ndim(s["coverage"]["visits"]) == 2]
    discrete = isinstance(store.spec.action_space, gym.spaces.Discrete)
    drawing = Figure(figsize=(4.2 * (1 + discrete + len(maps)), 3.6), dpi=120, layout="constrained")
    axes = iter(np.atleast_1d(drawing.subplots(1, 1 + discrete + len(maps))))
    first = next(axes)
    episodes = any(value is not None for source in sources for value in source["return_by_decile"][1:])
    shown = "return_by_decile" if episodes else "reward_by_decile"  # a bandit's history is one episode
    for source in sources:
        values = [np.nan if value is None else value for value in source[shown]]
        first.plot(range(1, DECILES + 1), values, marker="o", label=source["name"])
    label = "return per episode" if episodes else "reward per step"
    first.set(title="learning", xlabel="decile of the history", ylabel=label)
    first.legend(fontsize=8)
    if discrete:
        second, width = next(axes), 0.8 / len(sources)
        for i, source in enumerate(sources):
            shares = source["action_frequencies"]
            second.bar(np.arange(len(shares)) + i * width, shares, width)
        second.set(title="actions", xlabel="action", ylabel="share of steps")
    for source in maps:
        axis = next(axes)
        image = axis.imshow(source["coverage"]["visits"], cmap="viridis", vmin=0)
        axis.set(title=f"visits: {source['name']}", xlabel="column", ylabel="row")
        drawing.colorbar(image, ax=axis, shrink=0.8, label="share of steps")
    return drawing


class _Tally:
    """Sums over the histories of one source."""

    def __init__(self, store: HistoryStore):
        self._states = _num_states(store.spec.observation_space)
        self._start = getattr(store.spec.observation_space, "start", 0)
        action_space = store.spec.action_space
        self._first_action = int(action_space.start) if isinstance(action_space, gym.spaces.Discrete) else 0
        num_actions = int(action_space.n) if isinstance(action_space, gym.spaces.Discrete) else 0
        self._actions = np.zeros(num_actions, np.int64)
        self._visits = np.zeros(int(np.prod(self._states)) if self._states else 0, np.int64)
        self._sums = np.zeros((4, DECILES))  # returns, episodes, rewards, steps
        self._distinct: list[int] = []
        self._lengths: list[int] = []
        self._episode_lengths: list[Array] = []
        self._rewarded = 0

    def add(self, history: History) -> None:
        """Count one history."""
        T = history.num_transitions
        decile = np.arange(T) * DECILES // T  # (T,)
        starts, ends = history.episode_offset[:-1], history.episode_offset[1:]
        complete = (history.terminated | history.truncated)[ends - 1]  # (E,)
        begun = decile[starts][complete]
        self._sums[0] += np.bincount(begun, history.episode_returns[complete], DECILES)
        self._sums[1] += np.bincount(begun, None, DECILES)
        self._sums[2] += np.bincount(decile, history.reward, DECILES)
        self._sums[3] += np.bincount(decile, None, DECILES)
        self._rewarded += int(np.count_nonzero(history.reward))
        self._lengths.append(T)
        self._episode_lengths.append(ends - starts)
        if self._actions.size:
            taken = history.action.astype(np.int64) - self._first_action
            self._actions += np.bincount(taken, minlength=len(self._actions))
        if self._states:
            index = (np.asarray(history.observation).astype(np.int64) - self._start).reshape(T, -1)  # (T, coordinates)
            visits = np.bincount(np.ravel_multi_index(tuple(index.T), self._states), minlength=len(self._visits))
            self._visits += visits
            self._distinct.append(int(np.count_nonzero(visits)))

    def result(self) -> dict[str, Any]:
        """The part of ``summary`` about one source."""
        steps = max(1, sum(self._lengths))
        coverage = None
        if self._states:
            coverage = {
                "distinct_per_history": float(np.mean(self._distinct)) if self._distinct else 0.0,
                "states": len(self._visits),
                "share_of_states": float(np.mean(self._visits > 0)),
                "visits": (self._visits / steps).reshape(self._states).tolist(),
            }
        episode_lengths = np.concatenate(self._episode_lengths) if self._episode_lengths else np.zeros(0, np.int64)
        return {
            "histories": len(self._lengths),
            "return_by_decile": _means(self._sums[0], self._sums[1]),
            "reward_by_decile": _means(self._sums[2], self._sums[3]),
            "rewarded_share": self._rewarded / steps,
            "history_length": _range(np.array(self._lengths)),
            "episode_length": _range(episode_lengths),
            "action_frequencies": (self._actions / steps).tolist() if self._actions.size else None,
            "coverage": coverage,
        }


def _num_states(space: gym.Space) -> tuple[int, ...]:
    """Sizes of an index-valued observation's coordinates; () where there is nothing, or too much, to count."""
    sizes: tuple[int, ...] = ()
    if isinstance(space, gym.spaces.Discrete):
        sizes = (int(space.n),)
    elif isinstance(space, gym.spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
    return sizes if np.prod(sizes, dtype=float) <= _MOST_STATES else ()


def _means(totals: Array, counts: Array) -> list[float | None]:
    return [float(total / count) if count else None for total, count in zip(totals, counts, strict=True)]


def _range(lengths: Array) -> dict[str, float]:
    if not len(lengths):
        return {"least": 0, "mean": 0.0, "most": 0}
    return {"least": int(lengths.min()), "mean": float(lengths.mean()), "most": int(lengths.max())}
