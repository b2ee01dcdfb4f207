"""What MiniGrid families share: a finite list of layouts of which each is a task, walked once and then played from tables.

An observation is the agent's column, row and direction and, where objects matter, its view of 3×3 cells as MiniGrid shows it (the
agent looks ahead from the middle of the last row; its own cell shows what it carries). Nothing in it tells what is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import ClassVar, Literal

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode
from minigrid.core.actions import Actions

from envs.finite_posterior import FinitePosterior
from envs.finite_vector import FiniteVectorEnv, Located
from envs.finite_worlds import NEVER, FiniteWorlds
from envs.minigrid_world import VIEW, World, stack, walk
from envs.room import partition
from envs.tasks import check_least
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import generator

_MOST_HYPOTHESES = 4096
"""Tasks that a belief lists."""


@dataclass(frozen=True)
class MiniGridFamily:
    """Options and answers of all MiniGrid families; one of them adds its layouts, how they are built and what is seen."""

    name: ClassVar[str]
    moves: ClassVar[tuple[Actions, ...]] = (Actions.left, Actions.right, Actions.forward)
    """What the actions do."""
    symbols: ClassVar[dict[tuple[int, int, int], int]] = {}
    """MiniGrid's encoding of a cell -> the symbol that the agent sees; all else is 0. Empty: the agent sees where it is, no cells."""
    goal_ends_round: ClassVar[bool] = False
    """A goal ends the round, as its counterpart does; otherwise it pays for each step that ends on it."""
    render_fps: ClassVar[int] = 8

    horizon: int = 60
    """Steps per episode."""
    permuted_actions: bool = False
    """Each task also permutes what the actions do."""
    num_validation: int = 5
    """Layouts taken from the end of the training ones to choose checkpoints on."""
    split_seed: int = 0
    """Seed of the order of the layouts, of which the last fifth is held out."""
    begin: Literal["start", "anywhere"] = "start"
    """Where episodes begin: as every round does, or in a state drawn uniformly from those that play can reach."""

    def __post_init__(self):
        check_least(self.name, self, horizon=1, num_validation=0, split_seed=0)

    @property
    def width(self) -> int:
        """Columns of the grid, outer walls included."""
        raise NotImplementedError

    @property
    def height(self) -> int:
        """Rows of the grid, outer walls included."""
        raise NotImplementedError

    @property
    def start(self) -> tuple[tuple[int, int], int]:
        """Column and row, and direction (0 right, 1 down, 2 left, 3 up), where a round begins."""
        return (1, 1), 0

    @property
    def num_variants(self) -> int:
        """How many ways a round can begin, drawn anew each time; the first observation shows which."""
        return 1

    def layouts(self) -> Tasks:
        """(N,) all layouts, int64 fields, in the order in which explorers break ties."""
        raise NotImplementedError

    def build(self, world: World, task: np.void, variant: int) -> None:
        """Furnish a walled, empty ``world``."""
        raise NotImplementedError

    @property
    def spec(self) -> FamilySpec:
        """Column, row, direction and, where the family has symbols, the symbols of the cells in view."""
        num_symbols = 1 + max(self.symbols.values(), default=0)
        view = [num_symbols] * (VIEW * VIEW) if self.symbols else []
        space = MultiDiscrete([self.width, self.height, 4, *view], dtype=np.int16)
        return FamilySpec(self.name, space, Discrete(len(self.moves)), self.horizon)

    @property
    def catalogue(self) -> Catalogue:
        """All tasks and their tables; the same for all options that do not change a layout."""
        return _catalogue(replace(self, horizon=1, num_validation=0, split_seed=0, begin="start"))

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Uniform over all tasks."""
        tasks = self.catalogue.tasks
        return tasks[rng.integers(len(tasks), size=num_tasks)]

    def split(self) -> Split:
        """Disjoint layouts. With permuted actions permutations are disjoint too: every training layout comes with every training
        permutation, every other layout with one held-out permutation.

        Raises UserError where a part that must not be empty is.
        """
        catalogue = self.catalogue
        order = generator(self.split_seed, self.name, "layouts").permutation(catalogue.num_layouts)
        train, validation, test = partition(order, self.num_validation, "layouts")
        num_meanings = catalogue.num_meanings
        if num_meanings == 1:
            return Split(*(catalogue.tasks[part] for part in (train, validation, test)))
        order = generator(self.split_seed, self.name, "permutations").permutation(num_meanings)
        train_p, validation_p, test_p = partition(order, max(1, num_meanings // 10), "permutations")
        index = (
            (train[:, None] * num_meanings + train_p).ravel(),
            validation * num_meanings + np.resize(validation_p, len(validation)),
            test * num_meanings + np.resize(test_p, len(test)),
        )
        return Split(*(catalogue.tasks[part] for part in index))

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> MiniGridVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for a task that is not on the family's list, or a horizon too short to succeed."""
        worlds, row, _ = self.catalogue.locate(tasks)
        longest = int(worlds.distance[row][:, worlds.starts].max(initial=0))
        if self.begin == "start" and longest > self.horizon:
            raise UserError(
                f"{self.name}'s horizon is {self.horizon}, but a task needs {longest} steps: choose a longer horizon"
            )
        return MiniGridVectorEnv(self, tasks, lane_ids)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact: on a shortest way to the next reward, again and again."""
        worlds, row = self._worlds_of(tasks)
        policy = worlds.best[:, :, None] == np.arange(worlds.num_actions)
        return self._expected_return(worlds, policy.astype(np.float64))[row]

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) exact: the distribution over states under uniform actions, propagated for an episode."""
        worlds, row = self._worlds_of(tasks)
        return self._expected_return(worlds, np.full(worlds.pays.shape, 1 / worlds.num_actions))[row]

    def _worlds_of(self, tasks: Tasks) -> tuple[FiniteWorlds, Array]:
        """The worlds of these tasks (N,) alone, and the row of each."""
        worlds, row, _ = self.catalogue.locate(tasks)
        rows, index = np.unique(row, return_inverse=True)
        return worlds.rows(rows), index

    def _expected_return(self, worlds: FiniteWorlds, policy: Array) -> Array:
        first = np.zeros_like(worlds.reached)
        first[:, worlds.starts] = True
        allowed = first if self.begin == "start" else worlds.reached
        return worlds.expected_return(policy, allowed / allowed.sum(axis=1, keepdims=True), self.horizon, renews=True)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact belief over all tasks of the family, uniform before the first step. Raises UserError where they are too many, or where
        episodes begin anywhere.
        """
        tasks = self.catalogue.tasks
        if self.begin == "anywhere":
            raise UserError(f"{self.name} has no posterior where episodes begin anywhere: set begin to start")
        if len(tasks) > _MOST_HYPOTHESES:
            raise UserError(
                f"{self.name} has {len(tasks):,} tasks: a belief lists at most {_MOST_HYPOTHESES:,}, choose fewer "
                "(no permuted actions, a smaller grid) or another source"
            )
        return FinitePosterior(env, tasks, self.catalogue.locate, self.catalogue.index)

    def scattered(self) -> MiniGridFamily:
        """The same tasks, one step per episode from a state drawn uniformly."""
        return replace(self, begin="anywhere", horizon=1)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All tasks of a family (layouts × meanings of the actions, layout by layout) and the tables of the layouts."""

    family: MiniGridFamily

    @cached_property
    def layouts(self) -> Tasks:
        """(N,) all layouts."""
        return self.family.layouts()

    @property
    def num_layouts(self) -> int:
        return len(self.layouts)

    @cached_property
    def meanings(self) -> Array:
        """(P, A) every meaning of the actions that tasks can have."""
        actions = range(len(self.family.moves))
        return np.array(list(permutations(actions)) if self.family.permuted_actions else [list(actions)])

    @property
    def num_meanings(self) -> int:
        return len(self.meanings)

    @cached_property
    def tasks(self) -> Tasks:
        """(N * P,) tasks; with permuted actions they have a field ``permutation``."""
        layouts = self.layouts
        if not self.family.permuted_actions:
            return layouts
        fields = [*layouts.dtype.descr, ("permutation", np.int64, (len(self.family.moves),))]
        tasks = np.empty(self.num_layouts * self.num_meanings, fields)
        for name in layouts.dtype.names or ():
            tasks[name] = np.repeat(layouts[name], self.num_meanings, axis=0)
        tasks["permutation"] = np.tile(self.meanings, (self.num_layouts, 1))
        return tasks

    @cached_property
    def index(self) -> dict[bytes, int]:
        """Place of every task in the list."""
        return {task.tobytes(): place for place, task in enumerate(self.tasks)}

    @cached_property
    def worlds(self) -> FiniteWorlds:
        """Tables of all layouts. Raises UserError where one cannot be solved."""
        worlds = stack([walk(World(self.family, layout)) for layout in self.layouts])
        hopeless = np.flatnonzero(worlds.distance[:, worlds.starts].max(axis=1) == NEVER)
        if hopeless.size:
            raise UserError(
                f"{self.family.name}: nothing can pay in {hopeless.size} of {self.num_layouts} layouts, e.g. "
                f"{self.layouts[hopeless[0]]}: choose other options"
            )
        return worlds

    def locate(self, tasks: Tasks) -> Located:
        """The tables of tasks (...). Raises UserError for one that is not on the list."""
        if tasks.dtype != self.tasks.dtype:
            raise UserError(
                f"{self.family.name} got tasks with fields {tasks.dtype}, expected {self.tasks.dtype}: correct them"
            )
        size, data = tasks.dtype.itemsize, tasks.tobytes()
        try:
            place = [self.index[data[i : i + size]] for i in range(0, len(data), size)]
        except KeyError as error:
            task = np.frombuffer(error.args[0], tasks.dtype)[0]
            example = dict(zip(self.tasks.dtype.names or (), self.tasks[0].tolist(), strict=True))
            raise UserError(
                f"{self.family.name} has no task {task} of {task.dtype.names}: expected one of its {len(self.tasks)} tasks, e.g. {example}"
            ) from None
        row, meaning = np.divmod(np.array(place, np.intp).reshape(tasks.shape), self.num_meanings)
        return Located(self.worlds, row, self.meanings[meaning] if self.family.permuted_actions else None)


@lru_cache(maxsize=32)
def _catalogue(family: MiniGridFamily) -> Catalogue:
    return Catalogue(family)


class MiniGridVectorEnv(FiniteVectorEnv):
    """All lanes of a MiniGrid family, from tables; frames are drawn by MiniGrid itself."""

    metadata = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": MiniGridFamily.render_fps,
    }

    def __init__(self, family: MiniGridFamily, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids, family.catalogue.locate, random_start=family.begin == "anywhere")
        self._family = family

    def _frames(self, states: Array) -> tuple[Array, ...]:
        """Each (height * 16, width * 16, 3) uint8. They show what the agent does not see."""
        frames = []
        for task, state in zip(self.tasks, states, strict=True):
            world = World(self._family, task)
            world.set_state(int(state))
            frames.append(world.get_frame(highlight=world.highlight, tile_size=world.tile_size))
        return tuple(frames)
