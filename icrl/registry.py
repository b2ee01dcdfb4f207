"""Finding a class by name and building it from options, checked before any work: families and sources alike.

A registry is a dictionary name -> "module:Class", loaded lazily, plus a Python entry-point group, so that a user's own package can
add names, plus "module:Class" itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal

from icrl.interfaces import Family, Source, UserError

PROTOCOLS = {"family": Family, "source": Source}
"""What a class of each kind must have."""


def known_names(builtin: dict[str, str], group: str) -> dict[str, str]:
    """All names -> "module:Class": the built-in ones and those of the entry-point ``group`` (built-in ones win)."""
    return {entry.name: entry.value for entry in entry_points(group=group)} | builtin


def nearest(name: str, names: Iterable[str]) -> str:
    """``did you mean ...`` or, where nothing is near, all the names."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"


def read_option(text: str, where: str) -> tuple[str, Any]:
    """ "width=5" -> ("width", 5): a value is read as JSON where it is some, else as text. Raises UserError, naming ``where``, without a "="."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{where} has {text!r}: expected name=value, like width=5")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def import_named(module_name: str, kind: str, name: str) -> types.ModuleType:
    """The module of a thing called ``name``. Raises UserError where there is none, or where it raises anything while it is imported."""
    try:
        return import_module(module_name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's module
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"cannot import {kind} '{name}' ({error}): check that its module is on the Python path"
            ) from None
        raise UserError(
            f"cannot import {kind} '{name}': {module_name} raised {type(error).__name__} at {_place(error)}: {error}; install what it needs, or "
            "repair it"
        ) from None


def _place(error: BaseException) -> str:
    """File and line of the user's code where an error arose."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '?').name}:{error.lineno}"
    frame = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")][-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def find_class(kind: str, name: str, builtin: dict[str, str], group: str) -> type:
    """The class called ``name``, or named as "module:Class". Raises UserError where there is none."""
    names = known_names(builtin, group)
    target = names.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not (module_name and class_name):
        raise UserError(f"unknown {kind} '{name}': {nearest(name, names)} (your own: module:Class)")
    module = import_named(module_name, kind, name)
    if not hasattr(module, class_name):
        raise UserError(f"module {module_name} has no class {class_name}: correct the name of the {kind}")
    found = getattr(module, class_name)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{kind} '{name}' is not a dataclass: give a frozen dataclass whose fields are its options")
    missing = sorted(
        member for member in vars(PROTOCOLS[kind]) if not (member.startswith("_") or hasattr(found, member))
    )
    if missing:
        raise UserError(
            f"'{name}' is no {kind}, it lacks {', '.join(missing)}: give it what icrl.interfaces.{PROTOCOLS[kind].__name__} has"
        )
    return found


def build(kind: str, name: str, cls: type, options: dict[str, Any]) -> Any:
    """``cls(**options)``. Raises UserError naming the option where one is unknown, missing or of the wrong type."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for key, value in options.items():
        if key not in fields:
            choices = ", ".join(fields) or "none"
            raise UserError(f"unknown option '{key}' of {kind} '{name}': its options are {choices}")
        if not _fits(value, hints[key]):
            raise UserError(
                f"option '{key}' of {kind} '{name}' is {value!r}: expected {_describe(hints[key])}, correct its value"
            )
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in options:
            raise UserError(f"{kind} '{name}' needs the option '{key}': give it")
    return cls(**options)


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` can be given where ``hint`` is written; hints other than simple ones accept anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    return True


def _describe(hint: Any) -> str:
    """A type hint in words."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))
