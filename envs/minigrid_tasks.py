"""Seven MiniGrid families in which what matters is hidden and must be found out across rounds and episodes.

After MiniGrid's Empty, FourRooms, Fetch, GoToDoor, DoorKey, LavaGap and Memory (Chevalier-Boisvert et al. 2023); there a new layout is
drawn at each episode and shown, here a layout is a task, stays, and is not shown. Positions are (column, row), walls included.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import Ball, Box, Door, Goal, Key, Lava, Wall

from envs.minigrid_family import MiniGridFamily
from envs.minigrid_world import World, symbol
from envs.tasks import check_least
from icrl.interfaces import Array, Tasks, UserError
from icrl.seeding import generator

_LARGEST = 19
"""Columns and rows of a grid: FourRooms as MiniGrid has it."""


@dataclass(frozen=True)
class _Square(MiniGridFamily):
    """A family in a square grid."""

    smallest: ClassVar[int] = 5

    size: int = 9
    """Columns and rows of the grid, outer walls included."""

    def __post_init__(self):
        super().__post_init__()
        if not self.smallest <= self.size <= _LARGEST:
            raise UserError(f"{self.name}'s size is {self.size}: expected {self.smallest} to {_LARGEST}")

    @property
    def width(self) -> int:
        return self.size

    @property
    def height(self) -> int:
        return self.size


def _listed(**columns: Any) -> Tasks:
    """Layouts (N,) of int64 fields, each given as N values or rows of values."""
    arrays = {name: np.asarray(values, np.int64) for name, values in columns.items()}
    layouts = np.empty(len(next(iter(arrays.values()))), [(name, np.int64, a.shape[1:]) for name, a in arrays.items()])
    for name, array in arrays.items():
        layouts[name] = array
    return layouts


@dataclass(frozen=True)
class MiniGridEmpty(_Square):
    """An unseen goal somewhere in an empty room."""

    name: ClassVar[str] = "minigrid_empty"

    def layouts(self) -> Tasks:
        """Every cell but the first one as goal."""
        cells = product(range(1, self.size - 1), repeat=2)
        return _listed(goal=[cell for cell in cells if cell != (1, 1)])

    def build(self, world: World, task: np.void, variant: int) -> None:
        world.put_obj(Goal(), *task["goal"])


@dataclass(frozen=True)
class MiniGridFourRooms(_Square):
    """An unseen goal somewhere in four rooms, joined by a gap in the middle of each wall between two of them."""

    name: ClassVar[str] = "minigrid_fourrooms"
    smallest: ClassVar[int] = 7

    size: int = 11
    """Columns and rows of the grid, outer walls included; an odd number."""

    def __post_init__(self):
        super().__post_init__()
        if self.size % 2 == 0:
            raise UserError(f"{self.name}'s size is {self.size}: expected an odd number, so that rooms are equal")

    def _is_wall(self, x: int, y: int) -> bool:
        middle = self.size // 2
        gaps = (middle // 2, self.size - 1 - middle // 2)
        return (x == middle and y not in gaps) or (y == middle and x not in gaps)

    def layouts(self) -> Tasks:
        """Every free cell but the first one as goal, room by room."""
        middle = self.size // 2
        cells = [cell for cell in product(range(1, self.size - 1), repeat=2) if not self._is_wall(*cell)]
        rooms = sorted(cells, key=lambda cell: (cell[0] > middle, cell[1] > middle))
        return _listed(goal=[cell for cell in rooms if cell != (1, 1)])

    def build(self, world: World, task: np.void, variant: int) -> None:
        for x, y in product(range(1, self.size - 1), repeat=2):
            if self._is_wall(x, y):
                world.grid.set(x, y, Wall())
        world.put_obj(Goal(), *task["goal"])


_OBJECTS = [(kind, colour) for colour in ("red", "blue") for kind in (Key, Ball, Box)]
_KINDS = {Key: "key", Ball: "ball", Box: "box"}
_OBJECT_SYMBOLS = {symbol(_KINDS[kind], colour): 2 + i for i, (kind, colour) in enumerate(_OBJECTS)}


@dataclass(frozen=True)
class MiniGridObjects(_Square):
    """Several objects, of which one pays when it is picked up; to pick up another one ends the round for nothing."""

    name: ClassVar[str] = "minigrid_objects"
    moves: ClassVar = (Actions.left, Actions.right, Actions.forward, Actions.pickup)
    symbols: ClassVar = {symbol("wall"): 1} | _OBJECT_SYMBOLS

    size: int = 8
    """Columns and rows of the grid, outer walls included."""
    num_objects: int = 3
    """Objects in the room."""
    num_arrangements: int = 40
    """Drawn arrangements of objects; each makes as many tasks as it has objects."""
    arrangement_seed: int = 0
    """Seed of the arrangements."""

    def __post_init__(self):
        super().__post_init__()
        check_least(self.name, self, num_arrangements=1, arrangement_seed=0)
        most = min(len(_OBJECTS), (self.size - 2) ** 2 // 9)  # an object keeps the eight cells around it free
        if not 2 <= self.num_objects <= most:
            raise UserError(
                f"{self.name}'s num_objects is {self.num_objects}: expected 2 to {most} with size {self.size}"
            )

    def layouts(self) -> Tasks:
        """Every arrangement with each of its objects as the one that pays. No two objects touch, so that none bars the way."""
        rng = generator(self.arrangement_seed, self.name, "arrangements", self.size, self.num_objects)
        places = np.array([self._draw_cells(rng) for _ in range(self.num_arrangements)])  # (M, K, 2)
        kinds = rng.permuted(np.tile(np.arange(len(_OBJECTS)), (self.num_arrangements, 1)), axis=1)
        repeated = {"places": places, "kinds": kinds[:, : self.num_objects]}
        columns = {name: np.repeat(array, self.num_objects, axis=0) for name, array in repeated.items()}
        return _listed(**columns, wanted=np.tile(np.arange(self.num_objects), self.num_arrangements))

    def _draw_cells(self, rng: np.random.Generator) -> Array:
        """(K, 2) cells that keep a distance from one another and from the start."""
        while True:
            cells = rng.integers(1, self.size - 1, size=(self.num_objects, 2))
            taken = np.concatenate([cells, [[1, 1]]])
            apart = np.abs(taken[:, None] - taken).max(axis=2)[np.triu_indices(len(taken), 1)]
            if apart.min() > 1:
                return cells

    def build(self, world: World, task: np.void, variant: int) -> None:
        for number, (place, kind) in enumerate(zip(task["places"], task["kinds"], strict=True)):
            make, colour = _OBJECTS[kind]
            thing = make(colour)
            world.put_obj(thing, *place)
            if number == task["wanted"]:
                world.wanted = thing


@dataclass(frozen=True)
class MiniGridDoors(_Square):
    """A wall of doors that look alike, of which one opens; behind it, somewhere, an unseen goal."""

    name: ClassVar[str] = "minigrid_doors"
    moves: ClassVar = (Actions.left, Actions.right, Actions.forward, Actions.toggle)
    symbols: ClassVar = {
        symbol("wall"): 1,
        symbol("door", "blue", "locked"): 2,
        symbol("door", "blue", "closed"): 2,
        symbol("door", "blue", "open"): 3,
    }

    @property
    def start(self) -> tuple[tuple[int, int], int]:
        return (1, self.size // 2), 0

    @property
    def _door_rows(self) -> range:
        return range(1, self.size - 1, 2)

    def layouts(self) -> Tasks:
        """Every door with every goal behind the wall."""
        columns, rows = range(self.size // 2 + 1, self.size - 1), range(1, self.size - 1)
        pairs = list(product(self._door_rows, product(columns, rows)))
        return _listed(door=[door for door, _ in pairs], goal=[goal for _, goal in pairs])

    def build(self, world: World, task: np.void, variant: int) -> None:
        middle = self.size // 2
        world.grid.vert_wall(middle, 0)
        for row in self._door_rows:
            opens = row == task["door"]
            door = Door("blue", is_locked=not opens)
            world.put_obj(door, middle, row)
            if opens:
                world.things.append(door)
        world.put_obj(Goal(), *task["goal"])


@dataclass(frozen=True)
class MiniGridDoorKey(_Square):
    """Fetch a key, open a locked door, go to the goal in the corner: where wall, door and key are is unknown, and stays."""

    name: ClassVar[str] = "minigrid_doorkey"
    moves: ClassVar = (Actions.left, Actions.right, Actions.forward, Actions.pickup, Actions.toggle)
    symbols: ClassVar = {
        symbol("wall"): 1,
        symbol("key", "yellow"): 2,
        symbol("door", "yellow", "locked"): 3,
        symbol("door", "yellow", "closed"): 4,
        symbol("door", "yellow", "open"): 5,
    }

    size: int = 7
    """Columns and rows of the grid, outer walls included."""

    def layouts(self) -> Tasks:
        """Every column of the wall, row of the door, and cell of the key on the start's side."""
        rows = range(1, self.size - 1)
        choices = [
            (wall, door, key)
            for wall, door in product(range(2, self.size - 2), rows)
            for key in product(range(1, wall), rows)
            if key != (1, 1)
        ]
        walls, doors, keys = zip(*choices, strict=True)
        return _listed(wall=walls, door=doors, key=keys)

    def build(self, world: World, task: np.void, variant: int) -> None:
        world.grid.vert_wall(int(task["wall"]), 0)
        door, key = Door("yellow", is_locked=True), Key("yellow")
        world.put_obj(door, task["wall"], task["door"])
        world.put_obj(key, *task["key"])
        world.put_obj(Goal(), self.size - 2, self.size - 2)
        world.things += [door, key]


@dataclass(frozen=True)
class MiniGridLavaGap(_Square):
    """Walls of unseen lava, each with one gap, between the start and the goal in the far corner; lava ends the round."""

    name: ClassVar[str] = "minigrid_lavagap"

    num_walls: int = 2
    """Walls of lava."""

    def __post_init__(self):
        super().__post_init__()
        most = (self.size - 3) // 2
        if not 1 <= self.num_walls <= most:
            raise UserError(f"{self.name}'s num_walls is {self.num_walls}: expected 1 to {most} with size {self.size}")

    @property
    def _columns(self) -> list[int]:
        inside = self.size - 2
        return [1 + (wall + 1) * inside // (self.num_walls + 1) for wall in range(self.num_walls)]

    def layouts(self) -> Tasks:
        """Every combination of the rows of the gaps."""
        return _listed(gaps=list(product(range(1, self.size - 1), repeat=self.num_walls)))

    def build(self, world: World, task: np.void, variant: int) -> None:
        for column, gap in zip(self._columns, task["gaps"], strict=True):
            world.grid.vert_wall(column, 1, self.size - 2, Lava)
            world.grid.set(column, int(gap), None)
        world.put_obj(Goal(), self.size - 2, self.size - 2)


@dataclass(frozen=True)
class MiniGridMemory(MiniGridFamily):
    """A cue in the first room, a passage, a room with two ends: which end pays after which cue is the hidden rule.

    Each round draws a cue, and either end ends it. The agent must keep the cue in mind through the passage, and the rule through its life.
    """

    name: ClassVar[str] = "minigrid_memory"
    symbols: ClassVar = {symbol("wall"): 1} | _OBJECT_SYMBOLS
    goal_ends_round: ClassVar = True

    horizon: int = 48
    """Steps per episode."""
    num_cues: int = 6
    """Cues, each a kind of object in a colour; there are 2 ** num_cues rules."""
    passage: int = 2
    """Cells of the passage between the rooms."""

    def __post_init__(self):
        super().__post_init__()
        check_least(self.name, self, passage=1)
        if not 2 <= self.num_cues <= len(_OBJECTS) or self.passage > _LARGEST:
            raise UserError(
                f"{self.name} has num_cues {self.num_cues} and passage {self.passage}: expected 2 to {len(_OBJECTS)} cues "
                f"and a passage of at most {_LARGEST} cells"
            )

    @property
    def width(self) -> int:
        return 6 + self.passage

    @property
    def height(self) -> int:
        return 7

    @property
    def start(self) -> tuple[tuple[int, int], int]:
        return (2, 3), 0

    @property
    def num_variants(self) -> int:
        return self.num_cues

    def layouts(self) -> Tasks:
        """Every rule: for each cue whether the upper end (0) or the lower one (1) pays."""
        return _listed(rule=list(product(range(2), repeat=self.num_cues)))

    def build(self, world: World, task: np.void, variant: int) -> None:
        middle, end = 3, self.width - 2
        for x in range(1, end):
            for y in (1, 5) if x < 4 else (1, 2, 4, 5):
                world.grid.set(x, y, Wall())
        kind, colour = _OBJECTS[variant]
        world.put_obj(kind(colour), 3, middle - 1)
        upper, lower = (Lava(), Goal()) if task["rule"][variant] else (Goal(), Lava())
        world.put_obj(upper, end, 1)
        world.put_obj(lower, end, 5)
