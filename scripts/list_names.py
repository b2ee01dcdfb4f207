"""``icrl list WHAT``: families, sources, objectives or recipes, each with a line of its docstring and its options."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator

from icrl.interfaces import UserError
from icrl.registry import nearest
from scripts.common import run_command, wants_help

USAGE = """\
usage: icrl list {families,sources,objectives,recipes}

  families     task families, with the options that --family.options.NAME sets
  sources      agents that leave histories or serve as baselines, with the options of --collect.sources.0.options.NAME
  objectives   what a policy can learn from histories (--objective.name)
  recipes      whole runs for icrl run, collect and train"""


def command(argv: list[str]) -> None:
    """Print the names of one kind."""
    kinds = {"families": families, "sources": sources, "objectives": objectives, "recipes": recipes}
    if wants_help(argv) or not argv:
        print(USAGE)
        return
    if len(argv) > 1:
        raise UserError(f"icrl list takes one word, got {' '.join(argv)}; known: {', '.join(kinds)}")
    if argv[0] not in kinds:
        raise UserError(f"icrl list {argv[0]}: {nearest(argv[0], kinds)}")
    print("\n".join(kinds[argv[0]]()))


def families() -> Iterator[str]:
    """Lines on every family."""
    from envs import family_class, family_names

    yield from _entries(family_names(), family_class)


def sources() -> Iterator[str]:
    """Lines on every source."""
    from agents import source_class, source_names

    yield from _entries(source_names(), source_class)


def objectives() -> Iterator[str]:
    """Lines on every objective."""
    from icrl.objectives import OBJECTIVES

    for name, cls in OBJECTIVES.items():
        yield from _line(name, sys.modules[cls.__module__].__doc__)


def recipes() -> Iterator[str]:
    """Lines on every recipe."""
    from icrl.recipes import RECIPES

    for name, function in RECIPES.items():
        yield from _line(name, function.__doc__)


def _line(name: str, doc: str | None) -> Iterator[str]:
    paragraph = " ".join((doc or "").strip().split("\n\n")[0].split())
    yield from textwrap.wrap(paragraph, 116, initial_indent=f"{name:<20} ", subsequent_indent=" " * 21) or [name]


def _entries(names: list[str], find: Callable[[str], type]) -> Iterator[str]:
    """Lines on each; what another package promises but cannot be imported hides nothing else."""
    for name in names:
        try:
            yield from _entry(name, find(name))
        except UserError as error:
            yield from _line(name, f"cannot be used: {error}")


def _entry(name: str, cls: type) -> Iterator[str]:
    from scripts.options import field_docs

    yield from _line(name, cls.__doc__)
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = "required" if default is dataclasses.MISSING else f"default {default!r}"
        head = f"    {field.name}: {_type_name(hints[field.name])}, {value}"
        yield from textwrap.wrap(f"{head}. {docs.get(field.name, '')}".rstrip(), 116, subsequent_indent=" " * 8)


def _type_name(kind: object) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
