"""Recipes on the command line, with families and sources resolved to their own dataclasses.

In a recipe a family is a name and a dictionary. Here that dictionary becomes an instance of the family's own dataclass,
so that ``--family.options.width 5`` is typed, checked and documented like every other field; afterwards it becomes a
dictionary again, with the options that the recipe named or the user changed.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import tyro

from agents import source_class
from envs import family_class
from icrl.config import CollectConfig, EvaluateConfig, FamilyConfig, Recipe
from icrl.recipes import RECIPES
from icrl.registry import build
from scripts.options import field_docs, mirror, parse

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Named:
    """A family or source whose options are an instance of its own dataclass."""

    config: Any  # FamilyConfig or SourceConfig
    options: Any  # instance of the dataclass that its name stands for
    typed: type  # mirror of the config's class, with ``options`` typed

    @classmethod
    def resolve(cls, config: Any, flag: str, argv: list[str], find: Callable[[str], type]) -> _Named:
        name = _value_of(flag, argv) or config.name
        config = config if name == config.name else dataclasses.replace(config, name=name, options={})
        kind = find(name)
        return cls(config, _instance(kind, config.options, name), mirror(type(config), {"options": kind}))

    def default(self) -> Any:
        values = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        return self.typed(**{**values, "options": self.options})

    def plain(self, parsed: Any) -> Any:
        values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(self.config)}
        options = {
            f.name: self.config.options[f.name]
            if f.name in self.config.options and getattr(parsed.options, f.name) == getattr(self.options, f.name)
            else getattr(parsed.options, f.name)
            for f in dataclasses.fields(parsed.options)
            if f.name in self.config.options or getattr(parsed.options, f.name) != getattr(self.options, f.name)
        }
        return type(self.config)(**{**values, "options": options})


def _value_of(flag: str, argv: list[str]) -> str | None:
    """The value that ``argv`` gives to ``flag``, or None."""
    for i, word in enumerate(argv):
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _instance(kind: type, options: dict[str, Any], name: str) -> Any:
    """An instance of a dataclass of options; a required option that is missing is left for the command line."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    required = {
        key
        for key, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.init
    }
    if required <= set(options):
        return build("options of", name, kind, options)
    blank = object.__new__(kind)  # not initialised: a check in __post_init__ could not bear the missing values
    for key, f in fields.items():
        value = options.get(key, f.default if f.default is not dataclasses.MISSING else tyro.MISSING_NONPROP)
        object.__setattr__(blank, key, value)
    return blank


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The options of one evaluation; its own family is among them where it has one."""

    config: EvaluateConfig
    family: _Named | None
    omit: tuple[str, ...]
    typed: type

    @classmethod
    def resolve(
        cls,
        config: EvaluateConfig,
        prefix: str,
        argv: list[str],
        family: FamilyConfig | None = None,
        omit: tuple[str, ...] = (),
    ) -> EvaluationOptions:
        """``prefix`` starts its options' names; ``family`` stands in where ``config`` has none; ``omit`` fields stay as they are."""
        flag = f"--{prefix}family.name"
        name = _value_of(flag, argv)
        family = config.family or family or (None if name is None else FamilyConfig(name))
        if family is None:
            omit = (*omit, "family")
            return cls(config, None, omit, mirror(EvaluateConfig, {}, omit=omit))
        named = _Named.resolve(family, flag, argv, family_class)
        return cls(config, named, omit, mirror(EvaluateConfig, {"family": named.typed}, omit=omit))

    def default(self) -> Any:
        """An instance of ``typed`` with the values of the evaluation."""
        values = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.typed)}
        return self.typed(**{**values, **({"family": self.family.default()} if self.family else {})})

    def plain(self, parsed: Any) -> EvaluateConfig:
        """The evaluation that an instance of ``typed`` stands for."""
        family = {"family": self.family.plain(parsed.family)} if self.family else {}
        return dataclasses.replace(self.config, **{**_shallow(parsed), **family})


def parse_recipe(recipe: Recipe, extra: type[T], argv: list[str], *, prog: str, description: str) -> tuple[Recipe, T]:
    """Read overrides of ``recipe`` and the command's own options (a dataclass) from ``argv``.

    Returns the recipe with the overrides, and an instance of ``extra``. Raises UserError for anything unknown.
    """
    family = _Named.resolve(recipe.family, "--family.name", argv, family_class)
    sources = [
        _Named.resolve(source, f"--collect.sources.{i}.name", argv, source_class)
        for i, source in enumerate(recipe.collect.sources)
    ]
    evaluations = [
        EvaluationOptions.resolve(evaluation, f"evaluations.{i}.", argv)
        for i, evaluation in enumerate(recipe.evaluations)
    ]
    collect_type = mirror(CollectConfig, {"sources": _tuple_of(sources)}, omit=() if sources else ("sources",))
    types = {"family": family.typed, "collect": collect_type, "evaluations": _tuple_of(evaluations)}
    recipe_type = mirror(Recipe, types, omit=("name", "description", *(() if recipe.evaluations else ("evaluations",))))
    defaults = {
        "family": family.default(),
        "collect": _instance_of(collect_type, recipe.collect, sources=tuple(s.default() for s in sources)),
        "evaluations": tuple(e.default() for e in evaluations),
    }
    default = _instance_of(recipe_type, recipe, **defaults)
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("command", Annotated[extra, tyro.conf.arg(name="")], dataclasses.field(default_factory=extra)),
            ("recipe", Annotated[recipe_type, tyro.conf.arg(name="")], dataclasses.field(default=default)),
        ],
    )
    parsed: Any = parse(arguments, argv, prog=prog, description=description)
    found = _shallow(parsed.recipe)
    collect = _shallow(found["collect"])
    if sources:
        collect["sources"] = tuple(s.plain(p) for s, p in zip(sources, collect["sources"], strict=True))
    if evaluations:
        found["evaluations"] = tuple(e.plain(p) for e, p in zip(evaluations, found["evaluations"], strict=True))
    found |= {"family": family.plain(found["family"]), "collect": dataclasses.replace(recipe.collect, **collect)}
    return dataclasses.replace(recipe, **found), parsed.command


def _tuple_of(options: list[Any]) -> Any:
    """The type of a tuple whose entries have the options' types."""
    return tuple[tuple(o.typed for o in options)]  # pyright: ignore[reportInvalidTypeArguments]


def _instance_of(kind: type, like: Any, **values: Any) -> Any:
    """A mirror filled from the original, but for ``values``."""
    return kind(**{f.name: values.get(f.name, getattr(like, f.name)) for f in dataclasses.fields(kind)})


def _shallow(instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}


def recipe_help(argv: list[str], usage: str, description: str, extra: type) -> bool:
    """Print what a command that takes a recipe does, if help was asked for before any recipe was named."""
    if argv and argv[0] not in ("-h", "--help"):
        return False
    docs = field_docs(extra)
    width = max(len(f"--{name}") for name in docs)
    print(f"usage: {usage}\n\n{textwrap.fill(description, 100)}\n")
    for name, doc in docs.items():
        flag = "--" + name.replace("_", "-")
        print(textwrap.fill(doc, 100, initial_indent=f"  {flag:<{width}}  ", subsequent_indent=" " * (width + 4)))
    print("\nRecipes (or your own as module:function); `RECIPE --help` explains every option of one:")
    for name, function in RECIPES.items():
        print(f"  {name:<14} {(function.__doc__ or '').splitlines()[0]}")
    return True
