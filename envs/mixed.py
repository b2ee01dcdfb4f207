"""Several families as one: a lane plays a task of one of them, and what they see and do is padded to one observation and one action space.

Nothing tells the agent which family it is in but what happens there. Some families may be kept out of training altogether (``unseen``): all of their tasks
are test tasks. Observations are index vectors, shorter ones end in zeros; actions that a family does not have are masked (and if they are
taken all the same, do what its last one does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from envs import make_family
from envs.base import LanesEnv, check_actions
from envs.tasks import check_least
from icrl.interfaces import Array, Family, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError, where_lanes
from icrl.registry import read_option
from icrl.seeding import generator

DTYPE = np.dtype([("member", np.int64), ("content", np.int64)])
"""A task: the number of its family, and a hash of what it is there, so that it is the same whatever list it stands in."""


@dataclass(frozen=True)
class Mixed:
    """Tasks of several families of rooms, among them one that training never sees."""

    members: tuple[str, ...] = (
        "darkroom width=6 height=6 horizon=36 num_validation=4",
        "keydoor width=6 height=6 horizon=60 task_split=0 num_tasks=80",
        "minigrid_empty",
    )
    """Families that are trained on, each as its name and its options, like `darkroom width=6 height=6`."""
    unseen: tuple[str, ...] = ("darkroom width=7 height=7 horizon=49",)
    """Families of which all tasks are held out for the test."""
    tasks_per_member: int = 48
    """Training tasks that a family brings at most."""
    test_tasks_per_member: int = 12
    """Test tasks that a family brings at most; validation tasks half as many."""
    task_seed: int = 0
    """Seed of which tasks these are."""

    def __post_init__(self):
        for name in ("members", "unseen"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"mixed's {name} is {getattr(self, name)!r}: expected a list of texts")
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list where it was read from JSON
        check_least("mixed", self, tasks_per_member=1, test_tasks_per_member=2, task_seed=0)
        if not self.members:
            raise UserError("mixed has no members: name at least one family to train on")

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The families, those that are trained on first. Raises UserError for spaces that cannot be padded."""
        families = tuple(map(_read_member, (*self.members, *self.unseen)))
        for number, family in enumerate(families):
            if family in families[:number]:
                raise UserError(
                    f"mixed names {family.spec.name} with the same options twice: its held-out tasks would be trained on, drop one"
                )
            seen, done = family.spec.observation_space, family.spec.action_space
            if not (isinstance(seen, MultiDiscrete) and seen.nvec.ndim == 1 and not seen.start.any()):
                raise UserError(
                    f"mixed cannot pad observations {seen} of {family.spec.name}: it takes index vectors from 0"
                )
            if not (isinstance(done, Discrete) and done.start == 0):
                raise UserError(f"mixed cannot pad actions {done} of {family.spec.name}: it takes discrete ones from 0")
        return families

    @property
    def spec(self) -> FamilySpec:
        """Spaces in which all families fit, and the longest of their horizons."""
        return self._spec

    @cached_property
    def _spec(self) -> FamilySpec:
        sizes = [family.spec.observation_space.nvec for family in self.families]  # type: ignore[attr-defined]
        padded = np.ones((len(sizes), max(map(len, sizes))), np.int64)
        for row, size in zip(padded, sizes, strict=True):
            row[: len(size)] = size
        actions = max(int(family.spec.action_space.n) for family in self.families)  # type: ignore[attr-defined]
        horizon = max(family.spec.horizon for family in self.families)
        return FamilySpec("mixed", MultiDiscrete(padded.max(0), dtype=np.int16), Discrete(actions), horizon)

    @cached_property
    def _lists(self) -> list[Split]:
        """The tasks that each family brings: some of its own lists, or for an unseen one some of all of them as test tasks."""
        most = self.tasks_per_member, max(1, self.test_tasks_per_member // 2), self.test_tasks_per_member
        lists = []
        for number, family in enumerate(self.families):
            rng = generator(self.task_seed, "mixed", number)
            split = family.split()
            if number >= len(self.members):
                split = Split(split.train[:0], split.validation[:0], np.concatenate(split))
            lists.append(Split(*(_some(tasks, size, rng) for tasks, size in zip(split, most, strict=True))))
        return lists

    @cached_property
    def _known(self) -> list[tuple[Array, Tasks]]:
        """Of each family the hashes of its tasks, ascending, and the tasks."""
        known = []
        for split in self._lists:
            tasks = np.concatenate(split)
            content = _hashes(tasks)
            order = np.argsort(content)
            known.append((content[order], tasks[order]))
        return known

    def split(self) -> Split:
        """Every family's lists, one after the other."""
        return Split(
            *(np.concatenate([_tasks(m, split[part]) for m, split in enumerate(self._lists)]) for part in range(3))
        )

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Training tasks: the family uniform, then the task."""
        train = self.split().train
        of_member = [train[train["member"] == member] for member in range(len(self.members))]
        chosen = rng.integers(len(self.members), size=num_tasks)
        return np.concatenate([rng.choice(of_member[member], 1) for member in chosen] or [train[:0]])

    def inner_tasks(self, member: int, tasks: Tasks) -> Tasks:
        """The tasks of one family behind ``tasks``, all of which are its own."""
        content, known = self._known[member]
        return known[np.searchsorted(content, tasks["content"])]

    def parts(self, tasks: Tasks) -> list[tuple[int, Array]]:
        """Which families tasks (N,) are of, and which of the tasks are theirs. Raises UserError for tasks that there are not."""
        if tasks.dtype != DTYPE:
            raise UserError(f"mixed got tasks with fields {tasks.dtype}, expected {DTYPE}: correct them")
        parts = [(m, np.flatnonzero(tasks["member"] == m)) for m in np.unique(tasks["member"]).tolist()]
        for member, rows in parts:
            there = 0 <= member < len(self.families) and np.isin(tasks["content"][rows], self._known[member][0])
            if not np.all(there):
                raise UserError(
                    f"mixed has no task {tasks[rows][np.argmin(there)]}: it has {len(self.families)} families with tasks of their own"
                )
        return parts

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``."""
        return MixedVectorEnv(self, tasks, lane_ids)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) as each family has it."""
        return self._returns(tasks, lambda family, own: family.optimal_return(own))

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) as each family has it: of actions uniform among its own."""
        return self._returns(tasks, lambda family, own: family.random_return(own))

    def _returns(self, tasks: Tasks, of: Callable[[Family, Tasks], Array]) -> Array:
        returns = np.zeros(len(tasks))
        for member, rows in self.parts(tasks):
            returns[rows] = of(self.families[member], self.inner_tasks(member, tasks[rows]))
        return returns

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """There is none over families."""
        raise UserError(
            "mixed has no posterior over its families: use source by_member, whose agents know which family they are in"
        )

    def scattered(self) -> Mixed:
        """Every family's own scattered steps."""
        other = replace(self)
        object.__setattr__(other, "families", tuple(family.scattered() for family in self.families))
        object.__setattr__(other, "_lists", self._lists)
        return other


class MixedVectorEnv(LanesEnv):
    """Lanes of several families, each in a vector environment of its own.

    ``inner`` holds of each family its number, its lanes (n,) and their environment.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, family: Mixed, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self.family = family
        self.inner: list[tuple[int, Array, TaskVectorEnv]] = []
        self._mask = np.zeros((self.num_envs, int(family.spec.action_space.n)), bool)  # type: ignore[attr-defined]
        for member, lanes in family.parts(tasks):
            env = family.families[member].make_vec(family.inner_tasks(member, tasks[lanes]), self.lane_ids[lanes])
            self.inner.append((member, lanes, env))
            self._mask[lanes, : int(env.single_action_space.n)] = True  # type: ignore[attr-defined]
        self._last = self._mask.sum(1) - 1  # (B,) the last action that a lane has

    def _blank(self) -> Array:
        return np.zeros(
            (self.num_envs, *(self.single_observation_space.shape or ())), self.single_observation_space.dtype
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every lane; ``seed`` renews the lanes' random streams."""
        observation = self._blank()
        mask = self._mask.copy()
        for _, lanes, env in self.inner:
            own, info = env.reset(seed=seed)
            observation[lanes, : own.shape[1]] = own
            _narrow(mask, lanes, info)
        return observation, {"action_mask": mask}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of every lane. Raises UserError for actions that ``check_actions`` refuses."""
        actions = np.asarray(actions)
        check_actions(actions, self.single_action_space, self.num_envs)
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        observation, final, mask = self._blank(), self._blank(), self._mask.copy()
        for _, lanes, env in self.inner:
            own, reward[lanes], terminated[lanes], truncated[lanes], info = env.step(
                np.minimum(actions[lanes], self._last[lanes])
            )
            observation[lanes, : own.shape[1]] = own
            _narrow(mask, lanes, info)
            final[lanes, : own.shape[1]] = (
                where_lanes(info["_final_obs"], info["final_obs"], own) if "final_obs" in info else own
            )
        ended = terminated | truncated
        finals = {"final_obs": final, "_final_obs": ended} if ended.any() else {}
        return observation, reward, terminated, truncated, {"action_mask": mask, **finals}

    @property
    def failed(self) -> dict[int, str]:
        """Why lanes failed, where environments of a family can."""
        return {
            int(lanes[lane]): reason
            for _, lanes, env in self.inner
            for lane, reason in getattr(env, "failed", {}).items()
        }

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) each family's own. Raises UserError for ``tasks`` of another family than the lane's."""
        if tasks is not None and (tasks["member"] != self.tasks["member"]).any():
            raise UserError(
                "mixed knows no optimal action of another family's task: give tasks of the lanes' own families"
            )
        action = np.zeros(self.num_envs, np.int64)
        for member, lanes, env in self.inner:
            own = None if tasks is None else self.family.inner_tasks(member, tasks[lanes])
            action[lanes] = env.optimal_action(own)
        return action

    def close(self, **kwargs: Any) -> None:
        for _, _, env in self.inner:
            env.close(**kwargs)


def _narrow(mask: Array, lanes: Array, info: dict[str, Any]) -> None:
    """Allow lanes only what their own environment allows, if it says so."""
    if "action_mask" in info:
        own = info["action_mask"]
        mask[lanes, : own.shape[1]] = own


def _read_member(text: str) -> Family:
    name, *options = text.split() or [""]
    return make_family(name, **dict(read_option(option, f"mixed's member '{text}'") for option in options))


def _some(tasks: Tasks, most: int, rng: np.random.Generator) -> Tasks:
    """At most so many of the tasks, drawn, in their order."""
    return tasks[np.sort(rng.choice(len(tasks), min(most, len(tasks)), replace=False))]


def _tasks(member: int, inner: Tasks) -> Tasks:
    tasks = np.zeros(len(inner), DTYPE)
    tasks["member"], tasks["content"] = member, _hashes(inner)
    return tasks


def _hashes(tasks: Tasks) -> Array:
    """(N,) int64."""
    digests = [hashlib.blake2b(task.tobytes(), digest_size=8).digest() for task in tasks]
    return np.frombuffer(b"".join(digests), np.int64).copy()
