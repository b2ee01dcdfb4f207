"""Augmentation by the symmetries of a family: a history seen in a mirror is a history of the mirrored task.

Few training tasks are soon known by heart; turned and mirrored they are several times as many, without a step more of data. Only histories of
training tasks are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl.interfaces import Array, Family, Symmetry, UserError, map_observation

if TYPE_CHECKING:
    from icrl.data.sampling import Window

_SEEN, _ACTIONS = ("observation", "next_observation"), ("action", "target_action", "optimal_action")


def symmetries_of(family: Family) -> Sequence[Symmetry]:
    """The family's symmetries, the identity among them. Raises UserError where it tells none."""
    method = getattr(family, "symmetries", None)
    if method is None:
        raise UserError(
            f"objective.symmetries is on, but {family.spec.name} has none that keep held-out tasks apart (a method `symmetries`): turn it off"
        )
    return method()


def mirrored(window: Window, symmetries: Sequence[Symmetry], rng: np.random.Generator, alike: int = 1) -> Window:
    """Each of the B windows under a symmetry of its own, all equally probable, or ``alike`` of them in a row under one; padding stays zero."""
    drawn = np.repeat(rng.integers(len(symmetries), size=len(window.valid) // alike), alike)
    columns = {name: getattr(window, name) for name in (*_SEEN, *_ACTIONS) if getattr(window, name) is not None}
    retrieved = window.retrieved
    if retrieved is not None:
        names = {"observation": retrieved.observation, "action": retrieved.action}
        retrieved = retrieved._replace(**_mirrored(names, retrieved.valid, drawn, symmetries))
    return replace(window, retrieved=retrieved, **_mirrored(columns, window.valid, drawn, symmetries))


def _mirrored(columns: dict[str, Any], valid: Array, drawn: Array, symmetries: Sequence[Symmetry]) -> dict[str, Any]:
    """Columns (B, ...) of observations and actions, row b under symmetry number ``drawn`` (B,) where it is ``valid``."""
    columns = {name: map_observation(np.copy, column) for name, column in columns.items()}
    for number, symmetry in enumerate(symmetries):
        rows = (drawn == number).reshape(-1, *(1,) * (valid.ndim - 1)) & valid

        def look(array: Array, rows: Array = rows, symmetry: Symmetry = symmetry) -> None:
            array[rows] = symmetry.observation(array[rows])

        for name, column in columns.items():
            if name in _ACTIONS:
                column[rows] = symmetry.actions[column[rows]]
            else:
                map_observation(look, column)
    return columns
