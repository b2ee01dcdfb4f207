"""A recipe as JSON and back: nested frozen dataclasses, every value checked against its field's annotation.

JSON knows no tuples: a list is read as a tuple where the field says so. Unknown keys, missing required keys and values of
another type are refused by name, so that a recipe file with a misspelt option can never run with the default instead.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from icrl.config import Recipe
from icrl.interfaces import UserError

T = TypeVar("T")


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Plain dictionaries, lists, numbers and texts."""
    return _plain(asdict(recipe))


def recipe_from_json(data: Any, where: str = "recipe") -> Recipe:
    """The recipe that ``recipe_to_json`` was given. UserError names the field that does not fit, its name starting with ``where``."""
    return dataclass_from_json(Recipe, data, where)


def dataclass_from_json(cls: type[T], data: Any, where: str) -> T:
    """An instance of dataclass ``cls`` from a dictionary of its fields; ``where`` starts the name in messages."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object with the fields of {cls.__name__}, got {_show(data)}")
    known = {field.name: field for field in fields(cls)}  # pyright: ignore[reportArgumentType]
    for key in data:
        if key not in known:
            raise UserError(f"{where}.{key}: unknown option; {cls.__name__} has {', '.join(known)}")
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}.{name}: missing, and it has no default")
    hints = get_type_hints(cls)
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def differing_fields(a: Any, b: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value in a, value in b) wherever two values made of dictionaries differ, names joined by dots."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in [*a, *(k for k in b if k not in a)]:
            found += differing_fields(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
        return found
    return [] if a == b else [(where, a, b)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _convert(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation ``kind`` wants it, or a UserError that names ``where``."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return dataclass_from_json(kind, value, where)  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in args):
            raise UserError(f"{where}: expected one of {', '.join(map(str, args))}, got {_show(value)}")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {_show(value)}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UserError(f"{where}: expected {plain.__name__}, got {_show(value)}")
    return value


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _convert(kind, value, where)
        except UserError:
            continue
    raise UserError(
        f"{where}: expected {' or '.join(getattr(k, '__name__', str(k)) for k in kinds)}, got {_show(value)}"
    )


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
