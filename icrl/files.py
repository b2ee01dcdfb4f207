"""Files that survive a crash: written aside, flushed to the disk, then renamed; and JSON read with one-line errors."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

from icrl.interfaces import UserError

DAMAGED_NPZ = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What reading arrays out of a file that is no .npz, or a damaged one, may raise."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): restore the file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged or not JSON: restore the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected a JSON object, got a {type(data).__name__}")
    return data


def replace_file(file: Path, content: bytes) -> None:
    """Atomically give ``file`` new content: a crash leaves the old or the new, both whole and on the disk."""
    aside = file.with_name(f".{file.name}.partial")
    write_file(aside, content)
    os.replace(aside, file)
    flush_folder(file.parent)


def json_bytes(data: dict[str, Any]) -> bytes:
    """What a JSON file of ours holds."""
    return (json.dumps(data, indent=1) + "\n").encode()


def write_file(file: Path, content: bytes) -> None:
    """Write and flush a new file. UserError where the disk is full."""
    try:
        with file.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}): free some space and run the command again"
        ) from None


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
