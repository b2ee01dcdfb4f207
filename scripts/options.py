"""tyro with our manners: dataclasses as command lines, mistakes in one line, help texts from the text under each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import typing
from contextlib import redirect_stderr
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import tyro

from icrl.interfaces import UserError

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], *, prog: str, description: str, default: Any = None) -> T:
    """tyro.cli, with its mistakes turned into a one-line UserError. Help goes to stdout and exits with 0."""
    complaint = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with redirect_stderr(complaint):
            return tyro.cli(cls, args=argv, prog=prog, description=description, **extra)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{one_line(complaint.getvalue())}; see `{prog} --help`") from None


def one_line(box: str) -> str:
    """What one of tyro's framed messages says: its first paragraph, and the options that it proposes instead.

    Paragraphs are parted by rules; the frame's title comes first (in the frame itself where it is drawn with box characters).
    """
    paragraphs: list[list[str]] = [[]]
    for line in (raw.strip("│╭╮╰╯ ") for raw in box.splitlines()):
        if line.startswith("─") or line.startswith("--------"):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    message = " ".join(paragraphs[1]) if len(paragraphs) > 1 else " ".join(box.split())
    proposals = [line.split()[0] for part in paragraphs[2:] for line in part if line.startswith("--")]
    if message.startswith("Unrecognized") and proposals:
        return f"{message} (did you mean {' or '.join(proposals[:3])}?)"
    return message.rstrip(".")


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, its parents' included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):
            continue
        statements = getattr(body, "body", [])
        for before, after in pairwise(statements):
            if not (isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs


def mirror(cls: type, types: dict[str, Any], omit: tuple[str, ...] = ()) -> type:
    """A dataclass like ``cls`` without the fields in ``omit``, and with other types for those in ``types``."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    specs = []
    for item in (f for f in dataclasses.fields(cls) if f.name not in omit):
        kind = types.get(item.name, hints[item.name])
        if item.name not in types and item.name in docs:
            kind = Annotated[kind, tyro.conf.arg(help=docs[item.name])]
        specs.append((item.name, kind))
    made = dataclasses.make_dataclass(cls.__name__, specs, frozen=True)
    made.__doc__ = cls.__doc__
    return made
