"""One task of a MiniGrid family as a real ``minigrid`` environment: the truth that the tables are walked from, and what draws frames.

Deviations from MiniGrid (Chevalier-Boisvert et al. 2023): what is hidden is not observed, and the horizon alone ends an episode, so that
every episode is as long as any other. Each step that ends on a goal pays 1, as in a Dark Room. Lava ends a *round*, and the next one begins
at once. Where a right choice ends a round with a reward of 1, a wrong one ends it for nothing: only the reward tells them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Discrete
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Door, Goal, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from envs.finite_worlds import FiniteWorlds
from icrl.interfaces import Array

if TYPE_CHECKING:
    from envs.minigrid_family import MiniGridFamily

VIEW = 3
"""Rows and columns of the agent's view."""
_NUM_DIRECTIONS = 4


def symbol(kind: str, colour: str = "grey", state: str = "open") -> tuple[int, int, int]:
    """How MiniGrid encodes a cell that holds such an object."""
    return OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], STATE_TO_IDX[state]


class World(MiniGridEnv):
    """``family`` says what is built, seen and done. A state is one number: what the round drew, things, row, column, direction."""

    carrying: WorldObj | None

    def __init__(self, family: MiniGridFamily, task: np.void, render_mode: str | None = None):
        super().__init__(
            MissionSpace(lambda: "find out what pays"),
            width=family.width,
            height=family.height,
            max_steps=family.horizon,
            agent_view_size=VIEW,
            render_mode=render_mode,
            highlight=bool(family.symbols),
            tile_size=16,
        )
        self.family, self.task = family, task
        self.observation_space = family.spec.observation_space
        self.action_space = Discrete(len(family.moves))
        self.things: list[WorldObj] = []  # doors and keys whose condition is part of the state
        self.wanted: WorldObj | None = None  # if any: to pick something up ends the round, and pays if it is this
        self.begin_round(0)

    def begin_round(self, variant: int) -> None:
        """Build the world as it is at the beginning of a round that drew ``variant``."""
        self.variant = variant
        self.grid = Grid(self.width, self.height)
        self.grid.wall_rect(0, 0, self.width, self.height)
        self.carrying, self.things, self.wanted = None, [], None
        self.agent_pos, self.agent_dir = self.family.start
        self.family.build(self, self.task, variant)
        conditions = [3 if isinstance(thing, Door) else 2 for thing in self.things]
        self.state_shape = (self.family.num_variants, *conditions, self.height, self.width, _NUM_DIRECTIONS)

    def _gen_grid(self, width: int, height: int) -> None:
        self.begin_round(int(self.np_random.integers(self.family.num_variants)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, over = self.move(int(action))
        if over:
            self._gen_grid(self.width, self.height)
        return self.observe(), reward, False, self.step_count >= self.max_steps, {}

    def move(self, action: int) -> tuple[float, bool]:
        """Do one of the family's moves: its reward, and whether it ended the round."""
        _, reward, over, _, _ = super().step(self.family.moves[action])
        if self.wanted is not None and self.carrying is not None:
            return float(self.carrying is self.wanted), True
        if not self.family.goal_ends_round and isinstance(self.grid.get(*self.agent_pos), Goal):
            return 1.0, False
        return float(reward), over

    def _reward(self) -> float:
        return 1.0

    def gen_obs(self) -> Any:
        """Nothing: MiniGrid makes an image at every step, ``observe`` tells what the agent sees where it is asked."""

    def observe(self) -> Array:
        """(D,) int16 column, row, direction and, where the family has symbols, those of the cells in view (own cell: what is carried)."""
        x, y = self.agent_pos
        place = [int(x), int(y), int(self.agent_dir)]
        if not self.family.symbols:
            return np.array(place, np.int16)
        grid, visible = self.gen_obs_grid()
        cells = grid.encode(visible).reshape(-1, 3).tolist()
        return np.array(place + [self.family.symbols.get(tuple(cell), 0) for cell in cells], np.int16)

    def state(self) -> int:
        """The number of the state that the world is in."""
        x, y = self.agent_pos
        conditions = [_condition(self, thing) for thing in self.things]
        place = (self.variant, *conditions, int(y), int(x), int(self.agent_dir))
        return int(np.ravel_multi_index(place, self.state_shape))

    def set_state(self, state: int) -> None:
        """Put a world whose round is not over into the state of that number, at the beginning of an episode's clock."""
        variant, *conditions, y, x, direction = (int(part) for part in np.unravel_index(state, self.state_shape))
        if variant != self.variant:
            self.begin_round(variant)
        self.carrying = None
        for thing, condition in zip(self.things, conditions, strict=True):
            _set_condition(self, thing, condition)
        self.agent_pos, self.agent_dir, self.step_count = (x, y), direction, 0


def _condition(world: World, thing: WorldObj) -> int:
    """A door is open, closed or locked (0, 1, 2), anything else in its place or carried (0, 1)."""
    return thing.encode()[2] if isinstance(thing, Door) else int(world.carrying is thing)


def _set_condition(world: World, thing: WorldObj, condition: int) -> None:
    if isinstance(thing, Door):
        thing.is_open, thing.is_locked = condition == 0, condition == 2
        return
    assert thing.init_pos is not None
    world.grid.set(*thing.init_pos, None if condition else thing)
    if condition:
        world.carrying = thing


def walk(world: World) -> FiniteWorlds:
    """Visit every state that play can reach, try every move there, and note what it leads to: tables with N = 1."""
    sizes = world.family.spec.observation_space.nvec  # type: ignore[attr-defined]
    starts = []
    for variant in range(world.family.num_variants):
        world.begin_round(variant)
        starts.append(world.state())
    num_states, num_moves = int(np.prod(world.state_shape)), len(world.family.moves)
    next_state = np.repeat(np.arange(num_states, dtype=np.int32)[:, None], num_moves, axis=1)
    pays, ends = np.zeros((2, num_states, num_moves), bool)
    reached = np.zeros(num_states, bool)
    observation = np.zeros((num_states, len(sizes)), np.int16)
    reached[starts] = True
    todo = list(starts)
    while todo:
        state = todo.pop()
        world.set_state(state)
        observation[state] = world.observe()
        for move in range(num_moves):
            world.set_state(state)
            reward, over = world.move(move)
            pays[state, move], ends[state, move] = reward > 0, over
            if over:
                world.begin_round(world.variant)
                continue
            after = next_state[state, move] = world.state()
            if not reached[after]:
                reached[after] = True
                todo.append(after)
    tables = (next_state, pays, ends, reached, observation)
    return FiniteWorlds(*(table[None] for table in tables), starts=np.array(starts), sizes=sizes)


def stack(worlds: list[FiniteWorlds]) -> FiniteWorlds:
    """The tables of worlds with the same states and starts as those of one family."""
    assert all((w.starts == worlds[0].starts).all() and (w.sizes == worlds[0].sizes).all() for w in worlds)
    names = ("next_state", "pays", "ends", "reached", "observation")
    tables = (np.concatenate([getattr(w, name) for w in worlds]) for name in names)
    return FiniteWorlds(*tables, starts=worlds[0].starts, sizes=worlds[0].sizes)
