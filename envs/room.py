"""An empty grid room in which something is hidden: what Dark Room and Key-Door share. Cells are numbered row by row.

Moves: 0 row+1, 1 row-1, 2 column+1, 3 column-1, 4 stay; a move into a wall stays. The agent sees its (row, column) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar, Literal

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from scipy.sparse import csr_array

from envs.base import NativeVectorEnv
from envs.tasks import check_least
from icrl.interfaces import Array, FamilySpec, Symmetry, Tasks, UserError

NUM_MOVES = 5
STAY = 4
_LARGEST_ROOM = 4096
"""Cells; the distance table grows with their square."""


@dataclass(frozen=True)
class RoomTables:
    """Read-only tables of a room with S = height * width cells."""

    coordinates: Array  # (S, 2) int16 row, column
    next_cell: Array  # (S, 5) intp cell after a move
    distance: Array  # (S, S) int16 steps from a cell to another
    towards: Array  # (S, S) int8 first move from a cell to another: rows first, then columns; stay at it


@lru_cache(maxsize=16)
def room_tables(height: int, width: int) -> RoomTables:
    """The tables of one room size, shared by everyone who asks."""
    rows, columns = np.divmod(np.arange(height * width), width)
    next_cell = np.stack(
        [
            np.minimum(rows + 1, height - 1) * width + columns,
            np.maximum(rows - 1, 0) * width + columns,
            rows * width + np.minimum(columns + 1, width - 1),
            rows * width + np.maximum(columns - 1, 0),
            rows * width + columns,
        ],
        axis=1,
    ).astype(np.intp)
    down = rows[None] - rows[:, None]  # (S, S) signed rows from a cell to another
    right = columns[None] - columns[:, None]
    along_columns = np.where(right > 0, 2, np.where(right < 0, 3, STAY))
    towards = np.where(down > 0, 0, np.where(down < 0, 1, along_columns))
    tables = RoomTables(
        coordinates=np.stack([rows, columns], axis=1).astype(np.int16),
        next_cell=next_cell,
        distance=(np.abs(down) + np.abs(right)).astype(np.int16),
        towards=towards.astype(np.int8),
    )
    for table in (tables.coordinates, tables.next_cell, tables.distance, tables.towards):
        table.flags.writeable = False
    return tables


def arrivals(tables: RoomTables, start: Array, targets: Array, num_steps: int, *, first: bool) -> Array:
    """(num_steps, N) probability that a uniform walk's step ends on target cell n (``first``: for the first time).

    ``start`` is the distribution over cells where the walk begins, (S,) for all targets (N,) or (S, N).
    """
    num_cells = len(tables.next_cell)
    sources = np.repeat(np.arange(num_cells), NUM_MOVES)
    weights = np.full(len(sources), 1 / NUM_MOVES)
    transition = csr_array((weights, (tables.next_cell.ravel(), sources)), shape=(num_cells, num_cells))
    shared = start.ndim == 1 and not first  # then where it is does not depend on the target
    mass = start if shared or start.ndim == 2 else np.repeat(start[:, None], len(targets), axis=1)
    at_target = targets if shared else (targets, np.arange(len(targets)))
    found = np.empty((num_steps, len(targets)))
    for step in range(num_steps):
        mass = transition @ mass
        found[step] = mass[at_target]
        if first:
            mass[at_target] = 0
    return found


@dataclass(frozen=True)
class Room:
    """Options of every family that is played in an empty room."""

    name: ClassVar[str]

    width: int = 10
    """Columns of the room."""
    height: int = 10
    """Rows of the room."""
    horizon: int = 100
    """Steps per episode."""
    start: Literal["corner", "centre", "random"] = "corner"
    """Where episodes begin: cell (0, 0), cell (height // 2, width // 2), or a cell drawn uniformly at each episode."""
    num_validation: int = 10
    """Tasks taken from the end of the training ones to choose checkpoints on."""

    def __post_init__(self):
        check_least(self.name, self, width=1, height=1, horizon=1, num_validation=0)
        if not 2 <= self.num_cells <= _LARGEST_ROOM:
            raise UserError(
                f"a room of {self.height}x{self.width} has {self.num_cells} cells: expected 2 to {_LARGEST_ROOM}"
            )

    @property
    def num_cells(self) -> int:
        return self.height * self.width

    @property
    def tables(self) -> RoomTables:
        return room_tables(self.height, self.width)

    @property
    def spec(self) -> FamilySpec:
        """Observations (row, column); five actions."""
        observation_space = MultiDiscrete([self.height, self.width], dtype=np.int16)
        return FamilySpec(self.name, observation_space, Discrete(NUM_MOVES), self.horizon)

    @property
    def start_cell(self) -> int | None:
        """The cell where episodes begin; None where it is drawn."""
        cells = {"corner": 0, "centre": self.height // 2 * self.width + self.width // 2, "random": None}
        return cells[self.start]

    @property
    def start_cells(self) -> Array:
        """Cells where an episode can begin, equally probable."""
        return np.arange(self.num_cells) if self.start_cell is None else np.array([self.start_cell])

    @property
    def start_probs(self) -> Array:
        """(S,) probability that an episode begins in each cell."""
        probs = np.zeros(self.num_cells)
        probs[self.start_cells] = 1 / len(self.start_cells)
        return probs

    def cell_of(self, position: Array) -> Array:
        """(..., 2) row and column -> (...) cell."""
        return position[..., 0].astype(np.intp) * self.width + position[..., 1]

    def images(self) -> list[Symmetry]:
        """The room as it is and in mirrors along its rows, its columns and, if it is square, its diagonal: 4 or 8."""
        return [self._image(*mirrors) for mirrors in product((0, 1), (0, 1), (0, 1)[: 1 + (self.height == self.width)])]

    def _image(self, rows: int, columns: int, diagonal: int) -> Symmetry:
        """Mirror rows and columns, then swap them."""
        flip, last = np.array([rows, columns], bool), np.array([self.height - 1, self.width - 1])
        along_rows = np.array([1, 0] if rows else [0, 1])
        along_columns = np.array([3, 2] if columns else [2, 3])
        moves = np.concatenate([along_rows, along_columns, [STAY]])
        if diagonal:
            moves = np.array([2, 3, 0, 1, STAY])[moves]

        def look(position: Array) -> Array:
            position = np.where(flip, last - position, position)
            return position[..., ::-1] if diagonal else position

        return Symmetry(look, moves)

    def cells_in_sweep_order(self) -> Array:
        """All cells, column by column, the one where episodes begin last: the order in which explorers break ties."""
        cells = np.arange(self.num_cells).reshape(self.height, self.width).T.ravel()
        return cells if self.start_cell is None else np.append(cells[cells != self.start_cell], self.start_cell)

    def check_positions(self, tasks: Tasks, field: str) -> None:
        """Raise UserError where a task's ``field`` (N, 2) lies outside the room."""
        if ((tasks[field] < 0) | (tasks[field] >= (self.height, self.width))).any():
            raise UserError(
                f"a {field} lies outside the room of {self.height}x{self.width} (rows x columns): correct the task"
            )


def partition(order: Array, num_validation: int, what: str) -> tuple[Array, Array, Array]:
    """The first four fifths of ``order`` for training, but for the last ``num_validation`` of them; the last fifth for tests.

    Raises UserError, naming ``what`` is ordered, where nothing is left to train on.
    """
    num_old = int(0.8 * len(order))
    if num_validation >= num_old:
        raise UserError(
            f"num_validation is {num_validation}: expected 0 to {num_old - 1}, since {num_old} {what} are not for tests; "
            "choose fewer or a larger room"
        )
    train, validation, test = np.split(order, [num_old - num_validation, num_old])
    return train, validation, test


class RoomVectorEnv(NativeVectorEnv):
    """All lanes of a room in one numpy operation per step; ``cell`` (B,) is where they are."""

    def __init__(self, family: Room, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self._tables, self._num_cells, self._start_cell = family.tables, family.num_cells, family.start_cell
        self._flat_next = self._tables.next_cell.ravel()
        self.cell = np.zeros(self.num_envs, np.intp)

    def _begin(self) -> None:
        if self._start_cell is None:
            self.cell = self.streams.integers(self._num_cells)
        else:
            self.cell = np.full(self.num_envs, self._start_cell, np.intp)

    def _observe(self) -> Array:
        return self._tables.coordinates.take(self.cell, axis=0)

    def _walk(self, moves: Array) -> None:
        self.cell = self._flat_next.take(self.cell * NUM_MOVES + moves)
