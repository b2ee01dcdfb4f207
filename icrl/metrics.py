"""Statistics of an evaluation: paired bootstrap intervals, early and late episodes, normalised score, verdict.

Every statistic here is a function of *column means*: a column (S, L) holds one number per run (S seeds x L lanes), and
its mean is the mean over tasks of the mean over the runs of a task. ``Bootstrap`` resamples columns with the same weights at
every call, so any function of two agents' resampled columns is automatically a *paired* comparison.

Two intervals (percentile, 95 %): ``over_tasks`` resamples tasks; ``fixed_tasks`` resamples the runs within each task and so
is conditional on the tasks. Few runs per task make the plain bootstrap too narrow by (n - 1) / n in variance, hence
deviations from the task's mean are scaled by sqrt(n / (n - 1)) (Rao and Wu 1988, the rescaling bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from icrl.interfaces import Array
from icrl.seeding import generator

NUM_RESAMPLES = 2000
LEVEL = 0.95
_ROUNDING = 1e-9  # means of equal numbers differ by less: that is no difference
_CHUNK_ELEMENTS = 2_000_000  # random numbers held at once: bounds the memory of a bootstrap over many lanes


class Estimate(NamedTuple):
    """A statistic (scalar or K of them) with its two intervals; None where an interval cannot be had."""

    mean: Array  # () or (K,)
    over_tasks: Array | None  # (2,) or (K, 2) low and high; None with fewer than two tasks
    fixed_tasks: Array | None  # (2,) or (K, 2); None where a task was played only once


@dataclass(frozen=True)
class Resampled:
    """Column means (C,) and their R bootstrap replicates (R, C). Linear and non-linear statistics derive from it."""

    point: Array  # (C,)
    over_tasks: Array | None  # (R, C)
    fixed_tasks: Array | None  # (R, C)

    def apply(self, function: Callable[..., Array], *others: Resampled) -> Resampled:
        """``function`` of the last axis, (..., C), of this and other agents' columns: pairs replicate with replicate."""

        def each(*arrays: Array | None) -> Array | None:
            return None if any(array is None for array in arrays) else function(*arrays)

        return Resampled(
            function(self.point, *(other.point for other in others)),
            each(self.over_tasks, *(other.over_tasks for other in others)),
            each(self.fixed_tasks, *(other.fixed_tasks for other in others)),
        )

    def __sub__(self, other: Resampled) -> Resampled:
        return self.apply(np.subtract, other)

    def estimate(self) -> Estimate:
        """The statistic with its percentile intervals."""
        return Estimate(self.point, _interval(self.over_tasks), _interval(self.fixed_tasks))


def _interval(replicates: Array | None) -> Array | None:
    """(R, ...) -> (..., 2) low and high ends."""
    if replicates is None:
        return None
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return np.moveaxis(np.quantile(replicates, tails, axis=0), 0, -1)


class Bootstrap:
    """Resamples the runs of one evaluation, with the same weights at each call.

    ``lane_task`` (L,) is the task that each lane plays, as 0 .. N - 1 with every task played; ``root_seed`` names the random stream.
    """

    def __init__(self, lane_task: Array, num_seeds: int, root_seed: int, num_resamples: int = NUM_RESAMPLES):
        self.num_resamples = num_resamples
        self._root_seed = root_seed
        run_task = np.tile(lane_task, num_seeds)  # (S L,) in the order of a reshaped (S, L)
        self._order = np.argsort(run_task, kind="stable")
        self._run_task = run_task[self._order]  # (S L,) runs of one task lie together
        self._runs = np.bincount(self._run_task)  # (N,)
        self._first = np.cumsum(self._runs) - self._runs  # (N,)
        assert self._runs.min() > 0, "every task must be played by a lane"

    def __call__(self, columns: Array) -> Resampled:
        """Column means and replicates of ``columns`` (S, L, C) or (S, L)."""
        values = columns.reshape(len(self._run_task), -1)[self._order].astype(np.float64)  # (S L, C)
        task_means = np.add.reduceat(values, self._first) / self._runs[:, None]  # (N, C)
        point = task_means.mean(0)  # (C,)
        over_tasks = fixed_tasks = None
        if len(self._runs) > 1:
            deviations = task_means - point
            over_tasks = point + np.concatenate([weights @ deviations for weights in self._task_weights()])
        if self._runs.min() > 1:
            deviations = values - task_means[self._run_task]
            fixed_tasks = point + np.concatenate([weights @ deviations for weights in self._run_weights()])
        return Resampled(point, over_tasks, fixed_tasks)

    def _task_weights(self) -> Iterator[Array]:
        """Blocks (r, N) of resampled task frequencies; rows sum to 1."""
        rng, num_tasks = generator(self._root_seed, "bootstrap", "tasks"), len(self._runs)
        for size in self._blocks(num_tasks):
            drawn = rng.integers(num_tasks, size=(size, num_tasks))
            yield _count_rows(drawn, num_tasks) / num_tasks

    def _run_weights(self) -> Iterator[Array]:
        """Blocks (r, S L) of weights of the runs' deviations from their task's mean, rescaled."""
        rng, num_runs = generator(self._root_seed, "bootstrap", "runs"), len(self._run_task)
        runs = self._runs[self._run_task]  # (S L,) runs of the same task
        scale = np.sqrt(runs / (runs - 1)) / (runs * len(self._runs))
        for size in self._blocks(num_runs):
            drawn = self._first[self._run_task] + (rng.random((size, num_runs)) * runs).astype(np.int64)
            yield _count_rows(drawn, num_runs) * scale

    def _blocks(self, width: int) -> Iterator[int]:
        """Sizes of blocks of replicates that bound the memory."""
        left, most = self.num_resamples, max(1, _CHUNK_ELEMENTS // width)
        while left:
            yield min(left, most)
            left -= min(left, most)


def _count_rows(drawn: Array, num: int) -> Array:
    """(r, n) indices below ``num`` -> (r, num) how often each occurs in the row."""
    offsets = np.arange(len(drawn))[:, None] * num
    return np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * num).reshape(len(drawn), num).astype(float)


def early(num_blocks: int) -> slice:
    """The early episodes (or steps): the first tenth, at least one."""
    return slice(0, max(1, num_blocks // 10))


def late(num_blocks: int) -> slice:
    """The late episodes (or steps): the last quarter, at least one."""
    return slice(num_blocks - max(1, num_blocks // 4), num_blocks)


def late_minus_early(blocks: Array) -> Array:
    """(..., E) returns by episode -> (..., 1) mean of the late minus mean of the early ones."""
    num = blocks.shape[-1]
    return (blocks[..., late(num)].mean(-1) - blocks[..., early(num)].mean(-1))[..., None]


def normalised_score(returns: Array, random: Array, optimal: Array) -> Array:
    """(mean return - random) / (optimal - random), of means over tasks; NaN where optimal equals random."""
    span = np.asarray(optimal - random, np.float64)
    return np.divide(returns - random, span, out=np.full(np.shape(returns - random), np.nan), where=span != 0)


def ratio(above: Array, below: Array) -> Array:
    """Ratio of means; NaN where the mean below is 0."""
    return normalised_score(above, np.zeros_like(below), below)


class Verdict(NamedTuple):
    """Whether the agent learned in context, and why in words."""

    learned: bool | None  # None: not available
    text: str


def _describe(name: str, estimate: Estimate, interval: Array) -> str:
    low, high = interval.ravel()
    return f"{name} {estimate.mean.item():+.2f} [{low:+.2f}, {high:+.2f}]"


def verdict(progress: Estimate | None, against_hidden: Estimate | None, unit: str = "episodes") -> Verdict:
    """Learned in context iff the paired intervals over tasks of both differences exceed 0.

    ``progress`` is late minus early (None: there is only one ``unit``), ``against_hidden`` is the agent minus itself with
    rewards hidden (None: not evaluated).
    """
    if against_hidden is None:
        return Verdict(None, "verdict not available: the agent with rewards hidden was not evaluated")
    if progress is None:
        return Verdict(None, "verdict not available: one episode per lane has no early and late")
    passed, words = {}, {}
    checks = {f"late - early {unit}": progress, "agent - rewards hidden": against_hidden}
    for name, estimate in checks.items():
        if estimate.over_tasks is None:
            return Verdict(None, "verdict not available: an interval over tasks needs at least two tasks")
        passed[name] = estimate.over_tasks.ravel()[0] > _ROUNDING
        words[name] = _describe(name, estimate, estimate.over_tasks)
    if all(passed.values()):
        return Verdict(True, "learned in context: " + " and ".join(words.values()) + " both exceed 0")
    failed = " and ".join(words[name] for name in checks if not passed[name])
    held = "".join(f"; {words[name]} does" for name in checks if passed[name])
    number = "does not exceed 0" if sum(passed.values()) else "do not exceed 0"
    return Verdict(False, f"not learned in context: {failed} {number}{held}")
