"""Sources as agents of an evaluation: the baselines beside the agent, and those that leave the contexts of an offline one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import make_source, source_class
from agents.collect import drives_itself
from icrl.config import EvaluateConfig, Recipe, SourceConfig

if TYPE_CHECKING:
    from icrl.evaluation import AgentFactory
    from icrl.interfaces import ActionRule

CONTEXT_SOURCES = {"random": SourceConfig("uniform", scattered=True), "expert": SourceConfig("optimal")}
"""Who leaves the context, by ``EvaluateConfig.context``."""


def baseline_sources(recipe: Recipe, config: EvaluateConfig, run: Path | None = None) -> dict[str, SourceConfig]:
    """The baselines by the name of their row: "source" becomes the recipe's sources that are not there by name already.

    "rl2" is the policy in the folder ``run``. Those that ``left_out`` names are no agents and have no row.
    """
    rows = {name: SourceConfig(name) for name in config.baselines if name != "source"}
    if "rl2" in rows and run is not None:
        rows["rl2"] = SourceConfig("rl2", {"run": str(run)})
    if "source" in config.baselines:
        for source in recipe.collect.sources:
            if drives_itself(source):
                continue
            if not source.scattered and (source.options or source.name not in rows):
                name = " ".join(
                    ["source", source.name, *([source.options["source"]] if "source" in source.options else [])]
                )
                same = sum(row.startswith(name) for row in rows)
                rows[f"{name}{f' {same + 1}' if same else ''}"] = source
    return rows


def left_out(recipe: Recipe, config: EvaluateConfig) -> list[str]:
    """A line for each source of the recipe that "source" stands for and that cannot play beside the agent."""
    if "source" not in config.baselines:
        return []
    return [
        f"source {source.name} has no row: it trains a network of its own for a whole history and is no agent; see its returns with icrl inspect"
        for source in recipe.collect.sources
        if drives_itself(source)
    ]


def source_notes(rows: Mapping[str, SourceConfig]) -> dict[str, str]:
    """What trained sources say of their training (``note``), by the name of their row."""
    trained = {row: source for row, source in rows.items() if hasattr(source_class(source.name), "note")}
    return {row: make_source(source.name, **source.options).note for row, source in trained.items()}  # type: ignore[attr-defined]


def baseline_factory(source: SourceConfig, rule: ActionRule | None = None) -> AgentFactory:
    """A source as an agent; ``rule``, if given, is the action rule of one that has probabilities, its temperature where it is not 1."""
    fields = {f.name for f in dataclasses.fields(source_class(source.name))}  # pyright: ignore[reportArgumentType]
    told: dict[str, Any] = {} if rule is None else {"greedy": rule.greedy}
    if rule is not None and rule.temperature != 1:
        told["temperature"] = rule.temperature
    options = source.options | {name: value for name, value in told.items() if name in fields}
    return make_source(source.name, **options).make
