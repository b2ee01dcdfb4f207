"""Mazes without loops: rooms on odd rows and columns, joined by a spanning tree of random edges (Kruskal); all else is wall."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from icrl.interfaces import Array
from icrl.seeding import generator

MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
"""(4, 2) row and column of a step down, up, right, left."""
RAYS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
"""(8, 2) directions in which the lidar measures: as the moves, then the diagonals."""


@lru_cache(maxsize=1024)
def maze(seed: int, size: int) -> Array:
    """(size, size) bool, True where there is a wall; ``size`` is odd. Every two rooms are joined by exactly one way."""
    rooms = np.arange((size // 2) ** 2).reshape(size // 2, size // 2)
    start = np.concatenate([rooms[:, :-1].ravel(), rooms[:-1].ravel()])
    stop = np.concatenate([rooms[:, 1:].ravel(), rooms[1:].ravel()])
    weights = 1 + generator(seed, "maze", size).random(len(start))
    tree = minimum_spanning_tree(csr_array((weights, (start, stop)), shape=(rooms.size, rooms.size))).tocoo()
    walls = np.ones((size, size), bool)
    walls[1::2, 1::2] = False
    (row_a, column_a), (row_b, column_b) = (np.divmod(end, size // 2) for end in (tree.row, tree.col))
    walls[1 + row_a + row_b, 1 + column_a + column_b] = False  # the cell between the two rooms
    walls.flags.writeable = False
    return walls


def free_lengths(walls: Array) -> Array:
    """(size * size, 8) int16: number of free cells from each cell to the next wall, by ray; 0 in a wall."""
    lengths = np.zeros((len(RAYS), *walls.shape), np.int16)
    for ray, (down, right) in enumerate(RAYS):
        clear, ahead = ~walls, walls
        while clear.any():  # the outer walls end every ray
            ahead = np.roll(ahead, (-down, -right), (0, 1))
            clear = clear & ~ahead
            lengths[ray] += clear
    return lengths.reshape(len(RAYS), -1).T
