"""Standard test functions of optimisation in two dimensions, to be minimised, over the unit square (collections: Surjanovic and Bingham 2013; Jamil and Yang 2013).

Every function keeps a usual domain, which the unit square is stretched to, with one exception: Easom's is [-10, 10]², since on its usual
[-100, 100]² a thousand points all miss its one narrow well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from icrl.interfaces import Array

Pair = tuple[float, float]


@dataclass(frozen=True)
class BenchmarkFunction:
    """A function on a rectangle with a known least value."""

    name: str
    formula: Callable[[Array, Array], Array]
    """(n,) and (n,) coordinates in the domain -> (n,) values."""
    low: Pair
    """The least coordinates of the domain."""
    high: Pair
    minimum: float
    minimiser: Pair
    """One of the points of the domain that have the least value."""

    def __call__(self, points: Array) -> Array:
        """Points (n, 2) of the unit square -> values (n,). Points somewhat outside it are as good: the formulas hold everywhere."""
        x, y = (np.asarray(self.low) + points * np.subtract(self.high, self.low)).T
        return self.formula(x, y)


def _ackley(x: Array, y: Array) -> Array:
    bowl = -20 * np.exp(-0.2 * np.sqrt((x**2 + y**2) / 2))
    return bowl - np.exp((np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y)) / 2) + 20 + np.e


def _beale(x: Array, y: Array) -> Array:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _bohachevsky(x: Array, y: Array) -> Array:
    return x**2 + 2 * y**2 - 0.3 * np.cos(3 * np.pi * x) - 0.4 * np.cos(4 * np.pi * y) + 0.7


def _branin(x: Array, y: Array) -> Array:
    valley = y - 5.1 / (4 * np.pi**2) * x**2 + 5 / np.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x) + 10


def _bukin_6(x: Array, y: Array) -> Array:
    return 100 * np.sqrt(np.abs(y - 0.01 * x**2)) + 0.01 * np.abs(x + 10)


def _cross_in_tray(x: Array, y: Array) -> Array:
    tray = np.exp(np.abs(100 - np.hypot(x, y) / np.pi))
    return -0.0001 * (np.abs(np.sin(x) * np.sin(y) * tray) + 1) ** 0.1


def _de_jong_5(x: Array, y: Array) -> Array:
    """Shekel's foxholes: 25 of them on a grid, each a little deeper than the next."""
    along = np.array([-32.0, -16, 0, 16, 32])
    hole_x, hole_y = np.tile(along, 5), np.repeat(along, 5)
    depth = np.arange(1, 26) + (x[:, None] - hole_x) ** 6 + (y[:, None] - hole_y) ** 6
    return 1 / (0.002 + (1 / depth).sum(axis=1))


def _drop_wave(x: Array, y: Array) -> Array:
    squared = x**2 + y**2
    return -(1 + np.cos(12 * np.sqrt(squared))) / (0.5 * squared + 2)


def _easom(x: Array, y: Array) -> Array:
    return -np.cos(x) * np.cos(y) * np.exp(-((x - np.pi) ** 2) - (y - np.pi) ** 2)


def _eggholder(x: Array, y: Array) -> Array:
    y = y + 47
    return -y * np.sin(np.sqrt(np.abs(x / 2 + y))) - x * np.sin(np.sqrt(np.abs(x - y)))


def _goldstein_price(x: Array, y: Array) -> Array:
    first = 1 + (x + y + 1) ** 2 * (19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2)
    return first * (30 + (2 * x - 3 * y) ** 2 * (18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2))


def _griewank(x: Array, y: Array) -> Array:
    return (x**2 + y**2) / 4000 - np.cos(x) * np.cos(y / np.sqrt(2)) + 1


def _himmelblau(x: Array, y: Array) -> Array:
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def _holder_table(x: Array, y: Array) -> Array:
    return -np.abs(np.sin(x) * np.cos(y) * np.exp(np.abs(1 - np.hypot(x, y) / np.pi)))


def _levy(x: Array, y: Array) -> Array:
    v, w = 1 + (x - 1) / 4, 1 + (y - 1) / 4
    middle = (v - 1) ** 2 * (1 + 10 * np.sin(np.pi * v + 1) ** 2)
    return np.sin(np.pi * v) ** 2 + middle + (w - 1) ** 2 * (1 + np.sin(2 * np.pi * w) ** 2)


def _levy_13(x: Array, y: Array) -> Array:
    middle = (x - 1) ** 2 * (1 + np.sin(3 * np.pi * y) ** 2)
    return np.sin(3 * np.pi * x) ** 2 + middle + (y - 1) ** 2 * (1 + np.sin(2 * np.pi * y) ** 2)


def _mccormick(x: Array, y: Array) -> Array:
    return np.sin(x + y) + (x - y) ** 2 - 1.5 * x + 2.5 * y + 1


def _michalewicz(x: Array, y: Array) -> Array:
    return -np.sin(x) * np.sin(x**2 / np.pi) ** 20 - np.sin(y) * np.sin(2 * y**2 / np.pi) ** 20


def _rastrigin(x: Array, y: Array) -> Array:
    return 20 + x**2 - 10 * np.cos(2 * np.pi * x) + y**2 - 10 * np.cos(2 * np.pi * y)


def _rosenbrock(x: Array, y: Array) -> Array:
    return 100 * (y - x**2) ** 2 + (x - 1) ** 2


def _schwefel(x: Array, y: Array) -> Array:
    return 2 * 418.982887272433799 - x * np.sin(np.sqrt(np.abs(x))) - y * np.sin(np.sqrt(np.abs(y)))


def _shubert(x: Array, y: Array) -> Array:
    def along(z: Array) -> Array:
        return sum((i * np.cos((i + 1) * z + i) for i in range(1, 6)), np.zeros_like(z))

    return along(x) * along(y)


def _six_hump_camel(x: Array, y: Array) -> Array:
    return (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2


def _styblinski_tang(x: Array, y: Array) -> Array:
    return (x**4 - 16 * x**2 + 5 * x + y**4 - 16 * y**2 + 5 * y) / 2


def _three_hump_camel(x: Array, y: Array) -> Array:
    return 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2


def _on_square(
    name: str, formula: Callable[[Array, Array], Array], half: float, minimum: float, minimiser: Pair
) -> BenchmarkFunction:
    return BenchmarkFunction(name, formula, (-half, -half), (half, half), minimum, minimiser)


FUNCTIONS: tuple[BenchmarkFunction, ...] = (
    BenchmarkFunction("branin", _branin, (-5, 0), (10, 15), 0.397887357729738, (np.pi, 2.275)),
    _on_square("beale", _beale, 4.5, 0.0, (3, 0.5)),
    _on_square("bohachevsky", _bohachevsky, 100, 0.0, (0, 0)),
    BenchmarkFunction("bukin_6", _bukin_6, (-15, -3), (-5, 3), 0.0, (-10, 1)),
    _on_square("de_jong_5", _de_jong_5, 65.536, 0.998003837794450, (-31.97833, -31.97833)),
    _on_square("drop_wave", _drop_wave, 5.12, -1.0, (0, 0)),
    _on_square("eggholder", _eggholder, 512, -959.640662720851, (512, 404.231805123817)),
    _on_square("goldstein_price", _goldstein_price, 2, 3.0, (0, -1)),
    _on_square("holder_table", _holder_table, 10, -19.2085025678868, (8.05502347605, 9.66459001857)),
    BenchmarkFunction("michalewicz", _michalewicz, (0, 0), (np.pi, np.pi), -1.80130341009855, (2.20290552, 1.57079633)),
    _on_square("shubert", _shubert, 10, -186.730908831024, (-1.42512843, -0.80032110)),
    BenchmarkFunction(
        "six_hump_camel", _six_hump_camel, (-3, -2), (3, 2), -1.03162845348988, (0.08984201, -0.71265640)
    ),
    _on_square("three_hump_camel", _three_hump_camel, 5, 0.0, (0, 0)),
    _on_square("ackley", _ackley, 32.768, 0.0, (0, 0)),
    _on_square("rastrigin", _rastrigin, 5.12, 0.0, (0, 0)),
    _on_square("rosenbrock", _rosenbrock, 2.048, 0.0, (1, 1)),
    _on_square("levy", _levy, 10, 0.0, (1, 1)),
    _on_square("levy_13", _levy_13, 10, 0.0, (1, 1)),
    _on_square("griewank", _griewank, 600, 0.0, (0, 0)),
    _on_square("schwefel", _schwefel, 500, 0.0, (420.968746359982, 420.968746359982)),
    _on_square("styblinski_tang", _styblinski_tang, 5, -78.3323314075428, (-2.903534028, -2.903534028)),
    _on_square("himmelblau", _himmelblau, 5, 0.0, (3, 2)),
    _on_square("easom", _easom, 10, -1.0, (np.pi, np.pi)),
    BenchmarkFunction("mccormick", _mccormick, (-1.5, -3), (4, 4), -1.91322295498104, (-0.54719755, -1.54719755)),
    _on_square("cross_in_tray", _cross_in_tray, 10, -2.06261187082274, (1.34940661, 1.34940661)),
)
"""In the order by which tasks number them: new ones go to the end."""
