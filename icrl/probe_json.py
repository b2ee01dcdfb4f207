"""RUN/probe.json: what ``icrl probe`` writes and the report draws, read back with its shapes checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from icrl.interfaces import Array, UserError

FORMAT_VERSION = 2


class Told(NamedTuple):
    """How well a linear classifier tells a label from what is read from a policy; estimates as in evaluation.json."""

    features: str
    label: str
    accuracy: Mapping[str, Any]
    chance: Mapping[str, Any]
    above_chance: Mapping[str, Any]


class RouterChoices(NamedTuple):
    """Whom a router chose."""

    name: str
    shares: Array  # (E,) of the choices
    entropy: float  # nats
    idle: int  # experts that are hardly ever chosen


class Embedding(NamedTuple):
    """n lanes in the plane of the two principal components of what was read."""

    features: str
    families: tuple[str, ...]
    xy: Array  # (n, 2)
    family: Array  # (n,) number among families
    quadrant: Array  # (n,) of the goal, 0 to 3; -1 where there is none
    explained: Array  # (2,) share of the variance


class Conflict(NamedTuple):
    """Cosines between the gradients of M families."""

    families: tuple[str, ...]
    windows: int  # per family and half
    cosines: Array  # (M, M) first half of the row's family and second half of the column's
    within: float
    between: float | None  # None: there is one family
    negative: float | None


class Probe(NamedTuple):
    """All that is in the file."""

    episodes: int
    lanes: int
    tasks: int
    families: dict[str, str]  # short names, and what they stand for
    told: tuple[Told, ...]
    routers: tuple[RouterChoices, ...]
    mutual_information: dict[str, float]  # nats, by what it is of; empty without a task router
    embedding: Embedding
    conflict: Conflict | None  # None: the histories were gone


def probe_from_json(data: Mapping[str, Any], where: str, again: str) -> Probe:
    """Read the parsed file. Raises UserError that starts with ``where`` and ends with the advice ``again``."""
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{where}: format version {version!r}, expected {FORMAT_VERSION}: {again}")
    try:
        return Probe(
            episodes=int(data["episodes"]),
            lanes=int(data["lanes"]),
            tasks=int(data["tasks"]),
            families={str(name): str(text) for name, text in data["families"].items()},
            told=tuple(_told(row) for row in data["probes"]),
            routers=tuple(_router(data, name) for name in data["load"]),
            mutual_information={name: float(value) for name, value in data["mutual_information"].items()},
            embedding=_embedding(data["embedding"]),
            conflict=None if data["conflict"] is None else _conflict(data["conflict"]),
        )
    except KeyError as error:
        raise UserError(f"{where}: lacks {error.args[0]}: {again}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: is damaged ({error}): {again}") from None


def _told(row: Mapping[str, Any]) -> Told:
    estimates = {name: row[name] for name in ("accuracy", "chance", "above_chance")}
    for one in estimates.values():
        _numbers("an estimate", [one["mean"]], (1,))
        if one["fixed_tasks"] is not None:
            _numbers("an interval", one["fixed_tasks"], (2,))
        if one["over_tasks"] is not None:
            _numbers("an interval", one["over_tasks"], (2,))
    return Told(str(row["features"]), str(row["label"]), **estimates)


def _router(data: Mapping[str, Any], name: str) -> RouterChoices:
    shares = _numbers(f"load of {name}", data["load"][name], (len(data["load"][name]),))
    return RouterChoices(name, shares, float(data["entropy"][name]), int(data["idle"][name]))


def _embedding(data: Mapping[str, Any]) -> Embedding:
    families = tuple(map(str, data["families"]))
    points = _numbers("embedding's points", data["points"], (len(data["points"]), 4))
    family, quadrant = points[:, 2:].T.astype(int)
    if not (np.isin(family, range(len(families))).all() and np.isin(quadrant, range(-1, 4)).all()):
        raise ValueError("a point of the embedding is of no family or in no quadrant that there is")
    explained = _numbers("explained", data["explained"], (2,))
    return Embedding(str(data["features"]), families, points[:, :2], family, quadrant, explained)


def _conflict(data: Mapping[str, Any]) -> Conflict:
    families = tuple(map(str, data["families"]))
    cosines = _numbers("cosines", data["cosines"], (len(families), len(families)))
    between, negative = (None if data[name] is None else float(data[name]) for name in ("between", "negative"))
    return Conflict(families, int(data["windows"]), cosines, float(data["within"]), between, negative)


def _numbers(what: str, values: Any, shape: tuple[int, ...]) -> Array:
    """Finite numbers of that shape, none of its sides 0. ValueError for others."""
    array = np.asarray(values, np.float64)
    if array.shape != shape or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{what} should be finite numbers of shape {shape}, has {array.shape}")
    return array
