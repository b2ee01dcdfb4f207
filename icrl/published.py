"""Results that other systems published, a file inside the package, for tables and overlays. Nothing here is ours.

``published.json`` says for every number where it comes from and how it was read (printed text, or a figure with its error).
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from icrl.interfaces import UserError


def load_published() -> dict[str, Any]:
    """The whole file: ``sources`` (key -> citation) and one section per protocol."""
    return json.loads(resources.files("icrl").joinpath("published.json").read_text(encoding="utf-8"))


def section(name: str) -> dict[str, Any]:
    """One protocol's numbers, e.g. ``darkroom_10x10_dpt_protocol``. Raises UserError for an unknown one."""
    published = load_published()
    names = sorted(set(published) - {"about", "sources"})
    if name not in names:
        raise UserError(f"published results {name!r}: no such section; choose one of {', '.join(names)}")
    return published[name]


def online_curves(name: str) -> dict[str, dict[int, float]]:
    """Method -> {episode from 1: mean return} of a protocol; empty where none was published."""
    curves = section(name).get("online_return_by_episode", {})
    return {method: {int(episode): value for episode, value in curve.items()} for method, curve in curves.items()}


def citation(name: str) -> str:
    """Who published the section's numbers, in a line."""
    return load_published()["sources"][section(name)["source"]]
