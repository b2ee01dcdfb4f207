"""What is in a dataset, in numbers and a picture: do its sources improve, where do they go, what do they do?

Deciles are tenths of a history's steps; an episode counts in the decile in which it starts, an unfinished one not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from icrl.data.schema import History
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, Family, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECILES = 10
_MOST_STATES = 1_000_000
"""Visits are counted for index observations with at most this many values."""
REACHED = 0.9
"""Normalised score from which on a history has reached the optimum."""
_FAR_BELOW = 0.5
_DO_NOT_LEARN = ("random", "uniform", "fixed_odds", "optimal", "misled", "blind_sweep")
"""Sources that nobody expects to improve."""


def summary(store: HistoryStore, most_histories: int = 1000, family: Family | None = None) -> dict[str, Any]:
    """Plain JSON about the dataset and each of its sources, from at most ``most_histories`` spread evenly over it.

    ``sources`` has one entry per source with ``name``, ``scattered``, ``histories`` read, ``return_by_decile`` and
    ``reward_by_decile`` (mean return of an episode, mean reward of a step; None where there is none), ``rewarded_share``
    of steps with a reward other than 0, ``history_length`` and ``episode_length`` (least, mean, most steps), ``action_frequencies`` (discrete
    actions) and ``coverage`` (index observations: mean number of distinct ones in a history, share of all states
    that any history visits, and ``visits``, the share of steps in each state). With the ``family`` also ``end_score``, the mean normalised score
    of the histories at their end, (return - random) / (optimal - random), ``reached``, the share of them with at least 0.9, and
    the mean ``optimal_return`` and ``random_return`` of their tasks (None where the family knows no optimum). A history's end is its
    complete episodes of the last decile, else its last one; in a history of one episode, the last decile's rewards.
    """
    if most_histories < 1:
        raise UserError(f"{most_histories} histories to read were asked for, expected 1 or more: correct it")
    chosen = np.linspace(0, store.num_histories - 1, min(most_histories, store.num_histories)).astype(np.int64)
    sources = store.manifest["collect"].get("sources", [{}])
    bounds = _bounds(store, family, chosen)
    entries = []
    for number, source in enumerate(sources):
        tally = _Tally(store, bounds)
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


def learning_warnings(summary: dict[str, Any]) -> list[str]:
    """A line for each source of a ``summary`` that has not learned: its end is no better than its beginning, or far below the optimum."""
    lines = []
    for source in summary["sources"]:
        if source["scattered"] or source["name"] in _DO_NOT_LEARN:
            continue
        what, values = "return per episode", [v for v in source["return_by_decile"] if v is not None]
        if len(values) < 2:  # a bandit's history is one episode
            what, values = "reward per step", [v for v in source["reward_by_decile"] if v is not None]
        score = source["end_score"]
        if len(values) < 2 or (score is not None and score >= REACHED):
            continue
        if values[-1] <= values[0] or (score is not None and score < _FAR_BELOW):
            told = f"{what} {values[0]:.3g} in the first tenth of its histories, {values[-1]:.3g} in the last"
            if score is not None:
                told += f"; return of the optimum {source['optimal_return']:.3g}, of uniform actions {source['random_return']:.3g}"
            lines.append(
                f"source {source['name']} has not learned ({told}): longer histories or other options may help"
            )
    return lines


def failures(store: HistoryStore) -> list[dict[str, Any]]:
    """The histories that ended early because their environment raised or returned a number that is not finite.

    Each has ``history`` and ``task``, the numbers that it was to have, ``steps`` kept (a history without any is left out of the dataset)
    and ``reason``, the words after "its environment".
    """
    return store.manifest["about"].get("failed", [])


def failure_lines(store: HistoryStore, most: int = 10) -> list[str]:
    """The same in words."""
    failed = failures(store)
    lines = [
        f"history {f['history']} (task {f['task']}) ended after {f['steps']} steps: its environment {f['reason']}"
        for f in failed
    ]
    return lines[:most] + ([f"and {len(failed) - most} more"] if len(failed) > most else [])


def _bounds(store: HistoryStore, family: Family | None, histories: Array) -> tuple[Array, Array] | None:
    """Expected returns (N,) of uniform actions and of the optimum in those training tasks that the ``histories`` play, if they are known."""
    if family is None:
        return None
    tasks = np.unique(store.task[histories])
    lowest, best = np.full((2, len(store.split.train)), np.nan)
    try:
        best[tasks] = family.optimal_return(store.split.train[tasks])
        if np.isnan(best[tasks]).any():
            return None
        lowest[tasks] = family.random_return(store.split.train[tasks])
    except UserError:
        return None
    return lowest, best


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

    def __init__(self, store: HistoryStore, bounds: tuple[Array, Array] | None):
        self._bounds, self._horizon = bounds, store.spec.horizon
        self._ends: list[tuple[int, float]] = []  # task and return at the end, by history
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
        end = _end_return(history, complete, begun, decile, self._horizon)
        if end is not None:
            self._ends.append((history.task, end))
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
            **self._scores(),
        }

    def _scores(self) -> dict[str, float | None]:
        """How near the optimum the histories end."""
        if self._bounds is None or not self._ends:
            return dict.fromkeys(("end_score", "reached", "optimal_return", "random_return"))
        tasks, end = np.array([task for task, _ in self._ends]), np.array([value for _, value in self._ends])
        lowest, best = (bound[tasks] for bound in self._bounds)
        score = (end - lowest) / np.maximum(best - lowest, 1e-9)
        return {
            "end_score": float(np.mean(end - lowest) / max(float(np.mean(best - lowest)), 1e-9)),
            "reached": float(np.mean(score >= REACHED)),
            "optimal_return": float(best.mean()),
            "random_return": float(lowest.mean()),
        }


def _end_return(history: History, complete: Array, begun: Array, decile: Array, horizon: int) -> float | None:
    """Return per episode at the end of a history, None where it cannot be told.

    ``complete`` (E,) episodes, of which the (C,) complete ones began in the deciles ``begun``; ``decile`` (T,) of every step.
    """
    returns = history.episode_returns[complete]
    if len(returns) > 1:
        late = begun == DECILES - 1
        return float(returns[late].mean() if late.any() else returns[-1])
    whole = history.num_transitions == horizon or not len(returns)
    if history.num_episodes == 1 and history.num_transitions >= DECILES and whole:
        return float(history.reward[decile == DECILES - 1].mean() * horizon)
    return None


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
