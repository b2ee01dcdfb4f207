"""The page itself: blocks of text, tables and pictures, rendered into one self-contained HTML file.

Pictures travel inside the page as base64 and lie beside it as files. The folder is written aside and renamed, so that a
reader sees the old report or the new one, never half of one.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from icrl.interfaces import UserError

FILES_NOTE = re.compile(r'<meta name="icrl-report-files" content="([^"]*)">')
"""Where a page says which files lie beside it; anything else in its folder is somebody's work and is left alone."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says about learning in context: ``good`` is None where it says nothing."""

    label: str
    text: str
    good: bool | None
    kind: str = "verdict"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    strong_rows: frozenset[int] = frozenset()
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """An image of the page; ``name`` is its file name in the report folder."""

    name: str
    data: bytes
    alt: str
    caption: str = ""
    still: str = ""
    """File name of the picture that replaces it for readers who asked for no motion."""
    kind: str = "picture"

    @property
    def uri(self) -> str:
        """The image as a data address."""
        suffix = Path(self.name).suffix[1:]
        return f"data:image/{suffix};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    summary: str
    blocks: Sequence[Block]
    kind: str = "details"


Block: TypeAlias = Text | Verdict | Table | Picture | Details


@dataclass(frozen=True)
class Section:
    """A heading with blocks under it; ``anchor`` is its address in the page."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def pictures_of(blocks: Sequence[Block]) -> list[Picture]:
    """All pictures among the blocks, folded ones included."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Details):
            found += pictures_of(block.blocks)
    return found


def render(title: str, subtitle: str, lead: Sequence[Block], sections: Sequence[Section]) -> str:
    """The HTML text of the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [section for section in sections if section.blocks]
    pictures = {p.name: p.uri for s in shown for p in pictures_of(s.blocks)}
    return environment.get_template("template.html").render(
        title=title, subtitle=subtitle, lead=lead, sections=shown, pictures=pictures
    )


def check_output(out: Path) -> None:
    """Raise UserError where ``out`` is not a folder that a report may replace."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is not a folder, but the report is written as one: choose another --out")
    own = _own_files(out / "index.html")
    strangers = [p.name for p in out.iterdir() if p.name not in own or not p.is_file()] if out.exists() else []
    if strangers:
        raise UserError(
            f"{out} holds {strangers[0]}, which is no part of a report: choose an empty or new folder as --out"
        )


def _own_files(page: Path) -> set[str]:
    """The files of an earlier report; none where ``page`` is not the page of one."""
    note = FILES_NOTE.search(page.read_text(encoding="utf-8", errors="replace")) if page.is_file() else None
    return {page.name, *note.group(1).split()} if note else set()


def write(out: Path, html: str, sections: Sequence[Section]) -> Path:
    """Write the folder aside, then rename it into place. Returns the path of index.html."""
    check_output(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for section in sections:
            for picture in pictures_of(section.blocks):
                (aside / picture.name).write_bytes(picture.data)
        (aside / "index.html").write_text(html, encoding="utf-8")
        if out.exists():
            out.rename(old)
        aside.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)  # interrupted between the two: the earlier report stays
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return out / "index.html"
