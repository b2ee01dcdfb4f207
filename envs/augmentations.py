"""Changes of a space that differ from task to task: permutations of what its elements mean, random projections of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from icrl.interfaces import Array, UserError
from icrl.seeding import generator


class Augmentation(Protocol):
    """One change; a task holds its value, an int64 array of ``shape``."""

    shape: tuple[int, ...]
    outcome: gym.Space
    """The space of what it makes of the elements of another."""

    def draw(self, rng: np.random.Generator) -> Array:
        """A value, all equally probable."""
        ...

    def check(self, name: str, values: Array) -> None:
        """Raises UserError where values (B, ...) are none of this augmentation."""
        ...

    def bound(self, values: Array) -> Callable[[Array], Array]:
        """The function of elements (B, ...) that the values (B, ...) of B lanes stand for."""
        ...


class Permutation:
    """Of the values of each coordinate of an index space, or of the coordinates of a vector.

    ``alike``: the coordinates of a vector must have the same bounds. Raises UserError for any other space.
    """

    def __init__(self, space: gym.Space, *, alike: bool = False):
        self.outcome: gym.Space = space
        if isinstance(space, Discrete):
            self._sizes, self._start = np.array([space.n]), np.array([space.start])
        elif isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
            self._sizes, self._start = space.nvec, space.start
        elif isinstance(space, Box) and len(space.shape) == 1:
            low, high = space.low.min(), space.high.max()
            self.outcome = Box(low, high, space.shape, space.dtype.type)
            if alike and self.outcome != space:
                raise UserError(
                    f"the coordinates of {space} cannot be permuted: expected the same bounds for all of them"
                )
            self._sizes, self._start = np.array(space.shape), None
        else:
            raise UserError(
                f"the space {space} cannot be permuted: expected Discrete, or MultiDiscrete or Box with one axis"
            )
        self.shape = (int(self._sizes.sum()),)
        self._first = np.cumsum(self._sizes) - self._sizes  # where each coordinate's block begins

    def _blocks(self, values: Array) -> list[Array]:
        """(B, S) -> the part (B, size) of each coordinate."""
        return np.split(values, self._first[1:], axis=1)

    def draw(self, rng: np.random.Generator) -> Array:
        return np.concatenate([rng.permutation(size) for size in self._sizes])

    def check(self, name: str, values: Array) -> None:
        for block in self._blocks(values):
            if (np.sort(block, axis=1) != np.arange(block.shape[1])).any():
                raise UserError(
                    f"a task's {name} does not hold each of 0 to {block.shape[1] - 1} once in its place: correct the task"
                )

    def inverse(self, values: Array) -> Array:
        """The values (B, S) that undo those given."""
        return np.concatenate([np.argsort(block, axis=1) for block in self._blocks(values)], axis=1)

    def bound(self, values: Array) -> Callable[[Array], Array]:
        """Index i becomes ``values[i]``; coordinate i of a vector becomes its coordinate ``values[i]``."""
        start = self._start
        if start is None:
            return lambda elements: np.take_along_axis(elements, values, axis=1)

        def permuted(elements: Array) -> Array:
            places = elements.reshape(len(elements), -1) + (self._first - start)
            return (np.take_along_axis(values, places, axis=1) + start).astype(elements.dtype).reshape(elements.shape)

        return permuted


class Projection:
    """A vector's product with a fixed random matrix of normal entries; the value is the matrix's seed.

    Raises UserError for a space without vectors.
    """

    shape: tuple[int, ...] = ()

    def __init__(self, space: gym.Space, size: int):
        if not (isinstance(space, Box) and len(space.shape) == 1):
            raise UserError(f"the space {space} cannot be projected: expected a Box with one axis, or permute it")
        self._size, self._num_inputs = size, space.shape[0]
        self.outcome: gym.Space = Box(-np.inf, np.inf, (size,), np.float32)

    def draw(self, rng: np.random.Generator) -> Array:
        return rng.integers(2**62, size=())

    def check(self, name: str, values: Array) -> None:
        if (values < 0).any():
            raise UserError(f"a task's {name} is {values.min()}: expected a seed of at least 0")

    def bound(self, values: Array) -> Callable[[Array], Array]:
        shape = self._size, self._num_inputs
        matrices = np.stack([generator(int(seed), "projection").normal(size=shape) for seed in values])  # (B, size, D)
        matrices = (matrices / np.sqrt(self._num_inputs)).astype(np.float32)
        return lambda elements: np.einsum("bkd,bd->bk", matrices, elements.astype(np.float32))
