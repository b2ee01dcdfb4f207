"""Bayesian optimisation over 1,024 candidate points of the unit square (Dai et al. 2024): an episode is one evaluation, to be maximised.

An action is the number of a candidate, a reward the function's value there, and many episodes of one task are one search. Training and
validation tasks are draws of a Gaussian process with mean 0, variance 1 and a Matérn-5/2 kernel: exact ones, made again from the seed and the length scales in
their record whenever they are needed. Test tasks are the functions of ``envs.benchmark_functions``, negated and shifted and scaled to mean 0 and
variance 1 over the candidates, whatever an agent has seen of them. Deviation from the paper: it scales values by what was seen so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from scipy import linalg
from scipy.stats import qmc
from threadpoolctl import ThreadpoolController

from envs.base import NativeVectorEnv
from envs.benchmark_functions import FUNCTIONS
from envs.tasks import check_least
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import generator

NUM_CANDIDATES = 1024
DRAW = -1
"""In a task's field ``function``: a draw of the Gaussian process; otherwise the number of a test function."""
_TASK = [
    ("function", np.int16),
    ("draw_seed", np.int64),  # of a draw
    ("length_scales", np.float64, (2,)),  # of a draw, one for each axis
    ("mirrored", np.bool_, (2,)),  # of a test function: which axes are turned round
    ("shift", np.float64, (2,)),  # of a test function: added to the candidates before it is evaluated
]
_LEAST_SCALE, _GREATEST_SCALE = 0.01, 10.0
_GREATEST_SHIFT = 0.1
_NUGGET = 1e-8
"""Added to the variance of a draw, so that its Cholesky factor exists for all length scales: a standard deviation of 0.0001."""
_BLOCK = 128
"""Rows of a covariance that are computed at once: what fits the processor's cache."""
_KEPT_FUNCTIONS = 8192
"""Functions whose values are kept, the last ones used: 64 MiB."""


@dataclass(frozen=True)
class BayesianOptimisation:
    """Find the greatest of 1,024 candidates of an unknown function: draws of a Gaussian process in training, standard test functions in tests."""

    name: ClassVar[str] = "bayesian_optimisation"

    num_train_tasks: int = 4096
    """Training tasks, draws of the Gaussian process."""
    num_validation_tasks: int = 100
    """Tasks to choose checkpoints on, draws as well."""
    num_variants: int = 1
    """Test tasks of each test function: itself, then ones that are mirrored and shifted at random."""
    task_seed: int = 0
    """Seed of the lists of tasks."""
    least_length_scale: float = 0.05
    """Least length scale of a draw; that of each axis is log-uniform. The square's side is 1."""
    greatest_length_scale: float = 0.5
    """Greatest length scale of a draw."""
    noise: float = 0.0
    """Standard deviation of what is added to each evaluation."""
    candidate_seed: int = 0
    """Seed of the candidate set, which is the same in all tasks: Sobol's points, rotated."""
    candidates: str | None = None
    """A .npy file with a candidate set of your own instead: 1,024 different points of the unit square."""

    def __post_init__(self):
        counts = {"num_train_tasks": 1, "num_validation_tasks": 0, "num_variants": 1}
        check_least(self.name, self, **counts, task_seed=0, candidate_seed=0)
        least, greatest = self.least_length_scale, self.greatest_length_scale
        if not _LEAST_SCALE <= least <= greatest <= _GREATEST_SCALE:
            raise UserError(
                f"{self.name}'s length scales are {least} to {greatest}: expected the least one first, both within {_LEAST_SCALE} to {_GREATEST_SCALE}"
            )
        if not 0 <= self.noise < np.inf:
            raise UserError(f"{self.name}'s noise is {self.noise}: expected a standard deviation of at least 0")
        _ = self.points  # a bad file is refused now

    @property
    def spec(self) -> FamilySpec:
        """One state, always observed as [0]; an action is the number of a candidate."""
        return FamilySpec(self.name, MultiDiscrete([1], dtype=np.int16), Discrete(NUM_CANDIDATES), 1, self.points)

    @cached_property
    def points(self) -> Array:
        """(A, 2) the candidates, in the unit square."""
        if self.candidates is not None:
            return _read_points(self.candidates)
        sobol = qmc.Sobol(2, scramble=False).random(NUM_CANDIDATES)
        points = (sobol + generator(self.candidate_seed, self.name, "candidates").random(2)) % 1
        points.flags.writeable = False
        return points

    @cached_property
    def _point_bytes(self) -> bytes:
        return self.points.tobytes()

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Draws of the Gaussian process: a seed and two length scales each."""
        tasks = _plain_tasks(num_tasks)
        tasks["function"] = DRAW
        tasks["draw_seed"] = rng.integers(2**62, size=num_tasks)
        low, high = np.log(self.least_length_scale), np.log(self.greatest_length_scale)
        tasks["length_scales"] = np.exp(rng.uniform(low, high, (num_tasks, 2)))
        return tasks

    def split(self) -> Split:
        """Two independent lists of draws, and the test functions. A list does not depend on how long the others are."""
        train, validation = (
            self.sample_tasks(generator(self.task_seed, self.name, part), size)
            for part, size in (("train", self.num_train_tasks), ("validation", self.num_validation_tasks))
        )
        return Split(train, validation, self._function_tasks())

    def _function_tasks(self) -> Tasks:
        """All test functions as they are, then all of them as the second variant, and so on."""
        rng, count = generator(self.task_seed, self.name, "variants"), len(FUNCTIONS)
        tasks = _plain_tasks(self.num_variants * count)
        tasks["function"] = np.tile(np.arange(count), self.num_variants)
        for variant in tasks.reshape(self.num_variants, count)[1:]:
            variant["mirrored"] = rng.random((count, 2)) < 0.5
            variant["shift"] = rng.uniform(-_GREATEST_SHIFT, _GREATEST_SHIFT, (count, 2))
        return tasks

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``; its function is made when it is first asked for, in about 20 ms for a draw. Raises UserError for fields out of their range."""
        _check(tasks)
        return BayesianOptimisationVectorEnv(self, tasks, lane_ids)

    def values(self, tasks: Tasks) -> Array:
        """(N, A) the functions at all candidates, without noise."""
        fields = [tasks[name].tolist() for name, *_ in _TASK]
        functions = [_values(self._point_bytes, *map(_hashable, task)) for task in zip(*fields, strict=True)]
        return np.reshape(functions, (len(tasks), NUM_CANDIDATES))

    def covariance(self, length_scales: Array, candidates: Sequence[int] | slice = slice(None)) -> Array:
        """(A, n) of all candidates' values and those of some, in draws with these length scales (2,)."""
        return _matern(self.points, self.points[candidates], length_scales)

    def draw(self, length_scales: Array, normals: Array) -> Array:
        """(A,) the draw of the Gaussian process that standard normal numbers (A,) make."""
        return _draw(self.points, length_scales, normals)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) the value of the best candidate."""
        return self.values(tasks).max(axis=1)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) the mean of all candidates' values."""
        return self.values(tasks).mean(axis=1)

    def simple_regret(self, tasks: Tasks, actions: Array) -> Array:
        """(N, T) what the best of the candidates evaluated so far lacks to the best one of all, in units of the function's range over the candidates.

        ``actions`` (N, T) are the candidates evaluated in each task, in order. Values without noise count.
        """
        values = self.values(tasks)
        best = np.maximum.accumulate(np.take_along_axis(values, np.asarray(actions, np.int64), axis=1), axis=1)
        value_range = np.ptp(values, axis=1, keepdims=True)
        return (values.max(axis=1, keepdims=True) - best) / np.where(value_range == 0, 1, value_range)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Raises UserError: a belief over functions is none over seeds, which are all that a task's record holds."""
        raise UserError(f"{self.name} has no posterior over its tasks' records: choose the source gp_thompson or gp_ei")

    def scattered(self) -> BayesianOptimisation:
        """The family itself: an episode is one step."""
        return self


class BayesianOptimisationVectorEnv(NativeVectorEnv):
    """Reward = value of the candidate + noise of the evaluation, which ends the episode. One state: observations are zeros (B, 1)."""

    def __init__(self, family: BayesianOptimisation, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self._family = family

    @cached_property
    def _values(self) -> Array:
        """(B, A) without noise."""
        return self._family.values(self.tasks)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One evaluation in every lane: all that an episode has, so it is terminated, not cut off."""
        observation, reward, _, ended, info = super().step(actions)
        return observation, reward, ended, self._none, info

    def _begin(self) -> None:
        pass

    def _observe(self) -> Array:
        return np.zeros((self.num_envs, 1), np.int16)

    def _move(self, actions: Array) -> Array:
        noise = self._family.noise * self.streams.normal()
        return (self._values[self._lanes, actions] + noise).astype(np.float32)

    def simple_regret(self, actions: Array) -> Array:
        """(B, T) as the family has it, of the candidates ``actions`` (B, T) evaluated in the lanes."""
        return self._family.simple_regret(self.tasks, actions)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the best candidate."""
        return (self._values if tasks is None else self._family.values(tasks)).argmax(axis=1)


def _hashable(value: int | list) -> int | tuple:
    return tuple(value) if isinstance(value, list) else value


def _plain_tasks(num_tasks: int) -> Tasks:
    """Tasks whose fields change nothing, wherever they are not needed."""
    tasks = np.zeros(num_tasks, _TASK)
    tasks["length_scales"] = 1
    return tasks


def _check(tasks: Tasks) -> None:
    function, scales = tasks["function"], tasks["length_scales"]
    if not ((function >= DRAW) & (function < len(FUNCTIONS))).all():
        raise UserError(
            f"a task's function is outside {DRAW} (a draw) to {len(FUNCTIONS) - 1} (least {function.min()}, greatest {function.max()}): correct the task"
        )
    if not ((scales >= _LEAST_SCALE) & (scales <= _GREATEST_SCALE)).all() or (tasks["draw_seed"] < 0).any():
        raise UserError(
            f"a task's length_scales are outside {_LEAST_SCALE} to {_GREATEST_SCALE}, or its draw_seed is negative: correct the task"
        )
    moved = (tasks["shift"] != 0) | tasks["mirrored"]
    if moved[function == DRAW].any() or not (np.abs(tasks["shift"]) <= 0.5).all():
        raise UserError("a task's shift is beyond 0.5, or a draw is shifted or mirrored: correct the task")


def _read_points(path: str) -> Array:
    """(A, 2) the candidate set in a file. Raises UserError where it is none."""
    try:
        points = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise UserError(f"cannot read the candidates {path} ({error}): expected a .npy file of numbers") from None
    expected = f"expected ({NUM_CANDIDATES}, 2) different points of the unit square"
    if points.shape != (NUM_CANDIDATES, 2):
        raise UserError(f"the candidates {path} have shape {points.shape}: {expected}")
    if not ((points >= 0) & (points <= 1)).all():
        raise UserError(f"the candidates {path} range from {points.min()} to {points.max()}: {expected}")
    if len(np.unique(points, axis=0)) < NUM_CANDIDATES:
        raise UserError(f"the candidates {path} hold a point twice: {expected}")
    points.flags.writeable = False
    return points


@lru_cache(maxsize=_KEPT_FUNCTIONS)
def _values(
    points: bytes,  # of (A, 2) float64
    function: int,
    draw_seed: int,
    length_scales: tuple[float, float],
    mirrored: tuple[bool, bool],
    shift: tuple[float, float],
) -> Array:
    """(A,) the values of one task's function."""
    at = np.frombuffer(points).reshape(-1, 2)
    if function == DRAW:
        normals = np.random.default_rng(draw_seed).standard_normal(len(at))
        values = _draw(at, np.asarray(length_scales), normals)
    else:
        values = -FUNCTIONS[function](np.where(mirrored, 1 - at, at) + shift)
        values = (values - values.mean()) / (values.std() or 1)
    values.flags.writeable = False
    return values


def _draw(points: Array, length_scales: Array, normals: Array) -> Array:
    """(A,) one exact draw of the Gaussian process at the points (A, 2), made of standard normal numbers (A,)."""
    half = np.empty((len(points), len(points)))  # of the covariance, up to the diagonal: all that is read of it
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        half[rows, : rows.stop] = _matern(points[rows], points[: rows.stop], length_scales)
    half.flat[:: len(points) + 1] += _NUGGET
    with _threads().limit(limits=1, user_api="blas"):
        root = linalg.cholesky(half.T, overwrite_a=True, check_finite=False)  # upper: root' root is the covariance
        return root.T @ normals


@lru_cache(maxsize=1)
def _threads() -> ThreadpoolController:
    """Of the matrix products: with one thread a draw does not depend on how many there are, and workers that share cores do not wait for each other."""
    return ThreadpoolController()


def _matern(points: Array, others: Array, length_scales: Array) -> Array:
    """The Matérn-5/2 kernel between points (n, 2) and others (m, 2) -> (n, m)."""
    (x, y), (other_x, other_y) = (points / length_scales).T, (others / length_scales).T
    squared = 5 * ((x[:, None] - other_x) ** 2 + (y[:, None] - other_y) ** 2)
    distance = np.sqrt(squared)
    return (1 + distance + squared / 3) * np.exp(-distance)
