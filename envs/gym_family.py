"""Any Gymnasium environment as a task family, in a few lines: how to draw a task, and how to make its environment.

In Python::

    family = GymFamily(lambda g: gym.make("Pendulum-v1", g=g), lambda rng: {"g": rng.uniform(5, 15)}, name="pendulums")

For the command line (``icrl train RECIPE --family.name my_module:Pendulums --family.options.strongest 20``) the same as a class, whose
fields are its options::

    @dataclass(frozen=True)
    class Pendulums(GymTaskFamily):
        strongest: float = 15.0

        def sample_task(self, rng):
            return {"g": rng.uniform(5, self.strongest)}

        def make_env(self, g):
            return gym.make("Pendulum-v1", g=g)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from envs.gym_vector import GymVectorEnv, describe_error
from envs.tasks import LISTS, check_least
from icrl.interfaces import Array, Family, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import derive_seed, generator

Task = Mapping[str, Any] | np.void
"""Numbers and arrays of numbers by name: a dictionary or a record of a structured array. Names and shapes are the same in every task."""
_MOST_REPEATS = 1000
"""Draws in a row that give only known tasks: then there are no others."""


@dataclass(frozen=True, kw_only=True)
class GymTaskFamily:
    """A family that draws tasks without end and plays each in an environment of its own. A subclass gives ``sample_task`` and ``make_env``.

    A task's values are the keyword arguments of ``make_env``. If environments have a method ``optimal_action(task)`` (None: their own
    task), optimal sources and DPT's labels work.
    """

    name: str = ""
    """Name of the family in reports; empty: that of its class."""
    horizon: int = 0
    """Longest episode, in steps; 0: the environment's own time limit."""
    num_train_tasks: int = 200
    """Training tasks."""
    num_validation_tasks: int = 20
    """Tasks to choose checkpoints on."""
    num_test_tasks: int = 50
    """Tasks to report on."""
    task_seed: int = 0
    """Seed of the three lists of tasks, which share none."""
    asynchronous: bool = False
    """Step each lane in a process of its own: worth it where one step takes a millisecond or more."""
    measured_episodes: int = 10
    """Episodes of each task by which an unknown expected return is measured."""

    def __post_init__(self):
        check_least(self.title, self, horizon=0, measured_episodes=1, **LISTS)

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a task."""
        raise NotImplementedError(f"{type(self).__name__} needs a method sample_task(self, rng)")

    def make_env(self, **task: Any) -> gym.Env:
        """The environment of a task: numbers as Python's, arrays as numpy's."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make_env(self, **task)")

    def optimal_return_of(self, **task: Any) -> float | None:
        """Expected return of one episode of the best known policy in a task, if you know it."""
        return None

    def random_return_of(self, **task: Any) -> float | None:
        """The same of uniform actions."""
        return None

    @property
    def title(self) -> str:
        return self.name or type(self).__name__

    @property
    def spec(self) -> FamilySpec:
        """Read off the environment of one task. Raises UserError where it cannot be made, or nothing says how long an episode is."""
        return self._spec

    @cached_property
    def _spec(self) -> FamilySpec:
        task = _keywords(self._example)
        env = _user_code(f"make_env(**{task})", lambda: self._made(task))
        limit = self.horizon or (env.spec.max_episode_steps if env.spec is not None else None)
        spaces = env.observation_space, env.action_space
        env.close()
        if limit is None:
            raise UserError(f"{self.title}'s environment has no time limit: give horizon, the longest episode in steps")
        return FamilySpec(self.title, *spaces, limit)

    @cached_property
    def _example(self) -> np.void:
        """A task whose names, types and shapes all others have."""
        task = self._drawn(generator(self.task_seed, self.title, "example"))
        options = {f.name for f in fields(self)}
        for key, value in task.items():
            if value.dtype.kind not in "biuf" or key in options:
                raise UserError(
                    f"sample_task of {self.title} gave {key} = {value}: expected numbers, under names other than {', '.join(sorted(options))}"
                )
        record = np.zeros(1, [(key, value.dtype, value.shape) for key, value in task.items()])[0]
        for key, value in task.items():
            record[key] = value
        return record

    def _drawn(self, rng: np.random.Generator) -> dict[str, Array]:
        task = _user_code("sample_task", lambda: self.sample_task(rng))
        named = {key: task[key] for key in task.dtype.names or ()} if isinstance(task, np.void) else task
        if not isinstance(named, Mapping) or not named:
            raise UserError(
                f"sample_task of {self.title} gave {task!r}: expected a dictionary of numbers or a numpy record"
            )
        return {str(key): np.asarray(value) for key, value in named.items()}

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Independent draws of ``sample_task``. Raises UserError where they differ in names, types or shapes."""
        tasks = np.empty(num_tasks, self._example.dtype)
        names = tasks.dtype.names or ()
        for row in range(num_tasks):
            task = self._drawn(rng)
            fits = set(task) == set(names) and all(
                task[key].shape == tasks.dtype[key].shape
                and np.can_cast(task[key].dtype, tasks.dtype[key].base, "same_kind")
                for key in names
            )
            if not fits:
                raise UserError(
                    f"sample_task of {self.title} gave {task}, before it gave {_keywords(self._example)}: expected the same names, shapes and "
                    "kinds of numbers in every task (write 1.0 rather than 1 for a real number)"
                )
            for key in names:
                tasks[key][row] = task[key]
        return tasks

    def split(self) -> Split:
        """Distinct tasks; the test tasks do not depend on the numbers of the others. Raises UserError where there are too few."""
        return self._split

    @cached_property
    def _split(self) -> Split:
        sizes = self.num_test_tasks, self.num_validation_tasks, self.num_train_tasks
        rng, found, repeats = generator(self.task_seed, self.title, "tasks"), dict[bytes, Tasks](), 0
        while len(found) < sum(sizes):
            task = self.sample_tasks(rng, 1)
            repeats = repeats + 1 if task.tobytes() in found else 0
            found.setdefault(task.tobytes(), task)
            if repeats == _MOST_REPEATS:
                raise UserError(
                    f"sample_task of {self.title} gave only {len(found)} distinct tasks, expected {sum(sizes)}: lower num_train_tasks "
                    f"({self.num_train_tasks}), num_validation_tasks ({self.num_validation_tasks}) or num_test_tasks ({self.num_test_tasks})"
                )
        test, validation, train = np.split(np.concatenate(list(found.values())), np.cumsum(sizes)[:-1])
        return Split(train, validation, test)

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> GymVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for records of other fields, and where environments differ in their spaces."""
        if tasks.dtype != self._example.dtype:
            raise UserError(
                f"{self.title} got tasks with fields {tasks.dtype}, expected {self._example.dtype}: correct them"
            )
        return GymVectorEnv(self.spec, tasks, self._make_env_of, lane_ids, asynchronous=self.asynchronous)

    def _make_env_of(self, task: np.void) -> gym.Env:
        return self._made(_keywords(task))

    def _made(self, task: dict[str, Any]) -> gym.Env:
        env = self.make_env(**task)
        if not isinstance(env, gym.Env):
            raise UserError(
                f"make_env of {self.title} gave {env!r}: expected a gymnasium.Env; one of the older gym can be wrapped (gymnasium's shimmy)"
            )
        return env

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) as ``optimal_return_of`` says, else measured with the environments' ``optimal_action``. NaN where there is neither: then
        normalised scores and regrets of an evaluation are unknown, all else is not.
        """
        return self._returns("optimal", self.optimal_return_of, tasks)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) as ``random_return_of`` says, else measured."""
        return self._returns("random", self.random_return_of, tasks)

    @cached_property
    def _measured(self) -> dict[tuple[str, bytes], float]:
        return {}

    def _returns(self, policy: str, told: Callable[..., float | None] | None, tasks: Tasks) -> Array:
        """(N,) expected returns of a policy, what was measured once kept for good."""
        answers = [told(**_keywords(task)) if told is not None else None for task in tasks]
        unknown = {task.tobytes(): task for task, answer in zip(tasks, answers, strict=True) if answer is None}
        missing = [task for key, task in unknown.items() if (policy, key) not in self._measured]
        if missing:
            means = self._measure(policy, np.array(missing, tasks.dtype))
            self._measured.update(
                {(policy, task.tobytes()): mean for task, mean in zip(missing, means.tolist(), strict=True)}
            )
        known = [self._measured[policy, t.tobytes()] if a is None else a for t, a in zip(tasks, answers, strict=True)]
        return np.array(known, np.float64)

    def _measure(self, policy: str, tasks: Tasks) -> Array:
        """(N,) mean return of the first episodes of each task, NaN for an optimum that environments do not know.

        Raises UserError where an environment fails.
        """
        lanes = np.array(
            [zlib.crc32(task.tobytes()) for task in tasks]
        )  # so that a task's figure depends on no other task
        env = self.make_vec(tasks, lanes)
        if policy == "optimal" and not env.knows_optimum:
            env.close()
            return np.full(len(tasks), np.nan)
        spaces = [deepcopy(self.spec.action_space) for _ in tasks]
        for space, lane in zip(spaces, lanes.tolist(), strict=True):
            space.seed(derive_seed(self.task_seed, self.title, policy, lane) % 2**32)
        _, info = env.reset(seed=derive_seed(self.task_seed, self.title, "measured"))
        sums, episodes = np.zeros((2, len(tasks)))
        while (episodes < self.measured_episodes).any():
            if policy == "optimal":
                actions = env.optimal_action()
            else:
                masks = info.get("action_mask", [None] * len(tasks))
                actions = np.stack([_uniform(space, mask) for space, mask in zip(spaces, masks, strict=True)])
            _, reward, terminated, truncated, info = env.step(actions)
            sums += np.where(episodes < self.measured_episodes, reward, 0.0)
            episodes += terminated | truncated
            for lane, reason in env.failed.items():
                raise UserError(
                    f"the {policy} return of {self.title} cannot be measured: the environment of {tasks[lane]} {reason}"
                )
        env.close()
        return sums / self.measured_episodes

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        raise UserError(f"{self.title} has no posterior over its tasks: choose a source that does not need one")

    def scattered(self) -> Family:
        raise UserError(
            f"{self.title} cannot put its environments into any state: choose sources that are not scattered"
        )


@dataclass(frozen=True)
class GymFamily(GymTaskFamily):
    """The same from functions: a task is what ``sample_task(rng)`` gives, its environment ``make_env(**task)``."""

    make_env: Callable[..., gym.Env] = field()  # pyright: ignore[reportIncompatibleMethodOverride]
    """Makes the environment of a task from its values by name; ``partial(gym.make, "Pendulum-v1")`` is one."""
    sample_task: Callable[[np.random.Generator], Task] = field()  # pyright: ignore[reportIncompatibleMethodOverride]
    """Draws a task."""
    optimal_return_of: Callable[..., float] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Expected return of one episode of the best known policy, from a task's values by name. None: measured where environments have an
    ``optimal_action``, else unknown."""
    random_return_of: Callable[..., float] | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """The same of uniform actions. None: measured."""


def _user_code(what: str, call: Callable[[], Any]) -> Any:
    """What a user's function gives. Raises UserError, naming it, where it raises."""
    try:
        return call()
    except (UserError, NotImplementedError):
        raise
    except Exception as error:
        raise UserError(f"{what} {describe_error(error)}") from error


def _keywords(task: np.void) -> dict[str, Any]:
    """A record by name: numbers as Python's, arrays as copies."""
    values = {key: np.array(task[key]) for key in task.dtype.names or ()}
    return {key: value.item() if value.ndim == 0 else value for key, value in values.items()}


def _uniform(space: gym.Space, mask: Array | None) -> Any:
    return space.sample() if mask is None else space.sample(mask.astype(np.int8))
