"""More tasks from any family: what actions do is permuted, what is observed is permuted or projected, anew in each task.

Cheap diversity (Kirsch et al. 2022: transformers learn in context only with enough distinct tasks). The augmentation is part of the task, and
held-out tasks are new in both: the inner family's held-out tasks come with augmentations that no training task has. Returns equal the
inner family's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from envs import make_family
from envs.augmentations import Augmentation, Permutation, Projection
from envs.base import LanesEnv
from envs.room import partition
from envs.tasks import check_least
from icrl.interfaces import Array, Family, FamilySpec, Observation, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.registry import read_option
from icrl.seeding import generator

_PREFIX = "inner_"
"""Before the names of the inner task's fields: an arm's mean or a goal's cell is not what the agent's actions and observations speak of."""
_ACTIONS, _OBSERVATIONS, _PROJECTION = "action_permutation", "observation_permutation", "projection_seed"
_MOST_REPEATS = 1000
"""Draws in a row that give only known augmentations: then there are no others."""


@dataclass(frozen=True)
class Augmented:
    """Another family, with permuted actions, permuted observations or projected ones."""

    inner: str = "darkroom"
    """The family that is augmented, by name or as `module:Class`."""
    inner_options: tuple[str, ...] = ()
    """Its options, each as name=value, like width=5 start=centre."""
    permute_actions: bool = True
    """Each task permutes what the actions do; of a box, which coordinate of the action is which."""
    permute_observations: bool = False
    """Each task permutes the values of each coordinate of an index observation, or the coordinates of a vector."""
    project_observations: int = 0
    """Each task shows a fixed random projection of a vector observation to this many numbers; 0: as it is."""
    copies: int = 4
    """Augmentations in which each training task of the inner family appears (at most all of training's); the others appear in one."""
    num_augmentations: int = 100
    """Augmentations in all (fewer where fewer exist): the last fifth is for test tasks, the tenth before for validation."""
    augmentation_seed: int = 0
    """Seed of the augmentations and of who gets which."""

    def __post_init__(self):
        object.__setattr__(self, "inner_options", tuple(self.inner_options))  # a list where it was read from JSON
        check_least("augmented", self, project_observations=0, copies=1, num_augmentations=3, augmentation_seed=0)
        if not self._augmentations:
            raise UserError(
                "augmented changes nothing: choose permute_actions, permute_observations or project_observations"
            )
        if self.permute_observations and self.project_observations:
            raise UserError("augmented both permutes and projects observations: a projection mixes them all, drop one")

    @cached_property
    def family(self) -> Family:
        """The inner family."""
        return make_family(self.inner, **dict(read_option(option, "inner_options") for option in self.inner_options))

    @cached_property
    def _augmentations(self) -> dict[str, Augmentation]:
        """By their field of a task. Raises UserError for spaces that they cannot change."""
        inner, chosen = self.family.spec, dict[str, Augmentation]()
        if self.permute_actions:
            chosen[_ACTIONS] = Permutation(inner.action_space, alike=True)
        if self.permute_observations:
            chosen[_OBSERVATIONS] = Permutation(inner.observation_space)
        if self.project_observations:
            chosen[_PROJECTION] = Projection(inner.observation_space, self.project_observations)
        return chosen

    @property
    def spec(self) -> FamilySpec:
        """The inner family's, with the observations that the augmentation makes of its own."""
        return self._spec

    @cached_property
    def _spec(self) -> FamilySpec:
        inner = self.family.spec
        seen = [a.outcome for key, a in self._augmentations.items() if key != _ACTIONS]
        space = seen[0] if seen else inner.observation_space
        return FamilySpec(f"augmented_{inner.name}", space, inner.action_space, inner.horizon)

    @cached_property
    def _inner_dtype(self) -> np.dtype:
        return self.family.sample_tasks(np.random.default_rng(0), 1).dtype

    @cached_property
    def _dtype(self) -> np.dtype:
        inner = self._inner_dtype
        own = [(key, np.int64, augmentation.shape) for key, augmentation in self._augmentations.items()]
        return np.dtype([(_PREFIX + name, inner[name]) for name in inner.names or ()] + own)

    def _joined(self, inner: Tasks, values: dict[str, Array]) -> Tasks:
        """Inner tasks (N,) and the values (N, ...) of the augmentations' fields -> tasks (N,)."""
        tasks = np.empty(len(inner), self._dtype)
        for name in inner.dtype.names or ():
            tasks[_PREFIX + name] = inner[name]
        for key, value in values.items():
            tasks[key] = value
        return tasks

    def inner_tasks(self, tasks: Tasks) -> Tasks:
        """The inner family's tasks behind tasks (...). Raises UserError for records of other fields."""
        if tasks.dtype != self._dtype:
            raise UserError(
                f"{self.spec.name} got tasks with fields {tasks.dtype}, expected {self._dtype}: correct them"
            )
        inner = np.empty(tasks.shape, self._inner_dtype)
        for name in inner.dtype.names or ():
            inner[name] = tasks[_PREFIX + name]
        return inner

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """The inner family's draws, with augmentations drawn uniformly."""
        inner = self.family.sample_tasks(rng, num_tasks)
        return self._joined(
            inner, {key: np.array([a.draw(rng) for _ in inner]) for key, a in self._augmentations.items()}
        )

    def split(self) -> Split:
        """The inner family's parts, each with augmentations that no other part has. Raises UserError where there are too few of them."""
        pools = {key: self._pools(key) for key in self._augmentations}
        copies = min(self.copies, max(len(pool.train) for pool in pools.values()))
        parts = {}
        for part, originals in self.family.split()._asdict().items():
            inner = np.repeat(originals, copies if part == "train" else 1)
            values = {}
            for key, pool in pools.items():
                rng = generator(self.augmentation_seed, "augmented", key, part)
                values[key] = rng.permutation(getattr(pool, part))[np.arange(len(inner)) % len(getattr(pool, part))]
            parts[part] = self._joined(inner, values)
        return Split(**parts)

    def _pools(self, key: str) -> Split:
        """Distinct values of one augmentation's field for each part of the split."""
        rng, found, repeats = generator(self.augmentation_seed, "augmented", key), dict[bytes, Array](), 0
        while len(found) < self.num_augmentations and repeats < _MOST_REPEATS:
            value = self._augmentations[key].draw(rng)
            repeats = repeats + 1 if value.tobytes() in found else 0
            found.setdefault(value.tobytes(), value)
        if len(found) < 3:
            raise UserError(
                f"{self.spec.name} has only {len(found)} values of {key}, expected at least 3, one for each part of the split: augment otherwise"
            )
        values = np.array(list(found.values()))
        return Split(*partition(values, max(1, len(values) // 10), "augmentations"))

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a list that is no permutation, and what the inner family refuses."""
        inner = self.inner_tasks(tasks)
        for key, augmentation in self._augmentations.items():
            augmentation.check(key, tasks[key])
        return AugmentedVectorEnv(self, self.family.make_vec(inner, lane_ids), tasks)

    def actions(self, tasks: Tasks) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """For tasks (B,): from the agent's actions (B, ...) to the inner family's, and back."""
        if not self.permute_actions:
            return _same, _same
        permutation = self._augmentations[_ACTIONS]
        assert isinstance(permutation, Permutation)
        return permutation.bound(tasks[_ACTIONS]), permutation.bound(permutation.inverse(tasks[_ACTIONS]))

    def observations(self, tasks: Tasks) -> Callable[[Observation], Observation]:
        """For tasks (B,): from the inner family's observations (B, ...) to what the agent sees."""
        shown = [a.bound(tasks[key]) for key, a in self._augmentations.items() if key != _ACTIONS]
        return shown[0] if shown else _same

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) the inner family's."""
        return self.family.optimal_return(self.inner_tasks(tasks))

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) the inner family's: uniform actions stay uniform."""
        return self.family.random_return(self.inner_tasks(tasks))

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        raise UserError(
            f"{self.spec.name} has no posterior, the inner family's knows nothing of augmentations: choose another source"
        )

    def scattered(self) -> Augmented:
        """The inner family's, augmented in the same way."""
        scattered: Any = self.family.scattered()
        options = {f.name: getattr(scattered, f.name) for f in fields(scattered) if f.init}
        return replace(self, inner_options=tuple(f"{key}={json.dumps(value)}" for key, value in options.items()))


class AugmentedVectorEnv(LanesEnv):
    """The inner family's lanes behind their augmentations."""

    def __init__(self, family: Augmented, env: TaskVectorEnv, tasks: Tasks):
        super().__init__(family.spec, tasks)
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self._family, self._env = family, env
        self._inwards, self._outwards = family.actions(tasks)
        self._shown = family.observations(tasks)

    @property
    def failed(self) -> dict[int, str]:
        """As ``GymVectorEnv.failed``; empty where lanes cannot fail."""
        return getattr(self._env, "failed", {})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """As the inner family's."""
        observation, info = self._env.reset(seed=seed, options=options)
        return self._shown(observation), self._seen(info)

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """As the inner family's. Raises UserError for actions of a wrong shape or outside the action space."""
        actions = np.asarray(actions)
        if isinstance(self.single_action_space, Discrete) and not self.action_space.contains(actions):
            raise UserError(f"got the actions {actions}: expected {self.num_envs} of {self.single_action_space}")
        if actions.shape != self.action_space.shape:
            raise UserError(f"got actions of shape {actions.shape}: expected {self.action_space.shape}")
        observation, reward, terminated, truncated, info = self._env.step(self._inwards(actions))
        return self._shown(observation), reward, terminated, truncated, self._seen(info)

    def _seen(self, info: dict[str, Any]) -> dict[str, Any]:
        """Final observations and allowed actions as the agent knows them."""
        seen = dict(info)
        if "final_obs" in info:
            seen["final_obs"] = self._shown(info["final_obs"])
        if "action_mask" in info and self._family.permute_actions:
            seen["action_mask"] = np.take_along_axis(info["action_mask"], self.tasks[_ACTIONS], axis=1)
        return seen

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """The agent's name for the inner family's optimal action."""
        if tasks is None:
            return self._outwards(self._env.optimal_action())
        return self._family.actions(tasks)[1](self._env.optimal_action(self._family.inner_tasks(tasks)))

    def steps_to_reward(self, tasks: Tasks) -> Array:
        """The inner family's: it takes as many steps under other names."""
        return self._env.steps_to_reward(self._family.inner_tasks(tasks))

    def render(self) -> Any:
        """The inner family's frames."""
        return self._env.render()

    def close_extras(self, **kwargs: Any) -> None:
        self._env.close(**kwargs)


def _same(value: Any) -> Any:
    return value
