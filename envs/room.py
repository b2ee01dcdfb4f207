"""Tables of an empty grid room: where moves lead, how far cells are apart, which move is optimal. Cells are numbered row by row.

Moves: 0 row+1, 1 row-1, 2 column+1, 3 column-1, 4 stay; a move into a wall stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from icrl.interfaces import Array

NUM_MOVES = 5
STAY = 4


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
